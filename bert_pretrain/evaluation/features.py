"""Frozen features of images: an encoder's embeddings, and the floors that they have to beat.

Images enter as uint8 arrays; float arrays of features leave, one row for each image.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bert_pretrain.errors import InputError
from bert_pretrain.hardware import default_device
from bert_pretrain.models.embedding import embed_batches
from bert_pretrain.models.image_encoder import build_image_encoder, embed, new_encoder
from bert_pretrain.models.image_encoder_config import image_size_of
from bert_pretrain.models.image_processor import Preprocessing

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

    from bert_pretrain.images.corpus import ImageCorpus

Features: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[np.integer[Any]]

# Up to here the covariance matrix is decomposed exactly, which takes seconds and 128 MB.
_EXACT_PCA_DIMENSIONS = 4096


class LabelledImages(NamedTuple):
    """Images uint8 (N, H, W, C) with labels int64 (N,), to learn from and to evaluate on."""

    train_pixels: NDArray[np.uint8]
    train_labels: Labels
    test_pixels: NDArray[np.uint8]
    test_labels: Labels


class FeatureSet(NamedTuple):
    """One kind of features: a key for figures, a name for people, float (N, D) and (M, D)."""

    key: str
    name: str
    train: Features
    test: Features


def extract_features(
    model: Callable[[Tensor], Tensor],
    pixels: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the embedding of every image, without augmentation, float32 (N, D).

    Args:
        model: in evaluation mode; maps normalised `pixel_values` float32 (B, C, H, W) on `device`
            to embeddings (B, D).
        pixels: uint8 (N, H, W, C), at least one image.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        batch_size: images of one forward pass.
        device: where `model` computes.

    Raises:
        InputError: an embedding is not finite.
    """
    means, deviations = (
        torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        for values in (mean, std)
    )

    def pixel_values(first: int) -> Tensor:
        # A copy, because the array may be a read-only map of a file.
        images = torch.from_numpy(np.array(pixels[first : first + batch_size]))
        values = images.permute(0, 3, 1, 2).to(device).float() / 255  # to (B, C, H, W)
        return (values - means) / deviations

    starts = range(0, len(pixels), batch_size)
    features = embed_batches(model, map(pixel_values, starts)).cpu().numpy()
    is_finite = np.isfinite(features).all(axis=1)
    if not is_finite.all():
        raise InputError(
            f"the embeddings of {(~is_finite).sum():,} of {len(features):,} images are not finite: "
            "the encoder has diverged",
            advice="pass an earlier checkpoint as `model`",
        )
    return features


def normalised_rows(
    pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Return images uint8 (N, H, W, C) as rows (N, H * W * C), normalised as an encoder's input.

    Mean and deviation are per channel, of pixels in [0, 1].
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(normalised.reshape(len(pixels), -1))


def fit_pca(rows: Features, dimension: int) -> PCA:
    """Return at most `dimension` principal components of training rows, float (N, D)."""
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if rows.shape[1] <= _EXACT_PCA_DIMENSIONS else "randomized"
    pca = PCA(min(dimension, *rows.shape), svd_solver=solver, iterated_power=10, random_state=0)
    return pca.fit(rows)


def pca_reconstruction(pca: PCA, rows: Features) -> Features:
    """Return rows, float (M, D), given back from their principal components.

    Of the rows that PCA was fitted to no linear autoencoder has a smaller squared error.
    """
    reconstructed: Features = pca.inverse_transform(pca.transform(rows))
    return reconstructed


def divide_labelled(corpus: ImageCorpus, test_corpus: ImageCorpus | None) -> LabelledImages:
    """Return the images to learn from and to evaluate on, leaving out those without a label.

    Args:
        corpus: divided as its manifest says if it stands alone; else all of it is learnt from.
        test_corpus: evaluated on; its classes are matched by name.

    Raises:
        InputError: one of the two has no labels, or `test_corpus` has a class of its own.
    """
    if test_corpus is None:
        return LabelledImages(
            *_with_labels(corpus, corpus.train_images, "learn from"),
            *_with_labels(corpus, corpus.validation_images, "evaluate on"),
        )
    everything, all_tests = np.arange(len(corpus.pixels)), np.arange(len(test_corpus.pixels))
    train_pixels, train_labels = _with_labels(corpus, everything, "learn from")
    test_pixels, test_labels = _with_labels(test_corpus, all_tests, "evaluate on")
    if test_pixels.shape[1:] != train_pixels.shape[1:]:
        raise InputError(
            f"the images to evaluate on have the shape {test_pixels.shape[1:]} (height, width, "
            f"channels), the others {train_pixels.shape[1:]}",
            advice="pass `image_size`",
        )
    number = {name: place for place, name in enumerate(corpus.label_names)}
    unknown = [name for name in test_corpus.label_names if name not in number]
    if unknown:
        raise InputError(
            f"the images to evaluate on have the class {unknown[0]!r}, which the others lack",
            advice="pass files of the same data set, or change `label_column`",
        )
    matched = np.array([number[name] for name in test_corpus.label_names])
    return LabelledImages(train_pixels, train_labels, test_pixels, matched[test_labels])


def num_in_both(bank: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    """Return how many of other images are in a bank too, all pixels equal; both (N, H, W, C)."""
    known = {_digest(image) for image in bank}
    return sum(_digest(image) in known for image in others)


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _with_labels(
    corpus: ImageCorpus, rows: NDArray[np.int64], purpose: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if corpus.labels is not None:
        rows = rows[corpus.labels[rows] >= 0]
    if corpus.labels is None or not len(rows):
        raise InputError(
            f"there is no image with a label to {purpose} in "
            f"{corpus.manifest['source']['description']}",
            advice="pass labelled images, or their `label_column`",
        )
    return corpus.pixels[rows], corpus.labels[rows]


def compute_features(
    model: str,
    images: LabelledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    floors: Collection[str],
) -> list[FeatureSet]:
    """Return the features of an encoder, and those that it has to beat.

    The floors are an encoder of the same configuration before any training ("random_encoder",
    drawn with `seed`), the pixels themselves ("pixels"), and as many of their principal components
    as the embedding has dimensions ("pca", fitted on the images learnt from). `model` is a folder
    or Hub id.

    Raises:
        InputError: the model is no image encoder, does not fit the images, or gives embeddings that
            are not finite.
    """
    _, height, width, num_channels = images.train_pixels.shape
    if len(preprocessing.mean) not in (1, num_channels):
        raise InputError(
            f"the image processor of {model!r} is for {len(preprocessing.mean)} channels but the "
            f"images have {num_channels}",
            advice="change `model`",
        )
    mean, std = (
        np.broadcast_to(values, num_channels).tolist()
        for values in (preprocessing.mean, preprocessing.std)
    )
    device, parts = default_device(), (images.train_pixels, images.test_pixels)
    encoder = build_image_encoder(
        config_name="",
        model_name_or_path=model,
        image_size=image_size_of(height, width),
        num_channels=num_channels,
        dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = new_encoder(copy.deepcopy(encoder.config))

    def embed_both(encoder: PreTrainedModel) -> list[NDArray[np.float32]]:
        forward = partial(embed, encoder.to(device).eval())
        return [
            extract_features(forward, part, mean, std, batch_size=batch_size, device=device)
            for part in parts
        ]

    trained = embed_both(encoder)
    found = [FeatureSet("encoder", "this encoder", *trained)]
    if "random_encoder" in floors:
        found.append(FeatureSet("random_encoder", "the same, untrained", *embed_both(untrained)))
    if not {"pixels", "pca"} & set(floors):  # rows of large images would fill the memory
        return found
    rows = [normalised_rows(part, mean, std) for part in parts]
    if "pixels" in floors:
        found.append(FeatureSet("pixels", "raw pixels", *rows))
    if "pca" in floors:
        pca = fit_pca(rows[0], trained[0].shape[1])
        found.append(FeatureSet("pca", "PCA of the pixels", *map(pca.transform, rows)))
    return found
