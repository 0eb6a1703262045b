"""What a model does with images while nobody labels them, and what its evaluations show.

A `Pretext` is the task; `ImageMonitor` measures collapse and neighbours, and draws pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.data.loader import evaluation_batches
from bert_pretrain.data.processes import compute_shared
from bert_pretrain.data.stream import Batch, HeldOutRows
from bert_pretrain.errors import TrainingError
from bert_pretrain.evaluation.collapse import CollapseMeasures, collapse_measures, collapse_warnings
from bert_pretrain.evaluation.embedding_maps import embedding_map
from bert_pretrain.evaluation.fonts import drawn_names
from bert_pretrain.evaluation.neighbour_pictures import Embedded, nearest_neighbours
from bert_pretrain.evaluation.probes import knn_accuracy, majority_accuracy
from bert_pretrain.images.card import corpus_warnings
from bert_pretrain.images.collator import ImagePlan, PixelScale, unit_range
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.models.embedding import embed_batches
from bert_pretrain.models.image_encoder import embed
from bert_pretrain.objectives.interface import Coupling, LossTerm

# The k-NN accuracy during training is a thermometer, not a result: bank and queries are bounded,
# and k and T are those of Caron et al. 2021 (DINO, appendix).
KNN_NEIGHBOURS, KNN_TEMPERATURE = 20, 0.07
NUM_SHOWN = 8  # images in a picture
NUM_QUERIES = 6  # images whose neighbours are shown
MIN_MAP_POINTS = 3
EMBEDDED_AT_ONCE = 256  # images of a forward pass in evaluation at most


@dataclass(frozen=True)
class Pretext(ABC):
    """What a model does with images while nobody labels them (a pretext task).

    Attributes:
        term: name of its loss.
        loss_kind: how `collapse_warnings` calls it.
        num_drawn: held-out images that its picture is made of.
        scale: of the pixels.
    """

    term: ClassVar[str]
    loss_kind: ClassVar[str]
    num_drawn: ClassVar[int] = NUM_SHOWN
    scale: PixelScale

    @property
    def coupling(self) -> Coupling | None:
        """What compares the images of an update; None = each has a loss of its own."""
        return None

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> LossTerm:
        """Run the model once and return the loss of a batch, a sum over images."""

    @abstractmethod
    def draw_picture(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw what the model makes of a few held-out images."""

    def settings_warnings(self) -> list[str]:
        """Return what is wrong with the settings, whatever will be learnt."""
        return []

    def measures(self, means: dict[str, float]) -> dict[str, float]:
        """Return what follows from the means of an evaluation's loss terms."""
        return {}

    def collapse_context(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what `collapse_warnings` is told of the loss, given the row of an evaluation."""
        return {"loss": self.loss_kind}


@dataclass(frozen=True)
class Embedder:
    """Embeds images in evaluation mode; all processes share the work.

    Attributes:
        encoder: of images, without a loss.
        batch_size: images of a forward pass.
        beat: is told of every one.
    """

    encoder: PreTrainedModel
    batch_size: int
    beat: Callable[[str], None]

    def embed_all(
        self, num_images: int, pixel_values: Callable[[int, int], Tensor]
    ) -> NDArray[np.float32]:
        """Return the embeddings of images, float32 (N, D); a collective.

        `pixel_values` returns the input for images from a number to before another, on the device.
        The result is the same on any number of processes, since the same images are together in a
        forward pass.

        Raises:
            TrainingError: an embedding is not finite.
        """

        def inputs(begin: int, end: int) -> Iterator[Tensor]:
            for first in range(begin, end, self.batch_size):
                self.beat("a batch of images to embed")
                yield pixel_values(first, min(first + self.batch_size, end))

        def compute(begin: int, end: int) -> Tensor:
            return embed_batches(partial(embed, self.encoder), inputs(begin, end))

        was_training = self.encoder.training
        self.encoder.eval()
        rows = compute_shared(compute, num_images, rows_per_block=self.batch_size)
        self.encoder.train(was_training)
        features: NDArray[np.float32] = rows.cpu().numpy()
        num_bad = int((~np.isfinite(features).all(axis=1)).sum())
        if num_bad:
            raise TrainingError(
                f"the embeddings of {num_bad:,} of {num_images:,} images are not finite: the "
                "encoder has diverged; lower `learning_rate`"
            )
        return features


@dataclass
class ImageMonitor:
    """Measures how embeddings of held-out images are spread and their k-NN accuracy, and draws.

    Attributes:
        held_out: all rows of its plan are evaluated.
        pretext: draws the picture.
        bank: int64 (N,), training images among which the k-NN looks for neighbours.
        seed: of the maps.
        baselines: numbers to compare the measures with.
        second_views: returns `pixel_values` of another view of the images of a held-out batch;
            None = there are no other views.
    """

    shown_file = "pictures.jsonl"
    corpus: ImageCorpus
    held_out: HeldOutRows[ImagePlan]
    pretext: Pretext
    bank: NDArray[np.int64]
    seed: int
    baselines: Mapping[str, float]
    second_views: Callable[[Batch], Tensor] | None
    _has_noted: bool = field(default=False, init=False)
    _latest: NDArray[np.float32] = field(init=False)  # embeddings of the held-out images

    def measures(
        self,
        model: PreTrainedModel,
        means: dict[str, float],
        *,
        batch_size: int,
        beat: Callable[[str], None],
    ) -> dict[str, float]:
        """Return the pretext's measures, baselines, measures of collapse, and k-NN accuracy.

        The last only if images have labels; beside it stands that of always answering the largest
        class.
        """
        embedder = Embedder(model.plain_encoder(), min(batch_size, EMBEDDED_AT_ONCE), beat)
        features = self._features(embedder, self.held_out.plan.images)
        second = None
        if self.second_views is not None:
            second = torch.from_numpy(self._second_features(embedder, self.second_views))
        found = collapse_measures(torch.from_numpy(features), second_views=second)
        spread = {name: value for name, value in vars(found).items() if value is not None}
        measured = self.pretext.measures(means)
        self._latest = features
        return {**measured, **self.baselines, **spread, **self._knn(embedder, features)}

    def warnings(self, row: dict[str, Any]) -> list[str]:
        """Return what is wrong with images and settings; after updates, signs of collapse."""
        if row["step"] == 0:
            return [*corpus_warnings(self.corpus), *self.pretext.settings_warnings()]
        names = [entry.name for entry in fields(CollapseMeasures)]
        known = {name: row[name] for name in names if name in row}
        known["active_triplets"] = row.get(f"{self.pretext.term}_active_share")
        return collapse_warnings(CollapseMeasures(**known), **self.pretext.collapse_context(row))

    def show(
        self, model: PreTrainedModel, run_dir: Path, *, step: int, is_last: bool
    ) -> tuple[str, list[dict[str, Any]]]:
        """Draw the pretext's picture, a map of the embeddings, and nearest neighbours."""
        folder = run_dir / "pictures" / f"step-{step:06d}"
        few = next(evaluation_batches(self.held_out, batch_size=self.pretext.num_drawn))
        self.pretext.draw_picture(
            model, {name: value.to(model.device) for name, value in few.items()}, folder
        )
        images, features = self.held_out.plan.images, self._latest
        labels = None if self.corpus.labels is None else self.corpus.labels[images]
        names = self.corpus.label_names
        # The same map at each evaluation, so that the first can stand beside the last, and one that
        # takes seconds at the end.
        maps: dict[str, Literal["pca", "tsne"]] = {"embeddings": "pca"}
        if is_last:
            maps["embeddings_tsne"] = "tsne"
        for file_name, method in maps.items() if len(features) >= MIN_MAP_POINTS else ():
            embedding_map(
                features,
                folder / f"{file_name}.png",
                method=method,
                labels=labels,
                label_names=names,
                seed=self.seed,
            )
        num_queries = min(NUM_QUERIES, len(images) // 2)
        queries, bank = (
            Embedded(
                self.corpus.pixels[images[part]],
                features[part],
                None if labels is None else labels[part],
            )
            for part in (slice(num_queries), slice(num_queries, None))
        )
        nearest_neighbours(queries, bank, folder / "neighbours.png", label_names=names)
        text = f"  pictures in {folder}"
        note = drawn_names(self.corpus.label_names).note
        if note and not self._has_noted:
            text += f"\n  {note}"
            self._has_noted = True
        return text, [{"folder": str(folder.relative_to(run_dir))}]

    def _features(self, embedder: Embedder, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return embeddings of images by number, float32 (N, D), without augmentation."""

        def pixel_values(begin: int, end: int) -> Tensor:
            pixels = torch.from_numpy(np.asarray(self.corpus.pixels[images[begin:end]]))
            channels_first = pixels.permute(0, 3, 1, 2).to(embedder.encoder.device)
            return self.pretext.scale.normalize(unit_range(channels_first))

        return embedder.embed_all(len(images), pixel_values)

    def _second_features(
        self, embedder: Embedder, second_views: Callable[[Batch], Tensor]
    ) -> NDArray[np.float32]:
        """Return embeddings of other views of the held-out images, float32 (N, D)."""
        held_out, device = self.held_out, embedder.encoder.device

        def pixel_values(begin: int, end: int) -> Tensor:
            chunk = held_out.rows[begin:end]
            batch = held_out.collator.collate([(0, chunk, held_out.plan.take(chunk))])
            return second_views({name: value.to(device) for name, value in batch.items()})

        return embedder.embed_all(len(held_out.rows), pixel_values)

    def _knn(self, embedder: Embedder, features: NDArray[np.float32]) -> dict[str, float]:
        """Return the k-NN accuracy of held-out images with labels, if there are any."""
        labels = self.corpus.labels
        if labels is None:
            return {}
        bank = self.bank[labels[self.bank] >= 0]
        query_labels = labels[self.held_out.plan.images]
        is_labelled = query_labels >= 0
        if len(bank) == 0 or not is_labelled.any():
            return {}
        result = knn_accuracy(
            self._features(embedder, bank),
            labels[bank],
            features[is_labelled],
            query_labels[is_labelled],
            k=KNN_NEIGHBOURS,
            temperature=KNN_TEMPERATURE,
        )
        majority = majority_accuracy(labels[bank], query_labels[is_labelled])
        return {"knn_accuracy": result.accuracy, "majority_knn_accuracy": majority}
