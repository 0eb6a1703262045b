"""Distances between embeddings, and the float32 in which losses compute.

A difference of near distances, or the exponential of a similarity over a small temperature, has no
correct digit left in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
R = TypeVar("R")
Distance: TypeAlias = Literal["l2", "l2_squared", "cosine"]

L2_EPS = 1e-6  # the default of torch.nn.TripletMarginLoss
_NORM_EPS = 1e-8  # that of torch.nn.CosineSimilarity


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
    """Scale rows to Euclidean length 1 in float32; rows shorter than 1e-8 are divided by 1e-8.

    Args:
        rows: (..., D), floating point.

    Returns:
        float32 (..., D).
    """
    return F.normalize(rows, dim=-1, eps=_NORM_EPS)


@in_float32
def pairwise_distance(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """Return the distance of each row of `a` from the same row of `b`.

    - `l2`: ||a - b + 1e-6||, not squared: the distance of torch.nn.TripletMarginLoss. The small
      constant makes the gradient finite, and other than zero, where a equals b.
    - `l2_squared`: ||a - b||^2 (FaceNet). Its gradient is zero where a equals b, so nothing drives
      embeddings that have all become equal apart again.
    - `cosine`: 1 - cos(a, b), in [0, 2]; half of `l2_squared` for rows of length 1. The same holds
      for its gradient.

    Rows are not normalised here: with `l2` and `l2_squared` a margin means something else for
    `normalize_rows(a)`.

    Args:
        a: (n, D), floating point.
        b: (n, D).
        distance: which of the three.

    Returns:
        float32 (n,), at least 0 (`cosine`: up to rounding).
    """
    if distance == "l2":
        norm: Tensor = torch.linalg.vector_norm(a - b + L2_EPS, dim=-1)
        return norm
    if distance == "l2_squared":
        return (a - b).square().sum(dim=-1)
    return 1 - (normalize_rows(a) * normalize_rows(b)).sum(dim=-1)


@in_float32
def distance_matrix(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """Return the distance of each row of `a` from each row of `b`; see `pairwise_distance`.

    Euclidean distances are summed up term by term instead of through a matrix product, which has
    errors as large as the distance of near neighbours and makes them depend on the batch. On CUDA
    the gradient needs 4 n N D bytes.

    Args:
        a: (n, D), floating point.
        b: (N, D).
        distance: which of the three.

    Returns:
        float32 (n, N).
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
