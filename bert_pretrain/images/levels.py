"""Images of more than 8 bits: which of their grey levels become black and white.

Images of Pillow's modes I, I;16 and F enter; images of mode L leave. Their files seldom say how
many of their bits are used: 12 bits of a camera in a file of 16 would become almost black.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

_LARGEST_LEVELS = (255, 1023, 4095, 16_383, 65_535)  # of 8, 10, 12, 14 and 16 bits
# Share of its range by which resampling lets a floating-point image overshoot; it is cut off.
_OVERSHOOT = 0.05
# Outside these, in [0, 1], hardly anything can be seen on images.
_USUAL_MEAN = (0.01, 0.99)
_SMALLEST_STD = 0.025


class PixelRange(NamedTuple):
    """Grey levels: those that become 0 (black) and 255 (white), or the extremes of an image."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}"


def has_levels(mode: str) -> bool:
    """Return whether images of a mode of Pillow's have grey levels of more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def extremes(image: PIL.Image.Image) -> PixelRange:
    """Return the lowest and the highest level of such an image.

    Raises:
        ValueError: a level is not finite.
    """
    levels = np.asarray(image)
    low, high = float(levels.min()), float(levels.max())
    if not np.isfinite(low + high):
        raise ValueError("it has grey levels that are no finite numbers")
    return PixelRange(low, high)


def usual_range(met: PixelRange, *, is_float: bool) -> PixelRange | None:
    """Return the smallest usual range that holds levels; None if none does.

    Usual are 0:1 of floating-point numbers, and of all images 0 to the largest number of 8, 10, 12,
    14 and 16 bits.
    """
    if met.low < -_OVERSHOOT * met.high:  # such as -1:1, which 0:255 would make black
        return None
    ranges = [PixelRange(0, high) for high in ((1,) if is_float else ()) + _LARGEST_LEVELS]
    return next((each for each in ranges if _holds(each, met, is_float=is_float)), None)


def common_ranges(met: Iterable[tuple[str, PixelRange]]) -> dict[str, PixelRange]:
    """Return the usual range of all images of a kind together, by kind: I;16, I or F.

    Args:
        met: the mode of each image and its extremes. Those that fit no usual range are passed over.
    """
    found: dict[str, PixelRange] = {}
    for mode, levels in met:
        kind = mode[: len("I;16")]  # whichever of its bytes comes first
        if usual_range(levels, is_float=kind == "F") is not None:
            low, high = found.get(kind, levels)
            found[kind] = PixelRange(min(low, levels.low), max(high, levels.high))
    ranges = {kind: usual_range(each, is_float=kind == "F") for kind, each in found.items()}
    return {kind: each for kind, each in ranges.items() if each is not None}


def as_bytes(image: PIL.Image.Image, pixel_range: PixelRange | None) -> PIL.Image.Image:
    """Return an image of more than 8 bits as one of mode L, linear between the ends of a range.

    Levels outside become black or white where the range is no usual one, and so was chosen to cut
    them off. Outside a usual one, they are those of another kind of file.

    Raises:
        ValueError: the range is not known, or is a usual one that does not hold the levels.
    """
    met = extremes(image)
    if pixel_range is None:
        raise ValueError(
            f"its grey levels are {met}, and no other image tells which of them are black and "
            "white; pass `pixel_range`, such as 0:4095"
        )
    low, high = pixel_range
    is_usual = low == 0 and high in (1, *_LARGEST_LEVELS)
    if is_usual and not _holds(pixel_range, met, is_float=image.mode == "F"):
        raise ValueError(
            f"its grey levels are {met}, beyond {pixel_range}; pass a `pixel_range` that holds them"
        )
    # In place, since the largest images have a quarter of a gigabyte. The code of the model cards
    # computes the same numbers.
    levels = np.array(image, dtype=np.float32)
    levels -= low
    levels *= 255 / (high - low)
    np.clip(np.rint(levels, out=levels), 0, 255, out=levels)
    return PIL.Image.fromarray(levels.astype(np.uint8))


def _holds(pixel_range: PixelRange, met: PixelRange, *, is_float: bool) -> bool:
    slack = _OVERSHOOT * pixel_range.high if is_float else 0
    return -slack <= met.low and met.high <= pixel_range.high + slack


def describe_absurdity(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """Return a warning that images are almost all black, white or of one grey; None if not.

    Args:
        mean: of each channel in [0, 1], over all images; a fourth channel, alpha, does not count.
        std: the standard deviation, likewise.
    """
    mean, std = mean[:3], std[:3]
    low, high = _USUAL_MEAN
    if low <= max(mean) and min(mean) <= high and max(std) >= _SMALLEST_STD:
        return None
    return (
        f"the pixels have mean {max(mean):.3f} and standard deviation {max(std):.3f} of "
        "0 (black) to 1 (white), so hardly anything can be seen on them. If the files hold more "
        "than 8 bits, pass their darkest and brightest level as `pixel_range`; if they hold 16 "
        "bits of colour, Pillow has read the upper 8 alone: convert them"
    )
