"""How far embeddings are from each other, and reconstructions from their images, in float32.

A difference of near distances, or the exponential of a similarity over a small temperature, has no
correct digit left in bfloat16.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bert_pretrain.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
Distance: TypeAlias = Literal["l2", "l2_squared", "cosine"]
ReconstructionKind: TypeAlias = Literal["mse", "l1"]

L2_EPS = 1e-6  # the default of torch.nn.TripletMarginLoss
_NORM_EPS = 1e-8  # that of torch.nn.CosineSimilarity
_VARIANCE_EPS = 1e-6  # masked autoencoders


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Give a function its floating-point tensors in float32, without autocast."""

    def float32(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device_type = next(value.device.type for value in args if isinstance(value, Tensor))
        with torch.autocast(device_type, enabled=False):
            return function(
                *map(float32, args), **{key: float32(value) for key, value in kwargs.items()}
            )

    return run


@in_float32
def normalize_rows(rows: Tensor) -> Tensor:
    """Scale rows (..., D) to Euclidean length 1; rows shorter than 1e-8 are divided by 1e-8."""
    return F.normalize(rows, dim=-1, eps=_NORM_EPS)


@in_float32
def pairwise_distance(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """Return the distance of each row of `a` (n, D) from the same row of `b` (n, D), float32 (n,).

    - `l2`: ||a - b + 1e-6||, not squared: the distance of torch.nn.TripletMarginLoss. The small
      constant makes the gradient finite, and other than zero, where a equals b.
    - `l2_squared`: ||a - b||^2 (FaceNet). Its gradient is zero where a equals b, so nothing drives
      embeddings that have all become equal apart again.
    - `cosine`: 1 - cos(a, b), in [0, 2]; half of `l2_squared` for rows of length 1. The same holds
      for its gradient.

    Rows are not normalised here: with `l2` and `l2_squared` a margin means something else for
    `normalize_rows(a)`.
    """
    if distance == "l2":
        norm: Tensor = torch.linalg.vector_norm(a - b + L2_EPS, dim=-1)
        return norm
    if distance == "l2_squared":
        return (a - b).square().sum(dim=-1)
    return 1 - (normalize_rows(a) * normalize_rows(b)).sum(dim=-1)


def largest_distance(distance: Distance, *, is_normalized: bool) -> float:
    """Return the largest distance that two rows can have; infinite if it grows with the rows.

    On the unit sphere it is 2 with `l2`, and 4 with `l2_squared`; with `cosine` it is always 2.
    """
    if distance == "cosine":
        return 2.0
    return {"l2": 2.0, "l2_squared": 4.0}[distance] if is_normalized else math.inf


def unrelated_distance(distance: Distance, length: float) -> float:
    """Return the distance of two rows of a length at right angles, as unrelated ones nearly are."""
    return {"l2": math.sqrt(2) * length, "l2_squared": 2 * length**2, "cosine": 1.0}[distance]


@in_float32
def distance_matrix(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """Return the `pairwise_distance` of all rows of `a` (n, D) from all of `b` (N, D), (n, N).

    Euclidean distances are summed up term by term: a matrix product has errors as large as the
    distance of near neighbours, which depend on the batch. On CUDA the gradient needs 4 n N D
    bytes.
    """
    if distance == "cosine":
        return 1 - normalize_rows(a) @ normalize_rows(b).T
    # Distances do not change when the origin moves. Near its centre a collapsed batch keeps the
    # digits of the constant.
    center = b.detach().mean(dim=0)
    a, b = a - center, b - center
    if distance == "l2":
        return torch.cdist(a + L2_EPS, b, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


@in_float32
def reconstruction_loss(prediction: Tensor, target: Tensor, kind: ReconstructionKind) -> Tensor:
    """Return the error of reconstructions (B, ...), the sum over images of the mean over values.

    The error of a value is its square with `mse`, its absolute value with `l1`.
    """
    assert prediction.shape == target.shape
    difference = (prediction - target).flatten(1)
    return (difference.square() if kind == "mse" else difference.abs()).mean(dim=1).sum()


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
