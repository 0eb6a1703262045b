"""Images that are decoded whenever they are read, so that no copy of their pixels is kept.

What one pass over them has found out (`cache.decode_once`) enters; pixels leave, the same that a
cache would hold, and crops from the images as they are stored, at their full resolution.

Source of reduced decoding: the scaled inverse cosine transform of libjpeg, Pillow's `draft`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from bert_pretrain.errors import InputError
from bert_pretrain.hardware import cpu_threads
from bert_pretrain.images.decoded import checked_pixels
from bert_pretrain.images.decoding import (
    Conversion,
    ImageRow,
    converted_image,
    decode_row,
    decoded,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class StreamedPixels:
    """Reads like an array of pixels uint8 (N, H, W, C), and decodes what is asked for.

    In a worker process one thread decodes, elsewhere one on each core.

    Attributes:
        fetch: returns the encoded row of a number; it is pickled with this.
        places: int64 (N, 3), the row of an image, and its width and height there.
        conversion: of an image to a picture.
        shape: (N, H, W, C).
        folder: where numbers about the images are kept.
    """

    fetch: Callable[[int], ImageRow]
    places: NDArray[np.int64]
    conversion: Conversion
    shape: tuple[int, ...]
    folder: Path

    def __getitem__(self, images: Any) -> NDArray[np.uint8]:
        """Return the pixels of images by number, int64 (B,), as uint8 (B, H, W, C)."""
        rows = self.places[images, 0].tolist()
        return _stacked(_map(lambda row: self._decode(self.fetch(row)), rows), self.shape)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.shape[0]

    def crops(
        self,
        images: NDArray[np.int64],
        boxes: Sequence[NDArray[np.floating[Any]]],
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        with_pixels: bool,
    ) -> list[NDArray[np.uint8]]:
        """Decode images once and cut several crops out of each.

        Args:
            images: int64 (B,), their numbers.
            boxes: (B, 4) for each crop: left, top, width and height as shares of the image.
            sizes: height and width that each crop is resized to; None = those of the pictures.
            with_pixels: whether to return what `__getitem__` does, too, before the crops.

        Returns:
            uint8 (B, H, W, C) each, of the crops with H and W of their size.
        """
        num_images, height, width, num_channels = self.shape
        sizes = [(height, width)] * len(boxes) if sizes is None else sizes
        jobs = list(zip(images.tolist(), np.stack(boxes, axis=1), strict=True))
        pictures = _map(lambda job: self._cut(*job, sizes, with_pixels=with_pixels), jobs)
        all_sizes = [(height, width)] * with_pixels + list(sizes)
        shapes = [(num_images, *size, num_channels) for size in all_sizes]
        return [
            _stacked((of_image[place] for of_image in pictures), shape)
            for place, shape in enumerate(shapes)
        ]

    def _decode(self, row: ImageRow) -> NDArray[np.uint8]:
        return checked_pixels(decode_row(row, self.conversion))

    def _cut(
        self,
        image: int,
        boxes: NDArray[np.floating[Any]],
        sizes: Sequence[tuple[int, int]],
        *,
        with_pixels: bool,
    ) -> list[NDArray[np.uint8]]:
        """Return the pictures of one image, uint8 (H, W, C); boxes are (crops, 4)."""
        number, *sides = self.places[image].tolist()
        row = self.fetch(number)
        pictures = [self._decode(row)] if with_pixels else []
        num_channels = self.shape[-1]
        # Pixels of the crop for one of the picture, where that is fewest: by so much an image may
        # be reduced as it is decoded, and no crop is enlarged for it.
        widths_heights = np.array(sizes)[:, ::-1]
        scale = max(1.0, float((boxes[:, 2:] * sides / widths_heights).min()))
        try:
            with decoded(row, math.ceil(min(sides) / scale), gap=1) as (stored, _):
                source = converted_image(stored, num_channels, self.conversion.pixel_range)
        except Exception as error:  # the decoders of broken files raise whatever they stumble over
            raise InputError(
                f"{row.name} cannot be decoded any more ({error})",
                advice="leave the images as they are while they are read",
            ) from error
        for (left, top, box_width, box_height), (height, width) in zip(
            boxes.tolist(), sizes, strict=True
        ):
            box = (
                left * source.width,
                top * source.height,
                min(left + box_width, 1.0) * source.width,
                min(top + box_height, 1.0) * source.height,
            )
            cut = source.resize((width, height), PIL.Image.Resampling.BICUBIC, box)
            pictures.append(np.asarray(cut).reshape(height, width, num_channels))
        return pictures


def _map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply a function to items, in threads unless this is a worker process of many."""
    num_threads = min(len(items), cpu_threads(0))
    if get_worker_info() is not None or num_threads <= 1:
        return list(map(function, items))
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, items))


def _stacked(pictures: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return pictures of a shape (N, H, W, C) as one array, also none."""
    listed = list(pictures)
    return np.stack(listed) if listed else np.empty((0, *shape[1:]), dtype=np.uint8)
