"""How images may be changed, and the numbers that say how one view of an image is changed.

An `AugmentationRule` and uniform numbers enter; parameters leave, which `views` applies.

Source: Chen et al. 2020 (SimCLR), appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.errors import InputError

_NUM_CROP_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop


@dataclass(frozen=True, kw_only=True)
class AugmentationRule:
    """How often and how strongly to change an image; a field left at its default does nothing.

    Attributes:
        crop_area: smallest and largest share of the image that is cropped and resized back, (0, 1].
        crop_aspect: smallest and largest width / height of the crop, as a multiple of the view's;
            drawn log-uniformly.
        flip_prob: probability of a horizontal flip.
        rotation_prob: probability of a rotation.
        rotation_degrees: largest rotation to either side; past the edge its mirror image is seen.
        jitter_prob: probability of changing brightness, contrast, saturation and hue, in random
            order.
        brightness, contrast, saturation: the factor is drawn from [max(0, 1 - x), 1 + x].
        hue: hues are turned by an angle from [-hue, hue], in full turns, at most 0.5.
        grayscale_prob: probability of grey, in all colour channels.
        blur_prob: probability of a Gaussian blur; its kernel is about a tenth of the image wide, so
            images of less than 20 pixels are not blurred.
        blur_sigma: smallest and largest standard deviation of the blur, pixels.
        inversion_prob: probability of inverting all colours.

    Raises:
        InputError: a probability or range is impossible.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    flip_prob: float = 0.0
    rotation_prob: float = 0.0
    rotation_degrees: float = 0.0
    jitter_prob: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale_prob: float = 0.0
    blur_prob: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    inversion_prob: float = 0.0

    def __post_init__(self) -> None:
        """Check probabilities and ranges."""
        largest = {name: 1.0 for name in vars(self) if name.endswith("_prob")}
        largest |= {"hue": 0.5, "rotation_degrees": 180.0}
        largest |= dict.fromkeys(("brightness", "contrast", "saturation"), math.inf)
        for name, upper in largest.items():
            value = getattr(self, name)
            if not 0 <= value <= upper:
                raise InputError(
                    f"`{name}` of the augmentation is {value} but must lie in [0, {upper:g}]"
                )
        for name, upper in {
            "crop_area": 1.0,
            "crop_aspect": math.inf,
            "blur_sigma": math.inf,
        }.items():
            check_ascending(name, getattr(self, name), upper, owner=" of the augmentation")


def check_ascending(name: str, ends: tuple[float, float], upper: float, *, owner: str = "") -> None:
    """Raise `InputError` unless two numbers are above 0, ascending, and at most `upper`.

    `name` is the parameter that they are; `owner` follows it in the message.
    """
    low, high = ends
    if not 0 < low <= high <= upper:
        raise InputError(
            f"`{name}`{owner} is ({low}, {high}) but must be two ascending values in "
            f"(0, {upper:g}]",
            advice=f"change `{name}`",
        )


def _simclr(strength: float, *, blur_prob: float) -> AugmentationRule:
    return AugmentationRule(
        crop_area=(0.08, 1.0),
        crop_aspect=(3 / 4, 4 / 3),
        flip_prob=0.5,
        jitter_prob=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grayscale_prob=0.2,
        blur_prob=blur_prob,
    )


PRESETS: dict[str, AugmentationRule] = {
    "basic": AugmentationRule(
        crop_area=(0.4, 1.0),
        crop_aspect=(3 / 4, 4 / 3),
        rotation_prob=1.0,
        rotation_degrees=15.0,
        inversion_prob=0.5,
    ),
    "simclr": _simclr(1.0, blur_prob=0.5),
    "simclr_small": _simclr(0.5, blur_prob=0.0),  # SimCLR's setting for CIFAR-10, 32 x 32
}


# Columns of the table that `draw_parameters` returns. Crops are in shares of the image, `FLIP`,
# `GRAYSCALE` and `INVERSION` are 0 or 1, `ANGLE` is in degrees counter-clockwise, `HUE` in turns,
# `*_RANK` the place 0..3 of an operation in the jitter, `BLUR_SIGMA` in pixels (0 = no blur);
# factors of 1 change nothing.
Parameter = IntEnum(
    "Parameter",
    "CROP_LEFT CROP_TOP CROP_WIDTH CROP_HEIGHT FLIP ANGLE BRIGHTNESS CONTRAST SATURATION HUE "
    "BRIGHTNESS_RANK CONTRAST_RANK SATURATION_RANK HUE_RANK GRAYSCALE BLUR_SIGMA INVERSION",
    start=0,
)


class _Number(IntEnum):
    """What each uniform number of a view decides; another order would change every run."""

    CROP_LEFT = 0
    CROP_TOP = 1
    FLIP = 2
    IS_ROTATED = 3
    ANGLE = 4
    IS_JITTERED = 5
    BRIGHTNESS = 6
    CONTRAST = 7
    SATURATION = 8
    HUE = 9
    ORDER = 10  # four of them
    GRAYSCALE = 14
    IS_BLURRED = 15
    BLUR_SIGMA = 16
    INVERSION = 18  # 17 is free
    CROP_ATTEMPTS = 19  # pairs of area and aspect, to the end


NUM_DRAWS = _Number.CROP_ATTEMPTS + 2 * _NUM_CROP_ATTEMPTS


# Columns of a crop: left, top, width, height.
BOX = slice(Parameter.CROP_LEFT, Parameter.CROP_HEIGHT + 1)


def draw_parameters(
    rule: AugmentationRule, draws: NDArray[np.float64], stretch: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Turn independent draws (B, `NUM_DRAWS`) from [0, 1) into the parameters of a view, (B, P).

    The columns are those of `Parameter`. `stretch` (B,) is width / height of each image divided by
    that of its view; None = they are alike.
    """
    table = np.zeros((len(draws), len(Parameter)), dtype=np.float64)
    _draw_geometry(table, draws, rule, np.ones(len(draws)) if stretch is None else stretch)
    _draw_jitter(table, draws, rule)
    table[:, Parameter.GRAYSCALE] = draws[:, _Number.GRAYSCALE] < rule.grayscale_prob
    sigma = _scaled(draws[:, _Number.BLUR_SIGMA], *rule.blur_sigma)
    is_blurred = draws[:, _Number.IS_BLURRED] < rule.blur_prob
    table[:, Parameter.BLUR_SIGMA] = np.where(is_blurred, sigma, 0.0)
    table[:, Parameter.INVERSION] = draws[:, _Number.INVERSION] < rule.inversion_prob
    return table


def _draw_geometry(
    table: NDArray[np.float64],
    draws: NDArray[np.float64],
    rule: AugmentationRule,
    stretch: NDArray[np.float64],
) -> None:
    """Fill in crop, flip and angle.

    Each crop takes the first of ten draws of area and aspect that fits into the image; if none
    fits, the whole image, narrowed to the nearest allowed aspect. Boxes are not rounded to pixels.
    """
    areas = _scaled(draws[:, _Number.CROP_ATTEMPTS :: 2], *rule.crop_area)  # (B, attempts)
    aspects = np.exp(_scaled(draws[:, _Number.CROP_ATTEMPTS + 1 :: 2], *np.log(rule.crop_aspect)))
    aspects /= stretch[:, None]  # in shares of the image's own sides
    widths, heights = np.sqrt(areas * aspects), np.sqrt(areas / aspects)
    fits = (widths <= 1) & (heights <= 1)
    chosen = np.arange(len(table)), fits.argmax(axis=1)
    fallback = np.clip(stretch, *rule.crop_aspect) / stretch  # in shares the whole image has 1
    any_fits = fits.any(axis=1)
    width = np.where(any_fits, widths[chosen], np.minimum(1.0, fallback))
    height = np.where(any_fits, heights[chosen], np.minimum(1.0, 1 / fallback))
    table[:, Parameter.CROP_WIDTH], table[:, Parameter.CROP_HEIGHT] = width, height
    left, top = draws[:, _Number.CROP_LEFT], draws[:, _Number.CROP_TOP]
    table[:, Parameter.CROP_LEFT] = (1 - width) * np.where(any_fits, left, 0.5)
    table[:, Parameter.CROP_TOP] = (1 - height) * np.where(any_fits, top, 0.5)
    table[:, Parameter.FLIP] = draws[:, _Number.FLIP] < rule.flip_prob
    angle = _scaled(draws[:, _Number.ANGLE], -rule.rotation_degrees, rule.rotation_degrees)
    is_rotated = draws[:, _Number.IS_ROTATED] < rule.rotation_prob
    table[:, Parameter.ANGLE] = np.where(is_rotated, angle, 0.0)


def _draw_jitter(
    table: NDArray[np.float64], draws: NDArray[np.float64], rule: AugmentationRule
) -> None:
    """Fill in the factors (1 without jitter), the hue (0) and the ranks of the four operations."""
    is_jittered = draws[:, _Number.IS_JITTERED] < rule.jitter_prob
    factors = (
        (Parameter.BRIGHTNESS, _Number.BRIGHTNESS, rule.brightness),
        (Parameter.CONTRAST, _Number.CONTRAST, rule.contrast),
        (Parameter.SATURATION, _Number.SATURATION, rule.saturation),
    )
    for column, number, strength in factors:
        factor = _scaled(draws[:, number], max(0.0, 1 - strength), 1 + strength)
        table[:, column] = np.where(is_jittered, factor, 1.0)
    hue = _scaled(draws[:, _Number.HUE], -rule.hue, rule.hue)
    table[:, Parameter.HUE] = np.where(is_jittered, hue, 0.0)
    order = draws[:, _Number.ORDER : _Number.ORDER + 4].argsort(axis=1, kind="stable")
    table[:, Parameter.BRIGHTNESS_RANK : Parameter.HUE_RANK + 1] = order.argsort(axis=1)


def _scaled(draws: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Spread draws from [0, 1) over [low, high)."""
    return low + (high - low) * draws
