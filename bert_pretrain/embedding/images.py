"""Images to vectors: decoded and prepared by threads ahead of the model, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.threads import map_ahead
from bert_pretrain.embedding.embedder import Embedder, OnBadRow, Window, batched
from bert_pretrain.embedding.rows import Row
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.images.decoding import ImageRow, converted_image, decoded
from bert_pretrain.images.levels import PixelRange
from bert_pretrain.models.image_encoder import embed
from bert_pretrain.models.image_processor import read_pixel_range, resized_side

ROWS_OF_A_WINDOW = 1024
_ROWS_OF_A_THREAD = 4  # decoded by a thread at a time; bounds what is in flight


class _Prepared(NamedTuple):
    """A row with its `pixel_values` float32 (C, H, W), or the reason why there are none.

    The content of the row is the image's path, if it has one: a window of photos as they are
    stored would fill the memory.
    """

    row: Row
    name: str
    pixel_values: NDArray[np.float32] | None
    reason: str = ""


@dataclass(eq=False)
class ImageEmbedder(Embedder):
    """Embeds images: what the architecture's own classifier is fed, see `models.image_encoder`.

    Attributes:
        processor: the model's image processor.
        num_channels: 1, 3 or 4, that the model takes.
    """

    processor: Any
    num_channels: int

    kind: ClassVar[Literal["text", "image"]] = "image"

    def windows(
        self,
        rows: Iterator[Row],
        *,
        batch_size: int,
        on_bad: OnBadRow,
        advance: Callable[[int], object] = lambda _: None,
    ) -> Iterator[Window]:
        """See `Embedder`. A bad row holds an image that cannot be decoded."""
        num_threads = min(32, os.cpu_count() or 1)
        blocks = map_ahead(
            lambda block: [self._prepare(row) for row in block],
            batched(rows, _ROWS_OF_A_THREAD),
            num_threads=num_threads,
            # The next batch is made while the model computes.
            num_ahead=num_threads + batch_size // _ROWS_OF_A_THREAD,
        )
        prepared = chain.from_iterable(blocks)
        while True:
            window = Window([], np.empty((0, 0), dtype=np.float32), num_read=0)
            parts = []
            for first in range(0, ROWS_OF_A_WINDOW, batch_size):
                size = min(batch_size, ROWS_OF_A_WINDOW - first)
                images = next(batched(prepared, size), [])
                window.num_read += len(images)
                good = self._without_bad(images, window, on_bad)
                if good:
                    window.rows += [image.row for image in good]
                    parts.append(self._embed([image.pixel_values for image in good]))
                    self._refuse_not_finite(window.rows[-len(good) :], parts[-1])
                advance(len(images))
                if len(images) < size:
                    break
            if not window.num_read:
                return
            if parts:
                window.embeddings = np.concatenate(parts)
            yield window

    def row_of(self, number: int, content: Any) -> Row:
        """Return one of several paths of image files as a row."""
        path = str(Path(content))
        return Row(path, 0, ImageRow(path, {"path": path, "bytes": None}, None))

    def _prepare(self, row: Row) -> _Prepared:
        image: ImageRow = row.content
        path = image.content.get("path") if isinstance(image.content, dict) else None
        kept = row._replace(content=path)
        try:
            with decoded(image, resized_side(self.processor)) as (stored, _):
                known = read_pixel_range(self.processor)
                pixel_range = PixelRange(*known) if known else None
                pixels = converted_image(stored, self.num_channels, pixel_range)
                values = self.processor(pixels, return_tensors="np")["pixel_values"][0]
        except PIL.UnidentifiedImageError:  # its own message is an address in memory
            return _Prepared(kept, image.name, None, "no image in a known format")
        except Exception as error:  # the decoders of broken files raise whatever they stumble over
            return _Prepared(kept, image.name, None, first_line(error))
        return _Prepared(kept, image.name, np.asarray(values, dtype=np.float32))

    def _without_bad(
        self, images: list[_Prepared], window: Window, on_bad: OnBadRow
    ) -> list[_Prepared]:
        """Return those that have pixels; note the others in the window."""
        for image in images:
            if image.pixel_values is None:
                if on_bad == "error":
                    raise InputError(
                        f"{image.name} cannot be decoded ({image.reason})",
                        advice="repair or remove it, or pass `on_bad_image` skip",
                    )
                window.skipped.append(f"{image.name} ({image.reason})")
        return [image for image in images if image.pixel_values is not None]

    def _embed(self, images: list[Any]) -> NDArray[np.float32]:
        """Return the embeddings of prepared images, float32 (B, D).

        Most processors make all of one size; those of other ones go through the model apart.
        """
        shapes = [image.shape for image in images]
        order = sorted(range(len(images)), key=shapes.__getitem__)
        groups = [
            torch.from_numpy(np.stack([images[place] for place in order if shapes[place] == shape]))
            for shape in sorted(set(shapes))
        ]
        device = self.model.device
        found = self._compute(self._forward, (group.to(device) for group in groups))
        embeddings = np.empty_like(found)
        embeddings[order] = found
        return embeddings

    def _forward(self, pixel_values: Tensor) -> Tensor:
        embedding = embed(self.model, pixel_values)
        if embedding.dim() != 2:
            raise InputError(
                f"{self.name!r} makes an array of the shape {tuple(embedding.shape[1:])} of an "
                "image, not a vector",
                advice="pass another `model`",
            )
        return embedding
