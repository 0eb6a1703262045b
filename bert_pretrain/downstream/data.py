"""Labelled texts and images as data sets of ready batches for `Trainer`.

Batches hold `input_ids`, `attention_mask`, ... int64 (B, L), padded to their longest row, or
normalised `pixel_values` float32 (B, C, H, W); and `labels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.tables import Texts
from bert_pretrain.errors import InputError
from bert_pretrain.images.augmentation import AugmentationRule
from bert_pretrain.images.views import Augmentation
from bert_pretrain.text.literal_text import encode_rows

AUGMENTATIONS = {
    "crop": AugmentationRule(crop_area=(0.6, 1.0), crop_aspect=(3 / 4, 4 / 3)),
    "crop_flip": AugmentationRule(crop_area=(0.6, 1.0), crop_aspect=(3 / 4, 4 / 3), flip_prob=0.5),
}
_POOL_BATCHES = 8  # the rows of this many batches are sorted by length together


@dataclass(eq=False)
class TextDataset(Dataset[dict[str, Tensor]]):
    """Texts cut into tokens once; a list of row numbers gives one padded batch.

    Attributes:
        rows: of each model input one array (L,) for each text; Python's garbage collector would be
            slow with lists.
        labels: int64 or float32 (N,), or float32 (N, num_classes); None if there are none.
    """

    rows: dict[str, list[NDArray[np.int32]]]
    labels: NDArray[Any] | None
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        self.lengths = np.array([len(row) for row in self.rows["input_ids"]], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, places: Sequence[int]) -> dict[str, Tensor]:
        features = {
            name: [values[place].tolist() for place in places] for name, values in self.rows.items()
        }
        batch: dict[str, Tensor] = dict(self.tokenizer.pad(features, return_tensors="pt"))
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[np.asarray(places)])
        return batch

    def subset(self, places: NDArray[np.integer[Any]]) -> TextDataset:
        """Return the data set of these rows, in this order."""
        rows = {name: [values[place] for place in places] for name, values in self.rows.items()}
        labels = None if self.labels is None else self.labels[places]
        return TextDataset(rows, labels, self.tokenizer)


def tokenize(
    texts: Texts,
    labels: NDArray[Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
) -> TextDataset:
    """Cut texts into rows of at most `max_seq_length` tokens, of a pair the longer text."""
    encoded = encode_rows(tokenizer, texts.first, texts.second, max_length=max_seq_length)
    rows = {
        name: [np.array(row, dtype=np.int32) for row in values] for name, values in encoded.items()
    }
    return TextDataset(rows, labels, tokenizer)


@dataclass(eq=False)
class ImageDataset(Dataset[dict[str, Tensor]]):
    """Images of one size in memory; a list of row numbers gives one normalised batch.

    Attributes:
        pixels: uint8 (N, C, H, W).
        labels: as of `TextDataset`.
        mean: of pixels in [0, 1], one or one per channel; `std` likewise.
        augmentation: changes each image anew in every epoch.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[Any] | None
    mean: Sequence[float]
    std: Sequence[float]
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        self.lengths = np.ones(len(self.pixels), dtype=np.int64)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def set_epoch(self, epoch: int) -> None:
        """Set the pass over the data, which decides what augmentation draws.

        Accelerate's loaders call it. A count of the draws of an image would make the numbers depend
        on the process that draws it and on the seeds trained before.
        """
        self._epoch = epoch

    def __getitems__(self, places: Sequence[int]) -> dict[str, Tensor]:
        rows = np.asarray(places)
        images = torch.from_numpy(self.pixels[rows]).float() / 255
        if self.augmentation is not None:
            parameters = self.augmentation.draw(self._epoch, rows, 0)
            images = self.augmentation.apply(images, parameters)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        batch = {"pixel_values": (images - mean) / std}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch

    def subset(self, places: NDArray[np.integer[Any]]) -> ImageDataset:
        """Return the data set of these rows, in this order, without augmentation."""
        labels = None if self.labels is None else self.labels[places]
        return ImageDataset(self.pixels[places], labels, self.mean, self.std)


def augmentation_of(name: str, shape: tuple[int, ...], *, seed: int) -> Augmentation | None:
    """Return an augmentation, `none` or one of `AUGMENTATIONS`, for images of a shape (C, H, W).

    Raises:
        InputError: the images have a number of channels other than 1, 3 or 4.
    """
    if name == "none":
        return None
    num_channels, height, width = shape
    if num_channels not in (1, 3, 4):
        raise InputError(
            f"images of the shape {shape} (C, H, W) cannot be augmented",
            advice="pass `augmentation` none",
        )
    return Augmentation(
        AUGMENTATIONS[name], num_channels=num_channels, image_size=(height, width), seed=seed
    )


LabelledDataset = TextDataset | ImageDataset


@dataclass(eq=False)
class LengthSampler(Sampler[int]):
    """A new random order every epoch in which a batch holds rows of about the same length.

    Rows are shuffled, sorted by length within pools of a few batches, and the batches shuffled.
    (transformers' `LengthGroupedSampler` sorts pools of fifty, from long to short: on few rows the
    batches are then always the same.)
    """

    lengths: NDArray[np.integer[Any]]
    batch_size: int
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = permutation(len(self.lengths), self.seed, Purpose.TRAINING_ORDER, self.epoch)
        num_full = len(order) // self.batch_size
        full, rest = order[: num_full * self.batch_size], order[num_full * self.batch_size :]
        pool = _POOL_BATCHES * self.batch_size
        for start in range(0, len(full), pool):
            part = full[start : start + pool]
            full[start : start + pool] = part[np.argsort(self.lengths[part], kind="stable")]
        shuffled = permutation(num_full, self.seed, Purpose.TRAINING_ORDER, self.epoch, 1)
        self.epoch += 1
        yield from full.reshape(num_full, self.batch_size)[shuffled].ravel().tolist()
        yield from rest.tolist()
