"""Frozen features of labelled images: those of an encoder, and the floors it is compared with.

The folder or Hub id of an encoder and a corpus of images enter; float arrays of features for the
images learnt from and for those evaluated on leave. Pixels are prepared as the encoder's own saved
image processor says.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import Features, Labels, extract_features, normalised_rows
from bert_pretrain.evaluation.floors import fit_pca
from bert_pretrain.hardware import default_device
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.models.image_encoder import build_image_encoder, embed, encoder_from_config
from bert_pretrain.models.image_processor import Preprocessing


class LabelledImages(NamedTuple):
    """Images uint8 (N, H, W, C) that all have labels, int64 (N,): those learnt from, and those evaluated on."""

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


def divide_labelled(corpus: ImageCorpus, test_corpus: ImageCorpus | None) -> LabelledImages:
    """Return the images to learn from and to evaluate on, leaving out those without a label.

    Args:
        corpus: divided as it is, if it stands alone; otherwise all of it is learnt from.
        test_corpus: evaluated on; its classes are matched by name.

    Raises:
        InputError: one of the two has no labels, or `test_corpus` a class of its own.
    """
    if test_corpus is None:
        return LabelledImages(
            *_with_labels(corpus, corpus.train_images, "learn from"),
            *_with_labels(corpus, corpus.validation_images, "evaluate on"),
        )
    train_pixels, train_labels = _with_labels(corpus, np.arange(len(corpus.pixels)), "learn from")
    test_pixels, test_labels = _with_labels(
        test_corpus, np.arange(len(test_corpus.pixels)), "evaluate on"
    )
    if test_pixels.shape[1:] != train_pixels.shape[1:]:
        raise InputError(
            f"the images of `test_files` have the shape {test_pixels.shape[1:]} (height, width, "
            f"channels), the others {train_pixels.shape[1:]}",
            advice="pass `image_size`",
        )
    number = {name: place for place, name in enumerate(corpus.label_names)}
    unknown = [name for name in test_corpus.label_names if name not in number]
    if unknown:
        raise InputError(
            f"`test_files` has the class {unknown[0]!r}, which the other images lack",
            advice="pass files of the same data set, or change `label_column`",
        )
    matched = np.array([number[name] for name in test_corpus.label_names])
    return LabelledImages(train_pixels, train_labels, test_pixels, matched[test_labels])


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
    model: str, images: LabelledImages, preprocessing: Preprocessing, *, batch_size: int, seed: int
) -> list[FeatureSet]:
    """Return the features of an encoder, and those that it has to beat.

    The floors are an encoder of the same configuration before any training, the pixels themselves,
    and as many of their principal components (of the images learnt from) as the embedding has
    dimensions.

    Args:
        model: folder or Hub id.
        images: what to embed.
        preprocessing: the model's.
        batch_size: images of one forward pass.
        seed: of the untrained encoder.

    Raises:
        InputError: the model is no image encoder, does not fit the images, or gives embeddings that
            are not finite.
    """
    mean, std = preprocessing.mean, preprocessing.std
    _, height, _, num_channels = images.train_pixels.shape
    if len(mean) not in (1, num_channels):
        raise InputError(
            f"the image processor of {model!r} is for {len(mean)} channels but the images have "
            f"{num_channels}",
            advice="change `model`",
        )
    device = default_device()
    encoder = build_image_encoder(
        config_name="",
        model_name_or_path=model,
        image_size=height,
        num_channels=num_channels,
        dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = encoder_from_config(copy.deepcopy(encoder.config))

    def embed_both(encoder: PreTrainedModel) -> tuple[Features, Features]:
        encoder.to(device).eval()
        means, deviations = (
            np.broadcast_to(values, num_channels).tolist() for values in (mean, std)
        )
        train, test = (
            extract_features(
                lambda values: embed(encoder, values),
                pixels,
                means,
                deviations,
                batch_size=batch_size,
                device=device,
            )
            for pixels in (images.train_pixels, images.test_pixels)
        )
        return train, test

    trained_features = embed_both(encoder)
    rows = [
        normalised_rows(pixels, mean, std) for pixels in (images.train_pixels, images.test_pixels)
    ]
    pca = fit_pca(rows[0], trained_features[0].shape[1])
    return [
        FeatureSet("encoder", "this encoder", *trained_features),
        FeatureSet("random_encoder", "the same, untrained", *embed_both(untrained)),
        FeatureSet("pixels", "raw pixels", *rows),
        FeatureSet("pca", "PCA of the pixels", *(pca.transform(row) for row in rows)),
    ]
