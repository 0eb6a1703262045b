"""What every model that is loaded must stand: sizes that can be built, weights that are numbers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from bert_pretrain.errors import InputError, first_line

# The largest that make sense; without a bound a slip of the finger ends in a lack of memory.
_LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**12,
    "intermediate_size": 2**18,
    "num_channels": 2**10,
    "patch_size": 2**13,
}


def check_sizes(config: PreTrainedConfig, name: str, *, parameter: str) -> None:
    """Check the sizes in a configuration that was read.

    Args:
        config: of a text or image encoder; what it does not have is not checked.
        name: folder or Hub id, for messages.
        parameter: that gave the name.

    Raises:
        InputError: one is no whole number, or is out of its range.
    """
    for field, largest in _LARGEST.items():
        value = getattr(config, field, None)
        if value is None or isinstance(value, list | tuple):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
            raise InputError(
                f"the config.json of {name!r} has {field} {value!r}, which must be a whole number "
                f"in 1..{largest:,}",
                advice=f"repair it, or pass another `{parameter}`",
            )


def check_finite_weights(model: nn.Module, name: str, *, parameter: str) -> None:
    """Check the weights of a model that was loaded.

    Args:
        model: with its weights.
        name: folder or Hub id, for messages.
        parameter: that gave the name.

    Raises:
        InputError: some are NaN or infinite, as of a run that has diverged.
    """
    bad = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise InputError(
            f"{len(bad)} weights of {name!r} hold NaN or infinity, such as {bad[0]}",
            advice=f"pass `{parameter}` another model, such as an earlier checkpoint",
        )


def lacks_safetensors(error: Exception) -> bool:
    """Return whether transformers raised this for want of weights in safetensors files."""
    return isinstance(error, OSError) and "model.safetensors" in first_line(error)


def unread(name: str, error: Exception, *, parameter: str) -> InputError:
    """Return what to raise where transformers has not read the weights of a model.

    Args:
        name: folder or Hub id.
        error: that transformers raised.
        parameter: that gave the name.
    """
    reason, advice = first_line(error), f"pass `{parameter}` a complete checkpoint"
    if lacks_safetensors(error):
        reason = "none are in safetensors files; pickled ones (pytorch_model.bin) are not read"
        advice += (
            "; pickled ones of somebody you trust can be converted: load the model with "
            "transformers, save it with its method save_pretrained, and pass that folder"
        )
    return InputError(f"the weights of {name} cannot be read ({reason})", advice=advice)


def load_encoder(name: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, set[str]]:
    """Load an encoder without a head in float32, from a folder or the Hub.

    Returns:
        The encoder, and the keys of weights that it lacked: of a pooler that it has all the same.

    Raises:
        InputError: its weights cannot be read, are not all there, or hold NaN.
    """
    fields: dict[str, Any] = {}
    model_class = MODEL_MAPPING.get(type(config), None)
    if isinstance(model_class, type) and (
        "add_pooling_layer" in inspect.signature(model_class).parameters
    ):
        fields["add_pooling_layer"] = False  # it is not read, and may be untrained
    try:
        encoder, loading = AutoModel.from_pretrained(
            name,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **fields,
        )
    except Exception as error:  # transformers raises whatever its parsers meet
        raise unread(name, error, parameter="model") from error
    missing = {key for key in loading["missing_keys"] if "pooler" not in key}
    if missing:
        raise InputError(
            f"{name!r} lacks {len(missing)} weights of its encoder, such as {min(missing)}",
            advice="pass `model` a complete one",
        )
    check_finite_weights(encoder, name, parameter="model")
    return encoder, set(loading["missing_keys"])
