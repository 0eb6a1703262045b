"""What every model that is loaded must stand: sizes that can be built, weights that are numbers."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig

from bert_pretrain.errors import InputError

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
