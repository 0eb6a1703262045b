"""How sure a measured number is: its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Interval: TypeAlias = tuple[float, float]


def wilson_interval(num_correct: float, num_rows: int) -> Interval:
    """Return the 95 % interval of a proportion (Wilson 1927), in [0, 1].

    It covers the draw of the evaluated rows alone, not the seed of training. scipy's is the same
    for whole numbers, but a tie of a minimal pair counts one half.
    """
    z = 1.959963984540054
    share = num_correct / num_rows
    centre = share + z * z / (2 * num_rows)
    half = z * math.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows * num_rows))
    scale = 1 + z * z / num_rows
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def t_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the mean and its 95 % interval by Student's t; a single value has no interval."""
    from scipy import stats

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, (mean - half, mean + half)


def fold_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the mean of what the folds of one cross-validation gave, and its 95 % interval.

    Folds share training rows, so that their numbers spread less than those of new rows would; the
    variance is corrected for it. A single value has no interval.

    Source: Nadeau and Bengio 2003, "Inference for the Generalization Error", equation 10.
    """
    from scipy import stats

    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return mean, None
    # Of a fold's rows 1 / count are tested, the others trained on.
    variance = (1 / count + 1 / (count - 1)) * float(np.var(values, ddof=1))
    half = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance)
    return mean, (mean - half, mean + half)


def two_way_interval(values: NDArray[Any]) -> tuple[float, Interval | None]:
    """Return the mean of `values`, (M, S), and its 95 % interval over both rows and columns.

    For numbers of M pretraining seeds by S fine-tuning seeds, both of which are a draw. The
    interval is Student's t on the two-way analysis of variance without repetition, with
    Satterthwaite's degrees of freedom; with M = 1 it is that of `t_interval`. In simulations of
    3 by 5 numbers it covers the truth in 95 to 99 of 100 cases, and a bootstrap that draws rows and
    columns anew in 83 to 93: that one knows nothing of how uncertain a variance of three is.

    Source: Searle, Casella and McCulloch 1992, "Variance Components", sections 4.4 and 6.4.
    """
    from scipy import stats

    num_rows, num_columns = values.shape
    if min(num_rows, num_columns) == 1:
        return t_interval(values.ravel().tolist())
    mean = float(values.mean())
    rows, columns = (values.mean(axis=axis, keepdims=True) for axis in (1, 0))
    freedom = np.array([num_rows - 1, num_columns - 1, (num_rows - 1) * (num_columns - 1)])
    squares = np.array(
        [
            num_columns * np.square(rows - mean).sum(),
            num_rows * np.square(columns - mean).sum(),
            np.square(values - rows - columns + mean).sum(),
        ]
    )
    of_rows, of_columns, of_rest = squares / freedom
    # What rows and columns add to the rest, of which each of their mean squares holds one share.
    variance = max(of_rows + of_columns - of_rest, of_rows, of_columns)
    if variance == 0:
        return mean, (mean, mean)
    parts = np.array([of_rows, of_columns, of_rest])
    degrees = float(variance**2 / (np.square(parts) / freedom).sum())
    degrees = max(degrees, min(num_rows, num_columns) - 1)  # it falls below 1 where parts cancel
    half = float(stats.t.ppf(0.975, degrees)) * math.sqrt(variance / values.size)
    return mean, (mean - half, mean + half)


def ratio_interval(sums: NDArray[Any], counts: NDArray[Any]) -> tuple[float, Interval | None]:
    """Return the sum of `sums` by that of `counts`, and its 95 % interval over groups, (G,) each.

    Rows of one group, as of one document, are alike, so that groups are what was drawn. A single
    one has no interval.

    Source: Cochran 1977, "Sampling Techniques", section 6.4; the interval is by Student's t.
    """
    from scipy import stats

    sums, counts = sums[counts > 0], counts[counts > 0]
    ratio, num_groups = float(sums.sum() / counts.sum()), len(sums)
    if num_groups < 2:
        return ratio, None
    variance = float(np.square(sums - ratio * counts).sum()) * num_groups / (num_groups - 1)
    half = float(stats.t.ppf(0.975, num_groups - 1)) * math.sqrt(variance) / float(counts.sum())
    return ratio, (ratio - half, ratio + half)


def format_interval(value: float, interval: Interval | None, *, sign: str = "") -> str:
    """Return `0.812 [0.790, 0.832]`; `sign` "+" shows the sign of positive numbers too."""
    text = f"{value:{sign}.3f}"
    if interval is not None:
        text += f" [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
    return text
