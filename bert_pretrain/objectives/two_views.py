"""What contrastive losses for images share: two views of each, compared with all of an update.

Each image is compared with all others of an update, on whatever process and in whatever micro-batch
they are: loss and gradient are those of the joint batch (see `Coupling` and training/joint_loss).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bert_pretrain.data.processes import count_rows, gather_rows, sum_over_processes
from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.data.stream import Batch
from bert_pretrain.images.collator import unit_range, view_source
from bert_pretrain.images.views import Augmentation
from bert_pretrain.objectives.contrastive_pictures import NUM_COMPARED
from bert_pretrain.objectives.image_monitor import Pretext
from bert_pretrain.objectives.interface import Coupling, LossTerm

Joint: TypeAlias = Callable[[Tensor], Tensor]  # brings together what the processes hold
# What a comparison reads of a batch beside the rows.
_NAMED = ("image_ids", "negative_offset")


def draw_views(
    images: NDArray[np.int64], epoch: int, *, augmentation: Augmentation
) -> dict[str, Tensor]:
    """Return both views' parameters float32 (B, P), and `negative_offset` int64 (B,)."""
    hashes = hash_uint64(augmentation.seed, Purpose.NEGATIVE, epoch, images)
    return {
        "first_view": augmentation.draw(epoch, images, 0),
        "second_view": augmentation.draw(epoch, images, 1),
        # In [0, 2^62), as the triplet loss takes them.
        "negative_offset": torch.from_numpy((hashes >> np.uint64(2)).astype(np.int64)),
    }


@dataclass(frozen=True)
class TwoViews(Pretext):
    """Compare two views of each image, made by `augmentation`, with views of other images."""

    term = "contrastive"
    num_drawn = NUM_COMPARED
    # Of the views that `draw_views` draws those that are compared; one alone is compared with the
    # image as it is.
    view_names: ClassVar[tuple[str, ...]]
    augmentation: Augmentation

    @property
    def coupling(self) -> Coupling:
        """This task itself."""
        return self

    @property
    @abstractmethod
    def chance_loss(self) -> float:
        """The loss where all embeddings are equal."""

    @abstractmethod
    def compare(self, rows: Tensor, batch: Batch, gather: Joint, sum_counts: Joint) -> LossTerm:
        """Return the loss of this process's images.

        Args:
            rows: projections of both views of each image, float32 (B, 2, D).
            batch: its columns `_NAMED`.
            gather: returns the rows of all processes, with gradient.
            sum_counts: returns the sum over processes, without gradient.
        """

    def compare_held_out(self, rows: Tensor, batch: Batch) -> LossTerm:
        """Return the loss of held-out images, compared with those of their batch."""
        return self.compare(rows, batch, lambda rows: rows, lambda counts: counts)

    def rows(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the projections of both views of each image, float32 (B, 2, D)."""
        views = self.scale.normalize(torch.cat(self.views(batch)))
        return torch.stack(model(pixel_values=views).projections.float().chunk(2), dim=1)

    def joint_terms(self, rows: Tensor, batches: Sequence[Batch]) -> dict[str, LossTerm]:
        """Return the loss of this process's images, compared with those of all processes."""
        gather = partial(gather_rows, num_rows_per_rank=count_rows(rows))
        joined = {name: torch.cat([batch[name] for batch in batches]) for name in _NAMED}
        return {self.term: self.compare(rows, joined, gather, sum_over_processes)}

    def loss(self, model: nn.Module, batch: Batch) -> LossTerm:
        """Return the loss of a batch, a sum over its images.

        While training, all processes' rows are compared; held-out batches are complete as they are.
        """
        rows = self.rows(model, batch)
        if model.training:
            return self.joint_terms(rows, [batch])[self.term]
        return self.compare_held_out(rows, batch)

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the loss compares, two float (B, C, H, W) in [0, 1]."""
        return self._view(batch, "first_view"), self._view(batch, "second_view")

    def _view(self, batch: Batch, name: str) -> Tensor:
        return self.augmentation.apply(unit_range(view_source(batch, name)), batch[name])

    def second_pixel_values(self, batch: Batch) -> Tensor:
        """Return the normalised second views of a batch."""
        return self.scale.normalize(self._view(batch, "second_view"))
