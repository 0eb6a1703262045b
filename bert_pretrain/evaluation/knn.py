"""k nearest neighbours: how good frozen features are without learning anything on them.

Feature arrays with labels enter; the accuracy with its interval leaves. Labels of queries are only
read to count hits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.evaluation.features import Features, Labels
from bert_pretrain.evaluation.statistics import Interval, wilson_interval

# Similarities held at once; with the arrays derived from them about 120 MB.
_SIMILARITIES_AT_ONCE = 2**23
# Votes closer than this are equal: the order of a sum of float64 must not decide a class.
_VOTE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class KnnResult:
    """What k nearest neighbours got right.

    Attributes:
        accuracy: share of queries classified right, in [0, 1].
        interval: Wilson 95 % interval of the accuracy.
        k: neighbours that voted: what was asked for, or the whole bank where that is smaller.
        requested_k: neighbours asked for.
        temperature: T of the weights exp(similarity / T).
        predictions: int64 (num_queries,), the predicted labels.
    """

    accuracy: float
    interval: Interval
    k: int
    requested_k: int
    temperature: float
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

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", section 3.4.

    Args:
        bank_features: float (N, D).
        bank_labels: int (N,).
        query_features: float (M, D).
        query_labels: int (M,), only read to count hits.
        k: neighbours, at least 1; more than N means N.
        temperature: T, greater than 0.
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
        neighbours = _most_similar(similarities, num_neighbours)
        nearest = np.take_along_axis(similarities, neighbours, axis=1).astype(np.float64)
        # Relative to the nearest one, so that no temperature overflows.
        weights = np.exp((nearest - nearest.max(axis=1, keepdims=True)) / temperature)
        predictions.append(
            classes[_vote(bank_classes[neighbours], weights, num_classes=len(classes))]
        )
    predicted = np.concatenate(predictions)
    num_correct = int((predicted == query_labels).sum())
    return KnnResult(
        accuracy=num_correct / len(predicted),
        interval=wilson_interval(num_correct, len(predicted)),
        k=num_neighbours,
        requested_k=k,
        temperature=temperature,
        predictions=predicted,
    )


def unit_rows(features: Features) -> NDArray[np.float32]:
    """Return rows (N, D) of length 1 in float32; a row of zeros stays as it is."""
    rows = features.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float32).tiny))


def _most_similar(similarities: NDArray[np.float32], k: int) -> NDArray[np.int64]:
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
    return np.asarray(
        (votes >= votes.max(axis=1, keepdims=True) * (1 - _VOTE_TOLERANCE)).argmax(axis=1)
    )
