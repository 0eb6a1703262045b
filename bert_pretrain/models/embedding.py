"""From the states of an encoder to one vector a row, and the one loop that embeds many rows.

Batches enter, already on the device; embeddings float32 (N, D) leave. Monitors of a run, the suites
of evaluation and the command `embed` all compute here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

Pooling: TypeAlias = Literal["mean", "cls"]
Inputs = TypeVar("Inputs")


@torch.no_grad()
def embed_batches(forward: Callable[[Inputs], Tensor], batches: Iterable[Inputs]) -> Tensor:
    """Return the embeddings of all rows of some batches, in their order, float32 (N, D).

    Args:
        forward: of a model in evaluation mode; maps a batch to embeddings (B, D), of any float
            dtype.
        batches: at least one; asked for one after the other, so that they can be made on the way.
    """
    return torch.cat([forward(batch).float() for batch in batches])


def pool(states: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector for each row of tokens, float32 (B, D).

    Args:
        states: float (B, L, D), of the last layer.
        attention_mask: int64 or bool (B, L), 1 = real; rows begin with at least one such token.
        pooling: `mean` over the real tokens, special ones included; or the first one, which is
            [CLS] in a BERT (`cls`).

    Source: Reimers and Gurevych 2019 (Sentence-BERT), section 3.
    """
    if pooling == "cls":
        return states[:, 0].float()
    is_real = attention_mask.bool()
    # Filled, not multiplied: what a model makes of padding may not be finite.
    kept = states.float().masked_fill(~is_real[..., None], 0.0)
    return kept.sum(dim=1) / is_real.sum(dim=1, keepdim=True)


def weights_digest(model: nn.Module, *, without: Collection[str] = ()) -> str:
    """Return the SHA-256 of a model's weights and buffers by name, but for some keys."""
    return tensors_digest(model.state_dict(), without=without)


def tensors_digest(tensors: Mapping[str, Tensor], *, without: Collection[str] = ()) -> str:
    """Return the SHA-256 of tensors by name, but for some keys."""
    sha256 = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        if key not in without:
            sha256.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            # As bytes, which NumPy takes of every dtype, bfloat16 too.
            sha256.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            )
    return sha256.hexdigest()
