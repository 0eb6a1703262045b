"""The configuration of a pretraining run: all flags, parsed and checked."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from transformers import HfArgumentParser

from bert_pretrain.config.arguments import (
    ContinuedModelArguments,
    DataArguments,
    HubArguments,
    ModelArguments,
    NewModelArguments,
    OptimizationArguments,
    RunArguments,
    TextArguments,
)
from bert_pretrain.config.combinations import check_combinations, check_text_rows
from bert_pretrain.config.flags import check_source, given_flags, parse_flags
from bert_pretrain.config.image_arguments import (
    AutoencoderArguments,
    ContrastiveArguments,
    ImageArguments,
    LocalViewArguments,
    ViewArguments,
)
from bert_pretrain.config.recipes import RECIPES
from bert_pretrain.errors import InputError


@dataclass(frozen=True)
class PretrainingConfig:
    """All flags of one run."""

    run: RunArguments
    data: DataArguments
    text: TextArguments
    images: ImageArguments
    model: ModelArguments
    new: NewModelArguments
    continued: ContinuedModelArguments
    autoencoder: AutoencoderArguments
    contrastive: ContrastiveArguments
    views: ViewArguments
    local_views: LocalViewArguments
    optimization: OptimizationArguments
    hub: HubArguments

    def to_dict(self) -> dict[str, Any]:
        """Return every flag of this objective by name; names are unique over the groups."""
        flags: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            group = getattr(self, entry.name)
            if self.run.objective in _OBJECTIVES_OF.get(type(group), RECIPES):
                flags |= dataclasses.asdict(group)
        return {name: getattr(value, "as_given", value) for name, value in flags.items()}


GROUPS = tuple(get_type_hints(PretrainingConfig).values())
# Groups that only some objectives use; a flag of another is refused rather than ignored.
_OBJECTIVES_OF: dict[type, tuple[str, ...]] = {
    TextArguments: ("mlm_nsp", "mlm"),
    NewModelArguments: ("mlm_nsp", "mlm"),
    ContinuedModelArguments: ("mlm_nsp", "mlm"),
    ImageArguments: ("autoencoder", "contrastive"),
    AutoencoderArguments: ("autoencoder",),
    ContrastiveArguments: ("contrastive",),
    ViewArguments: ("contrastive",),
    LocalViewArguments: ("contrastive",),
}
_LENGTHS = {"max_steps": 0, "num_train_epochs": 0.0, "max_hours": 0.0}


def parse_config(arguments: Sequence[str], *, prog: str | None = None) -> PretrainingConfig:
    """Parse and check the command line.

    Args:
        arguments: without the program's name.
        prog: the name that `--help` shows.

    Raises:
        InputError: a flag is unknown, or a value cannot be used.
    """
    given = given_flags(arguments)
    objective, recipe = _recipe_in(arguments)
    # A length on the command line replaces all lengths of the recipe, so that nobody gets two by
    # accident; files replace its data set.
    if given & _LENGTHS.keys():
        recipe = recipe | _LENGTHS
    # What is computed at once, when given, multiplies to the rows of an update, as transformers'
    # own flags do; left to the program it leaves them alone.
    if given & {"per_device_train_batch_size", "gradient_accumulation_steps"} and not (
        _is_auto(arguments)
    ):
        recipe = recipe | {"global_batch_size": 0}
    if "data_files" in given:
        recipe = recipe | {"dataset_name": None}
    parser = HfArgumentParser(
        GROUPS,
        prog=prog,
        description="Pretrain an encoder on text or images; with no flag, BERT on the "
        f"documentation inside your own Python. Defaults shown are those of --objective "
        f"{objective}.",
        allow_abbrev=False,
    )
    parser.set_defaults(**recipe)
    config = PretrainingConfig(*parse_flags(parser, arguments))
    _refuse_unused(given, config.run.objective)
    check_text_rows(given, config.run.objective, config.text)
    check_source(config.data)
    check_combinations(
        config.run,
        config.data,
        config.text,
        config.model,
        config.continued,
        config.local_views,
        config.optimization,
        config.hub,
    )
    return config


def _recipe_in(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the objective that the command line names, and the defaults that its recipe sets."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without a value they are the other parser's to refuse.
    finder.add_argument("--recipe", nargs="?", default="minutes", const="minutes")
    finder.add_argument("--objective", nargs="?", default="mlm_nsp", const="mlm_nsp")
    found = finder.parse_known_args(arguments)[0]
    if found.objective not in RECIPES:
        allowed = f"one of {', '.join(RECIPES)}"
        raise InputError.out_of_range("objective", found.objective, allowed)
    recipes = RECIPES[found.objective]
    if found.recipe not in recipes:
        allowed = f"one of {', '.join(recipes)} for `objective` {found.objective}"
        raise InputError.out_of_range("recipe", found.recipe, allowed)
    return found.objective, recipes[found.recipe]


def _is_auto(arguments: Sequence[str]) -> bool:
    """Return whether the command line leaves the rows of a forward pass to the program."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for spelling in ("--per_device_train_batch_size", "--per-device-train-batch-size"):
        finder.add_argument(spelling, nargs="?", dest="rows")
    return bool(finder.parse_known_args(arguments)[0].rows == "auto")


def _refuse_unused(given: set[str], objective: str) -> None:
    """Raise `InputError` for a flag on the command line that an objective does not use."""
    for group, objectives in _OBJECTIVES_OF.items():
        for entry in dataclasses.fields(group) if objective not in objectives else ():
            aliases = (alias.lstrip("-") for alias in entry.metadata.get("aliases", ()))
            if given & {entry.name, f"no_{entry.name}", *aliases}:
                raise InputError(
                    f"`{entry.name}` means nothing to `objective` {objective} (it is for "
                    f"{', '.join(objectives)})",
                    advice="leave it out, or change `objective`",
                )
