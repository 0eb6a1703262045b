"""`python -m bert_pretrain.evaluate`: judge a finished model by one or several suites.

A model of this package or of anyone else enters, as a folder or Hub id that transformers loads; tables on standard
output and figures in a JSON file leave. A suite is one function in `SUITES`; what it is given, it takes from an
`Evaluation`, which opens images and computes features once for all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from bert_pretrain.checkpoint import list_checkpoints
from bert_pretrain.command_line import parse_flags, reporting_input_errors
from bert_pretrain.config import flag, flags
from bert_pretrain.data.images import ImageCorpus, image_card, open_images
from bert_pretrain.data.tokenizers import load_tokenizer
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.fill_mask import Probe, fill_mask
from bert_pretrain.evaluation.image_features import (
    FeatureSet,
    LabelledImages,
    Preprocessing,
    compute_features,
    divide_labelled,
    read_processor,
)
from bert_pretrain.evaluation.representation import (
    FeatureScores,
    check_knn,
    format_table,
    knn_accuracy,
    linear_probe,
    majority_accuracy,
)
from bert_pretrain.hardware import describe_run

DEFAULT_SENTENCES = [
    "The quick brown fox jumped over the lazy [MASK].",
    "The function returns a [MASK].",
    "If the file does not [MASK], an error is raised.",
]
_SOURCE_FLAGS = ("dataset_name", "dataset_config_name", "dataset_split", "data_files")


@dataclass
class EvaluateArguments:
    """What is judged, and by what."""

    _argument_group_name: ClassVar[str] = "evaluate"

    model: str = field(
        metadata={"help": "Folder or Hub id of a transformers model; for fill_mask also a run directory."}
    )
    suite: list[str] = field(metadata={"help": "One or more of: fill_mask, knn, linear_probe."})
    json: str | None = flag(None, "File that gets figures, details, versions and hardware.")
    seed: int | None = flag(
        None,
        "Seed of the division into bank and evaluation images, of the probe's choice of C and of the random encoder. "
        "Default: that of the run that wrote --model, else 42.",
    )
    debug: bool = flag(False, "Show the traceback of an input error.")


@dataclass
class EvaluationImages:
    """Images with labels, for knn and linear_probe; each default is what the run that wrote --model had."""

    _argument_group_name: ClassVar[str] = "images"

    dataset_name: str | None = flag(None, "'digits', a folder of images, a data set saved by datasets, or a Hub id.")
    dataset_config_name: str | None = flag(None, "Configuration of the Hub data set.")
    dataset_split: str | None = flag(None, "Split of the data set to read.")
    data_files: list[str] | None = flags("Own images: .parquet; globs allowed.")
    test_files: list[str] | None = flags("Evaluation images: .parquet. The bank is then all of the other images.")
    image_column: str | None = flag(None, "Column that holds the images.")
    label_column: str | None = flag(None, "Column that holds the labels.")
    image_size: int | None = flag(None, "Height and width in pixels. Without a run: that of --model's processor.")
    validation_share: float | None = flag(None, "Share of images to evaluate on, in (0, 1). Without a run: 0.2.")
    on_bad_image: Literal["error", "skip"] = flag("error", "What to do with an image that cannot be decoded.")
    per_device_eval_batch_size: int = flag(256, "Images of one forward pass.")
    k: int = flag(20, "Neighbours that vote, at least 1.")
    temperature: float = flag(0.07, "T of their weights exp(cosine / T), > 0.")


@dataclass
class EvaluationText:
    """Sentences, for fill_mask."""

    _argument_group_name: ClassVar[str] = "text"

    sentences: list[str] | None = flags("Sentences with [MASK]; default: three of our own.")
    num_candidates: int = flag(5, "Most probable words shown for each [MASK], at least 1.")


class SuiteResult(NamedTuple):
    """What a suite found: text to print, figures by name, and further detail as JSON takes it."""

    text: str
    figures: dict[str, float]
    details: Any


@dataclass
class Evaluation:
    """The flags, and what several suites need, computed when the first one asks for it."""

    options: EvaluateArguments
    images: EvaluationImages
    text: EvaluationText

    @cached_property
    def run(self) -> dict[str, Any]:
        """The flags of the run that wrote the model; none if no run did."""
        return run_flags(self.options.model)

    @property
    def seed(self) -> int:
        """The seed of everything drawn here."""
        return int(self.options.seed if self.options.seed is not None else self.run.get("seed", 42))

    @cached_property
    def processor(self) -> Preprocessing:
        """What the model's own image processor does to pixels."""
        return read_processor(self.options.model)

    @cached_property
    def labelled(self) -> LabelledImages:
        """The images; printed as they are opened."""
        return open_labelled_images(self)

    @cached_property
    def feature_sets(self) -> list[FeatureSet]:
        """The encoder's features, and the floors."""
        with naming_the_model_flag():
            return compute_features(
                self.options.model,
                self.labelled,
                self.processor,
                batch_size=self.images.per_device_eval_batch_size,
                seed=self.seed,
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments):
        parser = HfArgumentParser(
            (EvaluateArguments, EvaluationImages, EvaluationText),
            prog="bert-pretrain evaluate",
            description="Judge a model: what it expects behind [MASK], or how good its frozen image features are "
            "beside pixels, their principal components and the same encoder untrained.",
            allow_abbrev=False,
        )
        evaluation = Evaluation(*parse_flags(parser, arguments))
        check_flags(evaluation)
        # What does not fit is refused below with a message; transformers' own report would only be a second one.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        figures: dict[str, float] = {}
        details: dict[str, Any] = {}
        for name in dict.fromkeys(evaluation.options.suite):
            result = SUITES[name](evaluation)
            sys.stdout.write(f"\n{name}\n{result.text}\n")
            figures |= result.figures
            details[name] = result.details
        if evaluation.options.json:
            write_json(Path(evaluation.options.json), {"figures": figures, "details": details} | describe_run())
    return 0


def check_flags(evaluation: Evaluation) -> None:
    """Check what can be checked before anything is opened.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    for name in evaluation.options.suite:
        if name not in SUITES:
            raise InputError(f"suite is {name!r} but must be one or more of {', '.join(SUITES)}; change --suite")
    images = evaluation.images
    check_knn(images.k, images.temperature)
    for name, value in (
        ("per_device_eval_batch_size", images.per_device_eval_batch_size),
        ("num_candidates", evaluation.text.num_candidates),
    ):
        if value < 1:
            raise InputError(f"{name} is {value} but must be at least 1; change --{name}")
    if images.data_files and images.dataset_name:
        raise InputError(f"--data_files and --dataset_name {images.dataset_name!r} both name the images; pass one")
    if evaluation.options.json:
        target = Path(evaluation.options.json).absolute()
        if target.is_dir() or not target.parent.is_dir():
            raise InputError(f"{evaluation.options.json} cannot be written: no such folder; pass a file as --json")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(aside, path)


def evaluate_knn(evaluation: Evaluation) -> SuiteResult:
    """Classify the evaluation images by their nearest neighbours in the bank."""
    images = evaluation.images

    def score(features: FeatureSet) -> FeatureScores:
        result = knn_accuracy(
            features.train,
            evaluation.labelled.train_labels,
            features.test,
            evaluation.labelled.test_labels,
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
            evaluation.labelled.train_labels,
            features.test,
            evaluation.labelled.test_labels,
            seed=evaluation.seed,
        )
        return FeatureScores(features.name, features.train.shape[1], linear_probe=result)

    return _judge_features(evaluation, "linear_probe", score)


def _judge_features(
    evaluation: Evaluation, suite: Literal["knn", "linear_probe"], score: Callable[[FeatureSet], FeatureScores]
) -> SuiteResult:
    scores = {features.key: score(features) for features in evaluation.feature_sets}
    results = {key: row.knn or row.linear_probe for key, row in scores.items()}
    labelled = evaluation.labelled
    majority = majority_accuracy(labelled.train_labels, labelled.test_labels)
    figures = {f"{key}_{suite}_accuracy".removeprefix("encoder_"): r.accuracy for key, r in results.items() if r}
    details = {
        key: {name: value for name, value in dataclasses.asdict(result).items() if name != "predictions"}
        for key, result in results.items()
        if result
    }
    text = "\n".join(
        [
            format_table(list(scores.values())),
            f"always the largest class: {majority:.3f}; {len(labelled.train_labels):,} images with labels learnt from, "
            f"{len(labelled.test_labels):,} evaluated; intervals: 95 %, of the draw of these images alone",
        ]
    )
    return SuiteResult(text, figures | {"majority_accuracy": majority}, details)


def run_flags(model: str) -> dict[str, Any]:
    """Return the flags of the run that a model folder belongs to, as its `final` or a checkpoint; {} if to none."""
    folder = Path(model).absolute()
    run_dir = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    try:
        config: dict[str, Any] = json.loads((run_dir / "run.json").read_text())["config"]
    except (OSError, ValueError, KeyError):
        return {}
    return config


def open_labelled_images(evaluation: Evaluation) -> LabelledImages:
    """Open the images and print what they are: the run's own division of them, or all and `--test_files`.

    Raises:
        InputError: they cannot be opened, or have no labels.
    """
    source = _source_flags(evaluation)
    corpus, test_corpus = _open(evaluation, source), None
    sys.stdout.write(image_card(corpus) + "\n")
    if evaluation.images.test_files:
        test_corpus = _open(evaluation, {"data_files": evaluation.images.test_files})
        sys.stdout.write(image_card(test_corpus) + "\n")
    elif _differs_from_run(evaluation.run, source, corpus):
        sys.stdout.write(
            "note: the run that wrote this model held out other images (its seed or validation share differ), so it "
            "was pretrained on some that are evaluated here\n"
        )
    return divide_labelled(corpus, test_corpus)


def _differs_from_run(run: dict[str, Any], source: dict[str, Any], corpus: ImageCorpus) -> bool:
    """Return whether the images are the run's, but divided otherwise."""
    is_same_source = all(run.get(name) == value for name, value in source.items())
    return is_same_source and any(run[name] != corpus.manifest[name] for name in ("seed", "validation_share"))


def _source_flags(evaluation: Evaluation) -> dict[str, Any]:
    """Return the flags that name the images: those given, completed by the run's unless they name other images."""
    given = {name: getattr(evaluation.images, name) for name in _SOURCE_FLAGS}
    names_images = given["dataset_name"] or given["data_files"]
    inherited = {} if names_images else {name: evaluation.run.get(name) for name in _SOURCE_FLAGS}
    source = {name: value for name, value in (*inherited.items(), *given.items()) if value is not None}
    return source if source.keys() & {"dataset_name", "data_files"} else source | {"dataset_name": "digits"}


def _open(evaluation: Evaluation, source: dict[str, Any]) -> ImageCorpus:
    images, run = evaluation.images, evaluation.run
    settings: dict[str, Any] = {"image_size": evaluation.processor.image_size, "validation_share": 0.2}
    for name in ("image_column", "label_column", "image_size", "validation_share"):
        given = getattr(images, name)
        value = run.get(name) if given is None else given
        if value is not None:
            settings[name] = value
    return open_images(
        **source,
        **settings,
        num_channels=run.get("num_channels") or _num_channels(evaluation.options.model),
        on_bad_image=images.on_bad_image,
        seed=evaluation.seed,
    )


def _num_channels(model: str) -> int:
    try:
        return int(AutoConfig.from_pretrained(model).num_channels)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{model!r} is no image encoder of transformers; change --model") from error


@contextlib.contextmanager
def naming_the_model_flag() -> Iterator[None]:
    """Let loaders that pretraining uses too name this command's flag."""
    try:
        yield
    except InputError as error:
        raise InputError(re.sub(r"--(model_name_or_path|tokenizer_name)\b", "--model", str(error))) from error


def evaluate_fill_mask(evaluation: Evaluation) -> SuiteResult:
    """Show what a masked language model expects behind [MASK]; of a run directory, at every checkpoint."""
    models = _masked_language_models(Path(evaluation.options.model))
    sentences = evaluation.text.sentences or DEFAULT_SENTENCES
    rows: list[dict[str, Any]] = []
    for label, name in models.items():
        model, tokenizer = _load_masked_language_model(name)
        probes = [_probe(sentence, tokenizer, model.config.max_position_embeddings) for sentence in sentences]
        found = fill_mask(model, tokenizer, probes, num_candidates=evaluation.text.num_candidates)
        kept = ("sentence", "position", "entropy", "candidates")
        rows += [{"model": label} | {key: row[key] for key in kept} for row in found]
    last = [row["entropy"] for row in rows if row["model"] == label]
    return SuiteResult(_over_time(rows), {"fill_mask_entropy": sum(last) / len(last)}, rows)


def _masked_language_models(model: Path) -> dict[str, str]:
    """Return what to load by what to call it: the checkpoints of a run directory, oldest first, or the model."""
    if not (model / "checkpoints").is_dir():
        return {model.name: str(model)}
    checkpoints = list_checkpoints(model / "checkpoints")
    if not checkpoints:
        raise InputError(f"{model / 'checkpoints'} holds no complete checkpoint; pass --model the run's final/")
    return {checkpoint.name: str(checkpoint) for checkpoint in checkpoints}


def _load_masked_language_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        model, loading = AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        kind = "holds no masked language model" if Path(name).is_dir() else "is neither a folder nor found on the Hub"
        raise InputError(f"{name!r} {kind} of transformers; pass --model one that fill_mask can read") from error
    if loading["missing_keys"]:
        raise InputError(
            f"{name!r} has no trained masked-LM head (it lacks {min(loading['missing_keys'])}); "
            "pass --model one that has"
        )
    with naming_the_model_flag():
        tokenizer = load_tokenizer(name)
    # Where there is no tokenizer, transformers 5 makes one of its special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{name!r} holds no tokenizer with words; pass --model a folder or Hub id with tokenizer.json")
    return model, tokenizer


def _probe(sentence: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Probe:
    input_ids = tokenizer(sentence.replace("[MASK]", tokenizer.mask_token))["input_ids"]
    positions = [place for place, token_id in enumerate(input_ids) if token_id == tokenizer.mask_token_id]
    if not positions:
        raise InputError(f"the sentence {sentence!r} has no [MASK]; put one into each of --sentences")
    if len(input_ids) > max_length:
        raise InputError(
            f"the sentence {sentence[:40]!r}... has {len(input_ids)} tokens but the model takes {max_length}; "
            "shorten --sentences"
        )
    # What stood behind the masks is unknown: what is said of the original word is not used.
    return Probe(input_ids, positions, [tokenizer.mask_token_id] * len(positions))


def _over_time(rows: list[dict[str, Any]]) -> str:
    """Lay rows out as text: a sentence and the place of its [MASK], below it a line per model in their order."""
    width = max(len(row["model"]) for row in rows)
    lines = []
    for sentence, position in dict.fromkeys((row["sentence"], row["position"]) for row in rows):
        lines.append(f"  {sentence}  (token {position})")
        for row in rows:
            if (row["sentence"], row["position"]) == (sentence, position):
                words = "  ".join(f"{word} {probability:.3f}" for word, probability in row["candidates"])
                lines.append(f"    {row['model']:<{width}}  entropy {row['entropy']:5.2f} |  {words}")
    return "\n".join(lines)


SUITES: dict[str, Callable[[Evaluation], SuiteResult]] = {
    "fill_mask": evaluate_fill_mask,
    "knn": evaluate_knn,
    "linear_probe": evaluate_linear_probe,
}


if __name__ == "__main__":
    sys.exit(main())
