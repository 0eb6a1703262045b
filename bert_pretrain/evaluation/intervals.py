"""How far chance alone may move what was measured."""

from __future__ import annotations

import math
from typing import TypeAlias

Interval: TypeAlias = tuple[float, float]


def wilson_interval(num_correct: float, num_rows: int) -> Interval:
    """Return the 95 % interval of a proportion (Wilson 1927), in [0, 1].

    It covers the draw of the evaluation rows alone, not the seed of training.
    """
    z = 1.959963984540054
    share = num_correct / num_rows
    centre = share + z * z / (2 * num_rows)
    half = z * math.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows * num_rows))
    scale = 1 + z * z / num_rows
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
