"""Faster forms of what transformers computes, the same to within rounding.

Nothing of them is saved with a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LONGEST_EAGER_ROW = 256  # tokens


def prefers_written_out_attention(row_length: int) -> bool:
    """Return whether attention over rows of so many tokens is faster in plain matrix products.

    On a CPU the fused kernel is faster for long rows only.
    """
    return not torch.accelerator.is_available() and row_length <= LONGEST_EAGER_ROW


def choose_attention(model: PreTrainedModel, row_length: int) -> None:
    """Let a model write attention out where that is faster; the model is changed in place.

    Elsewhere it takes torch's fused kernel, and on a GPU never waits to learn whether there is
    padding.
    """
    if prefers_written_out_attention(row_length):
        model.set_attn_implementation("eager")
    elif torch.accelerator.is_available() and _masks_padding(model):
        model.set_attn_implementation(UNASKED_SDPA)


def _masks_padding(model: PreTrainedModel) -> bool:
    """Return whether a model has transformers make a mask of padding for torch's fused kernel."""
    is_of_text = isinstance(model.get_input_embeddings(), nn.Embedding)
    return is_of_text and model.config._attn_implementation == "sdpa"


def _mask_without_asking(*arguments: Any, **options: Any) -> Tensor | None:
    """Return what `sdpa_mask` does, which reads the padding to see whether a mask is needed."""
    options["allow_is_bidirectional_skip"] = False
    mask: Tensor | None = sdpa_mask(*arguments, **options)
    return mask


UNASKED_SDPA = "sdpa_unasked"
AttentionInterface.register(UNASKED_SDPA, sdpa_attention_forward)
AttentionMaskInterface.register(UNASKED_SDPA, _mask_without_asking)
