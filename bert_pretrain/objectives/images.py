"""What the objectives for images share: rows, normalisation, frozen features, pictures and how collapse is noticed.

A subclass says what is drawn at random for an image, what its loss is, and which pictures show it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.data.loader import TrainingStream, evaluation_batches, training_windows
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.evaluation.collapse import CollapseMeasures, collapse_measures, collapse_warnings
from bert_pretrain.evaluation.features import extract_features
from bert_pretrain.evaluation.knn import knn_accuracy
from bert_pretrain.evaluation.pictures import embedding_map, nearest_neighbours
from bert_pretrain.images.collator import ImageCollator, ImagePlan, plan_images
from bert_pretrain.images.corpus import ImageCorpus, image_card
from bert_pretrain.models.image_encoder import embed
from bert_pretrain.objectives.interface import Batch, LossTerm, Place, Window
from bert_pretrain.publishing.export import (
    export_image_model,
    image_card_fields,
    image_processor,
    write_image_config,
)

# The online k-NN is a thermometer, not a result: bank and queries are bounded, and k and T are
# those of Caron et al. 2021 (DINO, appendix).
KNN_NEIGHBOURS, KNN_TEMPERATURE = 20, 0.07
MAX_BANK_IMAGES = 5000
NUM_SHOWN = 10  # images in a picture


class ImageObjective(ABC):
    """An `Objective` on an image corpus with one loss term, counted in images."""

    unit = "images"
    shown_file = "pictures.jsonl"
    term: ClassVar[str]

    def __init__(
        self,
        corpus: ImageCorpus,
        make_model: Callable[[], PreTrainedModel],
        *,
        seed: int,
        max_eval_rows: int,
        num_workers: int,
    ) -> None:
        """Choose the held-out rows.

        Args:
            corpus: the decoded images.
            make_model: returns the model to train.
            seed: of order and of all that is drawn.
            max_eval_rows: most held-out images evaluated, a fixed random subset; 0 = all.
            num_workers: worker processes that make batches.
        """
        self.corpus = corpus
        self.data_card = image_card(corpus)
        self.seed = seed
        self.evaluated_images = _subset(corpus.validation_images, max_eval_rows, seed)
        self.bank_images = _subset(corpus.train_images, MAX_BANK_IMAGES, seed)
        self.processor = image_processor(
            image_size=corpus.pixels.shape[1], mean=corpus.mean.tolist(), std=corpus.std.tolist()
        )
        self._make_model = make_model
        self._num_workers = num_workers
        self._stream: TrainingStream[ImagePlan] = TrainingStream(
            lambda epoch: plan_images(corpus.train_images, seed=seed, epoch=epoch)
        )

    @abstractmethod
    def draw(self, images: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Return the random numbers that the loss of images needs, a pure function of (seed, epoch, image).

        Args:
            images: int64 (B,), numbers in the corpus.
            epoch: `EVALUATION_EPOCH` for held-out images.
        """

    @abstractmethod
    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Run the model once and return the loss of a batch as a sum over images; see `Objective`."""

    @abstractmethod
    def draw_batch(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw what the model makes of a batch of held-out images."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the key of the images."""
        return {"images": self.corpus.manifest["key"]}

    def build_model(self) -> PreTrainedModel:
        """Return the model to train."""
        return self._make_model()

    def num_rows(self, epoch: int) -> int:
        """Return the number of training images."""
        return len(self.corpus.train_images)

    def training_windows(
        self,
        place: Place,
        *,
        global_batch_size: int,
        num_processes: int,
        process_index: int,
        num_micro_batches: int,
    ) -> Iterator[Window]:
        """Yield a process's share of window after window; see `Objective`."""
        return training_windows(
            self._stream,
            ImageCollator(self.corpus, self.draw, evaluation=False),
            place,
            global_batch_size=global_batch_size,
            num_processes=num_processes,
            process_index=process_index,
            num_micro_batches=num_micro_batches,
            num_workers=self._num_workers,
        )

    def evaluation_batches(
        self, *, batch_size: int, num_processes: int, process_index: int
    ) -> Iterator[Batch]:
        """Yield a process's share of the held-out batches; see `Objective`."""
        return evaluation_batches(
            ImagePlan(self.evaluated_images),
            ImageCollator(self.corpus, self.draw, evaluation=True),
            np.arange(len(self.evaluated_images)),
            batch_size=batch_size,
            num_processes=num_processes,
            process_index=process_index,
        )

    def target_counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of images."""
        return {self.term: len(batch["image_ids"])}

    def measures(self, model: PreTrainedModel, means: dict[str, float]) -> dict[str, float]:
        """Return how the held-out embeddings are spread, and the k-NN accuracy if the images have labels."""
        encoder = model.plain_encoder()
        features = self.features(encoder, self.evaluated_images)
        found = collapse_measures(
            torch.from_numpy(features), second_views=self.second_views(encoder)
        )
        return {k: v for k, v in vars(found).items() if v is not None} | self._knn(
            encoder, features
        )

    def second_views(self, encoder: PreTrainedModel) -> Tensor | None:
        """Return embeddings of other views of the held-out images, (N, D), if the objective has such."""
        return None

    def warnings(self, row: dict[str, Any]) -> list[str]:
        """Return signs of collapse, once there were updates."""
        return [] if row["step"] == 0 else collapse_warnings(self._measures_of(row))

    def show(
        self, model: PreTrainedModel, run_dir: Path, *, step: int
    ) -> tuple[str, list[dict[str, Any]]]:
        """Draw what the model makes of held-out images, a map of their embeddings, and nearest neighbours."""
        folder = run_dir / "pictures" / f"step-{step:06d}"
        batches = self.evaluation_batches(batch_size=NUM_SHOWN, num_processes=1, process_index=0)
        self.draw_batch(
            model, {key: value.to(model.device) for key, value in next(batches).items()}, folder
        )
        self._draw_features(self.features(model.plain_encoder(), self.evaluated_images), folder)
        return f"  pictures in {folder}", [{"folder": str(folder.relative_to(run_dir))}]

    def write_config(self, model: PreTrainedModel, directory: Path) -> None:
        """Write what a checkpoint needs beside the weights."""
        write_image_config(model, self.processor, directory)

    def export(self, model: PreTrainedModel, directory: Path) -> None:
        """Write the encoder as stock transformers loads it, and the whole model in a folder of its own."""
        export_image_model(model, self.processor, directory)

    def card_fields(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the model card says of the exported model."""
        return image_card_fields(model, self.processor)

    def _measures_of(self, row: dict[str, Any]) -> CollapseMeasures:
        names = CollapseMeasures.__dataclass_fields__
        active = row.get(f"{self.term}_active_share")
        return CollapseMeasures(
            **{name: row[name] for name in names if name in row} | {"active_triplets": active}
        )

    def normalize(self, images: Tensor) -> Tensor:
        """Return images float (B, C, H, W) in [0, 1] as `pixel_values`: minus the mean, over the deviation."""
        mean, std = self._mean_and_std(images.device)
        return (images - mean) / std

    def denormalize(self, pixel_values: Tensor) -> NDArray[np.float32]:
        """Return `pixel_values` as images for a picture, float32 (B, H, W, C), clipped to [0, 1]."""
        mean, std = self._mean_and_std(pixel_values.device)
        return channels_last((pixel_values.detach().float() * std + mean).clamp(0, 1))

    def _mean_and_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return them as float32 (C, 1, 1)."""
        mean, std = (torch.as_tensor(x, device=device) for x in (self.corpus.mean, self.corpus.std))
        return mean[:, None, None], std[:, None, None]

    def features(self, encoder: PreTrainedModel, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the encoder's embeddings of images by number, float32 (N, D), without augmentation."""
        return extract_features(
            _Embedder(encoder),
            self.corpus.pixels[images],
            self.corpus.mean.tolist(),
            self.corpus.std.tolist(),
            batch_size=256,
            device=encoder.device,
        )

    def _knn(self, encoder: PreTrainedModel, features: NDArray[np.float32]) -> dict[str, float]:
        """Return the k-NN accuracy of the held-out images' features, if the images have labels."""
        labels = self.corpus.labels
        if labels is None:
            return {}
        bank, queries = self.bank_images, self.evaluated_images
        is_labelled = labels[queries] >= 0
        bank = bank[labels[bank] >= 0]
        result = knn_accuracy(
            self.features(encoder, bank),
            labels[bank],
            features[is_labelled],
            labels[queries][is_labelled],
            k=KNN_NEIGHBOURS,
            temperature=KNN_TEMPERATURE,
        )
        return {"knn_accuracy": result.accuracy}

    def _draw_features(self, features: NDArray[np.float32], folder: Path) -> None:
        corpus, images = self.corpus, self.evaluated_images
        labels = None if corpus.labels is None else corpus.labels[images]
        embedding_map(
            features,
            folder / "embeddings.png",
            labels=labels,
            label_names=corpus.label_names,
            seed=self.seed,
        )
        num_queries = min(NUM_SHOWN, len(images) // 2)
        nearest_neighbours(
            corpus.pixels[images[:num_queries]],
            features[:num_queries],
            corpus.pixels[images[num_queries:]],
            features[num_queries:],
            folder / "neighbours.png",
        )


class _Embedder(torch.nn.Module):
    """Calls `embed`, for functions that take a model which returns embeddings."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        return embed(self.encoder, pixel_values)


def _subset(images: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """Return at most `limit` images in random order, all of them if it is 0."""
    order = permutation(len(images), seed, Purpose.EVALUATION_ROW)
    return images[order[: limit or len(order)]]


def channels_last(images: Tensor) -> NDArray[np.float32]:
    """Return float (B, C, H, W) in [0, 1] as an array (B, H, W, C) for pictures."""
    return np.asarray(images.permute(0, 2, 3, 1).cpu().numpy())
