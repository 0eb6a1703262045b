"""How good frozen features are: k nearest neighbours, and logistic regression on them.

Feature arrays with labels enter; accuracies with their intervals leave. Labels of test rows are
only read to count hits: nothing is chosen on them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import Features, Labels
from bert_pretrain.evaluation.statistics import Interval, wilson_interval

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# Similarities held at once; with the arrays derived from them about 120 MB.
_SIMILARITIES_AT_ONCE = 2**23
# Votes closer than this are equal: the order of a sum of float64 must not decide a class.
_VOTE_TOLERANCE = 1e-9
PROBE_GRID = tuple(10.0**exponent for exponent in range(-6, 3))  # of C
_MAX_FOLDS = 5
_MAX_CROSS_VALIDATED_ROWS = 1000  # above it one fold says as much, in a fifth of the time
_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class KnnResult:
    """The share of queries that k nearest neighbours classified right, and its Wilson interval.

    Attributes:
        k: neighbours that voted: `requested_k`, or the whole bank where that is smaller.
        predictions: the predicted labels, int (M,).
    """

    accuracy: float
    interval: Interval
    k: int
    requested_k: int
    temperature: float
    predictions: Labels = field(repr=False, compare=False)


@dataclass(frozen=True)
class ProbeResult:
    """The share of test rows that a linear classifier got right, and its Wilson interval.

    Attributes:
        C: inverse strength of the squared penalty, as scikit-learn counts it.
        validation_accuracy: at that C, on training rows held out; None if there were none.
        has_converged: False if the fit on all training rows ran out of iterations.
        predictions: the predicted labels, int (M,).
    """

    accuracy: float
    interval: Interval
    C: float
    validation_accuracy: float | None
    has_converged: bool
    predictions: Labels = field(repr=False, compare=False)


def knn_accuracy(
    bank_features: Features,
    bank_labels: Labels,
    query_features: Features,
    query_labels: Labels,
    *,
    k: int,
    temperature: float,
) -> KnnResult:
    """Classify queries by a weighted vote of their k most similar bank rows.

    Similarity is the cosine; a neighbour votes for its label with weight exp(similarity / T). Of
    equally similar rows the first of the bank are taken; of classes with equal votes the lowest
    label wins.

    Args:
        bank_features: float (N, D).
        bank_labels: int (N,).
        query_features: float (M, D).
        query_labels: int (M,).
        k: neighbours, at least 1; more than N means N.
        temperature: T, greater than 0.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", section 3.4.
    """
    assert k >= 1 and 0 < temperature < math.inf
    assert len(bank_features) == len(bank_labels) > 0
    assert len(query_features) == len(query_labels) > 0
    classes, bank_classes = np.unique(bank_labels, return_inverse=True)
    bank, queries = unit_rows(bank_features), unit_rows(query_features)
    num_neighbours = min(k, len(bank))
    chunk = max(1, _SIMILARITIES_AT_ONCE // len(bank))
    predictions = []
    for first in range(0, len(queries), chunk):
        similarities = queries[first : first + chunk] @ bank.T
        neighbours = most_similar(similarities, num_neighbours)
        nearest = np.take_along_axis(similarities, neighbours, axis=1).astype(np.float64)
        # Relative to the nearest one, so that no temperature overflows.
        weights = np.exp((nearest - nearest.max(axis=1, keepdims=True)) / temperature)
        votes = _vote(bank_classes[neighbours], weights, num_classes=len(classes))
        predictions.append(classes[votes])
    predicted = np.concatenate(predictions)
    accuracy, interval = _share_right(predicted, query_labels)
    return KnnResult(accuracy, interval, num_neighbours, k, temperature, predicted)


def unit_rows(features: Features) -> NDArray[np.float32]:
    """Return rows (N, D) of length 1 in float32; a row of zeros stays as it is."""
    rows = features.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float32).tiny))


def most_similar(similarities: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the columns (B, k), ascending, of each row's k largest entries, first ones first."""
    position = similarities.shape[1] - k
    smallest = np.partition(similarities, position, axis=1)[:, position, None]
    is_above = similarities > smallest
    is_equal = similarities == smallest
    room = k - is_above.sum(axis=1, keepdims=True)
    is_neighbour = is_above | (is_equal & (np.cumsum(is_equal, axis=1, dtype=np.int32) <= room))
    return np.nonzero(is_neighbour)[1].reshape(len(similarities), k)


def _vote(
    neighbour_classes: NDArray[np.int64], weights: NDArray[np.float64], *, num_classes: int
) -> NDArray[np.int64]:
    """Return the class (B,) with the largest sum of weights, from classes and weights (B, k)."""
    num_rows = len(neighbour_classes)
    cells = np.arange(num_rows)[:, None] * num_classes + neighbour_classes
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=num_rows * num_classes)
    votes = votes.reshape(num_rows, num_classes)
    has_won = votes >= votes.max(axis=1, keepdims=True) * (1 - _VOTE_TOLERANCE)
    return np.asarray(has_won.argmax(axis=1))


def linear_probe(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    *,
    seed: int,
) -> ProbeResult:
    """Classify by multinomial logistic regression on standardised features; see `fit_probe`.

    Features are float (N, D) and (M, D), labels int. The seed is that of the rows held out to
    choose C.

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
    accuracy, interval = _share_right(predicted, test_labels)
    has_converged = bool(fitted[-1].n_iter_.max() < _MAX_ITERATIONS)
    return ProbeResult(accuracy, interval, strength, validation_accuracy, has_converged, predicted)


def fit_probe(
    features: Features, labels: Labels, *, seed: int
) -> tuple[Pipeline, float, float | None]:
    """Fit logistic regression on standardised features, with the best C of `PROBE_GRID`."""
    from sklearn.preprocessing import StandardScaler

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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

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


def majority_accuracy(train_labels: Labels, test_labels: Labels) -> float:
    """Return the accuracy of always answering the most frequent training label."""
    classes, counts = np.unique(train_labels, return_counts=True)
    return float((test_labels == classes[counts.argmax()]).mean())


def _share_right(predicted: Labels, labels: Labels) -> tuple[float, Interval]:
    num_right = int((predicted == labels).sum())
    return num_right / len(labels), wilson_interval(num_right, len(labels))
