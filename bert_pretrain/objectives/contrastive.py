"""Contrastive learning of images: an image and its augmentation together, other images apart.

Each image is compared with the others of a forward pass, over all processes: loss and gradient are
those of the joint batch. The micro-batches of an accumulation window do not see each other, so
unlike for other objectives their number changes the curve.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.data.processes import count_rows, gather_rows, sum_over_processes
from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.data.stream import Batch
from bert_pretrain.evaluation.pictures import augmented_views
from bert_pretrain.images.augmentation import AugmentationRule
from bert_pretrain.images.collator import PixelScale, channels_last, unit_range
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.images.views import Augmentation
from bert_pretrain.losses.contrastive import (
    Negatives,
    Reduction,
    nt_xent_loss,
    reduction_factor,
    triplet_loss,
)
from bert_pretrain.losses.distances import Distance, normalize_rows
from bert_pretrain.models.image_heads import build_contrastive
from bert_pretrain.objectives.image_monitor import Pretext
from bert_pretrain.objectives.images import image_task, model_shape
from bert_pretrain.objectives.interface import LossTerm, Task

LossKind: TypeAlias = Literal["triplet", "nt_xent"]
Joint: TypeAlias = Callable[[Tensor], Tensor]  # brings together what the processes hold


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
    augmentation: Augmentation

    @abstractmethod
    def compare(
        self, e1: Tensor, e2: Tensor, batch: Batch, gather: Joint, sum_counts: Joint
    ) -> LossTerm:
        """Return the loss of this process's images, given projections of both views (B, D).

        `gather` returns the rows of all processes, with gradient, `sum_counts` the sum over them,
        without gradient.
        """

    def loss(self, model: nn.Module, batch: Batch) -> LossTerm:
        """Return the loss of a batch, a sum over its images.

        While training, all processes' rows are compared; held-out batches are complete as they are.
        """
        views = self.scale.normalize(torch.cat(self.views(batch)))
        e1, e2 = model(pixel_values=views).projections.float().chunk(2)
        if not model.training:
            return self.compare(e1, e2, batch, lambda rows: rows, lambda counts: counts)
        gather = partial(gather_rows, num_rows_per_rank=count_rows(e1))
        return self.compare(e1, e2, batch, gather, sum_over_processes)

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the loss compares, two float (B, C, H, W) in [0, 1]."""
        images = unit_range(batch["pixels"])
        first = self.augmentation.apply(images, batch["first_view"])
        return first, self.augmentation.apply(images, batch["second_view"])

    def second_pixel_values(self, batch: Batch) -> Tensor:
        """Return the normalised second views of a batch."""
        view = self.augmentation.apply(unit_range(batch["pixels"]), batch["second_view"])
        return self.scale.normalize(view)

    def draw_picture(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw images above their two views."""
        pictures = unit_range(batch["pixels"]), *self.views(batch)
        images, first, second = map(channels_last, pictures)
        augmented_views(images, first, second, folder / "views.png")


@dataclass(frozen=True)
class NTXent(TwoViews):
    """Find the other view of an image among views of others; see `nt_xent_loss`."""

    loss_kind = "nt_xent"
    temperature: float

    def compare(
        self, e1: Tensor, e2: Tensor, batch: Batch, gather: Joint, sum_counts: Joint
    ) -> LossTerm:
        """Return the loss of each image as the mean over its two views."""
        views = torch.stack([e1, e2], dim=1)
        total, num_correct = nt_xent_loss(
            views,
            gather(views),
            view_ids=batch["image_ids"],
            candidate_ids=gather(batch["image_ids"]),
            temperature=self.temperature,
        )
        return LossTerm(total / 2, metrics={"accuracy": num_correct / 2})


@dataclass(frozen=True)
class Triplet(TwoViews):
    """max(d(e1, e1') - d(e1, e2) + margin, 0): e1 of the image, e1' of its view, e2 of another.

    See `triplet_loss` and `reduction_factor`; `normalize` scales embeddings to length 1, as NT-Xent
    always does.
    """

    loss_kind = "triplet"
    margin: float
    distance: Distance
    normalize: bool
    negatives: Negatives
    reduction: Reduction

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images as they are, and their second views."""
        images = unit_range(batch["pixels"])
        return images, self.augmentation.apply(images, batch["second_view"])

    def compare(
        self, e1: Tensor, e2: Tensor, batch: Batch, gather: Joint, sum_counts: Joint
    ) -> LossTerm:
        """Return the loss of each image as the mean over its triplets."""
        if self.normalize:
            e1, e2 = normalize_rows(e1), normalize_rows(e2)
        terms = triplet_loss(
            e1,
            e2,
            gather(e1),
            anchor_ids=batch["image_ids"],
            candidate_ids=gather(batch["image_ids"]),
            margin=self.margin,
            distance=self.distance,
            negatives=self.negatives,
            offsets=batch["negative_offset"],
        )
        counts = [terms.num_terms, terms.num_active, torch.full_like(terms.num_terms, len(e1))]
        num_terms, num_active, num_images = sum_counts(torch.stack(counts))
        # From a sum over triplets to one over images, so that dividing by the number of images
        # gives the wanted mean.
        per_image = num_images / num_terms.clamp(min=1)
        factor = per_image * reduction_factor(
            self.reduction, num_terms=num_terms, num_active=num_active
        )
        metrics = {
            "active_share": terms.num_active * per_image,
            "positive_distance": terms.positive_distance * per_image,
            "negative_distance": terms.negative_distance * per_image,
        }
        return LossTerm(terms.sum * factor, metrics=metrics)

    def collapse_context(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return how triplets are formed, and the loss where it is a mean over all of them."""
        formed = {"negatives": self.negatives, "normalize": self.normalize}
        formed |= super().collapse_context(row)
        if self.reduction != "mean":  # a mean over positive triplets says nothing about the others
            return formed
        return formed | {
            "triplet_loss": row[f"{self.term}_loss"],
            "negative_distance": row[f"{self.term}_negative_distance"],
            "margin": self.margin,
        }


def contrastive_task(
    corpus: ImageCorpus,
    rule: AugmentationRule,
    *,
    loss: LossKind,
    triplet: dict[str, Any],
    temperature: float,
    seed: int,
    max_eval_rows: int,
    **model: Any,
) -> Task:
    """Return the task of telling images apart.

    `rule` says how views are made, `triplet` holds the fields of a `Triplet` that its loss reads,
    `temperature` is that of NT-Xent, and `model` what else `build_contrastive` takes. For `seed`
    and `max_eval_rows` see `image_task`.
    """
    shape = model_shape(corpus)
    scale = PixelScale(corpus.mean, corpus.std)
    augmentation = Augmentation(rule, **shape, seed=seed)
    pretext: TwoViews = NTXent(scale, augmentation, temperature)
    if loss == "triplet":
        pretext = Triplet(scale, augmentation, **triplet)
    return image_task(
        corpus,
        pretext,
        partial(build_contrastive, **shape, **model),
        partial(draw_views, augmentation=augmentation),
        seed=seed,
        max_eval_rows=max_eval_rows,
        second_views=pretext.second_pixel_values,
    )
