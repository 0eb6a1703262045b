"""What principal component analysis makes of images, in as many numbers as an autoencoder's.

PCA is the best linear autoencoder; what is learnt has to beat it, in numbers and to the eye.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.evaluation.features import fit_pca, normalised_rows, pca_reconstruction
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.losses.distances import ReconstructionKind

MAX_PSNR = 100.0  # that of equal images would be infinite
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class PcaBaseline:
    """Reconstructions of held-out images from principal components of training images.

    Attributes:
        measures: `pca_reconstruction_loss`, the mean over held-out images in the units of the
            autoencoder's loss, and `pca_reconstruction_psnr`, dB.
        inputs: float32 (n, H, W, C), the images of the picture as autoencoder and PCA get them,
            normalised, with noise if the autoencoder denoises.
        outputs: float32 (n, H, W, C) in [0, 1], what PCA makes of them.
    """

    measures: Mapping[str, float]
    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]


def psnr(squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB, at most 100.

    `squared_error` is the mean over images, pixels and channels of pixels in [0, 1].
    """
    return min(MAX_PSNR, -10 * math.log10(max(squared_error, 1e-10)))


def pca_baseline(
    corpus: ImageCorpus,
    *,
    bank: NDArray[np.int64],
    held_out: NDArray[np.int64],
    noise: NDArray[np.float32],
    dimension: int,
    kind: ReconstructionKind,
    key: str,
) -> PcaBaseline:
    """Return the baseline of an autoencoder, computed once for a corpus.

    Args:
        corpus: the images.
        bank: int64, the training images that components are fitted to.
        held_out: int64, the images that are evaluated; the first of them are in the picture.
        noise: float (n, H, W, C), added to the normalised images of the picture; zeros = none.
        dimension: of the embedding.
        kind: of the autoencoder's loss.
        key: tells what `bank`, `held_out` and `noise` are made from.
    """
    mean, std = corpus.mean, corpus.std

    def rows_of(images: NDArray[np.int64]) -> NDArray[np.float32]:
        return normalised_rows(corpus.pixels[images], mean.tolist(), std.tolist())

    inputs = rows_of(held_out[: len(noise)]).reshape(noise.shape) + noise

    def pixels(rows: Any) -> NDArray[np.float32]:
        images = rows.reshape(-1, *noise.shape[1:]) * std + mean
        return np.asarray(images.clip(0, 1), dtype=np.float32)

    def compute() -> dict[str, Any]:
        pca = fit_pca(rows_of(bank), dimension)
        loss, squared = 0.0, 0.0
        for first in range(0, len(held_out), _ROWS_AT_ONCE):
            rows = rows_of(held_out[first : first + _ROWS_AT_ONCE])
            given_back = pca_reconstruction(pca, rows)
            difference = given_back - rows
            errors = np.square(difference) if kind == "mse" else np.abs(difference)
            loss += float(errors.mean(axis=1, dtype=np.float64).sum())
            of_pixels = np.square(pixels(given_back) - pixels(rows)).reshape(len(rows), -1)
            squared += float(of_pixels.mean(axis=1, dtype=np.float64).sum())
        outputs = pixels(pca_reconstruction(pca, inputs.reshape(len(inputs), -1)))
        return {
            "loss": loss / len(held_out),
            "psnr": psnr(squared / len(held_out)),
            "outputs": (outputs * 255).round().astype(np.uint8).tolist(),
        }

    found = corpus.remembered(f"pca-pictures-{dimension}-{kind}-{key}", compute)
    return PcaBaseline(
        {f"pca_reconstruction_{name}": found[name] for name in ("loss", "psnr")},
        inputs,
        np.array(found["outputs"], dtype=np.float32) / np.float32(255),
    )
