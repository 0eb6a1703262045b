"""Which flags of pretraining make sense together; each flag's own range stands beside the flag."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from bert_pretrain.config.arguments import (
    ContinuedModelArguments,
    DataArguments,
    HubArguments,
    ModelArguments,
    OptimizationArguments,
    RunArguments,
    TextArguments,
)
from bert_pretrain.config.flags import check_license, check_repo_id
from bert_pretrain.config.image_arguments import LocalViewArguments
from bert_pretrain.errors import InputError

_PAIRS = {"pair_mode", "same_document_partners"}  # flags that say how pairs are drawn


def check_combinations(
    run: RunArguments,
    data: DataArguments,
    text: TextArguments,
    model: ModelArguments,
    continued: ContinuedModelArguments,
    local_views: LocalViewArguments,
    optimization: OptimizationArguments,
    hub: HubArguments,
) -> None:
    """Raise `InputError` for flags of a run that contradict each other or mean nothing."""
    _check_continued(continued, model)
    _check_length(optimization)
    _check_optimization(optimization, run)
    _check_schedules(run, text, optimization)
    _check_local_views(local_views)
    _check_checkpoints(run)
    _check_tracker(run.report_to)
    if run.objective in ("autoencoder", "contrastive") and data.max_eval_rows == 1:
        raise InputError.out_of_range(
            "max_eval_rows", 1, "0 (all) or at least 2: one image has no spread and no neighbour"
        )
    if run.objective == "contrastive":
        _check_contrast(optimization)
    _check_hub(hub)
    if hub.push_to_hub and hub.hub_model_id is None:
        check_repo_id(Path(run.output_dir).resolve().name, parameter="hub_model_id")


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


def check_masking(text: TextArguments) -> None:
    """Raise `InputError` if more than all of the selected tokens would be replaced."""
    total = text.mask_replace_prob + text.random_replace_prob
    if total > 1 + 1e-9:
        raise InputError(
            f"`mask_replace_prob` + `random_replace_prob` is {total:g} but must be at most 1",
            advice="lower one of them (BERT: 0.8 and 0.1)",
        )


def changing_flags(text: TextArguments, optimization: OptimizationArguments) -> list[str]:
    """Return the flags whose values change in the course of a run, between backquotes."""
    is_changing = {
        "max_seq_length": len(text.max_seq_length.numbers) > 1,
        "mlm_probability": text.mlm_probability.last is not None,
        "batch_size_ramp": optimization.batch_size_ramp is not None,
    }
    return [f"`{name}`" for name, changes in is_changing.items() if changes]


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


def _check_schedules(
    run: RunArguments, text: TextArguments, optimization: OptimizationArguments
) -> None:
    """Raise `InputError` if something is to follow the course of a run that it cannot follow."""
    ramp = optimization.batch_size_ramp
    changing = changing_flags(text, optimization)
    if changing and not (optimization.max_steps or optimization.num_train_epochs):
        raise InputError(
            f"{changing[0]} changes in the course of the run, but `max_hours` alone does not say "
            "how many updates that has",
            advice="pass `max_steps`, with `max_hours` or without, or `num_train_epochs`",
        )
    if ramp is None:
        return
    if run.objective == "contrastive":
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
