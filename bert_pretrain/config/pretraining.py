"""The configuration of a pretraining run: parsed, checked, and compared when it is continued."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from transformers import HfArgumentParser

from bert_pretrain.config.arguments import (
    ContinuedModelArguments,
    DataArguments,
    HubArguments,
    ModelArguments,
    OptimizationArguments,
    RunArguments,
    TextArguments,
)
from bert_pretrain.config.flags import check_license, check_repo_id, check_source, parse_flags
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
    ContinuedModelArguments: ("mlm_nsp", "mlm"),
    ImageArguments: ("autoencoder", "contrastive"),
    AutoencoderArguments: ("autoencoder",),
    ContrastiveArguments: ("contrastive",),
    ViewArguments: ("contrastive",),
    LocalViewArguments: ("contrastive",),
}
_PAIRS = {"pair_mode", "same_document_partners"}  # flags that say how pairs are drawn
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
    _check_continued(config.continued, config.model)
    _check_length(config.optimization)
    _check_optimization(config.optimization, config.run)
    _check_schedules(config)
    _check_local_views(config.local_views)
    _check_checkpoints(config.run)
    _check_tracker(config.run.report_to)
    if config.run.objective == "contrastive":
        _check_contrast(config.optimization)
    _check_hub(config.hub)
    if config.hub.push_to_hub and config.hub.hub_model_id is None:
        check_repo_id(Path(config.run.output_dir).resolve().name, parameter="hub_model_id")
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


def check_text_rows(given: set[str], objective: str, text: TextArguments) -> None:
    """Check what says how text becomes rows, for training and for preparation.

    Args:
        given: names of the flags on the command line.
        objective: of the run.
        text: all flags of text.

    Raises:
        InputError: the flags cannot be used together.
    """
    if objective == "mlm" and (unused := sorted(given & _PAIRS)):
        raise InputError(
            f"`{unused[0]}` means nothing to `objective` mlm, whose rows are single segments",
            advice="leave it out, or change `objective` to mlm_nsp",
        )
    if text.same_document_partners and text.pair_mode != "exact":
        raise InputError(
            f"`same_document_partners` means nothing to `pair_mode` {text.pair_mode} (it is for "
            "exact)",
            advice="leave it out, or change `pair_mode`",
        )
    check_masking(text)


def given_flags(arguments: Sequence[str]) -> set[str]:
    """Return the names of the flags on a command line."""
    return {
        argument[2:].split("=")[0].replace("-", "_")  # --max-steps is --max_steps
        for argument in arguments
        if argument.startswith("--")
    }


def check_masking(text: TextArguments) -> None:
    """Raise `InputError` if more than all of the selected tokens would be replaced."""
    total = text.mask_replace_prob + text.random_replace_prob
    if total > 1 + 1e-9:
        raise InputError(
            f"`mask_replace_prob` + `random_replace_prob` is {total:g} but must be at most 1",
            advice="lower one of them (BERT: 0.8 and 0.1)",
        )


def _check_continued(continued: ContinuedModelArguments, model: ModelArguments) -> None:
    """Raise `InputError` if something of a model is to change that is to be made anew."""
    for entry in dataclasses.fields(continued):
        if model.model_name_or_path is None and getattr(continued, entry.name) != entry.default:
            raise InputError(
                f"`{entry.name}` means nothing without `model_name_or_path`: a new model fits its "
                "tokenizer and its configuration",
                advice="leave it out",
            )


def _check_length(optimization: OptimizationArguments) -> None:
    """Raise `InputError` unless the flags give a run one length."""
    max_steps, num_epochs = optimization.max_steps, optimization.num_train_epochs
    if not (max_steps or num_epochs or optimization.max_hours):
        raise InputError(
            "the run has no length", advice="pass `max_steps`, `num_train_epochs` or `max_hours`"
        )
    if max_steps and num_epochs:
        raise InputError(
            f"`max_steps` {max_steps} and `num_train_epochs` {num_epochs} both give the length",
            advice="pass one of them",
        )


def _check_optimization(optimization: OptimizationArguments, run: RunArguments) -> None:
    """Raise `InputError` for a flag that means nothing beside the others."""
    if optimization.decay_shape != "linear" and optimization.schedule != "stable_decay":
        raise InputError(
            f"`decay_shape` {optimization.decay_shape} means nothing to `schedule` "
            f"{optimization.schedule} (it is for stable_decay)",
            advice="leave it out, or change `schedule`",
        )
    if optimization.adamw_learning_rate and optimization.optimizer != "muon":
        raise InputError(
            f"`adamw_learning_rate` means nothing to `optimizer` {optimization.optimizer}, which "
            "trains everything",
            advice="pass `learning_rate`",
        )
    if optimization.export_ema and not optimization.ema_decay:
        raise InputError(
            "`export_ema` means nothing without `ema_decay`",
            advice="pass `ema_decay`, such as 0.999, or leave `export_ema` out",
        )
    if optimization.on_spike == "rewind" and not run.save_steps:
        raise InputError(
            "`on_spike` is rewind, which goes back to a checkpoint, but `save_steps` 0 saves none "
            "before the end",
            advice="pass the updates between checkpoints as `save_steps`",
        )
    if optimization.stop_at_loss and not run.eval_steps:
        raise InputError(
            "`stop_at_loss` means nothing with `eval_steps` 0, which evaluates at the end alone",
            advice="pass the updates between evaluations as `eval_steps`",
        )


def _check_checkpoints(run: RunArguments) -> None:
    """Raise `InputError` if checkpoints are to be kept that are not written, or are kept anyway."""
    if not run.keep_every:
        return
    if not run.save_total_limit:
        raise InputError(
            "`keep_every` means nothing with `save_total_limit` 0, which keeps all checkpoints",
            advice="leave it out, or raise `save_total_limit`",
        )
    if not run.save_steps or run.keep_every % run.save_steps:
        raise InputError.out_of_range(
            "keep_every", run.keep_every, f"a multiple of `save_steps` ({run.save_steps})"
        )


def _check_contrast(optimization: OptimizationArguments) -> None:
    """Raise `InputError` if an image would be compared with no other."""
    for name, others in (
        ("global_batch_size", "an update"),
        ("per_device_eval_batch_size", "a batch"),
    ):
        if getattr(optimization, name) == 1:
            raise InputError.out_of_range(
                name, 1, f"at least 2: an image is compared with the others of {others}"
            )


def _check_local_views(views: LocalViewArguments) -> None:
    """Raise `InputError` if something is said of local views of which there are none."""
    for name in ("local_view_size", "local_crop_area"):
        if not views.num_local_views and getattr(views, name):
            raise InputError(
                f"`{name}` means nothing with `num_local_views` 0",
                advice="pass the number of local views, such as `num_local_views` 4",
            )


def _check_tracker(name: str) -> None:
    """Raise `InputError` if a tracker is asked for that is not installed."""
    modules = {"tensorboard": ["tensorboard", "tensorboardX"]}.get(name, [name])
    if name not in ("none", "all") and not any(map(importlib.util.find_spec, modules)):
        raise InputError(
            f"`report_to` is {name}, which is not installed",
            advice=f"pip install {name}, or leave `report_to` out",
        )


def changing_flags(config: PretrainingConfig) -> list[str]:
    """Return the flags whose values change in the course of a run, between backquotes."""
    is_changing = {
        "max_seq_length": len(config.text.max_seq_length.numbers) > 1,
        "mlm_probability": config.text.mlm_probability.last is not None,
        "batch_size_ramp": config.optimization.batch_size_ramp is not None,
    }
    return [f"`{name}`" for name, changes in is_changing.items() if changes]


def _check_schedules(config: PretrainingConfig) -> None:
    """Raise `InputError` if something is to follow the course of a run that it cannot follow."""
    optimization = config.optimization
    ramp = optimization.batch_size_ramp
    changing = changing_flags(config)
    if changing and not (optimization.max_steps or optimization.num_train_epochs):
        raise InputError(
            f"{changing[0]} changes in the course of the run, but `max_hours` alone does not say "
            "how many updates that has",
            advice="pass `max_steps`, with `max_hours` or without, or `num_train_epochs`",
        )
    if ramp is None:
        return
    if config.run.objective == "contrastive":
        raise InputError(
            "`batch_size_ramp` means nothing to `objective` contrastive, whose loss compares the "
            "images of an update: their number decides what is learnt",
            advice="leave it out",
        )
    if optimization.num_train_epochs:
        raise InputError(
            "`batch_size_ramp` and `num_train_epochs` are given, but how many updates an epoch has "
            "changes with their rows",
            advice="pass `max_steps` in place of `num_train_epochs`",
        )


def _check_hub(hub: HubArguments) -> None:
    """Raise `InputError` if a name cannot be used, or a flag means nothing without the Hub."""
    if hub.hub_model_id is not None:
        check_repo_id(hub.hub_model_id, parameter="hub_model_id")
    check_license(hub.hub_license)
    # hub_license is for the model card, which is written without the Hub too.
    for name in (
        "hub_model_id",
        "hub_private_repo",
        "hub_strategy",
        "hub_push_state",
        "hub_max_wait",
    ):
        if not hub.push_to_hub and getattr(hub, name) != getattr(HubArguments, name):
            raise InputError(
                f"`{name}` means nothing without `push_to_hub`",
                advice=f"add that flag, or leave `{name}` out",
            )


def _names(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


# What a changed flag means to a run that is continued from a checkpoint. These must be as they
# were: the numbers before and after could not be compared, and the state of an optimizer fits no
# other one.
DEFINING = _names(
    "objective seed max_seq_length short_seq_prob pair_mode same_document_partners "
    "mlm_probability mask_replace_prob "
    "random_replace_prob masking dropout embedding_dim reconstruction_loss noise_std mask_ratio "
    "norm_pix_loss augmentation horizontal_flip loss margin distance normalize negatives reduction "
    "temperature projection_dim optimizer batch_size_ramp crop_area "
    "crop_aspect flip_prob rotation_prob rotation_degrees jitter_prob brightness contrast "
    "saturation hue grayscale_prob blur_prob blur_sigma inversion_prob num_local_views "
    "local_view_size local_crop_area"
)
# These may change, and the run says that from there on it is not the uninterrupted one: length and
# steering of the training, and the held-out rows.
NOTED = _names(
    "max_eval_rows max_steps num_train_epochs max_hours stop_at_loss learning_rate "
    "adamw_learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm schedule "
    "warmup_steps decay_share decay_shape ema_decay mixed_precision torch_compile skip_nonfinite "
    "on_spike"
)
# These may change without a word. Some change no number. For the others the run compares what they
# come to: the key of the prepared corpus or of the images (the same one may lie in another folder),
# the whole configuration of the model (its weights are the checkpoint's), the rows of an update,
# and, where held-out rows are compared with each other, the number of those.
FREE = _names(
    "recipe output_dir resume_from_checkpoint signal_grace stuck_timeout logging_steps eval_steps "
    "save_steps save_total_limit keep_every report_to debug profile preprocessing_num_workers "
    "dataloader_num_workers num_cpu_threads gradient_checkpointing export_ema push_to_hub "
    "hub_model_id hub_private_repo hub_strategy hub_push_state hub_max_wait hub_license "
    "dataset_name dataset_config_name dataset_split data_files validation_share "
    "validation_files validation_split text_column document_boundary newline tsv_quotes "
    "streaming language tokenizer_name image_column label_column image_size num_channels "
    "image_reading on_bad_image pixel_range config_name model_name_or_path force_tokenizer "
    "resize_vocab "
    "grow_positions global_batch_size per_device_train_batch_size per_device_eval_batch_size "
    "gradient_accumulation_steps"
)


def flags_to_compare(flags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags that define a run, and those whose change is noted.

    Args:
        flags: every flag of the run by name, see `PretrainingConfig.to_dict`.
    """
    return (
        {name: value for name, value in flags.items() if name in DEFINING},
        {name: value for name, value in flags.items() if name in NOTED},
    )
