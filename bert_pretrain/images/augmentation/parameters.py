"""What is drawn for a view of an image: a row of numbers that says how the image is changed."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.images.augmentation.rules import AugmentationRule

_NUM_CROP_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop
_NO_SOLARIZATION = 2.0  # a threshold that no pixel in [0, 1] reaches


class Parameter(IntEnum):
    """Columns of the table that `draw` returns.

    Crops are in shares of the image, `FLIP`, `GRAYSCALE` and `INVERSION` are 0 or 1, `ANGLE` is in
    degrees counter-clockwise, `HUE` in turns, `*_RANK` the place 0..3 of an operation in the
    jitter, `BLUR_SIGMA` in pixels (0 = no blur); the factors leave an image unchanged at 1, the
    threshold at 2.
    """

    CROP_LEFT = 0
    CROP_TOP = 1
    CROP_WIDTH = 2
    CROP_HEIGHT = 3
    FLIP = 4
    ANGLE = 5
    BRIGHTNESS = 6
    CONTRAST = 7
    SATURATION = 8
    HUE = 9
    BRIGHTNESS_RANK = 10
    CONTRAST_RANK = 11
    SATURATION_RANK = 12
    HUE_RANK = 13
    GRAYSCALE = 14
    BLUR_SIGMA = 15
    SOLARIZE_THRESHOLD = 16
    INVERSION = 17


class _Draw(IntEnum):
    """Numbers of the uniform draws of a view; another numbering would change every run."""

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
    SOLARIZE = 17
    INVERSION = 18
    CROP_ATTEMPTS = 19  # pairs of area and aspect, to the end


NUM_DRAWS = _Draw.CROP_ATTEMPTS + 2 * _NUM_CROP_ATTEMPTS


def draw_parameters(rule: AugmentationRule, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn uniform draws into the parameters of one view of every image.

    Args:
        rule: how often and how strongly images change.
        draws: (B, `NUM_DRAWS`), independent, in [0, 1).

    Returns:
        (B, P), columns as named by `Parameter`.
    """
    table = np.zeros((len(draws), len(Parameter)), dtype=np.float64)
    _draw_geometry(table, draws, rule)
    _draw_jitter(table, draws, rule)
    table[:, Parameter.GRAYSCALE] = draws[:, _Draw.GRAYSCALE] < rule.grayscale_prob
    sigma = _scaled(draws[:, _Draw.BLUR_SIGMA], *rule.blur_sigma)
    table[:, Parameter.BLUR_SIGMA] = np.where(
        draws[:, _Draw.IS_BLURRED] < rule.blur_prob, sigma, 0.0
    )
    is_solarized = draws[:, _Draw.SOLARIZE] < rule.solarize_prob
    table[:, Parameter.SOLARIZE_THRESHOLD] = np.where(
        is_solarized, rule.solarize_threshold, _NO_SOLARIZATION
    )
    table[:, Parameter.INVERSION] = draws[:, _Draw.INVERSION] < rule.inversion_prob
    return table


def _draw_geometry(
    table: NDArray[np.float64], draws: NDArray[np.float64], rule: AugmentationRule
) -> None:
    """Fill in crop, flip and angle.

    Every crop has ten attempts of its own at an area and an aspect that fit into the image. One
    whose attempts all fail gets the whole image, narrowed to the nearest allowed aspect. Boxes are
    not rounded to whole pixels.
    """
    areas = _scaled(draws[:, _Draw.CROP_ATTEMPTS :: 2], *rule.crop_area)  # (B, attempts)
    aspects = np.exp(_scaled(draws[:, _Draw.CROP_ATTEMPTS + 1 :: 2], *np.log(rule.crop_aspect)))
    widths, heights = np.sqrt(areas * aspects), np.sqrt(areas / aspects)
    fits = (widths <= 1) & (heights <= 1)
    chosen = np.arange(len(table)), fits.argmax(axis=1)
    fallback = np.clip(1.0, *rule.crop_aspect)  # a square image has aspect 1
    any_fits = fits.any(axis=1)
    width = np.where(any_fits, widths[chosen], min(1.0, fallback))
    height = np.where(any_fits, heights[chosen], min(1.0, 1 / fallback))
    table[:, Parameter.CROP_WIDTH], table[:, Parameter.CROP_HEIGHT] = width, height
    table[:, Parameter.CROP_LEFT] = (1 - width) * np.where(any_fits, draws[:, _Draw.CROP_LEFT], 0.5)
    table[:, Parameter.CROP_TOP] = (1 - height) * np.where(any_fits, draws[:, _Draw.CROP_TOP], 0.5)
    table[:, Parameter.FLIP] = draws[:, _Draw.FLIP] < rule.flip_prob
    angle = _scaled(draws[:, _Draw.ANGLE], -rule.rotation_degrees, rule.rotation_degrees)
    table[:, Parameter.ANGLE] = np.where(
        draws[:, _Draw.IS_ROTATED] < rule.rotation_prob, angle, 0.0
    )


def _draw_jitter(
    table: NDArray[np.float64], draws: NDArray[np.float64], rule: AugmentationRule
) -> None:
    """Fill in factors, hue and the order of the four operations; without jitter the factors are 1 and the hue 0."""
    is_jittered = draws[:, _Draw.IS_JITTERED] < rule.jitter_prob
    factors = (
        (Parameter.BRIGHTNESS, _Draw.BRIGHTNESS, rule.brightness),
        (Parameter.CONTRAST, _Draw.CONTRAST, rule.contrast),
        (Parameter.SATURATION, _Draw.SATURATION, rule.saturation),
    )
    for column, number, strength in factors:
        factor = _scaled(draws[:, number], max(0.0, 1 - strength), 1 + strength)
        table[:, column] = np.where(is_jittered, factor, 1.0)
    table[:, Parameter.HUE] = np.where(
        is_jittered, _scaled(draws[:, _Draw.HUE], -rule.hue, rule.hue), 0.0
    )
    order = draws[:, _Draw.ORDER : _Draw.ORDER + 4].argsort(axis=1, kind="stable")
    table[:, Parameter.BRIGHTNESS_RANK : Parameter.HUE_RANK + 1] = order.argsort(axis=1)


def _scaled(draws: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Spread draws from [0, 1) over [low, high)."""
    return low + (high - low) * draws
