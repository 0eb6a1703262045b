"""Random views of images, for a whole batch at once on its device, with parameters of its own for every image.

`Augmentation.draw` turns (epoch, image, view) into a table of parameters on the CPU, for instance in a data worker;
`Augmentation.apply` turns float images in [0, 1] and that table into views in [0, 1] wherever the images are. The
parameters are a pure function of seed, epoch, image and view, so that an image looks the same in any batch, on any
number of processes and after a restart. The contrastive objective calls both.

Crop, flip, rotation, jitter, grey, blur, solarisation and inversion follow each other in this order. A crop is never
larger than the image and the view has the image's size, so pixels are only ever magnified and nothing aliases.

Source: Chen et al. 2020 (SimCLR), appendix A. Crop, rotation and jitter are Pillow's (and torchvision's ColorJitter's)
without rounding to whole pixels and 8 bits; blur and solarisation are kornia's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from kornia.enhance import solarize
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.random import Purpose, uniform
from bert_pretrain.errors import InputError

Preset: TypeAlias = Literal["basic", "simclr", "simclr_small"]

_NUM_CROP_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop
_NO_SOLARIZATION = 2.0  # a threshold that no pixel in [0, 1] reaches
_SMALLEST_SIGMA = 0.01  # pixels; the neighbours' weight exp(-5000) is 0 in float32, so the image is returned exactly


@dataclass(frozen=True, kw_only=True)
class AugmentationRule:
    """How often and how strongly to change an image; a field left at its default does nothing.

    `dataclasses.replace(PRESETS["simclr"], flip_prob=0.0)` is SimCLR for digits, which a flip would make unreadable.

    Attributes:
        crop_area: Smallest and largest share of the image that is cropped and resized back, in (0, 1].
        crop_aspect: Smallest and largest width / height of the crop, positive; drawn log-uniformly.
        flip_prob: Probability of a horizontal flip.
        rotation_prob: Probability of a rotation.
        rotation_degrees: Largest rotation to either side; past the image's edge its mirror image is seen.
        jitter_prob: Probability of changing brightness, contrast, saturation and hue, in random order.
        brightness: The factor is drawn from [max(0, 1 - brightness), 1 + brightness].
        contrast: As brightness.
        saturation: As brightness.
        hue: Hues are turned by an angle from [-hue, hue], in full turns, at most 0.5.
        grayscale_prob: Probability of grey, in all colour channels.
        blur_prob: Probability of a Gaussian blur; its kernel is about a tenth of the image wide, so images of less
            than 20 pixels are not blurred.
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
                raise InputError(f"{name} of the augmentation is {value} but must lie in [0, {upper:g}]")
        for name, upper in {"crop_area": 1.0, "crop_aspect": float("inf"), "blur_sigma": float("inf")}.items():
            low, high = getattr(self, name)
            if not 0 < low <= high <= upper:
                raise InputError(
                    f"{name} of the augmentation is ({low}, {high}) but must be two ascending values in (0, {upper:g}]"
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


class Parameter(IntEnum):
    """Columns of the table that `draw` returns.

    Crops are in shares of the image, `FLIP`, `GRAYSCALE` and `INVERSION` are 0 or 1, `ANGLE` is in degrees
    counter-clockwise, `HUE` in turns, `*_RANK` the place 0..3 of an operation in the jitter, `BLUR_SIGMA` in pixels
    (0 = no blur); the factors leave an image unchanged at 1, the threshold at 2.
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


_NUM_DRAWS = _Draw.CROP_ATTEMPTS + 2 * _NUM_CROP_ATTEMPTS


class Augmentation:
    """Draws and applies random views of square images."""

    def __init__(
        self, rule: AugmentationRule | Preset, *, num_channels: Literal[1, 3, 4], image_size: int, seed: int
    ) -> None:
        """Fix what is drawn.

        Args:
            rule: how often and how strongly images change, or the name of one of `PRESETS`.
            num_channels: 1 grey, 3 red-green-blue, 4 with alpha. Alpha is cropped, flipped and rotated with the
                colours and nothing else; on one channel the jitter is brightness and contrast.
            image_size: height and width, pixels.
            seed: of the run.

        Raises:
            InputError: `rule` names no preset.
        """
        assert num_channels in (1, 3, 4)
        if isinstance(rule, str):
            if rule not in PRESETS:
                raise InputError(
                    f"augmentation is {rule!r} but must be one of {', '.join(PRESETS)}; change --augmentation"
                )
            rule = PRESETS[rule]
        if num_channels == 1:
            rule = replace(rule, saturation=0.0, hue=0.0, grayscale_prob=0.0)
        self.rule = rule
        self.num_channels = num_channels
        self.image_size = image_size
        self.seed = seed

    def draw(self, epoch: int | NDArray[np.int64], rows: NDArray[np.int64], view: int) -> Tensor:
        """Draw the parameters of one view of every image.

        Args:
            epoch: pass over the data, one number or int64 (B,), since a batch may reach into the next epoch.
            rows: int64 (B,), which images, by their number in the data set.
            view: which view of them, 0 or 1.

        Returns:
            float32 (B, P), columns as named by `Parameter`, on the CPU.
        """
        epochs = np.reshape(epoch, (-1, 1))
        draws = uniform(self.seed, Purpose.AUGMENTATION, epochs, rows[:, None], view, np.arange(_NUM_DRAWS))
        table = np.zeros((len(rows), len(Parameter)), dtype=np.float64)
        _draw_geometry(table, draws, self.rule)
        _draw_jitter(table, draws, self.rule)
        rule = self.rule
        table[:, Parameter.GRAYSCALE] = draws[:, _Draw.GRAYSCALE] < rule.grayscale_prob
        sigma = _scaled(draws[:, _Draw.BLUR_SIGMA], *rule.blur_sigma)
        table[:, Parameter.BLUR_SIGMA] = np.where(draws[:, _Draw.IS_BLURRED] < rule.blur_prob, sigma, 0.0)
        is_solarized = draws[:, _Draw.SOLARIZE] < rule.solarize_prob
        table[:, Parameter.SOLARIZE_THRESHOLD] = np.where(is_solarized, rule.solarize_threshold, _NO_SOLARIZATION)
        table[:, Parameter.INVERSION] = draws[:, _Draw.INVERSION] < rule.inversion_prob
        return torch.from_numpy(table.astype(np.float32))

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the views that the parameters describe.

        Control flow depends on the rule alone, never on the values drawn: nothing waits for the device, and the
        operations of a step are the same at every step.

        Args:
            images: float32 (B, C, H, W) in [0, 1]; not changed.
            parameters: float32 (B, P) from `draw`, on the device of the images.

        Returns:
            float32 (B, C, H, W) in [0, 1].
        """
        assert images.shape[1:] == (self.num_channels, self.image_size, self.image_size)
        assert parameters.shape == (len(images), len(Parameter))
        # Under autocast a product and a convolution would round pixels to the 8 bits of bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            return self._apply(images, parameters)

    def _apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        rule = self.rule
        if rule.crops_or_flips:
            images = crop_and_flip(images, parameters)
        if rule.rotation_prob > 0:
            images = rotate(images, parameters[:, Parameter.ANGLE])
        colours = images[:, :3]
        if rule.jitter_prob > 0:
            colours = jitter(colours, parameters)
        if rule.grayscale_prob > 0:
            colours = colours.lerp(rgb_to_grayscale(colours), _column(parameters, Parameter.GRAYSCALE))
        radius = self.image_size // 20
        if rule.blur_prob > 0 and radius > 0:
            colours = blur(colours, parameters[:, Parameter.BLUR_SIGMA], radius=radius)
        if rule.solarize_prob > 0:
            colours = solarize(colours, parameters[:, Parameter.SOLARIZE_THRESHOLD])
        if rule.inversion_prob > 0:
            colours = (_column(parameters, Parameter.INVERSION) - colours).abs_()  # |1 - x| or |0 - x|
        return colours if self.num_channels != 4 else torch.cat([colours, images[:, 3:]], dim=1)


def _scaled(draws: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Spread draws from [0, 1) over [low, high)."""
    return low + (high - low) * draws


def _draw_geometry(table: NDArray[np.float64], draws: NDArray[np.float64], rule: AugmentationRule) -> None:
    """Fill in crop, flip and angle.

    Every crop has ten attempts of its own at an area and an aspect that fit into the image. One whose attempts all
    fail gets the whole image, narrowed to the nearest allowed aspect. Boxes are not rounded to whole pixels.
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
    table[:, Parameter.ANGLE] = np.where(draws[:, _Draw.IS_ROTATED] < rule.rotation_prob, angle, 0.0)


def _draw_jitter(table: NDArray[np.float64], draws: NDArray[np.float64], rule: AugmentationRule) -> None:
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
    table[:, Parameter.HUE] = np.where(is_jittered, _scaled(draws[:, _Draw.HUE], -rule.hue, rule.hue), 0.0)
    order = draws[:, _Draw.ORDER : _Draw.ORDER + 4].argsort(axis=1, kind="stable")
    table[:, Parameter.BRIGHTNESS_RANK : Parameter.HUE_RANK + 1] = order.argsort(axis=1)


def _column(parameters: Tensor, column: Parameter) -> Tensor:
    return parameters[:, column, None, None, None]


def crop_and_flip(images: Tensor, parameters: Tensor) -> Tensor:
    """Crop, resize back by bicubic interpolation as Pillow does (Keys' kernel, a = -0.5), and flip.

    Rows and columns are resampled one after the other by a matrix of weights for each image, at 32 x 32 pixels on a
    CPU four times as fast as `grid_sample`. Interpolation sees the neighbours of the crop, not only the crop.

    Args:
        images: float32 (B, C, S, S) in [0, 1].
        parameters: float32 (B, P).

    Returns:
        float32 (B, C, S, S) in [0, 1].
    """
    left, top, width, height, flip = parameters[:, Parameter.CROP_LEFT : Parameter.FLIP + 1].unbind(dim=1)
    size = images.shape[-1]
    from_rows = _bicubic_weights(top, height, size)
    from_columns = _bicubic_weights(left + width * flip, width * (1 - 2 * flip), size)  # flipped: from right to left
    resized_rows = from_rows[:, None] @ images
    # (B, C, S, S) -> (B, C * S, S): one product for each image.
    resized = resized_rows.flatten(1, 2) @ from_columns.mT
    return resized.view_as(images).clamp_(0, 1)


def _bicubic_weights(start: Tensor, extent: Tensor, size: int) -> Tensor:
    """Return float32 (B, S, S): the weight of pixel j in pixel i of the stretch that begins at `start` (B,).

    `start` and `extent` are shares of the side; a negative extent runs backwards. Weights of pixels past the edge are
    shared out over the others.
    """
    pixels = torch.arange(size, dtype=start.dtype, device=start.device)
    centres = (start[:, None] + extent[:, None] * ((pixels + 0.5) / size)) * size - 0.5
    distance = (centres[:, :, None] - pixels).abs_()
    # Both pieces of Keys' cubic without a case distinction: `within_1` and `within_2` are 0 outside their piece.
    within_1, within_2 = 1 - distance.clamp_max(1), 2 - distance.clamp_max(2)
    weights = within_1.square() * (1 - 2 * within_1) - 0.5 * within_2.square() * (1 - within_2)
    return weights / weights.sum(dim=-1, keepdim=True)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate around the middle by bilinear interpolation; past the edge its mirror image is seen.

    Args:
        images: float32 (B, C, S, S) in [0, 1].
        degrees: float32 (B,), counter-clockwise.

    Returns:
        float32 (B, C, S, S) in [0, 1].
    """
    angle = degrees.deg2rad()
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    to_source = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)  # turns back
    grid = F.affine_grid(to_source, list(images.shape), align_corners=False)
    # Black corners would give the angle away.
    rotated = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return rotated.clamp_(0, 1)


def jitter(colours: Tensor, parameters: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue in an order of its own for each image, clipping after each.

    All but the hue blend the image with something: factor * x + (1 - factor) * (black, mean grey, or the pixel's
    grey). So a step that does whatever an image's order asks for is one blend, and the hue, which is dearer, is
    computed once: blends of rank 0..2 that come before an image's hue, the hue, blends of rank 1..3 that come after.

    Args:
        colours: float32 (B, C, H, W) in [0, 1], C = 1 or 3; with C = 1 saturation and hue must be left unchanged.
        parameters: float32 (B, P).

    Returns:
        float32 (B, C, H, W) in [0, 1].
    """
    ranks = parameters[:, Parameter.BRIGHTNESS_RANK : Parameter.HUE_RANK]  # (B, 3)
    shares = parameters[:, Parameter.BRIGHTNESS : Parameter.HUE] - 1
    hue_rank = parameters[:, Parameter.HUE_RANK, None]
    for rank in range(3):
        colours = _blend(colours, shares * ((ranks == rank) & (ranks < hue_rank)))
    if colours.shape[1] == 3:
        colours = shift_hue(colours, parameters[:, Parameter.HUE])
    for rank in range(1, 4):
        colours = _blend(colours, shares * ((ranks == rank) & (ranks > hue_rank)))
    return colours


def _blend(colours: Tensor, shares: Tensor) -> Tensor:
    """Blend with black, mean grey or grey; of an image's three `shares` (B, 3), factor - 1, at most one is not 0."""
    _, contrast, saturation = shares[:, :, None, None, None].unbind(dim=1)
    grey = _grey(colours)  # (B, 1, H, W)
    other = saturation * grey + contrast * grey.mean(dim=(-2, -1), keepdim=True)
    factor = 1 + shares.sum(dim=1)[:, None, None, None]
    return torch.addcmul(-other, colours, factor).clamp_(0, 1)


def _grey(colours: Tensor) -> Tensor:
    return rgb_to_grayscale(colours) if colours.shape[1] == 3 else colours


def shift_hue(colours: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of hue-saturation-value, keeping saturation and value.

    Args:
        colours: float32 (B, 3, H, W) in [0, 1].
        turns: float32 (B,), 1 = once around the circle of hues.

    Returns:
        float32 (B, 3, H, W) in [0, 1].
    """
    red, green, blue = colours[:, 0:1], colours[:, 1:2], colours[:, 2:3]
    smallest, largest = colours.amin(dim=1, keepdim=True), colours.amax(dim=1, keepdim=True)
    chroma = largest - smallest
    scale = chroma.clamp_min(torch.finfo(colours.dtype).tiny).reciprocal_()  # a grey pixel has chroma 0 and stays
    # Hue in sixths of a turn from red, by the channel that is largest.
    from_red, from_green, from_blue = (green - blue) * scale, (blue - red) * scale + 2, (red - green) * scale + 4
    # `lerp` by 0 or 1 selects exactly, several times as fast as `where` on a CPU.
    hue = from_blue.lerp(from_green, (largest == green).to(scale)).lerp(from_red, (largest == red).to(scale))
    hue = (hue + 6 * turns[:, None, None, None]).remainder_(6)
    # The share of the chroma in a channel is a trapezium over the hue, 1 within one sixth of the channel's own.
    from_opposite = torch.cat([(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], dim=1)
    return torch.addcmul(smallest, chroma, from_opposite.clamp_(0, 1))


def blur(colours: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Blur with a Gaussian of 2 * radius + 1 taps, the image mirrored at its edges.

    Args:
        colours: float32 (B, C, H, W).
        sigma: float32 (B,), pixels; 0 returns the image as it is.
        radius: less than H and W.

    Returns:
        float32 (B, C, H, W).
    """
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma.clamp_min(_SMALLEST_SIGMA)[:, None])  # (B, taps)
    blurred: Tensor = filter2d_separable(colours, kernel, kernel, border_type="reflect")
    return blurred
