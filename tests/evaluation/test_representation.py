"""The judges of frozen features: k-NN, linear probe, PCA, and what they are compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from bert_pretrain.commands.suites.images import FeatureScores, format_table
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation import features as feature_module
from bert_pretrain.evaluation import probes
from bert_pretrain.evaluation.features import (
    extract_features,
    fit_pca,
    normalised_rows,
    pca_reconstruction,
)
from bert_pretrain.evaluation.probes import (
    PROBE_GRID,
    folds,
    knn_accuracy,
    linear_probe,
    majority_accuracy,
)
from bert_pretrain.evaluation.statistics import (
    format_interval,
    wilson_interval,
)

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def clusters(
    *,
    num_train: int = 240,
    num_test: int = 150,
    dimension: int = 6,
    num_classes: int = 4,
    noise: float = 1.0,
) -> Data:
    """Rows around one random centre per class; the labels are 10, 20, ..."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(num_classes, dimension))
    classes = generator.integers(num_classes, size=num_train + num_test)
    features = (centres[classes] + noise * generator.normal(size=(len(classes), dimension))).astype(
        np.float32
    )
    labels = 10 * (classes + 1)
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


def knn_by_loop(data: Data, *, k: int, temperature: float) -> list[int]:
    """Predict query by query from sorted lists and dictionaries."""
    bank, bank_labels, queries, _ = data
    predictions = []
    for query in queries.astype(np.float64):
        similarities = [
            float(query @ row / math.sqrt((query @ query) * (row @ row)))
            for row in bank.astype(np.float64)
        ]
        votes: dict[int, float] = {}
        for i in sorted(range(len(bank)), key=lambda i: -similarities[i])[:k]:
            label = int(bank_labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(similarities[i] / temperature)
        predictions.append(max(votes, key=lambda label: votes[label]))
    return predictions


@pytest.mark.parametrize("k", [1, 5, 20, 240])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_predicts_what_a_plain_loop_predicts(k: int, temperature: float) -> None:
    data = clusters()
    result = knn_accuracy(*data, k=k, temperature=temperature)
    expected = knn_by_loop(data, k=k, temperature=temperature)
    assert result.predictions.tolist() == expected
    assert result.accuracy == np.mean(np.array(expected) == data[3])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.07), (50, 0.5)])
def test_knn_predicts_what_scikit_learn_predicts(k: int, temperature: float) -> None:
    bank, bank_labels, queries, query_labels = clusters()
    # scikit-learn's cosine distance is 1 - similarity; the factor exp(1 / T) is the same for every
    # neighbour.
    theirs = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp(-distance / temperature),
    ).fit(bank, bank_labels)
    result = knn_accuracy(bank, bank_labels, queries, query_labels, k=k, temperature=temperature)
    assert (result.predictions == theirs.predict(queries)).all()


def test_knn_does_not_see_the_length_of_features() -> None:
    bank, bank_labels, queries, query_labels = clusters()
    scales = 2.0 ** np.random.default_rng(1).integers(-8, 9, size=(len(bank), 1))
    plain = knn_accuracy(bank, bank_labels, queries, query_labels, k=9, temperature=0.1)
    scaled = knn_accuracy(
        (bank * scales).astype(np.float32),
        bank_labels,
        queries * 4,
        query_labels,
        k=9,
        temperature=0.1,
    )
    assert (plain.predictions == scaled.predictions).all()


def test_the_memory_bound_changes_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clusters()
    whole = knn_accuracy(*data, k=7, temperature=0.2)
    monkeypatch.setattr(probes, "_SIMILARITIES_AT_ONCE", 3 * len(data[0]))
    assert (knn_accuracy(*data, k=7, temperature=0.2).predictions == whole.predictions).all()
    monkeypatch.setattr(probes, "_SIMILARITIES_AT_ONCE", 1)
    assert (knn_accuracy(*data, k=7, temperature=0.2).predictions == whole.predictions).all()


def test_k_is_clamped_to_the_bank_and_the_table_says_so() -> None:
    data = clusters(num_train=12)
    result = knn_accuracy(*data, k=200, temperature=0.07)
    assert (result.k, result.requested_k) == (12, 200)
    assert (result.predictions == knn_accuracy(*data, k=12, temperature=0.07).predictions).all()
    table = format_table([FeatureScores("encoder", 6, result)])
    assert "k 12 (the whole bank; 200 asked for)" in table


def test_equal_votes_go_to_the_lowest_class() -> None:
    bank = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    query = np.full((1, 2), 0.5, dtype=np.float32)
    for labels in ([7, 3, 7, 3], [3, 7, 3, 7]):
        result = knn_accuracy(bank, np.array(labels), query, np.array([3]), k=4, temperature=0.07)
        assert result.predictions.tolist() == [3]
        assert result.accuracy == 1.0


def test_votes_are_equal_whatever_the_order_of_their_sum() -> None:
    weights = np.array([[0.1, 0.2, 0.3, 0.3, 0.2, 0.1]])
    assert 0.1 + 0.2 + 0.3 > 0.3 + 0.2 + 0.1
    assert probes._vote(np.array([[1, 1, 1, 0, 0, 0]]), weights, num_classes=2).tolist() == [0]


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=60)
def test_of_equally_similar_rows_the_first_are_the_neighbours(seed: int, k: int) -> None:
    similarities = np.random.default_rng(seed).integers(0, 4, size=(5, 12)).astype(np.float32)
    expected = np.sort(np.argsort(-similarities, axis=1, kind="stable")[:, :k], axis=1)
    assert (probes.most_similar(similarities, k) == expected).all()


def test_a_low_temperature_overflows_nowhere_and_means_the_nearest() -> None:
    data = clusters()
    with np.errstate(over="raise", invalid="raise"):
        cold = knn_accuracy(*data, k=20, temperature=1e-4)
    assert (cold.predictions == knn_accuracy(*data, k=1, temperature=1.0).predictions).all()


def test_a_row_of_zeros_is_similar_to_nothing_and_harmless() -> None:
    bank, bank_labels, queries, query_labels = clusters()
    queries[0] = bank[0] = 0
    result = knn_accuracy(bank, bank_labels, queries, query_labels, k=5, temperature=0.1)
    assert set(result.predictions.tolist()) <= set(bank_labels.tolist())


def test_the_probe_is_scikit_learns_classifier_on_standardised_features() -> None:
    train, train_labels, test, test_labels = clusters(noise=2.0)
    result = linear_probe(
        train * [1, 10, 100, 1, 1, 1],
        train_labels,
        test * [1, 10, 100, 1, 1, 1],
        test_labels,
        seed=0,
    )
    scaler = StandardScaler().fit(train)
    theirs = LogisticRegression(C=result.C, max_iter=1000).fit(
        scaler.transform(train), train_labels
    )
    assert (result.predictions == theirs.predict(scaler.transform(test))).all()
    assert result.accuracy == theirs.score(scaler.transform(test), test_labels)
    assert result.has_converged


@pytest.mark.parametrize("num_train", [80, 1200])
def test_c_is_the_best_of_the_grid_on_training_rows_held_out(num_train: int) -> None:
    train, train_labels, test, test_labels = clusters(num_train=num_train, dimension=60, noise=3.0)
    result = linear_probe(train, train_labels, test, test_labels, seed=3)
    accuracies = []
    for strength in PROBE_GRID:
        hits = []
        for fitted, held_out in folds(train_labels, seed=3):
            scaler = StandardScaler().fit(train[fitted])
            classifier = LogisticRegression(C=strength, max_iter=500)
            classifier.fit(scaler.transform(train[fitted]), train_labels[fitted])
            rows = scaler.transform(train[held_out])
            hits.append(classifier.score(rows, train_labels[held_out]))
        accuracies.append(np.mean(hits))
    assert PROBE_GRID[int(np.argmax(accuracies))] == result.C
    assert result.validation_accuracy == pytest.approx(max(accuracies))


def test_the_test_labels_decide_nothing() -> None:
    train, train_labels, test, test_labels = clusters(noise=2.0)
    shuffled = np.random.default_rng(1).permutation(test_labels)
    result = linear_probe(train, train_labels, test, test_labels, seed=0)
    other = linear_probe(train, train_labels, test[::-1], shuffled, seed=0)
    assert (other.C, other.validation_accuracy) == (result.C, result.validation_accuracy)
    assert (other.predictions[::-1] == result.predictions).all()
    assert other.accuracy < result.accuracy


def test_rows_held_out_for_c_are_a_fifth_of_every_class_and_follow_the_seed() -> None:
    labels = np.repeat([5, 6, 7], [100, 10, 5])
    found = folds(labels, seed=0)
    for fitted, held_out in found:
        assert [int((labels[held_out] == label).sum()) for label in (5, 6, 7)] == [20, 2, 1]
        assert sorted([*fitted, *held_out]) == list(range(len(labels)))
    assert sorted(np.concatenate([held_out for _, held_out in found])) == list(range(len(labels)))
    assert (found[0][1] == folds(labels, seed=0)[0][1]).all()
    assert set(found[0][1]) != set(folds(labels, seed=1)[0][1])


def test_of_many_rows_one_fifth_chooses_c() -> None:
    labels = np.repeat([5, 6, 7], [900, 95, 6])
    ((fitted, held_out),) = folds(labels, seed=0)
    counts = [int((labels[held_out] == label).sum()) for label in (5, 6, 7)]
    assert counts[:2] == [180, 19] and counts[2] in (1, 2) and len(fitted) + len(held_out) == 1001


def test_the_only_row_of_a_class_is_never_held_out() -> None:
    labels = np.repeat([5, 6, 7], [1, 30, 3])
    found = folds(labels, seed=0)
    assert len(found) == 3 and all(0 in fitted and 0 not in held_out for fitted, held_out in found)


def test_one_row_per_class_leaves_none_to_choose_c_on() -> None:
    features = np.eye(3, dtype=np.float32)
    result = linear_probe(features, np.arange(3), features, np.arange(3), seed=0)
    assert (result.C, result.validation_accuracy, result.accuracy) == (1.0, None, 1.0)


def test_random_labels_give_chance() -> None:
    generator = np.random.default_rng(2)
    features = generator.normal(size=(3000, 8)).astype(np.float32)
    labels = generator.integers(5, size=3000)
    data = features[:2000], labels[:2000], features[2000:], labels[2000:]
    bound = 4 * math.sqrt(
        0.2 * 0.8 / 1000
    )  # four standard deviations of the share of 1,000 guesses
    assert abs(knn_accuracy(*data, k=20, temperature=0.07).accuracy - 0.2) < bound
    assert abs(linear_probe(*data, seed=0).accuracy - 0.2) < bound


def test_a_constant_feature_is_ignored_by_the_probe() -> None:
    train, train_labels, test, test_labels = clusters()
    plain = linear_probe(train, train_labels, test, test_labels, seed=0)
    constant = (
        np.full((len(train), 1), 0.1, dtype=np.float32),
        np.full((len(test), 1), 0.1, dtype=np.float32),
    )
    wider = linear_probe(
        np.hstack([train, constant[0]]),
        train_labels,
        np.hstack([test, constant[1]]),
        test_labels,
        seed=0,
    )
    assert (wider.predictions == plain.predictions).all()


def test_a_single_class_is_refused_by_the_probe() -> None:
    with pytest.raises(InputError, match="`label_column`"):
        linear_probe(np.eye(3), np.ones(3, dtype=int), np.eye(3), np.ones(3, dtype=int), seed=0)


def test_a_probe_that_ran_out_of_iterations_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert_pretrain.evaluation.probes._MAX_ITERATIONS", 2)
    result = linear_probe(*clusters(), seed=0)
    assert not result.has_converged
    assert "not converged" in format_table([FeatureScores("encoder", 6, result)])


def pca_error(train: np.ndarray, test: np.ndarray, dimension: int) -> float:
    return float(np.square(test - pca_reconstruction(fit_pca(train, dimension), test)).mean())


@pytest.mark.parametrize("shape", [(60, 20), (15, 40)])
@pytest.mark.parametrize("dimension", [1, 5, 10])
def test_pca_error_is_the_energy_of_the_singular_values_left_out(
    shape: tuple[int, int], dimension: int
) -> None:
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.linspace(
        1, 3, shape[1], dtype=np.float32
    )
    singular_values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    expected = np.square(singular_values[dimension:]).sum() / rows.size
    # float32 pixels and products: six digits.
    assert pca_error(rows, rows, dimension) == pytest.approx(expected, rel=1e-4)


def test_pca_gives_back_the_nearest_point_of_the_training_subspace() -> None:
    generator = np.random.default_rng(1)
    train, test = generator.normal(size=(120, 60)), generator.normal(size=(30, 60)) + 0.5
    mean = train.mean(axis=0)
    basis = np.linalg.svd(train - mean)[2][:4]
    expected = mean + (test - mean) @ basis.T @ basis
    np.testing.assert_allclose(pca_reconstruction(fit_pca(train, 4), test), expected, rtol=1e-9)


def test_a_pca_as_wide_as_the_rows_loses_nothing() -> None:
    rows = np.random.default_rng(2).normal(size=(40, 9))
    assert pca_error(rows[:30], rows[30:], 100) < 1e-20


def test_the_pca_of_large_images_is_close_to_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(3).normal(size=(200, 300)) / np.arange(1, 301)
    exact = pca_error(rows, rows, 8)
    monkeypatch.setattr(feature_module, "_EXACT_PCA_DIMENSIONS", 100)
    assert pca_error(rows, rows, 8) == pytest.approx(exact, rel=1e-6)
    assert (fit_pca(rows, 8).transform(rows) == fit_pca(rows, 8).transform(rows)).all()


class Encoder(nn.Module):
    """Returns the mean of every channel; doubled by dropout's scale if left in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.batch_sizes: list[int] = []

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.batch_sizes.append(len(pixel_values))
        assert pixel_values.dtype == torch.float32 and not torch.is_grad_enabled()
        return self.dropout(pixel_values.mean((2, 3)))


def test_features_are_those_of_normalised_pixels_batch_by_batch() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(10, 4, 5, 3)).astype(np.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    encoder = Encoder().eval()
    features = extract_features(
        encoder, pixels, mean, std, batch_size=4, device=torch.device("cpu")
    )
    expected = (pixels.astype(np.float64).mean(axis=(1, 2)) / 255 - mean) / std
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    assert features.dtype == np.float32
    assert encoder.batch_sizes == [4, 4, 2]


def test_features_come_from_a_read_only_array_and_a_plain_function_too() -> None:
    pixels = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    pixels.flags.writeable = False
    features = extract_features(
        lambda x: x.flatten(1), pixels, [0.5], [0.5], batch_size=2, device=torch.device("cpu")
    )
    assert (features == -1).all() and features.shape == (3, 4)


def test_an_encoder_that_diverged_is_refused() -> None:
    pixels = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    with pytest.raises(InputError, match="2 of 3 images are not finite"):
        extract_features(
            lambda x: torch.full((len(x), 2), math.nan if len(x) == 2 else 1.0),
            pixels,
            [0.5],
            [0.5],
            batch_size=2,
            device=torch.device("cpu"),
        )


def test_the_rows_of_the_pixel_floors_are_the_tensors_that_an_encoder_sees() -> None:
    pixels = np.random.default_rng(1).integers(256, size=(4, 3, 3, 3)).astype(np.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    seen = extract_features(
        lambda x: x.permute(0, 2, 3, 1).flatten(1),
        pixels,
        mean,
        std,
        batch_size=4,
        device=torch.device("cpu"),
    )
    # The same operations in float32 up to the order of rounding.
    np.testing.assert_allclose(normalised_rows(pixels, mean, std), seen, rtol=1e-6, atol=1e-6)


@given(st.integers(1, 500), st.floats(0, 1))
@settings(max_examples=50)
def test_the_interval_is_scipys_wilson_interval(num_rows: int, share: float) -> None:
    num_correct = round(share * num_rows)
    theirs = binomtest(num_correct, num_rows).proportion_ci(0.95, method="wilson")
    assert wilson_interval(num_correct, num_rows) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


def test_the_majority_is_that_of_the_training_labels() -> None:
    assert majority_accuracy(np.array([2, 2, 5]), np.array([5, 5, 5, 2])) == 0.25


def test_an_interval_is_shown_behind_its_number() -> None:
    assert format_interval(0.8125, (0.79, 0.8321)) == "0.812 [0.790, 0.832]"
    assert format_interval(0.1, (-0.02, 0.3), sign="+") == "+0.100 [-0.020, +0.300]"
    assert format_interval(0.5, None) == "0.500"


def test_the_table_has_a_line_per_kind_of_features() -> None:
    data = clusters()
    knn, probe = knn_accuracy(*data, k=5, temperature=0.1), linear_probe(*data, seed=0)
    rows = [FeatureScores("encoder", 6, knn), FeatureScores("pixels", 64, knn)]
    header, encoder, pixels, note = format_table(rows).splitlines()
    assert header.split() == ["features", "dim", "k-NN"]
    assert encoder.startswith("encoder") and f"{knn.accuracy:.3f} [" in encoder
    assert pixels.split()[:2] == ["pixels", "64"]
    assert note == "k-NN: cosine, k 5, T 0.1"
    header, encoder = format_table([FeatureScores("encoder", 6, probe)]).splitlines()
    assert header.split() == ["features", "dim", "linear", "probe", "C"]
    assert encoder.endswith(f"{probe.C:g}")
