"""Which values of several flags go together; the range of each alone is declared with it."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from bert_pretrain.config.arguments import HubArguments, OptimizationArguments, TextArguments
from bert_pretrain.errors import InputError


def check_source(options: Any) -> None:
    """Raise `InputError` if `data_files` and `dataset_name` of some flags both name the data."""
    if options.data_files and options.dataset_name:
        raise InputError(
            f"`data_files` and `dataset_name` {options.dataset_name!r} both name the data",
            advice="pass one",
        )


def check_masking(text: TextArguments) -> None:
    """Raise `InputError` if more than all of the selected tokens would be replaced."""
    total = text.mask_replace_prob + text.random_replace_prob
    if total > 1 + 1e-9:
        raise InputError(
            f"`mask_replace_prob` + `random_replace_prob` is {total:g} but must be at most 1",
            advice="lower one of them (BERT: 0.8 and 0.1)",
        )


def check_length(optimization: OptimizationArguments) -> None:
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


def check_hub(hub: HubArguments) -> None:
    """Check the flags of the Hub.

    Raises:
        InputError: a name cannot be used, or a flag means nothing without `push_to_hub`.
    """
    if hub.hub_model_id is not None:
        check_repo_id(hub.hub_model_id, parameter="hub_model_id")
    check_license(hub.hub_license)
    if hub.push_to_hub:
        return
    # hub_license is for the model card, which is written without the Hub too.
    for name in ("hub_model_id", "hub_private_repo", "hub_strategy", "hub_push_state"):
        if getattr(hub, name) != getattr(HubArguments, name):
            raise InputError(
                f"`{name}` means nothing without `push_to_hub`",
                advice=f"add that flag, or leave `{name}` out",
            )


def check_license(identifier: str | None) -> None:
    """Raise `InputError` unless a licence, if one is given, has the form of the Hub's names."""
    if identifier is not None and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", identifier) is None:
        raise InputError(
            f"{identifier!r} is no identifier of a licence",
            advice="pass `hub_license` one such as apache-2.0, cc-by-4.0, other",
        )


def check_repo_id(repo_id: str, *, parameter: str) -> None:
    """Raise `InputError` unless the Hub allows a repository of that name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{repo_id!r} cannot be the name of a repository ({error})",
            advice=f"pass owner/name or name as `{parameter}`",
        ) from error
