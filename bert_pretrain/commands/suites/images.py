"""The suites `knn` and `linear_probe`: how good an encoder's frozen features of images are, beside their floors."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

from transformers import AutoConfig

from bert_pretrain.commands.suites.context import (
    Evaluation,
    EvaluationImages,
    SuiteResult,
    source_flags,
)
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.feature_scores import FeatureScores, format_table
from bert_pretrain.evaluation.floors import majority_accuracy
from bert_pretrain.evaluation.image_features import (
    FeatureSet,
    LabelledImages,
    compute_features,
    divide_labelled,
)
from bert_pretrain.evaluation.knn import check_knn, knn_accuracy
from bert_pretrain.evaluation.linear_probe import linear_probe
from bert_pretrain.images.corpus import ImageCorpus, image_card, open_images
from bert_pretrain.models.image_processor import Preprocessing, read_processor


def check_image_flags(images: EvaluationImages) -> None:
    """Check what can be checked before anything is opened.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    check_knn(images.k, images.temperature)


def evaluate_knn(evaluation: Evaluation) -> SuiteResult:
    """Classify the evaluation images by their nearest neighbours in the bank."""
    images = evaluation.images

    def score(features: FeatureSet) -> FeatureScores:
        result = knn_accuracy(
            features.train,
            open_labelled_images(evaluation).train_labels,
            features.test,
            open_labelled_images(evaluation).test_labels,
            k=images.k,
            temperature=images.temperature,
        )
        return FeatureScores(features.name, features.train.shape[1], knn=result)

    return _judge_features(evaluation, "knn", score)


def evaluate_linear_probe(evaluation: Evaluation) -> SuiteResult:
    """Classify the evaluation images by logistic regression on features of the bank."""

    def score(features: FeatureSet) -> FeatureScores:
        result = linear_probe(
            features.train,
            open_labelled_images(evaluation).train_labels,
            features.test,
            open_labelled_images(evaluation).test_labels,
            seed=evaluation.seed,
        )
        return FeatureScores(features.name, features.train.shape[1], linear_probe=result)

    return _judge_features(evaluation, "linear_probe", score)


def _judge_features(
    evaluation: Evaluation,
    suite: Literal["knn", "linear_probe"],
    score: Callable[[FeatureSet], FeatureScores],
) -> SuiteResult:
    scores = {features.key: score(features) for features in _feature_sets(evaluation)}
    results = {key: row.knn or row.linear_probe for key, row in scores.items()}
    labelled = open_labelled_images(evaluation)
    majority = majority_accuracy(labelled.train_labels, labelled.test_labels)
    figures = {
        f"{key}_{suite}_accuracy".removeprefix("encoder_"): r.accuracy
        for key, r in results.items()
        if r
    }
    details = {
        key: {
            name: value
            for name, value in dataclasses.asdict(result).items()
            if name != "predictions"
        }
        for key, result in results.items()
        if result
    }
    text = "\n".join(
        [
            format_table(list(scores.values())),
            f"always the largest class: {majority:.3f}; {len(labelled.train_labels):,} images with "
            "labels learnt from, "
            f"{len(labelled.test_labels):,} evaluated; intervals: 95 %, of the draw of these "
            "images alone",
        ]
    )
    return SuiteResult(text, figures | {"majority_accuracy": majority}, details)


@lru_cache(maxsize=1)
def _processor(evaluation: Evaluation) -> Preprocessing:
    return read_processor(evaluation.model)


@lru_cache(maxsize=1)
def _feature_sets(evaluation: Evaluation) -> list[FeatureSet]:
    """Return the encoder's features, and the floors."""
    # The order in which bad input is reported: the processor first, then the images, then the
    # weights.
    processor, labelled = _processor(evaluation), open_labelled_images(evaluation)
    return compute_features(
        evaluation.model,
        labelled,
        processor,
        batch_size=evaluation.options.per_device_eval_batch_size,
        seed=evaluation.seed,
    )


@lru_cache(maxsize=1)
def open_labelled_images(evaluation: Evaluation) -> LabelledImages:
    """Open the images and print what they are: the run's own division of them, or all and `--test_files`.

    Raises:
        InputError: they cannot be opened, or have no labels.
    """
    source = source_flags(evaluation)
    if not source.keys() & {"dataset_name", "data_files"}:
        source["dataset_name"] = "digits"
    corpus, test_corpus = _open(evaluation, source), None
    sys.stdout.write(image_card(corpus) + "\n")
    if evaluation.images.test_files:
        test_corpus = _open(evaluation, {"data_files": evaluation.images.test_files})
        sys.stdout.write(image_card(test_corpus) + "\n")
    elif _differs_from_run(evaluation.run, source, corpus):
        sys.stdout.write(
            "note: the run that wrote this model held out other images (its seed or validation "
            "share differ), so it "
            "was pretrained on some that are evaluated here\n"
        )
    return divide_labelled(corpus, test_corpus)


def _differs_from_run(run: dict[str, Any], source: dict[str, Any], corpus: ImageCorpus) -> bool:
    """Return whether the images are the run's, but divided otherwise."""
    is_same_source = all(run.get(name) == value for name, value in source.items())
    return is_same_source and any(
        run[name] != corpus.manifest[name] for name in ("seed", "validation_share")
    )


def _open(evaluation: Evaluation, source: dict[str, Any]) -> ImageCorpus:
    images, run = evaluation.images, evaluation.run
    settings: dict[str, Any] = {
        "image_size": _processor(evaluation).image_size,
        "validation_share": 0.2,
    }
    for name in ("image_column", "label_column", "image_size", "validation_share"):
        given = (
            evaluation.data.validation_share
            if name == "validation_share"
            else getattr(images, name)
        )
        value = run.get(name) if given is None else given
        if value is not None:
            settings[name] = value
    return open_images(
        **source,
        **settings,
        num_channels=run.get("num_channels") or _num_channels(evaluation.model),
        on_bad_image=images.on_bad_image,
        seed=evaluation.seed,
    )


def _num_channels(model: str) -> int:
    try:
        return int(AutoConfig.from_pretrained(model).num_channels)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{model!r} is no image encoder of transformers", advice="change `model`"
        ) from error
