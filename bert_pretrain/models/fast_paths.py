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
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN

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


class GlobalResponseNorm(ConvNextV2GRN):  # type: ignore[misc]  # transformers is untyped here
    """ConvNextV2's response normalisation with one pass over a map of low precision.

    x * (1 + w n) + b is x * n * w + b + x; its factor is one number per image and channel, computed
    in float32. Under autocast the parent makes the whole map, and everything after it, float32: a
    ConvNextV2's step took 1.5 to 1.9 times as long in bfloat16 on a processor.

    Source: Woo et al. 2023, section 3.2.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise float (B, H, W, D), D last."""
        dtype = hidden_states.dtype
        if dtype is torch.float32:  # to the last bit
            exact: Tensor = super().forward(hidden_states)
            return exact
        norms = torch.linalg.vector_norm(
            hidden_states, dim=(1, 2), keepdim=True, dtype=torch.promote_types(dtype, torch.float32)
        )
        relative = norms / (norms.mean(dim=-1, keepdim=True) + 1e-6)
        factor = 1 + self.weight * relative  # (B, 1, 1, D)
        return torch.addcmul(self.bias.to(dtype), hidden_states, factor.to(dtype))


def use_fast_response_norm(model: nn.Module) -> None:
    """Replace all response normalisations of a model, keeping parameters and their names."""
    for name, module in list(model.named_modules()):
        if type(module) is ConvNextV2GRN:
            fast = GlobalResponseNorm(module.weight.shape[-1])
            fast.weight, fast.bias = module.weight, module.bias
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, fast.train(module.training))
