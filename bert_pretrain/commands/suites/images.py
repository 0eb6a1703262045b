"""The suites `knn` and `linear_probe`: how good an encoder's frozen features of images are."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from transformers import AutoConfig

from bert_pretrain.commands.suites.context import Evaluation, SuiteResult
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import (
    FeatureSet,
    LabelledImages,
    compute_features,
    divide_labelled,
)
from bert_pretrain.evaluation.probes import (
    KnnResult,
    ProbeResult,
    knn_accuracy,
    linear_probe,
    majority_accuracy,
)
from bert_pretrain.evaluation.statistics import format_interval
from bert_pretrain.images.corpus import ImageCorpus, image_card, open_images
from bert_pretrain.models.image_processor import Preprocessing, read_processor


class FeatureScores(NamedTuple):
    """One row of the table: a kind of features, its dimension, and what was measured on it."""

    name: str
    dimension: int
    result: KnnResult | ProbeResult


def evaluate_knn(evaluation: Evaluation) -> SuiteResult:
    """Classify the evaluation images by their nearest neighbours in the bank."""
    images = evaluation.images
    score = partial(knn_accuracy, k=images.k, temperature=images.temperature)
    return _judge_features(evaluation, "knn", score)


def evaluate_linear_probe(evaluation: Evaluation) -> SuiteResult:
    """Classify the evaluation images by logistic regression on features of the bank."""
    return _judge_features(evaluation, "linear_probe", partial(linear_probe, seed=evaluation.seed))


def _judge_features(
    evaluation: Evaluation, suite: str, score: Callable[..., KnnResult | ProbeResult]
) -> SuiteResult:
    labelled = open_labelled_images(evaluation)
    train_labels, test_labels = labelled.train_labels, labelled.test_labels
    figures, details, rows = {}, {}, []
    for features in _feature_sets(evaluation):
        result = score(features.train, train_labels, features.test, test_labels)
        rows.append(FeatureScores(features.name, features.train.shape[1], result))
        figures[f"{features.key}_{suite}_accuracy".removeprefix("encoder_")] = result.accuracy
        details[features.key] = dataclasses.asdict(result)
        del details[features.key]["predictions"]
    figures["majority_accuracy"] = majority = majority_accuracy(train_labels, test_labels)
    note = (
        f"always the largest class: {majority:.3f}; {len(train_labels):,} images with labels "
        f"learnt from, {len(test_labels):,} evaluated; intervals: 95 %, of the draw of these "
        "images alone"
    )
    return SuiteResult(f"{format_table(rows)}\n{note}", figures, details)


def format_table(scores: Sequence[FeatureScores]) -> str:
    """Lay scores of one suite out as text: a line for each kind of features."""
    width = max(len("features"), *(len(row.name) for row in scores))
    has_penalty = any(isinstance(row.result, ProbeResult) for row in scores)
    title = "linear probe" if has_penalty else "k-NN"
    lines = [f"{'features':<{width}}  {'dim':>6}  {title:<22}" + f"  {'C':>6}" * has_penalty]
    for row in scores:
        result = row.result
        accuracy = format_interval(result.accuracy, result.interval)
        line = f"{row.name:<{width}}  {row.dimension:>6}  {accuracy:<22}"
        if isinstance(result, ProbeResult):
            line += f"  {result.C:>6g}" + "  not converged" * (not result.has_converged)
        lines.append(line)
    first = scores[0].result
    if isinstance(first, KnnResult):
        whole = f" (the whole bank; {first.requested_k} asked for)" * (first.k < first.requested_k)
        lines.append(f"k-NN: cosine, k {first.k}{whole}, T {first.temperature:g}")
    return "\n".join(line.rstrip() for line in lines)


@lru_cache(maxsize=1)
def _processor(evaluation: Evaluation) -> Preprocessing:
    return read_processor(evaluation.model)


@lru_cache(maxsize=1)
def _feature_sets(evaluation: Evaluation) -> list[FeatureSet]:
    """Return the encoder's features, and the floors."""
    return compute_features(
        evaluation.model,
        open_labelled_images(evaluation),
        _processor(evaluation),
        batch_size=evaluation.options.per_device_eval_batch_size,
        seed=evaluation.seed,
    )


@lru_cache(maxsize=1)
def open_labelled_images(evaluation: Evaluation) -> LabelledImages:
    """Open the images and print what they are.

    They are divided as the run divided them, or `--test_files` are evaluated on.

    Raises:
        InputError: they cannot be opened, or have no labels.
    """
    source = evaluation.source
    if not source.keys() & {"dataset_name", "data_files"}:
        source["dataset_name"] = "digits"
    corpus, test_corpus = _open(evaluation, source), None
    sys.stdout.write(image_card(corpus) + "\n")
    if evaluation.images.test_files:
        test_corpus = _open(evaluation, {"data_files": evaluation.images.test_files})
        sys.stdout.write(image_card(test_corpus) + "\n")
    elif all(evaluation.run.get(name) == value for name, value in source.items()) and any(
        evaluation.run[name] != corpus.manifest[name] for name in ("seed", "validation_share")
    ):
        sys.stdout.write(
            "note: the run that wrote this model held out other images (its seed or validation "
            "share differ), so it was pretrained on some that are evaluated here\n"
        )
    return divide_labelled(corpus, test_corpus)


def _open(evaluation: Evaluation, source: dict[str, Any]) -> ImageCorpus:
    images, run = evaluation.images, evaluation.run
    given = {name: getattr(images, name) for name in ("image_column", "label_column", "image_size")}
    given["validation_share"] = evaluation.data.validation_share
    chosen = {name: run.get(name) if flag is None else flag for name, flag in given.items()}
    settings: dict[str, Any] = {
        "image_size": _processor(evaluation).image_size,
        "validation_share": 0.2,
    }
    settings |= {name: value for name, value in chosen.items() if value is not None}
    num_channels = run.get("num_channels")
    if not num_channels:
        try:
            config = AutoConfig.from_pretrained(evaluation.model, trust_remote_code=False)
            num_channels = int(config.num_channels)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(
                f"{evaluation.model!r} is no image encoder of transformers", advice="change `model`"
            ) from error
    return open_images(
        **source,
        **settings,
        num_channels=num_channels,
        on_bad_image=images.on_bad_image,
        seed=evaluation.seed,
    )
