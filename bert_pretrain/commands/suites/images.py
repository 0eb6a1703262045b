"""The suites `knn` and `linear_probe`: how good an encoder's frozen features of images are."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from bert_pretrain.commands.suites.context import DIVIDED_OTHERWISE, Evaluation, SuiteResult
from bert_pretrain.config.sizes import ImageSize
from bert_pretrain.errors import InputError, spell
from bert_pretrain.evaluation.features import (
    FeatureSet,
    LabelledImages,
    compute_features,
    divide_labelled,
    num_in_both,
)
from bert_pretrain.evaluation.probes import (
    KnnResult,
    ProbeResult,
    knn_accuracy,
    linear_probe,
    majority_accuracy,
)
from bert_pretrain.evaluation.statistics import format_interval
from bert_pretrain.images.card import image_card
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.models.image_encoder_config import read_config
from bert_pretrain.models.image_processor import Preprocessing, read_processor

_OF_DIVISION = ("seed", "validation_share")


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
        floors=evaluation.images.floors,
    )


@lru_cache(maxsize=1)
def open_labelled_images(evaluation: Evaluation) -> LabelledImages:
    """Open the images and print what they are.

    They are divided as the run divided them, or those of `--test_files` or `--test_split` are
    evaluated on.

    Raises:
        InputError: they cannot be opened, or have no labels.
    """
    source = evaluation.source
    if not source.keys() & {"dataset_name", "data_files"}:
        source["dataset_name"] = "digits"
    others = _test_source(evaluation, source)
    corpus = _open(evaluation, source)
    sys.stdout.write(spell(image_card(corpus)) + "\n")
    if others:
        # Their grey levels mean the same.
        test_corpus = _open(evaluation, others, pixel_range=corpus.manifest["pixel_range"])
        sys.stdout.write(spell(image_card(test_corpus)) + "\n")
        labelled = divide_labelled(corpus, test_corpus)
        if num_shared := num_in_both(labelled.train_pixels, labelled.test_pixels):
            sys.stdout.write(
                f"note: {num_shared:,} of the {len(labelled.test_pixels):,} images evaluated on "
                "are in the bank too, exactly the same: what is right there is memory\n"
            )
        return labelled
    if all(evaluation.run.get(name) == value for name, value in source.items()):
        run, manifest = evaluation.run, corpus.manifest
        fingerprint = manifest["source"]["fingerprint"]  # labels and sizes divide nothing
        if any(run.get(name, manifest[name]) != manifest[name] for name in _OF_DIVISION) or (
            evaluation.data_then.get("fingerprint", fingerprint) != fingerprint
        ):
            sys.stdout.write(DIVIDED_OTHERWISE)
    return divide_labelled(corpus, None)


def _test_source(evaluation: Evaluation, source: dict[str, Any]) -> dict[str, Any]:
    """Return what names the images to evaluate on; {} if they are part of the others.

    Raises:
        InputError: they have two names, or are images of the bank.
    """
    images = evaluation.images
    if images.test_files and images.test_split:
        raise InputError(
            f"`test_files` and `test_split` {images.test_split!r} both name the evaluation images",
            advice="pass one",
        )
    if images.test_files:
        return {"data_files": images.test_files}
    if not images.test_split:
        return {}
    if "data_files" in source:
        raise InputError(
            f"`test_split` is {images.test_split!r}, but `data_files` have no splits",
            advice="pass `test_files`",
        )
    if source.get("dataset_split", "train").lower() == images.test_split.lower():
        raise InputError(
            f"`test_split` is {images.test_split!r}, which is the bank too",
            advice="change `test_split` or `dataset_split`",
        )
    return source | {"dataset_split": images.test_split, "split_parameter": "test_split"}


def _open(
    evaluation: Evaluation,
    source: dict[str, Any],
    *,
    pixel_range: tuple[float, float] | None = None,
) -> ImageCorpus:
    images, run = evaluation.images, evaluation.run
    given = {name: getattr(images, name) for name in ("image_column", "label_column", "image_size")}
    given["validation_share"] = evaluation.data.validation_share
    chosen = {name: run.get(name) if flag is None else flag for name, flag in given.items()}
    settings: dict[str, Any] = {
        "image_size": _processor(evaluation).image_size,
        "validation_share": 0.2,
    }
    settings |= {name: value for name, value in chosen.items() if value is not None}
    if chosen["image_size"] is not None:  # of a run it is what run.json has
        settings["image_size"] = ImageSize(chosen["image_size"]).sides
    num_channels = run.get("num_channels")
    if not num_channels:
        num_channels = read_config(evaluation.model, parameter="model").num_channels
    return open_images(
        **source,
        **settings,
        num_channels=num_channels,
        on_bad_image=images.on_bad_image,
        pixel_range=pixel_range or images.pixel_range.ends or _processor(evaluation).pixel_range,
        seed=evaluation.seed,
    )
