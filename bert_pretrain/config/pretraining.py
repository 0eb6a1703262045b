"""The configuration of a pretraining run: its flags, the defaults of its recipe, and their validation.

Enters: the command line. Leaves: one `PretrainingConfig` of flat dataclasses; functions further
down take the values they need, never the configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    check_data,
    check_hub,
    check_images,
    check_repo_id,
    check_text,
    check_value,
)
from bert_pretrain.config.flags import parse_flags
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
        groups = (getattr(self, entry.name) for entry in dataclasses.fields(self))
        unused = _unused_groups(self.run.objective)
        return {
            k: v
            for group in groups
            if type(group) not in unused
            for k, v in dataclasses.asdict(group).items()
        }


GROUPS = (
    RunArguments,
    DataArguments,
    TextArguments,
    ImageArguments,
    ModelArguments,
    AutoencoderArguments,
    ContrastiveArguments,
    OptimizationArguments,
    HubArguments,
)
# Groups that only some objectives use; a flag of another is refused rather than ignored.
_OBJECTIVES_OF: dict[type, tuple[str, ...]] = {
    TextArguments: ("mlm_nsp", "mlm"),
    ImageArguments: ("autoencoder", "contrastive"),
    AutoencoderArguments: ("autoencoder",),
    ContrastiveArguments: ("contrastive",),
}


def parse_config(
    arguments: Sequence[str] | None = None, *, prog: str | None = None
) -> PretrainingConfig:
    """Parse and check the command line.

    Args:
        arguments: without the program's name; default `sys.argv[1:]`.
        prog: the name that `--help` shows.

    Raises:
        InputError: a value is out of range. (argparse itself exits with status 2 for an unknown
            flag.)
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    objective, recipe = _recipe_in(arguments)
    parser = HfArgumentParser(
        GROUPS,
        prog=prog,
        description="Pretrain an encoder on text or images; with no flag, BERT on the "
        "documentation inside your own "
        f"Python. Defaults shown are those of --objective {objective}.",
        allow_abbrev=False,
    )
    # Asking for a length replaces the recipe's, so that nobody gets both by accident.
    lengths = {"--max_steps", "--num_train_epochs", "--max_hours"}
    if lengths & given:
        recipe = {"max_steps": 0, "max_hours": 0.0} | {
            k: v for k, v in recipe.items() if f"--{k}" not in lengths
        }
    if "--data_files" in given:
        recipe = {key: value for key, value in recipe.items() if key != "dataset_name"}
    parser.set_defaults(**recipe)
    config = PretrainingConfig(*parse_flags(parser, arguments))
    _check_unused(given, config.run.objective)
    check_config(config)
    return config


def _recipe_in(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the objective that the command line names, and the defaults that its recipe sets."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", default="minutes")
    finder.add_argument("--objective", default="mlm_nsp")
    found = finder.parse_known_args(arguments)[0]
    if found.objective not in RECIPES:
        raise InputError(
            f"`objective` is {found.objective!r} but must be one of {', '.join(RECIPES)}"
        )
    recipes = RECIPES[found.objective]
    if found.recipe not in recipes:
        raise InputError(
            f"`recipe` is {found.recipe!r} but must be one of {', '.join(recipes)} for `objective` "
            f"{found.objective}"
        )
    return found.objective, recipes[found.recipe]


def _unused_groups(objective: str) -> set[type]:
    return {group for group, objectives in _OBJECTIVES_OF.items() if objective not in objectives}


def _check_unused(given: set[str], objective: str) -> None:
    for group in _unused_groups(objective):
        for entry in dataclasses.fields(group):
            spellings = {
                f"--{entry.name}",
                f"--no_{entry.name}",
                *entry.metadata.get("aliases", ()),
            }
            if given & spellings:
                raise InputError(
                    f"`{entry.name}` means nothing to `objective` {objective} (it is for "
                    f"{', '.join(_OBJECTIVES_OF[group])})",
                    advice="leave it out, or change `objective`",
                )


def check_config(config: PretrainingConfig) -> None:
    """Check every value that can be checked without opening a file.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    values = config.to_dict()
    for name, value in values.items():
        check_value(
            values, name, not isinstance(value, float) or math.isfinite(value), "a finite number"
        )
    check_data(config.data)
    check_text(config.text)
    check_images(config.images, config.autoencoder, config.contrastive)
    check_hub(config.hub)
    if config.hub.push_to_hub and config.hub.hub_model_id is None:
        check_repo_id(Path(config.run.output_dir).resolve().name, parameter="hub_model_id")
    for name in ("dropout", "adam_beta1", "adam_beta2"):
        check_value(values, name, 0 <= values[name] < 1, "in [0, 1)")
    check_value(values, "decay_share", 0 < values["decay_share"] <= 1, "in (0, 1]")
    for name in ("learning_rate", "adam_epsilon"):
        check_value(values, name, values[name] > 0, "greater than 0")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "logging_steps"):
        check_value(values, name, values[name] >= 1, "at least 1")
    non_negative = """
        seed eval_steps save_steps save_total_limit max_steps num_train_epochs max_hours global_batch_size
        gradient_accumulation_steps adamw_learning_rate weight_decay max_grad_norm warmup_steps num_cpu_threads
    """
    for name in non_negative.split():
        check_value(values, name, values[name] >= 0, "at least 0")
    if not (values["max_steps"] or values["num_train_epochs"] or values["max_hours"]):
        raise InputError(
            "the run has no length", advice="pass `max_steps`, `num_train_epochs` or `max_hours`"
        )
    if values["max_steps"] and values["num_train_epochs"]:
        raise InputError(
            f"`max_steps` {values['max_steps']} and `num_train_epochs` "
            f"{values['num_train_epochs']} both give the length",
            advice="pass one of them",
        )
    trackers = ("none", "tensorboard", "trackio", "wandb", "all")
    check_value(
        values, "report_to", values["report_to"] in trackers, "one of " + ", ".join(trackers)
    )
