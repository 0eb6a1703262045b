"""How good frozen features are: k-NN and a linear probe, with the floors that any encoder has to beat.

Feature arrays with labels enter; accuracies with their intervals leave. The evaluation labels are read once, to count
hits: no hyperparameter is chosen on them. Floors are the pixels themselves, their principal components in as many
dimensions as the embedding has, and the same encoder before any training.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.errors import InputError

Features: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[np.integer[Any]]
Interval: TypeAlias = tuple[float, float]

# Similarities held at once; with what is derived from them about 120 MB.
_SIMILARITIES_AT_ONCE = 2**23
# Votes closer than this are equal: the order of a sum of float64 must not decide a class.
_VOTE_TOLERANCE = 1e-9
PROBE_GRID = tuple(10.0**exponent for exponent in range(-6, 3))
_PROBE_VALIDATION_SHARE = 0.2
# C rises along the grid, and the rest of it is given up once accuracy has fallen behind the best so many times in a
# row: the weakest penalties take longest by far and only overfit further.
_PROBE_PATIENCE = 2
_PROBE_MAX_ITERATIONS = 500
# Up to here the covariance matrix is decomposed exactly, which takes seconds and 128 MB.
_EXACT_PCA_DIMENSIONS = 4096


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


@dataclass(frozen=True)
class ProbeResult:
    """What a linear classifier got right.

    Attributes:
        accuracy: share of test rows classified right, in [0, 1].
        interval: Wilson 95 % interval of the accuracy.
        C: inverse strength of the squared penalty, as scikit-learn counts it, chosen on training rows held out.
        validation_accuracy: on those held-out rows at that C; None if there were none to hold out, and C is 1.
        has_converged: False if the fit with that C on all training rows ran out of iterations.
        predictions: int64 (num_test,), the predicted labels.
    """

    accuracy: float
    interval: Interval
    C: float
    validation_accuracy: float | None
    has_converged: bool
    predictions: Labels = field(repr=False, compare=False)


@dataclass(frozen=True)
class FeatureScores:
    """One row of the table: a kind of features, its dimension, and what was measured on it."""

    name: str
    dimension: int
    knn: KnnResult | None = None
    linear_probe: ProbeResult | None = None


def extract_features(
    model: Callable[[Tensor], Tensor],
    pixels: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the embedding of every image, without augmentation, in evaluation mode.

    Args:
        model: maps normalised `pixel_values` float32 (B, C, H, W) on `device` to embeddings (B, D). A module is put
            into evaluation mode and afterwards back; of any other callable the mode is the caller's business.
        pixels: uint8 (N, H, W, C), at least one image.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        batch_size: images of one forward pass.
        device: where `model` computes.

    Returns:
        float32 (N, D).

    Raises:
        InputError: an embedding is not finite.
    """
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    shape = (1, len(mean), 1, 1)
    means = torch.tensor(mean, dtype=torch.float32, device=device).view(shape)
    deviations = torch.tensor(std, dtype=torch.float32, device=device).view(shape)
    batches = []
    with torch.no_grad():
        for first in range(0, len(pixels), batch_size):
            # A copy: the array may be a read-only map of a file. (B, H, W, C) -> (B, C, H, W)
            images = torch.from_numpy(np.array(pixels[first : first + batch_size])).permute(0, 3, 1, 2)
            values = images.to(device).float() / 255
            batches.append(model((values - means) / deviations).float().cpu().numpy())
    if isinstance(model, nn.Module):
        model.train(was_training)
    features = np.concatenate(batches)
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise InputError(
            f"the embeddings of {bad:,} of {len(features):,} images are not finite: the encoder has diverged; "
            "pass an earlier checkpoint as --model"
        )
    return features


def normalised_rows(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Return images as float32 rows (N, H * W * C), normalised exactly as an encoder's input.

    Args:
        pixels: uint8 (N, H, W, C).
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(normalised.reshape(len(pixels), -1))


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

    Similarity is the cosine; a neighbour votes for its label with weight exp(similarity / T). Of equally similar rows
    the first of the bank are taken; of classes with equal votes the lowest label wins.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4.

    Args:
        bank_features: float (N, D).
        bank_labels: int (N,).
        query_features: float (M, D).
        query_labels: int (M,), read only to count what was right.
        k: neighbours, at least 1; more than N means N.
        temperature: T, greater than 0.

    Raises:
        InputError: `k` or `temperature` is out of range.
    """
    check_knn(k, temperature)
    assert len(bank_features) == len(bank_labels) > 0
    assert len(query_features) == len(query_labels) > 0
    classes, bank_classes = np.unique(bank_labels, return_inverse=True)
    bank, queries = _unit_rows(bank_features), _unit_rows(query_features)
    num_neighbours = min(k, len(bank))
    chunk = max(1, _SIMILARITIES_AT_ONCE // len(bank))
    predictions = []
    for first in range(0, len(queries), chunk):
        similarities = queries[first : first + chunk] @ bank.T
        neighbours = _most_similar(similarities, num_neighbours)
        nearest = np.take_along_axis(similarities, neighbours, axis=1).astype(np.float64)
        # Relative to the nearest one, so that no temperature overflows.
        weights = np.exp((nearest - nearest.max(axis=1, keepdims=True)) / temperature)
        predictions.append(classes[_vote(bank_classes[neighbours], weights, num_classes=len(classes))])
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


def check_knn(k: int, temperature: float) -> None:
    """Raise `InputError` unless both are in the range that `knn_accuracy` allows."""
    if k < 1:
        raise InputError(f"k is {k} but must be at least 1; change --k")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature:g} but must be greater than 0; change --temperature")


def _unit_rows(features: Features) -> NDArray[np.float32]:
    rows = features.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float32).tiny))


def _most_similar(similarities: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the columns (B, k), ascending, of the k largest entries of each row; of equal ones the first columns."""
    position = similarities.shape[1] - k
    smallest = np.partition(similarities, position, axis=1)[:, position, None]
    is_above = similarities > smallest
    is_equal = similarities == smallest
    room = k - is_above.sum(axis=1, keepdims=True)
    is_neighbour = is_above | (is_equal & (np.cumsum(is_equal, axis=1, dtype=np.int32) <= room))
    return np.nonzero(is_neighbour)[1].reshape(len(similarities), k)


def _vote(neighbour_classes: NDArray[np.int64], weights: NDArray[np.float64], *, num_classes: int) -> NDArray[np.int64]:
    """Return the class (B,) with the largest sum of weights, from classes and weights (B, k)."""
    num_rows = len(neighbour_classes)
    cells = np.arange(num_rows)[:, None] * num_classes + neighbour_classes
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=num_rows * num_classes)
    votes = votes.reshape(num_rows, num_classes)
    return np.asarray((votes >= votes.max(axis=1, keepdims=True) * (1 - _VOTE_TOLERANCE)).argmax(axis=1))


def linear_probe(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    *,
    seed: int,
) -> ProbeResult:
    """Classify by multinomial logistic regression on standardised features (L-BFGS, squared penalty).

    C is the member of `PROBE_GRID` with the best accuracy on a fifth of each class's training rows, the smallest of
    equals; then the classifier is fitted again on all of them. Mean and deviation come from the rows it is fitted on.

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
            f"all {len(train_labels):,} training images have the same label, but a linear probe needs two classes; "
            "change --label_column or the images"
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
            is_held_out[members[permutation(len(members), seed, Purpose.SPLIT, number)[:count]]] = True
    return is_held_out


def _choose_penalty(features: Features, labels: Labels, is_held_out: NDArray[np.bool_]) -> tuple[float, float]:
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


def fit_pca(rows: Features, dimension: int) -> PCA:
    """Return the principal components of training rows.

    Args:
        rows: float (N, D).
        dimension: components, at least 1; more than min(N, D) means that many.
    """
    solver = "covariance_eigh" if rows.shape[1] <= _EXACT_PCA_DIMENSIONS else "randomized"
    pca = PCA(min(dimension, *rows.shape), svd_solver=solver, iterated_power=10, random_state=0)
    return pca.fit(rows)


def pca_reconstruction_error(
    train_rows: Features, test_rows: Features, dimension: int, kind: Literal["mse", "l1"]
) -> float:
    """Return the error of reconstructing held-out rows from as many principal components as an embedding has.

    No linear autoencoder has a smaller squared error on the training rows. (For `l1` PCA is not the best linear
    reconstruction, merely the usual one.)

    Args:
        train_rows: float (N, D) in the space in which the autoencoder's loss is measured, see `normalised_rows`.
        test_rows: float (M, D), the same space.
        dimension: of the embedding, at least 1.
        kind: mean over all elements of the squared (`mse`) or the absolute (`l1`) difference.
    """
    pca = fit_pca(train_rows, dimension)
    difference = test_rows - pca.inverse_transform(pca.transform(test_rows))
    return float(np.square(difference).mean() if kind == "mse" else np.abs(difference).mean())


def majority_accuracy(train_labels: Labels, test_labels: Labels) -> float:
    """Return the accuracy of always answering the most frequent training label."""
    classes, counts = np.unique(train_labels, return_counts=True)
    return float((test_labels == classes[counts.argmax()]).mean())


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


def format_table(scores: Sequence[FeatureScores]) -> str:
    """Lay scores out as text: a line per kind of features, accuracies with their 95 % intervals."""
    width = max(len("features"), *(len(row.name) for row in scores))
    has_knn = any(row.knn for row in scores)
    has_probe = any(row.linear_probe for row in scores)
    header = f"{'features':<{width}}  {'dim':>6}"
    header += f"  {'k-NN':<22}" * has_knn + f"  {'linear probe':<22}  {'C':>6}" * has_probe
    lines = [header.rstrip()]
    for row in scores:
        line = f"{row.name:<{width}}  {row.dimension:>6}"
        line += f"  {_with_interval(row.knn):<22}" * has_knn
        if has_probe:
            probe = row.linear_probe
            line += f"  {_with_interval(probe):<22}  {f'{probe.C:g}' if probe else '':>6}"
            line += "" if probe is None or probe.has_converged else "  not converged"
        lines.append(line.rstrip())
    return "\n".join([*lines, *_footnotes(scores)])


def _with_interval(result: KnnResult | ProbeResult | None) -> str:
    if result is None:
        return ""
    low, high = result.interval
    return f"{result.accuracy:.3f} [{low:.3f}, {high:.3f}]"


def _footnotes(scores: Sequence[FeatureScores]) -> list[str]:
    settings = {(row.knn.k, row.knn.requested_k, row.knn.temperature) for row in scores if row.knn}
    return [
        f"k-NN: cosine, k {k}{f' (the whole bank; {requested} asked for)' if k < requested else ''}, T {temperature:g}"
        for k, requested, temperature in sorted(settings)
    ]
