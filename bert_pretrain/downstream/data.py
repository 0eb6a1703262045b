"""Labelled texts and images as data sets of ready batches for `Trainer`.

A `Table` or images enter. What leaves gives batches by the names of transformers: `input_ids`,
`attention_mask`, ... int64 (B, L) padded to the longest row of the batch, or `pixel_values` float32
(B, C, H, W) normalised; and `labels`.
"""

from __future__ import annotations

import itertools
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
from bert_pretrain.data.row_files import is_unicode
from bert_pretrain.downstream.tables import Table
from bert_pretrain.downstream.tasks import Task
from bert_pretrain.errors import InputError
from bert_pretrain.images.views import Augmentation

_SHOWN = 80  # characters of a cell in a message
_POOL_BATCHES = 8  # rows of so many batches are sorted by length together


@dataclass(frozen=True)
class Texts:
    """Texts, or pairs of them, of one split."""

    first: list[str]
    second: list[str] | None

    def subset(self, places: NDArray[np.integer[Any]]) -> Texts:
        """Return these texts, in this order."""
        second = None if self.second is None else [self.second[place] for place in places]
        return Texts([self.first[place] for place in places], second)

    def joined(self) -> list[str]:
        """Return each text, or pair of texts, as one."""
        if self.second is None:
            return self.first
        return [" ".join(pair) for pair in zip(self.first, self.second, strict=True)]


def read_texts(
    table: Table, task: Task, *, text_column: str | None, text_pair_column: str | None
) -> Texts:
    """Return the texts of a table: of the columns given, else the task's, else `text` and, if it is there, `text_pair`.

    Raises:
        InputError: a column is missing, or holds something else than text.
    """
    columns = task.text_columns or ()
    has_columns = all(name in table.columns for name in columns)
    first = text_column or (columns[0] if columns and has_columns else "text")
    second = text_pair_column or (columns[1] if len(columns) > 1 and has_columns else None)
    if second is None and ((not columns and "text_pair" in table.columns) or len(columns) > 1):
        second = "text_pair"
    texts = Texts(
        _strings(table, first, "--text_column"),
        _strings(table, second, "--text_pair_column") if second else None,
    )
    if not any(text.strip() for text in texts.first):
        raise InputError(
            f"the column {first!r} of {table.description} is empty", advice="change `text_column`"
        )
    return texts


def _strings(table: Table, name: str, parameter: str) -> list[str]:
    cells = table.column(name, parameter=parameter)
    for place, cell in enumerate(cells):
        # A JSON file may hold halves of characters as \ud83d, which no tokenizer takes and no file
        # can hold.
        if not isinstance(cell, str) or not is_unicode(cell):
            raise InputError(
                f"the column {name!r} of {table.description} holds {_shortened(cell)} in row "
                f"{place + 1}, which is no text",
                advice=f"repair the row, or pass another column as `{parameter}`",
            )
    return cells


def _shortened(cell: Any) -> str:
    shown = repr(cell)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."


class TextDataset(Dataset[dict[str, Tensor]]):
    """Texts cut into tokens once; a list of row numbers gives one padded batch."""

    def __init__(
        self,
        rows: dict[str, NDArray[np.int32]],
        starts: NDArray[np.int64],
        labels: NDArray[Any] | None,
        tokenizer: Any,
    ) -> None:
        """Keep what `tokenize` made.

        Args:
            rows: for each model input all rows one after the other; lists of lists would be slow to
                collect as garbage.
            starts: int64 (N + 1,), where each row begins and the last one ends.
            labels: as for `tokenize`.
            tokenizer: pads.
        """
        self.rows, self.starts, self.labels, self.tokenizer = rows, starts, labels, tokenizer
        self.lengths = np.diff(starts)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.lengths)

    def __getitems__(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Return the batch of these rows."""
        spans = [slice(self.starts[place], self.starts[place + 1]) for place in places]
        features = {
            name: [flat[span].tolist() for span in spans] for name, flat in self.rows.items()
        }
        batch: dict[str, Tensor] = dict(self.tokenizer.pad(features, return_tensors="pt"))
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[np.asarray(places)])
        return batch

    def subset(self, places: NDArray[np.integer[Any]]) -> TextDataset:
        """Return the data set of these rows, in this order."""
        starts = np.concatenate([[0], np.cumsum(self.lengths[places])])
        # (total,) places of the kept tokens: each row's own start, counted on from the row's first
        # token.
        kept = np.arange(starts[-1]) + np.repeat(
            self.starts[places] - starts[:-1], self.lengths[places]
        )
        rows = {name: flat[kept] for name, flat in self.rows.items()}
        return TextDataset(
            rows, starts, None if self.labels is None else self.labels[places], self.tokenizer
        )


def tokenize(
    texts: Texts,
    labels: NDArray[Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
) -> TextDataset:
    """Cut texts into tokens.

    Args:
        texts: of one split; what is longer is cut off, of a pair from the longer text.
        labels: int64 or float32 (N,), or float32 (N, num_classes); None if there are none.
        tokenizer: the model's.
        max_seq_length: tokens of a row, with the special ones.
    """
    encoded = tokenizer(texts.first, texts.second, truncation=True, max_length=max_seq_length)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in encoded["input_ids"]])])
    rows = {
        name: np.fromiter(itertools.chain.from_iterable(values), dtype=np.int32, count=starts[-1])
        for name, values in encoded.items()
    }
    return TextDataset(rows, starts, labels, tokenizer)


class ImageDataset(Dataset[dict[str, Tensor]]):
    """Images of one size in memory; a list of row numbers gives one normalised batch."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[Any] | None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
    ) -> None:
        """Keep the images.

        Args:
            pixels: uint8 (N, C, H, W).
            labels: as for `tokenize`.
            mean: of pixels in [0, 1], one or one per channel.
            std: as `mean`.
            augmentation: what is done to an image anew in each epoch.
        """
        self.pixels, self.labels, self.augmentation = pixels, labels, augmentation
        self.mean, self.std = mean, std
        self.lengths = np.ones(len(pixels), dtype=np.int64)
        self._epoch = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def set_epoch(self, epoch: int) -> None:
        """Fix the pass over the data, which decides what augmentation draws; Accelerate's loaders call it.

        To count how often an image was drawn would make the numbers depend on the process that
        draws it and on the seeds trained before.
        """
        self._epoch = epoch

    def __getitems__(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Return the batch of these rows."""
        rows = np.asarray(places)
        images = torch.from_numpy(self.pixels[rows]).float() / 255
        if self.augmentation is not None:
            parameters = self.augmentation.draw(self._epoch, rows, 0)
            images = self.augmentation.apply(images, parameters)
        mean, std = (
            torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        batch = {"pixel_values": (images - mean) / std}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch

    def subset(
        self, places: NDArray[np.integer[Any]], *, augmentation: Augmentation | None = None
    ) -> ImageDataset:
        """Return the data set of these rows, in this order."""
        labels = None if self.labels is None else self.labels[places]
        return ImageDataset(
            self.pixels[places], labels, mean=self.mean, std=self.std, augmentation=augmentation
        )


LabelledDataset = TextDataset | ImageDataset


class LengthSampler(Sampler[int]):
    """A new random order every epoch in which a batch holds rows of about the same length.

    Rows are shuffled, sorted by length within pools of a few batches, and the batches shuffled.
    (transformers' `LengthGroupedSampler` sorts pools of fifty, from long to short: on few rows the
    batches are then always the same.)
    """

    def __init__(self, lengths: NDArray[np.integer[Any]], *, batch_size: int, seed: int) -> None:
        """Fix the rows, those of an update, and the seed; the epoch is counted from 0 by the passes."""
        super().__init__()
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield every row once; a batch that is not full comes last, as a loader makes it."""
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
