"""Layers of convolutional encoders in faster forms, the same to within rounding.

Parameters and their names are those of transformers' layers; nothing of the form is saved with a
model. What a form saves is measured by `benchmarks/vision_speed.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN

LARGEST_SMALL_MAP = 64  # places; of larger ones torch's own gradient is as fast


class GlobalResponseNorm(ConvNextV2GRN):  # type: ignore[misc]  # transformers is untyped here
    """ConvNextV2's response normalisation with one pass over a map.

    x * (1 + w n) + b is x * n * w + b + x; its factor is one number per image and channel, computed
    in float32. Under autocast the parent makes the whole map, and everything after it, float32: a
    ConvNextV2's step took 1.5 to 1.9 times as long in bfloat16 on a processor.

    Source: Woo et al. 2023, section 3.2.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise float (B, H, W, D), D last."""
        norms = norms_of_maps(hidden_states)
        relative = norms / (norms.mean(dim=-1, keepdim=True) + 1e-6)
        factor = 1 + self.weight * relative  # (B, 1, 1, D)
        dtype = hidden_states.dtype
        normalised: Tensor = torch.addcmul(self.bias.to(dtype), hidden_states, factor.to(dtype))
        return normalised


def norms_of_maps(states: Tensor) -> Tensor:
    """Return the Euclidean norm of each map, at least float32 (B, 1, 1, D), of (B, H, W, D).

    On a processor `torch.linalg.vector_norm` is slow over dimensions that are not the last.
    """
    if not _is_plain(states):
        dtype = torch.promote_types(states.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(states, dim=(1, 2), keepdim=True, dtype=dtype)
        return norms
    squares = states.square().sum(dim=(1, 2), keepdim=True)
    return squares.clamp(min=1e-30).sqrt()  # a map of zeros has the gradient 0, not NaN


class DepthwiseConvolution(nn.Conv2d):
    """A convolution of each channel by itself, whose gradient is fast on small maps, too.

    For a map of few places the gradient of torch on a processor takes many times as long as the
    forward pass.
    """

    def forward(self, states: Tensor) -> Tensor:
        """Map float (B, D, H, W) to the same shape."""
        num_places = states.shape[-2] * states.shape[-1]
        if not _is_plain(states) or num_places > LARGEST_SMALL_MAP:
            return super().forward(states)
        convolved: Tensor = _SmallDepthwise.apply(states, self.weight)  # type: ignore[no-untyped-call]
        return convolved if self.bias is None else convolved + self.bias[:, None, None]


class _SmallDepthwise(torch.autograd.Function):
    """torch's depthwise convolution, and its gradient by a second one and a product of matrices."""

    @staticmethod
    def forward(context: Any, states: Tensor, kernels: Tensor) -> Tensor:
        context.save_for_backward(states, kernels)
        return _convolved(states, kernels)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        states, kernels = context.saved_tensors
        return (
            # What a place gave to its neighbours comes back by the mirrored kernel.
            _convolved(gradient, kernels.flip(2, 3)),
            _kernel_gradient(states, gradient, kernels.shape[-2:]),
        )


def _convolved(states: Tensor, kernels: Tensor) -> Tensor:
    padding = (kernels.shape[2] // 2, kernels.shape[3] // 2)
    return functional.conv2d(states, kernels, padding=padding, groups=len(kernels))


def _kernel_gradient(states: Tensor, gradient: Tensor, sides: torch.Size) -> Tensor:
    """Return the gradient of kernels, (D, 1, K, L), from input and gradient, (B, D, H, W)."""
    _, num_channels, height, width = states.shape
    # How much each place of the output and each place of the input have in common, (D, HW, HW).
    products = torch.bmm(gradient.flatten(2).permute(1, 2, 0), states.flatten(2).transpose(0, 1))
    products = products.view(num_channels, height, width, height, width)
    # A number of the kernel belongs to all pairs of places that are so many rows and columns apart.
    kernel_gradient = states.new_zeros(num_channels, 1, *sides)
    top, left = sides[0] // 2, sides[1] // 2
    for down in range(max(-top, 1 - height), min(top, height - 1) + 1):
        of_rows = products.diagonal(down, 1, 3).sum(-1)  # (D, W, W)
        for right in range(max(-left, 1 - width), min(left, width - 1) + 1):
            pairs = of_rows.diagonal(right, 1, 2)
            kernel_gradient[:, 0, top + down, left + right] = pairs.sum(-1)
    return kernel_gradient


class PatchConvolution(nn.Conv2d):
    """A convolution whose kernels touch but do not overlap, as one product of matrices."""

    def forward(self, states: Tensor) -> Tensor:
        """Map float (B, C, H, W) to (B, D, H / K, W / L); rows and columns left over are unread."""
        if not _is_plain(states):
            return super().forward(states)
        height, width = self.kernel_size
        num_rows, num_columns = states.shape[-2] // height, states.shape[-1] // width
        if not num_rows or not num_columns:
            return super().forward(states)  # it says what is wrong
        read = states[..., : num_rows * height, : num_columns * width].permute(0, 2, 3, 1)
        shape = (len(states), num_rows, height, num_columns, width, self.in_channels)
        patches = read.reshape(shape).transpose(2, 3).flatten(3)  # (B, rows, columns, K L C)
        kernels = self.weight.permute(0, 2, 3, 1).flatten(1)
        return functional.linear(patches, kernels, self.bias).permute(0, 3, 1, 2)


def _is_plain(states: Tensor) -> bool:
    """Return whether maps are of float32 or float64 on a processor, where the forms are faster.

    They were not measured in bfloat16, nor on GPUs.
    """
    is_exact = states.dtype in (torch.float32, torch.float64)
    return states.device.type == "cpu" and is_exact and not torch.is_autocast_enabled("cpu")


def use_fast_layers(model: nn.Module) -> None:
    """Replace what has a faster form in a model, keeping parameters and their names."""
    for name, module in list(model.named_modules()):
        form = _fast_form(module)
        if form is not None:
            fast = form.__new__(form)
            vars(fast).update(vars(module))  # its hooks, too, and what transformers noted on it
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, fast)


def _fast_form(module: nn.Module) -> type[nn.Module] | None:
    """Return the class that computes what a module does faster, if there is one."""
    if type(module) is ConvNextV2GRN:
        return GlobalResponseNorm
    return _fast_convolution(module) if type(module) is nn.Conv2d else None


def _fast_convolution(convolution: nn.Conv2d) -> type[nn.Conv2d] | None:
    if convolution.padding_mode != "zeros" or convolution.dilation != (1, 1):
        return None
    kernel, padding = convolution.kernel_size, convolution.padding
    is_depthwise = convolution.groups == convolution.in_channels == convolution.out_channels
    keeps_size = all(side % 2 for side in kernel) and padding == tuple(s // 2 for s in kernel)
    if is_depthwise and keeps_size and convolution.stride == (1, 1):
        return DepthwiseConvolution
    are_patches = convolution.stride == kernel != (1, 1) and padding == (0, 0)
    if are_patches and convolution.groups == 1:
        return PatchConvolution
    return None
