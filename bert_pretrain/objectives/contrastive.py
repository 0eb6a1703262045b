"""Contrastive learning of images: an image and its augmentation together, other images apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.data.processes import count_rows, gather_rows, sum_over_processes
from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.evaluation.collapse import collapse_warnings
from bert_pretrain.evaluation.pictures import augmented_views
from bert_pretrain.images.augmentation.views import Augmentation
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.losses.distances import Distance, normalize_rows
from bert_pretrain.losses.nt_xent import nt_xent_loss
from bert_pretrain.losses.triplet import Negatives, Reduction, reduction_factor, triplet_loss
from bert_pretrain.models.image_encoder import embed
from bert_pretrain.objectives.images import ImageObjective, channels_last
from bert_pretrain.objectives.interface import Batch, LossTerm

Joint = Callable[[Tensor], Tensor]  # brings together what the processes hold


@dataclass(frozen=True)
class ContrastiveLoss:
    """Which loss, with its parameters; see `bert_pretrain.losses`.

    Attributes:
        kind: `triplet`, max(d(e1, e1') - d(e1, e2) + margin, 0) with e1 of the image as it is and
            e1' of its augmentation, or `nt_xent` over two augmentations.
        margin, distance, negatives, reduction: of the triplet loss.
        normalize: whether embeddings have unit length in the triplet loss; NT-Xent's always have.
        temperature: of NT-Xent.
    """

    kind: Literal["triplet", "nt_xent"]
    margin: float
    distance: Distance
    normalize: bool
    negatives: Negatives
    reduction: Reduction
    temperature: float


class ContrastiveObjective(ImageObjective):
    """Learns embeddings from pairs of views; negatives come from all rows of a forward pass, over all processes.

    The loss couples the rows of a batch. With several processes it is that of the joint batch,
    gradient included. The micro-batches of an accumulation window do not see each other:
    accumulation saves memory but adds no negatives, so unlike for other objectives the number of
    micro-batches changes the curve.
    """

    term = "contrastive"

    def __init__(
        self,
        corpus: ImageCorpus,
        make_model: Callable[[], PreTrainedModel],
        augmentation: Augmentation,
        loss: ContrastiveLoss,
        **rows: Any,
    ) -> None:
        """Keep what the loss needs.

        Args:
            corpus: the decoded images.
            make_model: returns the model to train.
            augmentation: how views are made.
            loss: which loss.
            rows: see `ImageObjective`.
        """
        super().__init__(corpus, make_model, **rows)
        self.augmentation = augmentation
        self.loss = loss

    def draw(self, images: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Draw two views of each image, and which negative it meets."""
        offsets = hash_uint64(self.seed, Purpose.NEGATIVE, epoch, images) >> np.uint64(2)
        return {
            "first_view": self.augmentation.draw(epoch, images, 0),
            "second_view": self.augmentation.draw(epoch, images, 1),
            "negative_offset": torch.from_numpy(offsets.astype(np.int64)),
        }

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Return the loss of a batch as a sum over its images, each with the mean of its terms.

        While training, embeddings are gathered over all processes; held-out batches are complete as
        they are.
        """
        first, second = self._views(batch)
        projections = model(
            pixel_values=self.normalize(torch.cat([first, second]))
        ).projections.float()
        e1, e2 = projections.chunk(2)
        term = self._nt_xent_term if self.loss.kind == "nt_xent" else self._triplet_term
        if not model.training:
            return {self.term: term(e1, e2, batch, _keep, _keep)}
        gather = partial(gather_rows, num_rows_per_rank=count_rows(e1))
        return {self.term: term(e1, e2, batch, gather, sum_over_processes)}

    def _views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what e1 and e1' are embeddings of, float (B, C, H, W) in [0, 1]."""
        images = batch["pixels"].float() / 255
        second = self.augmentation.apply(images, batch["second_view"])
        if self.loss.kind == "triplet":
            return images, second
        return self.augmentation.apply(images, batch["first_view"]), second

    def _triplet_term(
        self, e1: Tensor, e2: Tensor, batch: Batch, gather: Joint, total: Joint
    ) -> LossTerm:
        if self.loss.normalize:
            e1, e2 = normalize_rows(e1), normalize_rows(e2)
        terms = triplet_loss(
            e1,
            e2,
            gather(e1),
            anchor_ids=batch["image_ids"],
            candidate_ids=gather(batch["image_ids"]),
            margin=self.loss.margin,
            distance=self.loss.distance,
            negatives=self.loss.negatives,
            offsets=batch["negative_offset"],
        )
        counts = torch.stack(
            [terms.num_terms, terms.num_active, torch.tensor(len(e1), device=e1.device)]
        )
        num_terms, num_active, num_images = total(counts)
        # From a sum over triplets to one over images, so that dividing by the number of images
        # gives the wanted mean.
        per_image = num_images / num_terms.clamp(min=1)
        factor = per_image * reduction_factor(
            self.loss.reduction, num_terms=num_terms, num_active=num_active
        )
        metrics = {
            "active_share": terms.num_active * per_image,
            "positive_distance": terms.positive_distance * per_image,
            "negative_distance": terms.negative_distance * per_image,
        }
        return LossTerm(terms.sum * factor, metrics=metrics)

    def _nt_xent_term(
        self, e1: Tensor, e2: Tensor, batch: Batch, gather: Joint, total: Joint
    ) -> LossTerm:
        views = torch.stack([e1, e2], dim=1)
        terms = nt_xent_loss(
            views,
            gather(views),
            view_ids=batch["image_ids"],
            candidate_ids=gather(batch["image_ids"]),
            temperature=self.loss.temperature,
        )
        return LossTerm(terms.sum / 2, metrics={"accuracy": terms.num_correct / 2})

    def second_views(self, encoder: PreTrainedModel) -> Tensor:
        """Return embeddings of the augmented held-out images, float (N, D)."""
        embeddings = []
        for batch in self.evaluation_batches(batch_size=256, num_processes=1, process_index=0):
            _, second = self._views({key: value.to(encoder.device) for key, value in batch.items()})
            embeddings.append(embed(encoder, self.normalize(second)))
        return torch.cat(embeddings)

    def warnings(self, row: dict[str, Any]) -> list[str]:
        """Return signs of collapse, once there were updates."""
        # The mean over positive triplets alone says nothing about the others.
        if row["step"] == 0 or self.loss.kind != "triplet" or self.loss.reduction != "mean":
            return super().warnings(row)
        return collapse_warnings(
            self._measures_of(row),
            triplet_loss=row[f"{self.term}_loss"],
            negative_distance=row[f"{self.term}_negative_distance"],
            margin=self.loss.margin,
        )

    def draw_batch(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw images above their two views."""
        first, second = self._views(batch)
        images = batch["pixels"].float() / 255
        augmented_views(
            channels_last(images), channels_last(first), channels_last(second), folder / "views.png"
        )


def _keep(values: Tensor) -> Tensor:
    return values
