"""What every embedder does: rows in, windows of embedded rows out, in order.

A window is embedded together and kept together on disk. Where it ends depends on the rows alone, so
that a file that was begun goes on with the same windows.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bert_pretrain.embedding.rows import Row
from bert_pretrain.errors import InputError
from bert_pretrain.models.embedding import embed_batches

OnBadRow: TypeAlias = Literal["error", "skip"]


@dataclass
class Window:
    """Rows that were embedded together.

    Attributes:
        rows: those that have an embedding, in order; the content of one is the text, or the path of
            the image if it has one.
        embeddings: float32 (N, D), one for each.
        num_read: rows that were read for it, the skipped ones included.
        num_cut: texts of `rows` that were cut.
        skipped: what was skipped and why, a phrase for each.
    """

    rows: list[Row]
    embeddings: NDArray[np.float32]
    num_read: int
    num_cut: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Embedder(ABC):
    """A loaded model that makes one vector of each text or image.

    Attributes:
        name: the model's folder or Hub id.
        model: in evaluation mode, on the device that computes.
        bf16: whether products are computed in bfloat16, by autocast.
        identity: plain values; equal ones mean equal embeddings of equal rows, but for rounding.
        notes: what a user should know of it, a line each; names of parameters in backquotes.
    """

    name: str
    model: PreTrainedModel
    bf16: bool
    identity: dict[str, Any]
    notes: tuple[str, ...]

    kind: ClassVar[Literal["text", "image"]]

    @abstractmethod
    def windows(
        self,
        rows: Iterator[Row],
        *,
        batch_size: int,
        on_bad: OnBadRow,
        advance: Callable[[int], object] = lambda _: None,
    ) -> Iterator[Window]:
        """Embed rows, window by window.

        Args:
            rows: read as they are needed.
            batch_size: rows of a forward pass.
            on_bad: whether to stop at a row that holds no text or no image, or to skip it.
            advance: is told of rows that are done, several times a window.

        Raises:
            InputError: of a row that cannot be embedded, or an embedding that is not finite.
        """

    def embed(self, contents: Iterable[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Return the embeddings of texts, or of the images in files, float32 (N, D).

        Args:
            contents: N texts, or N paths of image files; at least one.
            batch_size: rows of a forward pass.

        Raises:
            InputError: one cannot be embedded.
        """
        rows = (self.row_of(number, content) for number, content in enumerate(contents))
        windows = self.windows(rows, batch_size=batch_size, on_bad="error")
        return np.concatenate([window.embeddings for window in windows])

    @abstractmethod
    def row_of(self, number: int, content: Any) -> Row:
        """Return one of several texts or paths of images as a row."""

    def _compute(
        self, forward: Callable[[Any], Tensor], batches: Iterable[Any]
    ) -> NDArray[np.float32]:
        """Return the embeddings of batches, float32 (N, D)."""
        device = self.model.device.type
        # Around all batches, because weights are cast once for each such block.
        autocast = torch.autocast(device, torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        with autocast:
            embeddings: NDArray[np.float32] = embed_batches(forward, batches).cpu().numpy()
        return embeddings

    def _refuse_not_finite(self, rows: Sequence[Row], embeddings: NDArray[np.float32]) -> None:
        is_finite = np.isfinite(embeddings).all(axis=1)
        if not is_finite.all():
            bad = rows[int(np.argmin(is_finite))]
            raise InputError(
                f"the embedding of {bad.name} by {self.name!r} is not finite: the model has "
                "diverged",
                advice="pass another `model`" + ", or `mixed_precision` no" * self.bf16,
            )


def batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` items; the last one may be shorter."""
    return iter(lambda: list(itertools.islice(items, size)), [])
