"""What any encoder has to beat: principal components of the pixels, and always the most frequent label."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.decomposition import PCA

from bert_pretrain.evaluation.features import Features, Labels

# Up to here the covariance matrix is decomposed exactly, which takes seconds and 128 MB.
_EXACT_PCA_DIMENSIONS = 4096


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

    No linear autoencoder has a smaller squared error on the training rows. (For `l1` PCA is not the
    best linear reconstruction, merely the usual one.)

    Args:
        train_rows: float (N, D) in the space in which the autoencoder's loss is measured, see
            `normalised_rows`.
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
