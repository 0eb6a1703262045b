"""Contrastive learning of images: an image and its augmentation together, other images apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bert_pretrain.data.stream import Batch
from bert_pretrain.images.augmentation import AugmentationRule
from bert_pretrain.images.collator import PixelScale, unit_range
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.images.local_views import LOCAL_CROP_AREA, local_view_size, make_local_views
from bert_pretrain.images.views import Augmentation
from bert_pretrain.losses.contrastive import (
    Negatives,
    Reduction,
    local_nt_xent_loss,
    nt_xent_loss,
    reduction_factor,
    triplet_loss,
)
from bert_pretrain.losses.distances import (
    Distance,
    largest_distance,
    normalize_rows,
    unrelated_distance,
)
from bert_pretrain.models.image_heads import build_contrastive
from bert_pretrain.objectives.contrastive_pictures import draw_pairs, show_triplets
from bert_pretrain.objectives.images import image_task, model_shape
from bert_pretrain.objectives.interface import LossTerm, Task
from bert_pretrain.objectives.two_views import Joint, TwoViews, draw_views

LossKind: TypeAlias = Literal["triplet", "nt_xent"]


@dataclass(frozen=True)
class NTXent(TwoViews):
    """Find the other view of an image among views of others; see `nt_xent_loss`."""

    loss_kind = "nt_xent"
    view_names = ("first_view", "second_view")
    temperature: float
    num_images: int  # of an update

    @property
    def num_negatives(self) -> int:
        """Views of other images, of an update of different ones."""
        return 2 * (self.num_images - 1)

    @property
    def chance_loss(self) -> float:
        """log(1 + number of negatives)."""
        return math.log(1 + self.num_negatives)

    def compare(self, rows: Tensor, batch: Batch, gather: Joint, sum_counts: Joint) -> LossTerm:
        """Return the loss of each image as the mean over its 2 + 2 N pairs of views.

        Where an update has an image twice, as at the end of an epoch or with fewer images than its
        rows, an anchor has fewer negatives than `num_negatives`; they weigh as if there were these.
        """
        candidates = gather(rows[:, :2])
        return self._term(rows, candidates, batch["image_ids"], gather(batch["image_ids"]))

    def compare_held_out(self, rows: Tensor, batch: Batch) -> LossTerm:
        """Return the loss against the views of a batch, which weigh as an update's do.

        The accuracy is that of finding the other view in the batch; chance is beside it.
        """
        ids = batch["image_ids"]
        return self._term(rows, rows[:, :2], ids, ids)

    def _term(
        self, rows: Tensor, candidates: Tensor, ids: Tensor, candidate_ids: Tensor
    ) -> LossTerm:
        compared: dict[str, Any] = {
            "view_ids": ids,
            "candidate_ids": candidate_ids,
            "temperature": self.temperature,
            "num_negatives": self.num_negatives,
        }
        views, local_views = rows[:, :2], rows[:, 2:]
        total, num_correct = nt_xent_loss(views, candidates, **compared)
        num_candidates = 1 + 2 * (ids[:, None] != candidate_ids).sum(dim=1)
        metrics = {"accuracy": num_correct / 2, "chance_accuracy": (1 / num_candidates).sum()}
        if self.local is None:
            return LossTerm(total / 2, metrics=metrics)
        of_local, num_found = local_nt_xent_loss(local_views, views, candidates, **compared)
        num_pairs = 2 * self.local.number
        metrics |= {"global_loss": total.detach() / 2, "local_accuracy": num_found / num_pairs}
        return LossTerm((total + of_local) / (2 + num_pairs), metrics=metrics)

    def draw_picture(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw images above their two views, and how similar the model finds them."""
        e1, e2 = self.rows(model, batch)[:, :2].unbind(dim=1)
        images = (unit_range(batch["pixels"]), *self.views(batch))
        draw_pairs(images, e1, e2, batch["image_ids"], folder / "views.png")

    def collapse_context(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the loss and the accuracy with what they are by chance."""
        return super().collapse_context(row) | {
            "contrastive_loss": row[f"{self.term}_loss"],
            "chance_loss": self.chance_loss,
            "accuracy": row[f"{self.term}_accuracy"],
            "chance_accuracy": row[f"{self.term}_chance_accuracy"],
        }


@dataclass(frozen=True)
class Triplet(TwoViews):
    """max(d(e1, e1') - d(e1, e2) + margin, 0): e1 of the image, e1' of its view, e2 of another.

    Each local view is an e1' as well, with an e2 of its own: 1 + N triplets an image.
    See `triplet_loss` and `reduction_factor`; `normalize` scales embeddings to length 1, as NT-Xent
    always does.
    """

    loss_kind = "triplet"
    view_names = ("second_view",)
    margin: float
    distance: Distance
    normalize: bool
    negatives: Negatives
    reduction: Reduction

    @property
    def chance_loss(self) -> float:
        """The margin."""
        return self.margin

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images as they are, and their second views."""
        return unit_range(batch["pixels"]), self._view(batch, "second_view")

    def compare(self, rows: Tensor, batch: Batch, gather: Joint, sum_counts: Joint) -> LossTerm:
        """Return the loss of each image as the mean over its triplets."""
        rows = normalize_rows(rows) if self.normalize else rows
        e1, ids, offsets = rows[:, 0], batch["image_ids"], batch["negative_offset"][:, None]
        if self.local is not None:
            offsets = torch.cat([offsets, batch["local_negative_offsets"]], dim=1)
        num_positives = rows.shape[1] - 1
        terms = triplet_loss(
            e1.repeat_interleave(num_positives, dim=0),
            rows[:, 1:].flatten(0, 1),
            gather(e1),
            anchor_ids=ids.repeat_interleave(num_positives),
            candidate_ids=gather(ids),
            margin=self.margin,
            distance=self.distance,
            negatives=self.negatives,
            offsets=offsets.flatten(),
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
        if not self.normalize:
            lengths = torch.linalg.vector_norm(e1.detach(), dim=1)
            metrics["embedding_length"] = lengths.sum()
        return LossTerm(terms.sum * factor, metrics=metrics)

    def draw_picture(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw triplets as the loss forms them, with their distances and the margin."""
        anchors, positives = self.views(batch)
        e1, e2 = self.rows(model, batch)[:, :2].unbind(dim=1)
        show_triplets(
            anchors,
            positives,
            e1,
            e2,
            batch,
            folder / "triplets.png",
            margin=self.margin,
            distance=self.distance,
            normalize=self.normalize,
            negatives=self.negatives,
        )

    def collapse_context(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return how triplets are formed, and the loss where it is a mean over all of them."""
        formed = {
            "negatives": self.negatives,
            "distance": self.distance,
            "normalize": self.normalize,
        }
        formed |= super().collapse_context(row)
        if self.reduction != "mean":  # a mean over positive triplets says nothing about the others
            return formed
        length = 1.0 if self.normalize else row[f"{self.term}_embedding_length"]
        return formed | {
            "triplet_loss": row[f"{self.term}_loss"],
            "negative_distance": row[f"{self.term}_negative_distance"],
            "unrelated_distance": unrelated_distance(self.distance, length),
            "margin": self.margin,
        }

    def settings_warnings(self) -> list[str]:
        """Return what no training can bring about, and what ruins most."""
        largest = largest_distance(self.distance, is_normalized=self.normalize)
        messages = super().settings_warnings()
        if self.margin > largest:
            where = "" if self.distance == "cosine" else "on the unit sphere (`normalize`) "
            messages.append(
                f"`margin` is {self.margin:g} but {where}no distance is above {largest:g} "
                f"(`distance` {self.distance}), so that no triplet can ever be satisfied and the "
                f"loss stays above {self.margin - largest:g}; pass a `margin` well below "
                f"{largest:g}, such as {largest / 2:g}"
            )
        if self.negatives == "hard":
            messages.append(
                "`negatives` is hard, which mostly ends with equal embeddings: without labels the "
                "image closest to another is often closer than its own view, and the loss falls "
                "fastest where all distances are 0; use `negatives` semi_hard"
            )
        return messages


def contrastive_task(
    corpus: ImageCorpus,
    rule: AugmentationRule,
    *,
    loss: LossKind,
    triplet: dict[str, Any],
    temperature: float,
    num_images: int,
    seed: int,
    max_eval_rows: int,
    num_local_views: int = 0,
    wanted_local_size: int | tuple[int, int] = 0,
    local_crop_area: tuple[float, float] = LOCAL_CROP_AREA,
    **model: Any,
) -> Task:
    """Return the task of telling images apart.

    `rule` says how views are made, `triplet` holds the fields of a `Triplet` that its loss reads,
    `temperature` is that of NT-Xent, `num_images` how many images an update compares, and `model`
    what else `build_contrastive` takes. For `seed` and `max_eval_rows` see `image_task`, for
    local views `local_view_size` and `make_local_views`.
    """
    shape = model_shape(corpus)
    scale = PixelScale(corpus.mean, corpus.std)
    augmentation = Augmentation(rule, **shape, seed=seed, stretch=corpus.stretch)
    num_stored, height, width, _ = corpus.pixels.shape
    local = None
    if num_local_views:
        local = make_local_views(
            num_local_views,
            local_view_size(wanted_local_size, (height, width)),
            crop_area=local_crop_area,
            augmentation=augmentation,
            image_size=(height, width),
            num_images=num_stored,
        )
    pretext: TwoViews
    if loss == "triplet":
        pretext = Triplet(scale, augmentation, local, **triplet)
    else:
        pretext = NTXent(scale, augmentation, local, temperature, num_images)
    views = dict.fromkeys(pretext.view_names, (height, width))
    if local is not None:
        views |= dict.fromkeys(local.names, local.size)
        model["local_view_size"] = local.size
    return image_task(
        corpus,
        pretext,
        partial(build_contrastive, **shape, **model),
        partial(draw_views, augmentation=augmentation, local=local),
        seed=seed,
        max_eval_rows=max_eval_rows,
        baselines={f"chance_{pretext.term}_loss": pretext.chance_loss},
        second_views=pretext.second_pixel_values,
        views=views,
        needs_pixels=len(pretext.view_names) < 2,
    )
