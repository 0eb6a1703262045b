"""Image files to pixels of one kind, for pretraining, fine-tuning and evaluation alike.

Rows of a source enter; what became of each leaves, in the same order. Memory holds a few images
however many there are and however large they say they are: see `_MOST_PIXELS`.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray
from PIL import ExifTags

from bert_pretrain.data.threads import map_ahead
from bert_pretrain.errors import InputError
from bert_pretrain.images.levels import PixelRange, as_bytes, has_levels

Label: TypeAlias = "int | str | None"
OnBadImage: TypeAlias = Literal["error", "skip"]
Result = TypeVar("Result")
# Pixels: the side of a square, or height and width; 0 = the image's own.
PictureSize: TypeAlias = "int | tuple[int, int]"

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MOST_TIMES_AS_LONG = 100
_ADDRESS = re.compile(r"(?:https?|ftps?)://")  # a stranger's table may name any of a local network
_ROWS_PER_BLOCK = 16  # decoded by a thread at a time; bounds what is in flight
# Of one image, and of all that are decoded at the same time: up to 2 GB with the copies that a
# transparent one needs. It is where Pillow begins to warn of decompression bombs; from twice as
# many on it refuses the header.
_MOST_PIXELS = 89_478_485
# A JPEG is decoded to at least so many times the size that it is resized to, as Pillow's
# `thumbnail` does by default: the rest is resized as if all of it had been decoded.
_REDUCING_GAP = 2
_ON_THEIR_SIDE = (5, 6, 7, 8)  # orientations of EXIF that swap width and height


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
        fetch: returns the row of a number, and can be pickled; None = rows come in passes alone.
        warning: what is strange about the names of its files; "" if nothing is.
    """

    description: str
    fingerprint: str
    num_rows: int
    label_names: tuple[str, ...] | None
    read: Callable[[], Iterator[ImageRow]]
    is_embedded: bool = False
    fetch: Callable[[int], ImageRow] | None = None
    warning: str = ""


@dataclass(frozen=True)
class Conversion:
    """What is done to an image on its way to a model.

    Attributes:
        num_channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        pixel_range: of images of more than 8 bits; None = there should be none.
        resized_side: pixels of the side that `fit` resizes the shorter one to, at most; 0 = it does
            not resize.
        fit: takes an image of the mode of `num_channels`, returns pixels uint8 (H, W, C).
    """

    num_channels: int
    pixel_range: PixelRange | None
    resized_side: int
    fit: Callable[[PIL.Image.Image], NDArray[np.uint8]]


@dataclass(frozen=True)
class Outcome:
    """What became of a row: an image, or the reason why there is none.

    Attributes:
        mode: Pillow's name of the kind of pixels, before any conversion.
        sides: width and height of the upright image, before any resizing.
        pixels: uint8 (H, W, C).
        moments: bytes of int64 (2, C), sums of the pixels and of their squares.
        reason: why there are no pixels; empty otherwise.
    """

    name: str
    label: Label
    mode: str = ""
    sides: tuple[int, int] = (0, 0)
    pixels: NDArray[np.uint8] | None = None
    moments: bytes = b""
    reason: str = ""

    def refusal(self) -> InputError:
        """Return the error of an image that cannot be used."""
        return InputError(
            f"{self.name} cannot be decoded ({self.reason})",
            advice="repair or remove it, or pass `on_bad_image` skip",
        )


def decode_rows(rows: Iterator[ImageRow], conversion: Conversion) -> Iterator[Outcome]:
    """Decode rows in threads and yield what became of them, in order."""
    return in_order(partial(decode_row, conversion=conversion), rows)


def in_order(function: Callable[[ImageRow], Result], rows: Iterator[ImageRow]) -> Iterator[Result]:
    """Yield what a function returns of each row, computed in threads a few blocks ahead.

    Threads serve, since Pillow releases the interpreter lock.
    """
    num_threads = min(32, os.cpu_count() or 1)
    blocks = iter(lambda: list(islice(rows, _ROWS_PER_BLOCK)), [])
    results = map_ahead(
        lambda block: [function(row) for row in block],
        blocks,
        num_threads=num_threads,
        num_ahead=num_threads,
    )
    for block in results:
        yield from block


def decode_row(row: ImageRow, conversion: Conversion) -> Outcome:
    """Decode one row; see `decode_rows`."""
    try:
        with decoded(row, conversion.resized_side) as (image, sides):
            mode = image.mode
            pixels = conversion.fit(
                converted_image(image, conversion.num_channels, conversion.pixel_range)
            )
    except PIL.UnidentifiedImageError:  # its own message is an address in memory
        return Outcome(row.name, row.label, reason="no image in a known format")
    except Exception as error:  # the decoders of broken files raise whatever they stumble over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Outcome(row.name, row.label, reason=reason)
    sums = pixels.sum(axis=(0, 1), dtype=np.int64)
    squares = np.square(pixels, dtype=np.uint32).sum(axis=(0, 1), dtype=np.int64)
    return Outcome(row.name, row.label, mode, sides, pixels, np.stack([sums, squares]).tobytes())


class _Room:
    """Room for so many pixels, which threads take for as long as they work on an image."""

    def __init__(self, num_pixels: int) -> None:
        self._free = num_pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, num_pixels: int) -> Iterator[None]:
        """Wait until there is room, and take it for the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= num_pixels)
            self._free -= num_pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += num_pixels
                self._changed.notify_all()


_ROOM = _Room(_MOST_PIXELS)


@contextlib.contextmanager
def decoded(
    row: ImageRow, resized_side: int, *, gap: int = _REDUCING_GAP
) -> Iterator[tuple[PIL.Image.Image, tuple[int, int]]]:
    """Yield the image of a row, decoded to its last pixel and turned as its EXIF data say.

    Beside it stand the width and the height that it has in its file, upright.

    A JPEG is decoded to an eighth, a quarter or half of its size, if that is still `gap` times
    `resized_side` or more; 0 = in full.

    Raises:
        ValueError: it is too large, or so thin that its longer side, resized, would fill the
            memory. Pillow's decoders raise whatever a broken file leads to.
    """
    with open_image(row) as image:
        in_file = image.size
        if resized_side:
            image.draft(None, (gap * resized_side,) * 2)
        # A progressive JPEG is unpacked in full, whatever it is decoded to.
        width, height = in_file if image.info.get("progressive") else image.size
        if width * height > _MOST_PIXELS:
            raise ValueError(f"it has {width} x {height} pixels, more than {_MOST_PIXELS:,} in all")
        times_as_long = max(width, height) / min(width, height)
        if resized_side and (
            times_as_long > _MOST_TIMES_AS_LONG or resized_side**2 * times_as_long > _MOST_PIXELS
        ):
            raise ValueError(
                f"it is {width} x {height} pixels, too thin to be resized to {resized_side}"
            )
        is_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_THEIR_SIDE
        with _ROOM.taken(width * height):
            PIL.ImageOps.exif_transpose(image, in_place=True)  # loads it
            yield image, in_file[::-1] if is_on_its_side else in_file


def open_image(row: ImageRow) -> PIL.Image.Image:
    """Open the image of a row without decoding it.

    Raises:
        ValueError: there is none, or it is a program. Pillow and the system raise whatever a broken
            or missing file leads to.
    """
    if row.content is None:
        raise ValueError("the row is empty")
    if isinstance(row.content, np.ndarray):
        return PIL.Image.fromarray(row.content)
    content, path = row.content.get("bytes"), row.content.get("path")
    if content is None and path is None:
        raise ValueError("the row has neither bytes nor a path")
    if content is None and not os.path.exists(str(path)):
        if _ADDRESS.search(str(path)):
            raise ValueError("it is an address, which is not asked for images")
        from datasets.utils.file_utils import xopen

        with xopen(path, "rb") as file:  # within an archive, or on the Hub
            content = file.read()
    image = PIL.Image.open(str(path) if content is None else BytesIO(content))
    if image.format == "EPS":  # Pillow would let Ghostscript run it
        raise ValueError("EPS is a program that draws an image, and may do more")
    return image


def converted_image(
    image: PIL.Image.Image, num_channels: int, pixel_range: PixelRange | None
) -> PIL.Image.Image:
    """Convert to grey (ITU-R 601-2 luma), RGB or RGBA; without alpha on a white background.

    The code of the model cards and the image processors of transformers do the same. For images of
    more than 8 bits see `as_bytes`; Pillow alone would cut them off at 255.
    """
    if has_levels(image.mode):
        image = as_bytes(image, pixel_range)
    if num_channels != 4 and image.has_transparency_data:
        background = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(MODES[num_channels])


def picture_conversion(
    size: PictureSize, num_channels: int, pixel_range: PixelRange | None
) -> Conversion:
    """Return what makes pictures of a size out of images; see `picture`."""
    longest = max(size) if isinstance(size, tuple) else size
    return Conversion(num_channels, pixel_range, longest, partial(picture, size=size))


def picture(image: PIL.Image.Image, size: PictureSize) -> NDArray[np.uint8]:
    """Return an image as transformers' image processors make it.

    To a square its shorter side is resized and its centre cropped; to height and width all of it is
    resized.

    Returns uint8 (H, W, C). A size of 0 leaves the image as it is.
    """
    if isinstance(size, tuple):
        height, width = size
        if image.size != (width, height):
            image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    elif size:
        shorter = min(image.size)
        width, height = (size * side // shorter for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(image.height, image.width, -1)
