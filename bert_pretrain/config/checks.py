"""What the values of flags may be, as far as that can be told without opening a file."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from bert_pretrain.config.arguments import (
    AutoencoderArguments,
    ContrastiveArguments,
    DataArguments,
    HubArguments,
    ImageArguments,
    TextArguments,
)
from bert_pretrain.errors import InputError


def check_data(data: DataArguments) -> None:
    """Check the flags that name the data.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    values = dataclasses.asdict(data)
    _check_share(values, "validation_share", upper=0.5)
    for name in ("max_eval_rows", "dataloader_num_workers"):
        check_value(values, name, values[name] >= 0, "at least 0")
    if data.data_files and data.dataset_name:
        raise InputError(
            f"`data_files` and `dataset_name` {data.dataset_name!r} both name the data",
            advice="pass one",
        )


def check_text(text: TextArguments) -> None:
    """Check the text flags.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    values = dataclasses.asdict(text)
    _check_share(values, "mlm_probability", upper=1.0)
    check_value(values, "short_seq_prob", 0 <= values["short_seq_prob"] < 1, "in [0, 1)")
    for name in ("mask_replace_prob", "random_replace_prob"):
        check_value(values, name, 0 <= values[name] <= 1, "in [0, 1]")
    total = values["mask_replace_prob"] + values["random_replace_prob"]
    if total > 1 + 1e-9:
        raise InputError(
            f"mask_replace_prob + random_replace_prob is {total:g} but must be at most 1",
            advice="lower `mask_replace_prob` or `random_replace_prob`",
        )
    check_value(values, "max_seq_length", values["max_seq_length"] >= 8, "at least 8")
    check_value(
        values, "preprocessing_num_workers", values["preprocessing_num_workers"] >= 0, "at least 0"
    )


def check_images(*groups: ImageArguments | AutoencoderArguments | ContrastiveArguments) -> None:
    """Check the flags of images and of what is learnt from them.

    Args:
        groups: all three.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    values = {key: value for group in groups for key, value in dataclasses.asdict(group).items()}
    for name in ("image_size", "noise_std", "projection_dim"):
        check_value(values, name, values[name] >= 0, "at least 0")
    for name in ("margin", "temperature"):
        check_value(values, name, values[name] > 0, "greater than 0")
    check_value(values, "embedding_dim", values["embedding_dim"] >= 1, "at least 1")
    check_value(values, "mask_ratio", 0 <= values["mask_ratio"] < 1, "in [0, 1)")


def check_hub(hub: HubArguments) -> None:
    """Check the Hub flags.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    if hub.hub_model_id is not None:
        check_repo_id(hub.hub_model_id, parameter="hub_model_id")
    check_value(dataclasses.asdict(hub), "hub_max_wait", hub.hub_max_wait >= 0, "at least 0")
    check_license(hub.hub_license)
    if not hub.push_to_hub:
        # hub_license is for the model card, which is written without the Hub too.
        names = ("hub_model_id", "hub_private_repo", "hub_strategy", "hub_push_state")
        for name in names:
            if getattr(hub, name) != getattr(HubArguments, name):
                raise InputError(
                    f"`{name}` means nothing without `push_to_hub`",
                    advice=f"add that flag, or leave `{name}` out",
                )


def check_license(identifier: str | None) -> None:
    """Raise `InputError` unless a licence, if one is given, is named as the Hub names licences."""
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


def check_value(values: dict[str, Any], name: str, is_allowed: bool, allowed: str) -> None:
    """Refuse the value of one flag unless it is allowed.

    Args:
        values: of all flags, by name.
        name: of the flag.
        is_allowed: whether its value is.
        allowed: what is, in words that follow "must be".

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    if not is_allowed:
        raise InputError(
            f"{name} is {values[name]!r} but must be {allowed}", advice=f"change `{name}`"
        )


def _check_share(values: dict[str, Any], name: str, *, upper: float) -> None:
    value = values[name]
    if 0 < value < upper:
        return
    hint = (
        f"; for {value:g} % pass --{name} {value / 100:g}"
        if 1 < value < 100
        else f"; change --{name}"
    )
    raise InputError(f"{name} is {value:g} but must lie in (0, {upper:g}){hint}")
