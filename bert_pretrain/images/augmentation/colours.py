"""Jitter, hue and blur of a batch, each image by parameters of its own, on any device."""

from __future__ import annotations

import torch
from kornia.color import rgb_to_grayscale
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor

from bert_pretrain.images.augmentation.parameters import Parameter

_SMALLEST_SIGMA = 0.01  # pixels; the neighbours' weight exp(-5000) is 0 in float32, so the image is returned exactly


def jitter(colours: Tensor, parameters: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue in an order of its own for each image, clipping after each.

    All but the hue blend the image with something: factor * x + (1 - factor) * (black, mean grey,
    or the pixel's grey). So a step that does whatever an image's order asks for is one blend, and
    the hue, which is dearer, is computed once: blends of rank 0..2 that come before an image's hue,
    the hue, blends of rank 1..3 that come after.

    Args:
        colours: float32 (B, C, H, W) in [0, 1], C = 1 or 3; with C = 1 saturation and hue must be
            left unchanged.
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
    scale = chroma.clamp_min(
        torch.finfo(colours.dtype).tiny
    ).reciprocal_()  # a grey pixel has chroma 0 and stays
    # Hue in sixths of a turn from red, by the channel that is largest.
    from_red, from_green, from_blue = (
        (green - blue) * scale,
        (blue - red) * scale + 2,
        (red - green) * scale + 4,
    )
    # `lerp` by 0 or 1 selects exactly, several times as fast as `where` on a CPU.
    hue = from_blue.lerp(from_green, (largest == green).to(scale)).lerp(
        from_red, (largest == red).to(scale)
    )
    hue = (hue + 6 * turns[:, None, None, None]).remainder_(6)
    # The share of the chroma in a channel is a trapezium over the hue, 1 within one sixth of the
    # channel's own.
    from_opposite = torch.cat(
        [(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], dim=1
    )
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
    kernel = get_gaussian_kernel1d(
        2 * radius + 1, sigma.clamp_min(_SMALLEST_SIGMA)[:, None]
    )  # (B, taps)
    blurred: Tensor = filter2d_separable(colours, kernel, kernel, border_type="reflect")
    return blurred
