"""What contrastive losses for images share: views of each, compared with those of all of an update.

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
from bert_pretrain.images.local_views import FEWEST_PIXELS, LocalViews
from bert_pretrain.images.views import Augmentation
from bert_pretrain.objectives.contrastive_pictures import NUM_COMPARED
from bert_pretrain.objectives.image_monitor import Pretext
from bert_pretrain.objectives.interface import Coupling, LossTerm

Joint: TypeAlias = Callable[[Tensor], Tensor]  # brings together what the processes hold
# What a comparison reads of a batch beside the rows.
_NAMED = ("image_ids", "negative_offset", "local_negative_offsets")


def draw_views(
    images: NDArray[np.int64], epoch: int, *, augmentation: Augmentation, local: LocalViews | None
) -> dict[str, Tensor]:
    """Return parameters of all views, float32 (B, P), and `negative_offset` int64 (B,).

    With N local views also `local_negative_offsets` int64 (B, N).
    """
    seed = augmentation.seed
    drawn = {
        "first_view": augmentation.draw(epoch, images, 0),
        "second_view": augmentation.draw(epoch, images, 1),
        "negative_offset": _offsets(hash_uint64(seed, Purpose.NEGATIVE, epoch, images)),
    }
    if local is not None:
        numbers = np.arange(local.number)
        hashes = hash_uint64(seed, Purpose.NEGATIVE, epoch, images[:, None], numbers)
        drawn |= local.draw(epoch, images) | {"local_negative_offsets": _offsets(hashes)}
    return drawn


def _offsets(hashes: NDArray[np.uint64]) -> Tensor:
    """Return numbers in [0, 2^62), as the triplet loss takes them, int64."""
    return torch.from_numpy((hashes >> np.uint64(2)).astype(np.int64))


@dataclass(frozen=True)
class TwoViews(Pretext):
    """Compare two views of each image, made by `augmentation`, with views of other images.

    Beside these, the global views, stand the N `local` ones, if there are any.
    """

    term = "contrastive"
    num_drawn = NUM_COMPARED
    # Of the global views that `draw_views` draws those that are compared; one alone is compared
    # with the image as it is.
    view_names: ClassVar[tuple[str, ...]]
    augmentation: Augmentation
    local: LocalViews | None

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
            rows: projections of the views of each image, float32 (B, 2 + N, D), local ones last.
            batch: its columns `_NAMED`.
            gather: returns the rows of all processes, with gradient.
            sum_counts: returns the sum over processes, without gradient.
        """

    def settings_warnings(self) -> list[str]:
        """Return what is wrong with the settings, whatever will be learnt."""
        if self.local is None or min(self.local.size) >= FEWEST_PIXELS:
            return []
        height, width = self.local.size
        return [
            f"local views have {height} x {width} pixels, too few to show what an image is of, "
            "which draws it to what they cannot tell: encoders of digits learnt less with them, or "
            f"nothing; pass `local_view_size` {FEWEST_PIXELS} at least, or `num_local_views` 0"
        ]

    def compare_held_out(self, rows: Tensor, batch: Batch) -> LossTerm:
        """Return the loss of held-out images, compared with those of their batch."""
        return self.compare(rows, batch, lambda rows: rows, lambda counts: counts)

    def rows(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the projections of the views of each image, float32 (B, 2 + N, D)."""
        inputs = {"pixel_values": self.scale.normalize(torch.cat(self.views(batch)))}
        if self.local is not None:
            inputs["local_pixel_values"] = self.scale.normalize(self.local_views(batch))
        rows: Tensor = model(**inputs).projections.float()
        num_views = 2 if self.local is None else 2 + self.local.number
        return torch.stack(rows.chunk(num_views), dim=1)

    def joint_terms(self, rows: Tensor, batches: Sequence[Batch]) -> dict[str, LossTerm]:
        """Return the loss of this process's images, compared with those of all processes."""
        gather = partial(gather_rows, num_rows_per_rank=count_rows(rows))
        names = [name for name in _NAMED if name in batches[0]]
        joined = {name: torch.cat([batch[name] for batch in batches]) for name in names}
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

    def local_views(self, batch: Batch) -> Tensor:
        """Return the first local views of all images, then the second, float (N * B, C, h, w)."""
        assert self.local is not None
        sources = [view_source(batch, name) for name in self.local.names]
        parameters = torch.cat([batch[name] for name in self.local.names])
        return self.local.augmentation.apply(unit_range(torch.cat(sources)), parameters)

    def _view(self, batch: Batch, name: str) -> Tensor:
        return self.augmentation.apply(unit_range(view_source(batch, name)), batch[name])

    def second_pixel_values(self, batch: Batch) -> Tensor:
        """Return the normalised second views of a batch."""
        return self.scale.normalize(self._view(batch, "second_view"))
