"""A slowly moving copy of an encoder and its head, with the embeddings that it made lately.

Small machines have few images at once; the queue gives each many others to be told apart from. All
of it is state of the model, in its parameters and buffers, so a checkpoint holds it.

Source: He et al. 2020 (MoCo), section 3.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.models.image_encoder import embed


class MomentumQueue(nn.Module):
    """Keys: embeddings of the images of the latest updates.

    Attributes:
        keys: float32 (N, D), the newest first.
        ids: int64 (N,), which image a key is of; -1 = there is none yet.
    """

    keys: Tensor
    ids: Tensor

    def __init__(
        self, encoder: PreTrainedModel, projection: nn.Module, *, size: int, width: int
    ) -> None:
        """Copy encoder and head, without gradient; the queue is empty.

        Args:
            encoder: as `embed` reads it.
            projection: of its embeddings.
            size: N, at least 1.
            width: D.
        """
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.projection = copy.deepcopy(projection).requires_grad_(False)
        self.register_buffer("keys", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size,), -1))
        self._latest: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the keys of normalised images (B, C, H, W), (B, D) of any length."""
        keys: Tensor = self.projection(embed(self.encoder, pixel_values))
        return keys

    def hold(self, keys: Tensor, ids: Tensor) -> None:
        """Remember the keys (B, D) of an update that is not made yet, and their images (B,)."""
        self._latest = keys.detach(), ids

    @torch.no_grad()
    def follow(self, encoder: PreTrainedModel, projection: nn.Module, *, momentum: float) -> None:
        """Move towards the trained encoder and head, and take in the keys that were held.

        Args:
            encoder: after the update.
            projection: after the update.
            momentum: share that is kept of each weight, in [0, 1).
        """
        for own, trained in ((self.encoder, encoder), (self.projection, projection)):
            weights = list(own.parameters())
            if weights:
                torch._foreach_lerp_(weights, list(trained.parameters()), 1 - momentum)
        assert self._latest is not None, "there was no update"
        keys, ids = self._latest
        self._latest = None
        self.keys.copy_(torch.cat([keys, self.keys])[: len(self.keys)])
        self.ids.copy_(torch.cat([ids, self.ids])[: len(self.ids)])

    def clear(self) -> None:
        """Forget all keys."""
        self.ids.fill_(-1)
