"""What the images of a source have in common, found out before they are decoded.

A source enters; the channels that most images have leave, and the range of their grey levels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from bert_pretrain.errors import InputError
from bert_pretrain.images.decoding import (
    MODES,
    ImageRow,
    ImageSource,
    converted_image,
    decoded,
    in_order,
    open_image,
)
from bert_pretrain.images.levels import PixelRange, common_ranges, extremes, has_levels

_GREY_MODES = {"1", "L", "LA", "La"}
_SAMPLED_IMAGES = 64


class Survey(NamedTuple):
    """How the images of a source are to be read.

    Attributes:
        num_channels: 1, 3 or 4.
        pixel_range: of images of more than 8 bits; None = the sample has none.
    """

    num_channels: int
    pixel_range: PixelRange | None


def survey(
    source: ImageSource, *, num_channels: int = 0, pixel_range: PixelRange | None = None
) -> Survey:
    """Find out what is not given, from a sample that is spread over the rows.

    The channels are those of most images that can be used; of equally frequent numbers the larger
    one is taken, which loses nothing; 3 if no image can be used. If the sample has images of more
    than 8 bits, all such images of the source are looked at for their range.

    Args:
        source: of the images.
        num_channels: 0 = to be found out.
        pixel_range: None = to be found out.

    Raises:
        InputError: images of 16 bits, of 32 and of floating-point numbers have different ranges.
    """
    if num_channels and pixel_range:
        return Survey(num_channels, pixel_range)
    channels: Counter[int] = Counter()
    have_levels = False
    for row in _sample(source):
        try:
            with open_image(row) as image:
                have_levels |= has_levels(image.mode)
            if not num_channels:
                channels[_channels_of(row)] += 1
        except Exception:  # the pass that follows reports it
            continue
    if have_levels and pixel_range is None:
        pixel_range = _range_of(source)
    most_usual = max(channels, key=lambda number: (channels[number], number), default=3)
    return Survey(num_channels or most_usual, pixel_range)


def describe_mixture(modes: Mapping[str, int], num_channels: int) -> str | None:
    """Return a warning that some images are grey and others have colours; None if not.

    Args:
        modes: how many images have each mode of Pillow's.
        num_channels: 1, 3 or 4, that all were converted to.
    """
    num_grey = sum(count for mode, count in modes.items() if _is_grey(mode))
    num_coloured = sum(modes.values()) - num_grey
    if not (num_grey and num_coloured):
        return None
    lost = "that one is grey is easily told, whatever it shows"
    if num_channels == 1:
        lost = "the colours are lost"
    return (
        f"{num_grey:,} of the images are grey and {num_coloured:,} have colours; all become "
        f"{MODES[num_channels]}, so that {lost}"
    )


def _is_grey(mode: str) -> bool:
    return has_levels(mode) or mode in _GREY_MODES


def _sample(source: ImageSource) -> Iterator[ImageRow]:
    """Yield rows that are spread over a source; of what can be read one by one these alone."""
    step = math.ceil(source.num_rows / _SAMPLED_IMAGES) or 1
    if source.fetch is None:
        yield from islice(source.read(), 0, None, step)
    else:
        yield from map(source.fetch, range(0, source.num_rows, step))


def _channels_of(row: ImageRow) -> int:
    """Return the channels that an image of this kind needs; raise what its decoder raises."""
    with decoded(row, resized_side=1) as (image, _):
        if _is_grey(image.mode):
            return 1
        num_channels = 4 if image.has_transparency_data else 3
        converted_image(image, num_channels, None)
        return num_channels


def _range_of(source: ImageSource) -> PixelRange | None:
    """Return the range of all images of more than 8 bits; None if none fits a usual one."""
    found = common_ranges(each for each in in_order(_extremes_of, source.read()) if each)
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{each} in those of mode {kind}" for kind, each in found.items())
        raise InputError(
            f"the images of more than 8 bits of {source.description} have different grey levels: "
            f"{listed} (as Pillow calls it)",
            advice="convert them to one, or pass `pixel_range`",
        )
    return next(iter(found.values()), None)


def _extremes_of(row: ImageRow) -> tuple[str, PixelRange] | None:
    """Return the mode of an image and its extremes; None of one of 8 bits, or a broken one."""
    try:
        with open_image(row) as image:
            if not has_levels(image.mode):
                return None
        with decoded(row, resized_side=0) as (image, _):
            return image.mode, extremes(image)
    except Exception:  # the pass that follows reports it
        return None
