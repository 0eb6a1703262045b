"""What the objectives for images share: the loop's three interfaces, over a `Pretext`.

A corpus and a `Pretext` (see autoencoder, contrastive) enter; a `Task` leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, ViTImageProcessorPil

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.data.stream import Batch, HeldOutRows, Place, TrainingStream, WholeEpochs
from bert_pretrain.images.card import image_card
from bert_pretrain.images.collator import ImageCollator, ImageDraw, ImagePlan
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.images.streaming import StreamedPixels
from bert_pretrain.models.image_encoder_config import image_size_of
from bert_pretrain.objectives.image_monitor import ImageMonitor, Pretext
from bert_pretrain.objectives.interface import Coupling, LossTerm, Task
from bert_pretrain.publishing.export import (
    export_image_model,
    image_card_fields,
    image_processor,
    write_config,
)

MAX_BANK_IMAGES = 5000  # training images that baselines are computed from


@dataclass
class ImageObjective:
    """An `Objective` with one loss term, counted in images."""

    training: TrainingStream[ImagePlan]
    held_out: HeldOutRows[ImagePlan]
    make_model: Callable[[], PreTrainedModel]
    pretext: Pretext
    flops_per_image: float = 0.0  # known when the model is built

    @property
    def coupling(self) -> Coupling | None:
        """What compares the images of an update, if they are."""
        return self.pretext.coupling

    def build_model(self) -> PreTrainedModel:
        """Return the model, and measure what an image costs."""
        model = self.make_model()
        self.flops_per_image = self._count_flops(model)
        return model

    def _count_flops(self, model: PreTrainedModel) -> float:
        """Return the FLOPs of the matrix products and convolutions that an image needs.

        Two images go forward through the loss; a backward pass takes twice as many.
        """
        parts, _ = self.training.take(Place(), 2)
        batch = self.training.collator.collate(parts)
        counter = FlopCounterMode(display=False)
        # A processor's fused attention is not counted.
        kernel = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), kernel, counter:
            # In evaluation no processes compare their rows, and the cost is the same.
            self.pretext.loss(model.eval(), batch)
        model.train()
        return 3 * counter.get_total_flops() / len(batch["image_ids"])

    def useful_flops(self, batch: Batch) -> float:
        """Return what the images of a batch need."""
        return self.flops_per_image * len(batch["image_ids"])

    def target_counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of images."""
        return {self.pretext.term: len(batch["image_ids"])}

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Return the one loss of a batch."""
        return {self.pretext.term: self.pretext.loss(model, batch)}


@dataclass
class ImageExporter:
    """Writes the encoder as stock transformers loads it, and the whole model beside it."""

    processor: ViTImageProcessorPil
    data_card: str

    def write_config(self, model: PreTrainedModel, directory: Path) -> None:
        """Write configuration and image processor into a checkpoint's folder."""
        write_config(model, self.processor, directory)

    def export(self, model: PreTrainedModel, directory: Path) -> None:
        """Write the encoder, and the whole model in a folder of its own."""
        export_image_model(model, self.processor, directory)

    def card_fields(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the model card says of the exported model."""
        return image_card_fields(model, self.processor)


def image_task(
    corpus: ImageCorpus,
    pretext: Pretext,
    build_model: Callable[[], PreTrainedModel],
    draw: ImageDraw,
    *,
    seed: int,
    max_eval_rows: int,
    baselines: Mapping[str, float] | None = None,
    second_views: Callable[[Batch], Tensor] | None = None,
    views: Mapping[str, tuple[int, int]] | None = None,
    needs_pixels: bool = True,
) -> Task:
    """Return the task of learning a pretext from an image corpus.

    Args:
        corpus: the images.
        pretext: what the model does with them.
        build_model: returns the model to train.
        draw: draws the random numbers that the pretext's loss needs.
        seed: of the order of images and of the choice of those evaluated.
        max_eval_rows: most held-out images evaluated, a fixed random subset; 0 = all. At least 2,
            since one image has no spread.
        baselines: see `ImageMonitor`, as for `second_views`.
        second_views: see `ImageMonitor`.
        views: what of `draw` are parameters of views that the loss compares, by name, and the
            height and width of each.
        needs_pixels: whether in training it reads images as they are, too.
    """
    images, views = corpus.train_images, views or {}

    def plan(epoch: int) -> ImagePlan:
        return ImagePlan(images[permutation(len(images), seed, Purpose.TRAINING_ORDER, epoch)])

    training = TrainingStream(
        WholeEpochs(plan),
        ImageCollator(corpus, draw, evaluation=False, views=views, needs_pixels=needs_pixels),
        identity={"images": _identity(corpus, with_views=bool(views))},
    )
    evaluated = random_subset(corpus.validation_images, max_eval_rows, seed)
    held_out = HeldOutRows(
        ImagePlan(evaluated),
        np.arange(len(evaluated)),
        ImageCollator(corpus, draw, evaluation=True, views=views),
    )
    monitor = ImageMonitor(
        corpus,
        held_out,
        pretext,
        bank=random_subset(images, MAX_BANK_IMAGES, seed),
        seed=seed,
        baselines=baselines or {},
        second_views=second_views,
    )
    processor = image_processor(
        image_size=image_size_of(*corpus.pixels.shape[1:3]),
        mean=corpus.mean.tolist(),
        std=corpus.std.tolist(),
        pixel_range=corpus.manifest["pixel_range"],
    )
    return Task(
        ImageObjective(training, held_out, build_model, pretext),
        monitor,
        ImageExporter(processor, image_card(corpus)),
    )


def _identity(corpus: ImageCorpus, *, with_views: bool) -> str:
    """Return what tells training on images, or on views of them, from training on others."""
    how = ""
    if with_views:  # cropped from the pixels that are stored, from whole images, or from pixels
        streams = isinstance(corpus.pixels, StreamedPixels)
        how = " streamed" if streams else "" if corpus.stretch is None else " whole"
    return f"{corpus.manifest['key']}{how}"


def model_shape(corpus: ImageCorpus) -> dict[str, Any]:
    """Return `image_size` and `num_channels` of the model for a corpus."""
    _, height, width, num_channels = corpus.pixels.shape
    return {"image_size": image_size_of(height, width), "num_channels": num_channels}


def random_subset(images: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """Return at most `limit` images in random order, all of them if it is 0."""
    order = permutation(len(images), seed, Purpose.EVALUATION_ROW)
    return images[order[: limit or len(order)]]
