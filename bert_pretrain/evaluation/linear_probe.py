"""How good frozen features are, by a linear classifier.

Feature arrays with labels enter; the accuracy with its interval leaves. Labels of the test rows are
read once, to count hits: no hyperparameter is chosen on them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import Features, Labels
from bert_pretrain.evaluation.intervals import Interval, wilson_interval

PROBE_GRID = tuple(10.0**exponent for exponent in range(-6, 3))
_PROBE_VALIDATION_SHARE = 0.2
# C rises along the grid, and the rest of it is given up once accuracy has fallen behind the best so
# many times in a row: the weakest penalties take longest by far and only overfit further.
_PROBE_PATIENCE = 2
_PROBE_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class ProbeResult:
    """What a linear classifier got right.

    Attributes:
        accuracy: share of test rows classified right, in [0, 1].
        interval: Wilson 95 % interval of the accuracy.
        C: inverse strength of the squared penalty, as scikit-learn counts it, chosen on training
            rows held out.
        validation_accuracy: on those held-out rows at that C; None if there were none to hold out,
            and C is 1.
        has_converged: False if the fit with that C on all training rows ran out of iterations.
        predictions: int64 (num_test,), the predicted labels.
    """

    accuracy: float
    interval: Interval
    C: float
    validation_accuracy: float | None
    has_converged: bool
    predictions: Labels = field(repr=False, compare=False)


def linear_probe(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    *,
    seed: int,
) -> ProbeResult:
    """Classify by multinomial logistic regression on standardised features (L-BFGS, squared penalty).

    C is the member of `PROBE_GRID` with the best accuracy on a fifth of each class's training rows,
    the smallest of equals; then the classifier is fitted again on all of them. Mean and deviation
    come from the rows it is fitted on.

    Args:
        train_features: float (N, D).
        train_labels: int (N,), at least two classes.
        test_features: float (M, D).
        test_labels: int (M,), read only to count what was right.
        seed: of the rows held out to choose C.

    Raises:
        InputError: the training labels are all the same.
    """
    assert len(train_features) == len(train_labels)
    assert len(test_features) == len(test_labels) > 0
    if len(np.unique(train_labels)) < 2:
        raise InputError(
            f"all {len(train_labels):,} training images have the same label, but a linear probe "
            "needs two classes",
            advice="change `label_column` or the images",
        )
    is_held_out = _held_out_rows(train_labels, seed=seed)
    strength, validation_accuracy = 1.0, None
    if is_held_out.any():
        strength, validation_accuracy = _choose_penalty(train_features, train_labels, is_held_out)
    train_rows, test_rows = _standardised(train_features, test_features)
    classifier = LogisticRegression(C=strength, max_iter=_PROBE_MAX_ITERATIONS)
    has_converged = _fit(classifier, train_rows, train_labels)
    predicted = classifier.predict(test_rows)
    num_correct = int((predicted == test_labels).sum())
    return ProbeResult(
        accuracy=num_correct / len(predicted),
        interval=wilson_interval(num_correct, len(predicted)),
        C=strength,
        validation_accuracy=validation_accuracy,
        has_converged=has_converged,
        predictions=predicted,
    )


def _held_out_rows(labels: Labels, *, seed: int) -> NDArray[np.bool_]:
    """Mark a fifth of the rows of each class, at least one; none of a class with a single row."""
    is_held_out = np.zeros(len(labels), dtype=np.bool_)
    for number, label in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            count = max(1, round(_PROBE_VALIDATION_SHARE * len(members)))
            is_held_out[members[permutation(len(members), seed, Purpose.SPLIT, number)[:count]]] = (
                True
            )
    return is_held_out


def _choose_penalty(
    features: Features, labels: Labels, is_held_out: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the best C and its accuracy on the held-out rows."""
    fitted_rows, held_out_rows = _standardised(features[~is_held_out], features[is_held_out])
    # Each fit starts from the one before it, which is close by on the grid.
    classifier = LogisticRegression(max_iter=_PROBE_MAX_ITERATIONS, warm_start=True)
    best_strength, best_accuracy, num_worse = PROBE_GRID[0], -1.0, 0
    for strength in PROBE_GRID:
        _fit(classifier.set_params(C=strength), fitted_rows, labels[~is_held_out])
        accuracy = float((classifier.predict(held_out_rows) == labels[is_held_out]).mean())
        num_worse = num_worse + 1 if accuracy < best_accuracy else 0
        if accuracy > best_accuracy:
            best_strength, best_accuracy = strength, accuracy
        if num_worse == _PROBE_PATIENCE:
            break
    return best_strength, best_accuracy


def _fit(classifier: LogisticRegression, rows: Features, labels: Labels) -> bool:
    """Fit in place; returns whether the iterations sufficed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(rows, labels)
    return bool(classifier.n_iter_.max() < _PROBE_MAX_ITERATIONS)


def _standardised(fitted: Features, other: Features) -> tuple[Features, Features]:
    """Return both with mean 0 and deviation 1 of `fitted`, per column, in its dtype; constant columns become 0."""
    mean = fitted.mean(axis=0, dtype=np.float64)
    deviation = fitted.std(axis=0, dtype=np.float64)
    # What is constant but for rounding must not be blown up.
    is_constant = deviation <= 1e-6 * np.abs(mean)
    scale = np.where(is_constant, 0.0, 1 / np.where(is_constant, 1.0, deviation))
    standardised, other_standardised = ((rows - mean) * scale for rows in (fitted, other))
    return standardised.astype(fitted.dtype), other_standardised.astype(fitted.dtype)
