"""Logistic regression: how good frozen features are for a linear classifier.

Feature arrays with labels enter; predictions or the accuracy with its interval leave. Labels of the
test rows are only read to count hits: no hyperparameter is chosen on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import Features, Labels
from bert_pretrain.evaluation.statistics import Interval, wilson_interval

PROBE_GRID = tuple(10.0**exponent for exponent in range(-6, 3))
_MAX_FOLDS = 5
_MAX_CROSS_VALIDATED_ROWS = 1000  # above it one fold says as much, in a fifth of the time
_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class ProbeResult:
    """What a linear classifier got right.

    Attributes:
        accuracy: share of test rows classified right, in [0, 1].
        interval: Wilson 95 % interval of the accuracy.
        C: inverse strength of the squared penalty, as scikit-learn counts it.
        validation_accuracy: at that C, on training rows held out; None if there were none.
        has_converged: False if the fit on all training rows ran out of iterations.
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
    """Classify by multinomial logistic regression on standardised features; see `fit_probe`.

    Args:
        train_features: float (N, D).
        train_labels: int (N,), at least two classes.
        test_features: float (M, D).
        test_labels: int (M,), only read to count hits.
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
    fitted, strength, validation_accuracy = fit_probe(train_features, train_labels, seed=seed)
    predicted = np.asarray(fitted.predict(test_features))
    num_correct = int((predicted == test_labels).sum())
    return ProbeResult(
        accuracy=num_correct / len(predicted),
        interval=wilson_interval(num_correct, len(predicted)),
        C=strength,
        validation_accuracy=validation_accuracy,
        has_converged=bool(fitted[-1].n_iter_.max() < _MAX_ITERATIONS),
        predictions=predicted,
    )


def fit_probe(
    features: Features, labels: Labels, *, seed: int
) -> tuple[Pipeline, float, float | None]:
    """Fit logistic regression on standardised features, with the best C of `PROBE_GRID`."""
    return fit_best_penalty([StandardScaler()], PROBE_GRID, features, labels, seed=seed)


def fit_best_penalty(
    steps: Sequence[Any], grid: Sequence[float], rows: Any, labels: Labels, *, seed: int
) -> tuple[Pipeline, float, float | None]:
    """Fit transformations and logistic regression, with C chosen on training rows held out.

    C is the member of the grid with the best accuracy over `folds`, the smallest of equals. Each
    fold fits the transformations too, so that they see no row that is held out.

    Args:
        steps: transformers of scikit-learn before the classifier.
        grid: values of C, ascending.
        rows: what the first step takes; an array, so that folds can be cut from it.
        labels: int (n,), at least two classes.
        seed: of the folds.

    Returns:
        The pipeline fitted on all rows, its C (1 if there is no fold) and its accuracy on the rows
        held out.
    """
    pipeline = make_pipeline(*steps, LogisticRegression(C=1.0, max_iter=_MAX_ITERATIONS))
    name = "logisticregression__C"
    splits = folds(labels, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if not splits:
            return pipeline.fit(rows, labels), 1.0, None
        search = GridSearchCV(pipeline, {name: list(grid)}, cv=splits, scoring="accuracy")
        search.fit(rows, labels)
    best: Pipeline = search.best_estimator_
    return best, float(search.best_params_[name]), float(search.best_score_)


def folds(labels: Labels, *, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return which rows are fitted and which are held out, class by class at random.

    There are five folds, or as many as the smallest class has rows. Of more than 1,000 rows only
    the first of five folds is used. The row of a class that has no other is fitted in every fold;
    if all classes are such there is no fold.
    """
    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_alone = counts[numbers] == 1
    alone, divided = np.flatnonzero(is_alone), np.flatnonzero(~is_alone)
    if not len(divided):
        return []
    is_large = len(labels) > _MAX_CROSS_VALIDATED_ROWS
    size = counts.max() if is_large else counts[counts > 1].min()
    splitter = StratifiedKFold(min(int(size), _MAX_FOLDS), shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has fewer rows than there are folds
        found = [
            (np.sort(np.concatenate([divided[fitted], alone])), divided[held_out])
            for fitted, held_out in splitter.split(divided, labels[divided])
        ]
    return found[:1] if is_large else found
