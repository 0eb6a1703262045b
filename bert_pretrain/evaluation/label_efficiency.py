"""Accuracy against the number of labels: what pretraining is worth to someone with few of them.

Class numbers and arms, each of which learns from a list of rows and predicts the test rows, enter;
a row for each arm, number of labels and seed leaves, with means, intervals and the paired
difference that is the claim. Test labels are read to count hits alone: nothing is chosen on them.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import Features, Labels
from bert_pretrain.evaluation.linear_probe import PROBE_GRID, linear_probe

# Learns from these rows, int64 (n,), with this seed; returns the predicted class of every test row,
# int64 (M,).
Arm: TypeAlias = Callable[[NDArray[np.int64], int], Labels]

ALL = 0  # as a number of labels per class: every row there is
_MAX_FOLDS = 5
_MAX_CROSS_VALIDATED_ROWS = 1000  # above it a fifth held out says as much, in a ninth of the time


@dataclass(frozen=True)
class Measurement:
    """One training: an arm, labels per class (0 = all), rows learnt from, seed, accuracy on the test rows, seconds."""

    arm: str
    num_per_class: int
    num_rows: int
    seed: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Point:
    """An arm at a number of labels: mean over seeds and its 95 % interval, and the difference to another arm.

    Attributes:
        arm: name.
        num_per_class: labels per class; 0 = all.
        num_rows: rows learnt from, all classes together.
        num_seeds: how many were measured.
        mean: of the accuracy.
        interval: 95 % t-interval of that mean over seeds, which draw the rows, the head and the
            order; None for one.
        versus: the arm compared with, None where there is none.
        difference: mean over seeds of this arm's accuracy less the other's with the same seed and
            rows.
        difference_interval: its 95 % t-interval.
    """

    arm: str
    num_per_class: int
    num_rows: int
    num_seeds: int
    mean: float
    interval: tuple[float, float] | None
    versus: str | None
    difference: float | None
    difference_interval: tuple[float, float] | None


def nested_subset(labels: Labels, num_per_class: int, *, seed: int) -> NDArray[np.int64]:
    """Return the rows that are labelled: so many of each class, at random.

    Of one seed the rows of a smaller number are among those of a larger one.

    Args:
        labels: int (N,).
        num_per_class: at least 1, a smaller class gives all it has; 0 = all rows.
        seed: of the draw.

    Returns:
        int64, sorted.
    """
    assert num_per_class >= 0
    if num_per_class == ALL:
        return np.arange(len(labels))
    chosen = []
    for number, label in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == label)
        chosen.append(
            members[permutation(len(members), seed, Purpose.SPLIT, number)[:num_per_class]]
        )
    return np.sort(np.concatenate(chosen))


def default_counts(labels: Labels) -> list[int]:
    """Return 1, 4, 16, ... labels per class as long as the smallest class has more, then all."""
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    return [4**power for power in range(10) if 4**power < smallest] + [ALL]


def measure_curve(
    arms: dict[str, Arm],
    labels: Labels,
    test_labels: Labels,
    *,
    counts: Sequence[int],
    seeds: Sequence[int],
    finished: Iterable[Measurement] = (),
    on_measurement: Callable[[Measurement], None] = lambda measurement: None,
) -> list[Measurement]:
    """Train every arm on every number of labels with every seed.

    Args:
        arms: by name.
        labels: int (N,) of the rows that may be learnt from.
        test_labels: int (M,).
        counts: labels per class; 0 = all.
        seeds: of the draw of rows and of training; all arms get the same rows.
        finished: what was measured before; not done again.
        on_measurement: called with each new one as soon as it is there.

    Returns:
        All measurements asked for, old and new, by number of labels (all comes last), seed and arm.
    """
    known = {(row.arm, row.num_per_class, row.seed): row for row in finished}
    measured = []
    for count in sorted(set(counts), key=lambda count: count or math.inf):
        for seed in seeds:
            places = nested_subset(labels, count, seed=seed)
            for name, arm in arms.items():
                row = known.get((name, count, seed))
                if row is None:
                    start = time.perf_counter()
                    accuracy = float((arm(places, seed) == test_labels).mean())
                    row = Measurement(
                        name, count, len(places), seed, accuracy, time.perf_counter() - start
                    )
                    on_measurement(row)
                measured.append(row)
    return measured


def summarize(measurements: Sequence[Measurement], *, reference: str) -> list[Point]:
    """Return the points of the curve.

    Args:
        measurements: of `measure_curve`.
        reference: the arm with which the others are compared, seed by seed.
    """
    groups: dict[tuple[int, str], dict[int, Measurement]] = {}
    for row in measurements:
        groups.setdefault((row.num_per_class, row.arm), {})[row.seed] = row
    points = []
    for (count, arm), rows in groups.items():
        mean, interval = t_interval([row.accuracy for row in rows.values()])
        other = groups.get((count, reference), {}) if arm != reference else {}
        shared = [seed for seed in rows if seed in other]
        difference, difference_interval = (
            t_interval([rows[seed].accuracy - other[seed].accuracy for seed in shared])
            if shared
            else (None, None)
        )
        num_rows = max(row.num_rows for row in rows.values())
        versus = reference if shared else None
        points.append(
            Point(
                arm,
                count,
                num_rows,
                len(rows),
                mean,
                interval,
                versus,
                difference,
                difference_interval,
            )
        )
    return points


def t_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the mean and its two-sided 95 % interval by Student's t with n - 1 degrees; None for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def probe_arm(
    features: Features, labels: Labels, test_features: Features, test_labels: Labels
) -> Arm:
    """Return the arm that fits logistic regression on frozen features.

    C is chosen within the labelled rows alone: by stratified cross-validation, the smallest of
    equals; above a thousand rows on a fifth held out (see `linear_probe`); with one row for each
    class it is 1.

    Args:
        features: float (N, D).
        labels: int (N,).
        test_features: float (M, D).
        test_labels: int (M,); counted, not learnt from.
    """

    def learn(places: NDArray[np.int64], seed: int) -> Labels:
        rows, targets = features[places], labels[places]
        if len(places) > _MAX_CROSS_VALIDATED_ROWS:
            return linear_probe(rows, targets, test_features, test_labels, seed=seed).predictions
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        return fit_cross_validated(pipeline, PROBE_GRID, rows, targets, test_features, seed=seed)

    return learn


def fit_cross_validated(
    pipeline: Any, grid: Sequence[float], rows: Any, labels: Labels, test_rows: Any, *, seed: int
) -> Labels:
    """Return the predictions of a pipeline that ends in logistic regression, with C chosen by cross-validation.

    Args:
        pipeline: of scikit-learn.
        grid: values of C, ascending; of equally accurate ones the first is taken.
        rows: what the pipeline learns from.
        labels: int (n,).
        test_rows: what it predicts.
        seed: of the folds.
    """
    counts = np.unique(labels, return_counts=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds
        if counts.max() < 2:
            fitted = pipeline.set_params(logisticregression__C=1.0).fit(rows, labels)
        else:
            folds = StratifiedKFold(
                int(np.clip(counts.min(), 2, _MAX_FOLDS)), shuffle=True, random_state=seed
            )
            search = GridSearchCV(
                pipeline, {"logisticregression__C": list(grid)}, cv=folds, scoring="accuracy"
            )
            fitted = search.fit(rows, labels)
    return np.asarray(fitted.predict(test_rows))


def check_curve(counts: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise `InputError` unless the numbers of labels and the seeds can be measured."""
    if any(count < 0 for count in counts):
        raise InputError(
            f"num_labels are {list(counts)} but must be at least 1, or 0 for all",
            advice="change `num_labels`",
        )
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        raise InputError(
            f"seeds are {list(seeds)} but must be different numbers in 0..{2**32 - 1}",
            advice="change `seeds`",
        )
