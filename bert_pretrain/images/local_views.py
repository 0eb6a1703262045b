"""Local views: small crops of an image beside its views of full size (multi-crop).

What the flags say enters; how the views are drawn and made leaves. They are cut from what other
views are cut from, at its resolution, and changed by the same rule but for the area of the crop.

Source: Caron et al. 2020 (SwAV), section 3.2; Caron et al. 2021 (DINO), section 3.1, for the area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.errors import InputError
from bert_pretrain.images.augmentation import check_ascending
from bert_pretrain.images.views import Augmentation

LOCAL_CROP_AREA = (0.05, 0.4)
FEWEST_PIXELS = 8  # of a side: with local views of 4 x 4 pixels, encoders of digits learnt nothing
_NUM_GLOBAL = 2  # views drawn before them


@dataclass(frozen=True)
class LocalViews:
    """The local views of each image.

    Attributes:
        number: N, how many.
        size: height and width of each.
        augmentation: makes one.
    """

    number: int
    size: tuple[int, int]
    augmentation: Augmentation

    @property
    def names(self) -> tuple[str, ...]:
        """What their parameters are called."""
        return tuple(f"local_view_{number}" for number in range(1, self.number + 1))

    def draw(self, epoch: int, images: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the parameters of each, float32 (B, P), by name; see `Augmentation.draw`."""
        return {
            name: self.augmentation.draw(epoch, images, _NUM_GLOBAL + number)
            for number, name in enumerate(self.names)
        }


def local_view_size(wanted: int | tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of local views.

    Args:
        wanted: the side of a square, or both; 0 = half of each side of an image, or all of it where
            a half would have fewer than `FEWEST_PIXELS`.
        image_size: height and width of the views of full size.

    Raises:
        InputError: they are larger than the views of full size.
    """
    height, width = image_size
    size = (wanted, wanted) if isinstance(wanted, int) else wanted
    if not any(size):
        size = (height // 2, width // 2)
        if min(size) < FEWEST_PIXELS:
            size = image_size
    if size[0] > height or size[1] > width:
        raise InputError.out_of_range(
            "local_view_size",
            "x".join(map(str, size)),
            f"at most the size of the images, {height}x{width}",
        )
    return size


def make_local_views(
    number: int,
    size: tuple[int, int],
    *,
    crop_area: Sequence[float],
    augmentation: Augmentation,
    image_size: tuple[int, int],
    num_images: int,
) -> LocalViews:
    """Return local views like the views of full size that `augmentation` makes.

    Args:
        number: how many of each image.
        size: their height and width.
        crop_area: smallest and largest share of the image, (0, 1].
        augmentation: of the views of full size.
        image_size: height and width of these.
        num_images: of the data set.
    """
    rule = replace(augmentation.rule, crop_area=local_crop_area(crop_area))
    # In whole numbers, so that equal proportions are exactly equal.
    ours, theirs = size[1] * image_size[0], size[0] * image_size[1]
    stretch = augmentation.stretch
    if ours != theirs:
        stretch = (np.ones(num_images) if stretch is None else stretch) * (theirs / ours)
    changed = replace(augmentation, rule=rule, image_size=size, stretch=stretch)
    return LocalViews(number, size, changed)


def local_crop_area(given: Sequence[float] | None) -> tuple[float, float]:
    """Return the shares of an image that local views show, checked; None = the usual ones.

    Raises:
        InputError: they are not two ascending numbers in (0, 1].
    """
    if given is None:
        return LOCAL_CROP_AREA
    if len(given) != 2:
        raise InputError.out_of_range("local_crop_area", given, "two numbers, such as 0.05 0.4")
    low, high = given
    check_ascending("local_crop_area", (low, high), 1.0)
    return low, high
