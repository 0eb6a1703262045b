"""How often and how strongly images are changed, and the named rules.

Source: Chen et al. 2020 (SimCLR), appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from bert_pretrain.errors import InputError

Preset: TypeAlias = Literal["basic", "simclr", "simclr_small"]


@dataclass(frozen=True, kw_only=True)
class AugmentationRule:
    """How often and how strongly to change an image; a field left at its default does nothing.

    `dataclasses.replace(PRESETS["simclr"], flip_prob=0.0)` is SimCLR for digits, which a flip would
    make unreadable.

    Attributes:
        crop_area: Smallest and largest share of the image that is cropped and resized back, in (0,
            1].
        crop_aspect: Smallest and largest width / height of the crop, positive; drawn log-uniformly.
        flip_prob: Probability of a horizontal flip.
        rotation_prob: Probability of a rotation.
        rotation_degrees: Largest rotation to either side; past the image's edge its mirror image is
            seen.
        jitter_prob: Probability of changing brightness, contrast, saturation and hue, in random
            order.
        brightness: The factor is drawn from [max(0, 1 - brightness), 1 + brightness].
        contrast: As brightness.
        saturation: As brightness.
        hue: Hues are turned by an angle from [-hue, hue], in full turns, at most 0.5.
        grayscale_prob: Probability of grey, in all colour channels.
        blur_prob: Probability of a Gaussian blur; its kernel is about a tenth of the image wide, so
            images of less than 20 pixels are not blurred.
        blur_sigma: Smallest and largest standard deviation of the blur, pixels.
        solarize_prob: Probability of inverting bright values.
        solarize_threshold: Values of at least this are inverted, in [0, 1].
        inversion_prob: Probability of inverting all colours.

    Raises:
        InputError: A probability or range is impossible.
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
    solarize_prob: float = 0.0
    solarize_threshold: float = 0.5
    inversion_prob: float = 0.0

    def __post_init__(self) -> None:
        """Check probabilities and ranges."""
        largest = {
            **{name: 1.0 for name in vars(self) if name.endswith("_prob")},
            "solarize_threshold": 1.0,
            "hue": 0.5,
            "rotation_degrees": 180.0,
            **{name: float("inf") for name in ("brightness", "contrast", "saturation")},
        }
        for name, upper in largest.items():
            value = getattr(self, name)
            if not 0 <= value <= upper:
                raise InputError(
                    f"{name} of the augmentation is {value} but must lie in [0, {upper:g}]"
                )
        for name, upper in {
            "crop_area": 1.0,
            "crop_aspect": float("inf"),
            "blur_sigma": float("inf"),
        }.items():
            low, high = getattr(self, name)
            if not 0 < low <= high <= upper:
                raise InputError(
                    f"{name} of the augmentation is ({low}, {high}) but must be two ascending "
                    f"values in (0, {upper:g}]"
                )

    @property
    def crops_or_flips(self) -> bool:
        """Whether any crop or flip is possible."""
        return self.crop_area[0] < 1 or self.crop_aspect != (1.0, 1.0) or self.flip_prob > 0


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


PRESETS: dict[Preset, AugmentationRule] = {
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
