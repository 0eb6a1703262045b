"""Losses of autoencoders: how far reconstructions are from their images, sums in float32."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from bert_pretrain.errors import InputError
from bert_pretrain.losses.distances import in_float32

ReconstructionKind: TypeAlias = Literal["mse", "l1"]

_VARIANCE_EPS = 1e-6  # masked autoencoders


@in_float32
def reconstruction_errors(prediction: Tensor, target: Tensor, kind: ReconstructionKind) -> Tensor:
    """Return how far each reconstruction is from its image: the mean over all its values.

    Args:
        prediction: (B, ...), floating point.
        target: of the same shape.
        kind: `mse`, the mean of squares, or `l1`, the mean of absolute values.

    Returns:
        float32 (B,).
    """
    assert prediction.shape == target.shape
    difference = (prediction - target).flatten(1)
    return (difference.square() if kind == "mse" else difference.abs()).mean(dim=1)


def reconstruction_loss(prediction: Tensor, target: Tensor, kind: ReconstructionKind) -> Tensor:
    """Return the sum of `reconstruction_errors` over images, float32 0-dim."""
    return reconstruction_errors(prediction, target, kind).sum()


@in_float32
def masked_patch_loss(
    prediction: Tensor, target: Tensor, is_hidden: Tensor, *, normalize_target: bool
) -> tuple[Tensor, Tensor]:
    """Return the error on the patches that the encoder did not see (He et al. 2022, section 3).

    Args:
        prediction: (B, P, V), V values of each of P patches.
        target: (B, P, V), the patches of the image.
        is_hidden: bool or 0/1 (B, P), True where a patch was masked out and is to be predicted.
        normalize_target: predict each patch minus its mean, divided by the root of its unbiased
            variance + 1e-6.

    Returns:
        The sum over hidden patches of their mean squared error, float32 0-dim, and the number of
        hidden patches, int64.

    Raises:
        InputError: a patch of one value is to be normalised.
    """
    assert prediction.shape == target.shape and is_hidden.shape == target.shape[:2]
    if normalize_target:
        if target.shape[-1] == 1:
            raise InputError(
                "patches of one value have no variance to be normalised by",
                advice="pass a `config_name` with larger patches, or `norm_pix_loss` False",
            )
        variance, mean = torch.var_mean(target, dim=-1, correction=1, keepdim=True)
        target = (target - mean) / (variance + _VARIANCE_EPS).sqrt()
    errors = (prediction - target).square().mean(dim=-1)  # (B, P)
    hidden = is_hidden.bool()
    return torch.where(hidden, errors, 0.0).sum(), hidden.sum()
