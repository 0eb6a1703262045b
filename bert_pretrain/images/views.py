"""Random views of images, for a whole batch at once on its device, each by its own parameters.

`Augmentation.draw` makes a table of parameters on the CPU, a pure function of seed, epoch, image
and view; `Augmentation.apply` makes the views, on the device of the images. In the functions below
images are float32 (B, C, H, W) in [0, 1], colours their first 1 or 3 channels, and parameters
float32 (B, P).

Crop, flip, rotation, jitter, grey, blur and inversion follow each other in this order. What a view
is cropped from may be of another size (and a whole image squeezed into other proportions). Crop,
rotation and jitter are Pillow's (and torchvision's ColorJitter's) without rounding to whole pixels
and 8 bits; the blur is kornia's.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.random import Purpose, uniform
from bert_pretrain.images.augmentation import (
    NUM_DRAWS,
    AugmentationRule,
    Parameter,
    draw_parameters,
)

_SMALLEST_SIGMA = 0.01  # pixels; the weight of a neighbour, exp(-5000), is 0 in float32


@dataclass
class Augmentation:
    """Draws and applies random views of images.

    Attributes:
        rule: how often and how strongly images change.
        num_channels: 1 grey, 3 red-green-blue, 4 with alpha, which is cropped, flipped and rotated
            with the colours. On one channel the jitter is brightness and contrast.
        image_size: of a view in pixels: the side of a square, or height and width.
        seed: of the run.
        stretch: float64 (N,), by the number of an image: its width / height divided by that of a
            view, where what is cropped are whole images squeezed into other sides; None = all 1.
    """

    rule: AugmentationRule
    _: KW_ONLY
    num_channels: int
    image_size: int | tuple[int, int]
    seed: int
    stretch: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Leave out of the rule what one channel cannot show."""
        assert self.num_channels in (1, 3, 4)
        size = self.image_size
        self._sides = (size, size) if isinstance(size, int) else size
        if self.num_channels == 1:
            self.rule = replace(self.rule, saturation=0.0, hue=0.0, grayscale_prob=0.0)

    def draw(self, epoch: int | NDArray[np.int64], rows: NDArray[np.int64], view: int) -> Tensor:
        """Draw the parameters of one view of every image.

        Args:
            epoch: one number or int64 (B,).
            rows: int64 (B,), numbers of the images in the data set.
            view: number of the view, from 0.

        Returns:
            float32 (B, P), columns as named by `Parameter`, on the CPU.
        """
        epochs = np.reshape(epoch, (-1, 1))
        draws = uniform(
            self.seed, Purpose.AUGMENTATION, epochs, rows[:, None], view, np.arange(NUM_DRAWS)
        )
        stretch = None if self.stretch is None else self.stretch[rows]
        return torch.from_numpy(draw_parameters(self.rule, draws, stretch).astype(np.float32))

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the views that the parameters describe, of images (B, C, H, W) of any size.

        Control flow depends on the rule alone, never on the values drawn, so nothing waits for the
        device. The images are not changed.
        """
        assert images.shape[1] == self.num_channels
        assert parameters.shape == (len(images), len(Parameter))
        # Under autocast a product and a convolution would round pixels to the 8 bits of bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            return self._apply(images, parameters)

    def _apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        rule = self.rule
        crops = rule.crop_area[0] < 1 or rule.crop_aspect != (1.0, 1.0) or rule.flip_prob > 0
        if crops or self.stretch is not None or images.shape[2:] != self._sides:
            images = crop_and_flip(images, parameters, self._sides)
        if rule.rotation_prob > 0:
            images = rotate(images, parameters[:, Parameter.ANGLE])
        colours = images[:, :3]
        if rule.jitter_prob > 0:
            colours = jitter(colours, parameters)
        if rule.grayscale_prob > 0:
            colours = colours.lerp(_grey(colours), _column(parameters, Parameter.GRAYSCALE))
        radius = min(self._sides) // 20
        if rule.blur_prob > 0 and radius > 0:
            colours = blur(colours, parameters[:, Parameter.BLUR_SIGMA], radius=radius)
        if rule.inversion_prob > 0:
            # |1 - x| or |0 - x|
            colours = (_column(parameters, Parameter.INVERSION) - colours).abs_()
        return colours if self.num_channels != 4 else torch.cat([colours, images[:, 3:]], dim=1)


def _column(parameters: Tensor, column: Parameter) -> Tensor:
    return parameters[:, column, None, None, None]


def crop_and_flip(
    images: Tensor, parameters: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Crop, resize by bicubic interpolation as Pillow does, and flip.

    `size` is the new height and width, None = that of the images. The kernel is Keys' with
    a = -0.5, widened where a crop shrinks, so that nothing aliases. Each image has its own matrices
    of weights, one for rows and one for columns: at 32 x 32 pixels on a CPU four times as fast as
    `grid_sample`. Interpolation sees the neighbours of the crop.
    """
    box = parameters[:, Parameter.CROP_LEFT : Parameter.FLIP + 1]
    left, top, width, height, flip = box.unbind(dim=1)
    num_rows, num_columns = images.shape[-2:]
    new_height, new_width = size or (num_rows, num_columns)
    from_rows = _bicubic_weights(top, height, num_rows, new_height)
    # A flipped image is read from right to left.
    from_columns = _bicubic_weights(
        left + width * flip, width * (1 - 2 * flip), num_columns, new_width
    )
    resized_rows = from_rows[:, None] @ images
    # (B, C, H, W) -> (B, C * H, W): one product for each image.
    resized = resized_rows.flatten(1, 2) @ from_columns.mT
    return resized.view(*images.shape[:2], new_height, new_width).clamp_(0, 1)


def _bicubic_weights(start: Tensor, extent: Tensor, side: int, size: int) -> Tensor:
    """Return float32 (B, size, side), the weight of pixel j in pixel i of a stretch of a side.

    `start` and `extent` (B,) are shares of the side; a negative extent runs backwards. Weights of
    pixels past the edge are shared out over the others.
    """
    pixels = torch.arange(side, dtype=start.dtype, device=start.device)
    places = (torch.arange(size, dtype=start.dtype, device=start.device) + 0.5) / size
    centres = (start[:, None] + extent[:, None] * places) * side - 0.5
    distance = (centres[:, :, None] - pixels).abs_()
    if size < side:  # pixels of the side for one of the view, where they are more than one
        distance /= (extent.abs() * side / size).clamp_min(1)[:, None, None]
    # Both pieces of Keys' cubic without a case distinction: each is 0 outside its own range.
    within_1, within_2 = 1 - distance.clamp_max(1), 2 - distance.clamp_max(2)
    weights = within_1.square() * (1 - 2 * within_1) - 0.5 * within_2.square() * (1 - within_2)
    return weights / weights.sum(dim=-1, keepdim=True)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise around the middle, bilinearly, by `degrees` float32 (B,)."""
    angle = degrees.deg2rad()
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Each pixel is looked up where the inverse rotation puts it, in units of half a side.
    aspect = images.shape[-1] / images.shape[-2]
    rows = [cosine, -sine / aspect, zero, sine * aspect, cosine, zero]
    to_source = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(to_source, list(images.shape), align_corners=False)
    # Mirrored at the edges, since black corners would give the angle away.
    rotated = F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return rotated.clamp_(0, 1)


def jitter(colours: Tensor, parameters: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, each image in its own order, then clip.

    All but the hue blend the image with something: factor * x + (1 - factor) * (black, mean grey,
    or the pixel's grey). So one blend of a batch does what the order of each image asks for. The
    hue costs more and is computed once, between the blends that come before it and those after.
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
    """Blend with black, mean grey or grey; `shares` (B, 3) are factor - 1, at most one not 0."""
    _, contrast, saturation = shares[:, :, None, None, None].unbind(dim=1)
    grey = _grey(colours)  # (B, 1, H, W)
    other = saturation * grey + contrast * grey.mean(dim=(-2, -1), keepdim=True)
    factor = 1 + shares.sum(dim=1)[:, None, None, None]
    return torch.addcmul(-other, colours, factor).clamp_(0, 1)


def _grey(colours: Tensor) -> Tensor:
    """Return the luma of red, green and blue (ITU-R 601-2), (B, 1, H, W); of one channel that."""
    if colours.shape[1] == 1:
        return colours
    red, green, blue = colours[:, 0:1], colours[:, 1:2], colours[:, 2:3]
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def shift_hue(colours: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of three colours by `turns` float32 (B,), keeping saturation and value (HSV)."""
    red, green, blue = colours[:, 0:1], colours[:, 1:2], colours[:, 2:3]
    smallest, largest = colours.amin(dim=1, keepdim=True), colours.amax(dim=1, keepdim=True)
    chroma = largest - smallest
    # A grey pixel has chroma 0 and stays.
    scale = chroma.clamp_min(torch.finfo(colours.dtype).tiny).reciprocal_()
    # Hue in sixths of a turn from red, by the channel that is largest.
    from_red = (green - blue) * scale
    from_green = (blue - red) * scale + 2
    from_blue = (red - green) * scale + 4
    # `lerp` by 0 or 1 selects exactly, several times as fast as `where` on a CPU.
    hue = from_blue.lerp(from_green, (largest == green).to(scale))
    hue = hue.lerp(from_red, (largest == red).to(scale))
    hue = (hue + 6 * turns[:, None, None, None]).remainder_(6)
    # The share of the chroma in a channel is a trapezium over the hue, 1 within one sixth of the
    # channel's own.
    from_opposite = torch.cat(
        [(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], dim=1
    )
    return torch.addcmul(smallest, chroma, from_opposite.clamp_(0, 1))


def blur(colours: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Blur with a Gaussian of 2 * radius + 1 taps, the image mirrored at its edges.

    `sigma` float32 (B,) is in pixels; 0 returns the image as it is.
    """
    from kornia.filters import filter2d_separable, get_gaussian_kernel1d

    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma.clamp_min(_SMALLEST_SIGMA)[:, None])
    blurred: Tensor = filter2d_separable(colours, kernel, kernel, border_type="reflect")
    return blurred
