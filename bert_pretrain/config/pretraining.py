"""The configuration of a pretraining run: all its flags, with the defaults of its recipe."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from transformers import HfArgumentParser

from bert_pretrain.config.arguments import (
    AutoencoderArguments,
    ContrastiveArguments,
    DataArguments,
    HubArguments,
    ImageArguments,
    ModelArguments,
    OptimizationArguments,
    RunArguments,
    TextArguments,
)
from bert_pretrain.config.checks import (
    check_hub,
    check_length,
    check_masking,
    check_repo_id,
    check_source,
)
from bert_pretrain.config.flags import AnyDataclass, parse_flags, pick
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
    autoencoder: AutoencoderArguments
    contrastive: ContrastiveArguments
    optimization: OptimizationArguments
    hub: HubArguments

    def to_dict(self) -> dict[str, Any]:
        """Return every flag of this objective by name; names are unique over the groups."""
        return {
            name: value
            for group in self._groups()
            if type(group) not in _unused_groups(self.run.objective)
            for name, value in dataclasses.asdict(group).items()
        }

    def values_of(self, target: type[AnyDataclass], **others: Any) -> AnyDataclass:
        """Fill a dataclass of another room with the flags that have the names of its fields.

        Args:
            target: the dataclass.
            others: fields that are no flags, or that differ from them.
        """
        return pick(target, *self._groups(), **others)

    def _groups(self) -> list[Any]:
        return [getattr(self, entry.name) for entry in dataclasses.fields(self)]


GROUPS = tuple(get_type_hints(PretrainingConfig).values())
# Groups that only some objectives use; a flag of another is refused rather than ignored.
_OBJECTIVES_OF: dict[type, tuple[str, ...]] = {
    TextArguments: ("mlm_nsp", "mlm"),
    ImageArguments: ("autoencoder", "contrastive"),
    AutoencoderArguments: ("autoencoder",),
    ContrastiveArguments: ("contrastive",),
}
_LENGTHS = {"max_steps": 0, "num_train_epochs": 0.0, "max_hours": 0.0}


def parse_config(
    arguments: Sequence[str] | None = None, *, prog: str | None = None
) -> PretrainingConfig:
    """Parse and check the command line.

    Args:
        arguments: without the program's name; default `sys.argv[1:]`.
        prog: the name that `--help` shows.

    Raises:
        InputError: a flag is unknown, or a value cannot be used. (For a value that is not of the
            flag's type or none of its choices, argparse itself exits with status 2.)
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = {
        argument[2:].split("=")[0].replace("-", "_")  # --max-steps is --max_steps
        for argument in arguments
        if argument.startswith("--")
    }
    objective, recipe = _recipe_in(arguments)
    # A length on the command line replaces all lengths of the recipe, so that nobody gets two by
    # accident; files replace its data set.
    if given & _LENGTHS.keys():
        recipe = recipe | _LENGTHS
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
    check_source(config.data)
    check_masking(config.text)
    check_length(config.optimization)
    check_hub(config.hub)
    if config.hub.push_to_hub and config.hub.hub_model_id is None:
        check_repo_id(Path(config.run.output_dir).resolve().name, parameter="hub_model_id")
    return config


def _recipe_in(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the objective that the command line names, and the defaults that its recipe sets."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", default="minutes")
    finder.add_argument("--objective", default="mlm_nsp")
    found = finder.parse_known_args(arguments)[0]
    if found.objective not in RECIPES:
        allowed = f"one of {', '.join(RECIPES)}"
        raise InputError.out_of_range("objective", found.objective, allowed)
    recipes = RECIPES[found.objective]
    if found.recipe not in recipes:
        allowed = f"one of {', '.join(recipes)} for `objective` {found.objective}"
        raise InputError.out_of_range("recipe", found.recipe, allowed)
    return found.objective, recipes[found.recipe]


def _unused_groups(objective: str) -> set[type]:
    return {group for group, objectives in _OBJECTIVES_OF.items() if objective not in objectives}


def _refuse_unused(given: set[str], objective: str) -> None:
    """Raise `InputError` for a flag on the command line that an objective does not use."""
    for group in _unused_groups(objective):
        for entry in dataclasses.fields(group):
            aliases = (alias.lstrip("-") for alias in entry.metadata.get("aliases", ()))
            if given & {entry.name, f"no_{entry.name}", *aliases}:
                raise InputError(
                    f"`{entry.name}` means nothing to `objective` {objective} (it is for "
                    f"{', '.join(_OBJECTIVES_OF[group])})",
                    advice="leave it out, or change `objective`",
                )
