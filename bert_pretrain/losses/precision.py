"""Arithmetic of losses in float32, also inside a mixed-precision region.

A difference of near distances, or the exponential of a similarity over a small temperature, has no
correct digit left in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function` see its floating-point tensors in float32, and no autocast."""

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
