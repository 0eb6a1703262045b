"""Logistic regression whose penalty is chosen on rows held out of the training rows.

Features, or whatever a transformer of scikit-learn makes some of, and labels enter; a fitted
pipeline leaves.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

PROBE_GRID = tuple(10.0**exponent for exponent in range(-6, 3))  # of C
MAX_ITERATIONS = 500
_MAX_FOLDS = 5
_MAX_CROSS_VALIDATED_ROWS = 1000  # above it one fold says as much, in a fifth of the time


def fit_probe(
    features: NDArray[Any], labels: NDArray[Any], *, seed: int
) -> tuple[Pipeline, float, float | None]:
    """Fit logistic regression on standardised features, with the best C of `PROBE_GRID`."""
    from sklearn.preprocessing import StandardScaler

    return fit_best_penalty([StandardScaler()], PROBE_GRID, features, labels, seed=seed)


def fit_best_penalty(
    steps: Sequence[Any], grid: Sequence[float], rows: Any, labels: NDArray[Any], *, seed: int
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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(*steps, LogisticRegression(C=1.0, max_iter=MAX_ITERATIONS))
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


def folds(labels: NDArray[Any], *, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return which rows are fitted and which are held out, class by class at random.

    There are five folds, or as many as the smallest class has rows. Of more than 1,000 rows only
    the first of five folds is used. The row of a class that has no other is fitted in every fold;
    if all classes are such there is no fold.
    """
    from sklearn.model_selection import StratifiedKFold

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
