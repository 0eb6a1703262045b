"""Encoded images to pixels of one size and number of channels.

Rows of a source enter; what became of each leaves, in the same order.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

Label: TypeAlias = "int | str | None"

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_SAMPLED_IMAGES = 64  # whose channels are looked at
_MOST_TIMES_AS_LONG = 100
_ROWS_PER_BLOCK = 16  # decoded by a thread at a time; bounds what is in flight


@dataclass(frozen=True)
class ImageRow:
    """One image as it is stored.

    Attributes:
        name: for messages: a path, or a file and the row in it, counted from 0.
        content: pixels uint8 (H, W); or `bytes` and `path` as `datasets.Image(decode=False)` gives
            them, either None; or None where the row holds no image.
        label: class number, -1 or None where there is none, or class name.
    """

    name: str
    content: NDArray[np.uint8] | dict[str, Any] | None
    label: Label


@dataclass(frozen=True)
class ImageSource:
    """Images that can be read again and again, always in the same order.

    Attributes:
        description: what the source is, for people.
        fingerprint: changes when the images may have changed.
        num_rows: how many rows a pass has.
        label_names: name of each class number, where the source tells them.
        read: starts a new pass over the rows.
        is_embedded: whether the images come with an installed package and are few.
    """

    description: str
    fingerprint: str
    num_rows: int
    label_names: tuple[str, ...] | None
    read: Callable[[], Iterator[ImageRow]]
    is_embedded: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a row: an image, or the reason why there is none.

    Attributes:
        mode: Pillow's name of the kind of pixels, before any conversion.
        pixels: uint8 (H, W, C).
        moments: bytes of int64 (2, C), sums of the pixels and of their squares.
        reason: why there are no pixels; empty otherwise.
    """

    name: str
    label: Label
    mode: str = ""
    pixels: NDArray[np.uint8] | None = None
    moments: bytes = b""
    reason: str = ""


def decode_rows(
    rows: Iterator[ImageRow], *, image_size: int, num_channels: int
) -> Iterator[Outcome]:
    """Decode rows in threads, a few blocks ahead, and yield them in order.

    Every image becomes a square of `image_size` pixels a side (0 = its own size) with 1, 3 or 4
    channels. Threads serve, since Pillow releases the interpreter lock.
    """

    def decode(block: list[ImageRow]) -> list[Outcome]:
        return [_decode_row(row, image_size, num_channels) for row in block]

    num_threads = min(32, os.cpu_count() or 1)
    blocks = iter(lambda: list(islice(rows, _ROWS_PER_BLOCK)), [])
    pending: deque[Future[list[Outcome]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for block in blocks:
            pending.append(pool.submit(decode, block))
            if len(pending) > num_threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _decode_row(row: ImageRow, image_size: int, num_channels: int) -> Outcome:
    try:
        image = load_image(row)
        mode = image.mode
        image = _centre_square(converted_image(image, num_channels), image_size)
    except PIL.UnidentifiedImageError:  # its own message is an address in memory
        return Outcome(row.name, row.label, reason="no image in a known format")
    except Exception as error:  # the decoders of broken files raise whatever they stumble over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Outcome(row.name, row.label, reason=reason)
    pixels = np.asarray(image).reshape(image.height, image.width, num_channels)
    sums = pixels.sum(axis=(0, 1), dtype=np.int64)
    squares = np.square(pixels, dtype=np.uint32).sum(axis=(0, 1), dtype=np.int64)
    return Outcome(row.name, row.label, mode, pixels, np.stack([sums, squares]).tobytes())


def usual_channels(source: ImageSource) -> int:
    """Return the number of channels that most images have, of a sample that can be used.

    The sample is spread over the rows. Of equally frequent numbers the larger one is taken, which
    loses nothing; 3 if no image can be used.
    """
    found: Counter[int] = Counter()
    for row in islice(source.read(), 0, None, max(1, source.num_rows // _SAMPLED_IMAGES)):
        try:
            image = load_image(row)
            is_grey = image.mode.split(";")[0] in _GREY_MODES
            num_channels = 1 if is_grey else 4 if image.has_transparency_data else 3
            converted_image(image, num_channels)
        except Exception:  # the pass that follows reports it
            continue
        found[num_channels] += 1
    return max(found, key=lambda number: (found[number], number), default=3)


def load_image(row: ImageRow) -> PIL.Image.Image:
    """Return the image of a row, decoded to its last pixel and turned as its EXIF data say."""
    if row.content is None:
        raise ValueError("the row is empty")
    if isinstance(row.content, np.ndarray):
        return PIL.Image.fromarray(row.content)
    from datasets import Image

    image: PIL.Image.Image = Image().decode_example(row.content)
    return image


def converted_image(image: PIL.Image.Image, num_channels: int) -> PIL.Image.Image:
    """Convert to grey (ITU-R 601-2 luma), RGB or RGBA; without alpha on a white background.

    The image processors of transformers do the same. 16-bit grey levels v become round(v /
    257); Pillow alone would cut them off at 255.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a scale")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError(f"its grey levels {values.min()}..{values.max()} exceed 16 bits")
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if num_channels != 4 and image.has_transparency_data:
        background = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(MODES[num_channels])


def _centre_square(image: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """Resize the shorter side and crop the centre, as transformers' image processors do.

    Raises:
        ValueError: the image is so thin that its longer side, resized, would fill the memory.
    """
    if not size:
        return image
    shorter = min(image.size)
    if max(image.size) > _MOST_TIMES_AS_LONG * shorter:
        raise ValueError(
            f"it is {image.width} x {image.height} pixels, one side more than "
            f"{_MOST_TIMES_AS_LONG} times the other"
        )
    width, height = (size * side // shorter for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
