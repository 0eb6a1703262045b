"""The label-efficiency curve of a model on a task: arms made of the model, and the files of a measurement.

Flags enter; a table, figures and details leave, and in `--output_dir` rows.jsonl with every training as soon as it is
finished (a measurement that was ended is continued by the same command), label_efficiency.json and .png.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor
from transformers import AutoModel, HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.command_line import flag, flags, parse_flags
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.data import ImageDataset, LabelledDataset
from bert_pretrain.downstream.models import ClassifierSource
from bert_pretrain.downstream.sources import Splits, TaskDataArguments, augmentation_of, open_splits
from bert_pretrain.downstream.tasks import find_task
from bert_pretrain.downstream.training import Recipe, predict_logits, train
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import Labels
from bert_pretrain.evaluation.label_efficiency import (
    Arm,
    Measurement,
    check_curve,
    default_counts,
    draw_curve,
    figures_of,
    fit_cross_validated,
    format_points,
    measure_curve,
    points_as_json,
    probe_arm,
    summarize,
)
from bert_pretrain.evaluation.suites.context import SuiteResult, naming_the_model_flag
from bert_pretrain.hardware import default_device, describe_run
from bert_pretrain.models.fast_paths import choose_attention
from bert_pretrain.models.image_encoder import build_image_encoder, embed
from bert_pretrain.whole_files import check_creatable, make_folder, write_json, write_text

ARMS = {
    "fine_tuned": "pretrained, fine-tuned",
    "frozen_probe": "pretrained, frozen + logistic regression",
    "from_scratch": "from scratch",
    "floor": "TF-IDF or pixels + logistic regression",
}
_TFIDF_GRID = tuple(10.0**exponent for exponent in range(-1, 4))


@dataclass
class LabelEfficiencyArguments:
    """What the curve is measured with. The test rows are --test_file, else --validation_file, else rows held out."""

    _argument_group_name: ClassVar[str] = "label efficiency"

    model: str = field(metadata={"help": "Folder or Hub id of a pretrained text or image encoder."})
    output_dir: str = field(metadata={"help": "Folder of rows.jsonl, label_efficiency.json and .png."})
    num_labels: list[str] | None = flags(
        "Labels per class, such as 1 4 16 64 all. Default: powers of 4 as long as every class has more, then all."
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        metadata={"help": "Each draws its own labelled rows, head and order; the interval is over them."},
    )
    arms: list[str] = field(
        default_factory=lambda: ["fine_tuned", "frozen_probe", "from_scratch"],
        metadata={"help": f"Of {', '.join(ARMS)}."},
    )
    max_test_rows: int = flag(2000, "Test rows, a fixed random subset; 0 = all.")
    title: str | None = flag(None, "Above the curve. Default: the name of the training rows.")
    json: str | None = flag(None, "File that gets figures, details, versions and hardware.")
    debug: bool = flag(False, "Show the traceback of an input error.")


@dataclass(frozen=True)
class CurveOptions:
    """All flags of a measurement."""

    curve: LabelEfficiencyArguments
    data: TaskDataArguments
    recipe: Recipe


def parse_options(arguments: Sequence[str]) -> CurveOptions:
    """Return the flags of the curve, which trains and so has flags that no other suite has.

    Raises:
        InputError: there is a flag that the parser does not know.
    """
    parser = HfArgumentParser(
        (LabelEfficiencyArguments, TaskDataArguments, Recipe),
        prog="bert-pretrain evaluate --suite label_efficiency",
        description="Accuracy against the number of labels: pretrained and fine-tuned, pretrained and frozen, and from "
        "scratch.",
        allow_abbrev=False,
    )
    return CurveOptions(*parse_flags(parser, arguments))


def run_label_efficiency(options: CurveOptions) -> SuiteResult:
    """Measure, or go on measuring, and write the files.

    Returns:
        A table as text, figures by name, and the points of the curve as JSON takes them.

    Raises:
        InputError: a flag, the model or the data cannot be used; nothing has been written then.
    """
    curve, data = options.curve, options.data
    counts = _counts(curve)
    check_curve(counts or [], curve.seeds)
    options.recipe.check()
    unknown = [name for name in curve.arms if name not in ARMS]
    if unknown or not curve.arms:
        raise InputError(f"arms are {curve.arms} but must be of {', '.join(ARMS)}; change --arms")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("label_efficiency is measured by one process; start it without torchrun or accelerate launch")
    log = _Log(Path(curve.output_dir), _settings(options))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    splits = open_splits(curve.model, data, find_task(data.task), seed=0, needs_validation=False)
    if splits.labels.problem_type != "single_label_classification":
        raise InputError(
            f"the labels are those of {splits.labels.problem_type.replace('_', ' ')}, but labels per class need single "
            "classes; change --task or --label_column"
        )
    pool, test, test_texts = _pool_and_test(splits, curve.max_test_rows)
    _check_classes_have(counts or [], pool)
    arms = {name: _ARM_MAKERS[name](options, splits, pool, test, test_texts) for name in dict.fromkeys(curve.arms)}
    labels, test_labels = pool.labels, test.labels
    assert labels is not None and test_labels is not None
    log.open()
    measurements = measure_curve(
        arms,
        labels,
        test_labels,
        counts=counts or default_counts(labels),
        seeds=curve.seeds,
        finished=log.finished,
        on_measurement=log.add,
    )
    points = summarize(measurements, reference="from_scratch")
    title = curve.title or Path(data.train_file or data.dataset_name or data.task).name.split(".")[0]
    figures, details = figures_of(points), points_as_json(points)
    floor = ("TF-IDF" if splits.texts else "pixels") + " + logistic regression"
    draw_curve(points, log.folder / "label_efficiency.png", title=title, labels_of_arms=ARMS | {"floor": floor})
    log.write_results({"figures": figures, "points": details, "test_rows": len(test_labels)})
    return SuiteResult(format_points(points), figures, details)


def _counts(curve: LabelEfficiencyArguments) -> list[int] | None:
    if curve.num_labels is None:
        return None
    if any(word != "all" and not (word.isdecimal() and int(word)) for word in curve.num_labels):
        raise InputError(
            f"num_labels are {' '.join(curve.num_labels)} but must be numbers from 1 or all; change --num_labels"
        )
    return [0 if word == "all" else int(word) for word in curve.num_labels]


def _check_classes_have(counts: list[int], pool: LabelledDataset) -> None:
    """Raise `InputError` if a number of labels is more than any class has: the point would be that of all rows."""
    assert pool.labels is not None
    largest = int(np.unique(pool.labels, return_counts=True)[1].max())
    if max(counts, default=0) > largest:
        raise InputError(
            f"num_labels has {max(counts)} but no class has more than {largest:,} training rows; pass all for all of "
            "them as --num_labels"
        )


def _pool_and_test(splits: Splits, max_test_rows: int) -> tuple[LabelledDataset, LabelledDataset, list[str]]:
    """Return the rows that may be learnt from, those that are predicted, and the texts of the latter."""
    if max_test_rows < 0:
        raise InputError(f"max_test_rows is {max_test_rows} but must be at least 0; change --max_test_rows")
    name = "test" if "test" in splits.rows else "validation"
    test = splits.rows[name]
    if test.labels is None:
        raise InputError("the test rows have no labels, so that nothing can be counted; change --test_file")
    places = np.arange(len(test))
    if max_test_rows and len(test) > max_test_rows:
        places = np.sort(permutation(len(test), 0, Purpose.EVALUATION_ROW)[:max_test_rows])
    texts = _joined(splits, name)
    return splits.rows["train"], test.subset(places), [texts[place] for place in places] if texts else []


def _joined(splits: Splits, name: str) -> list[str]:
    texts = splits.texts.get(name)
    if texts is None:
        return []
    return (
        texts.first
        if texts.second is None
        else [" ".join(pair) for pair in zip(texts.first, texts.second, strict=True)]
    )


def _trained(*, from_scratch: bool) -> Callable[..., Arm]:
    def make(options: CurveOptions, splits: Splits, pool: LabelledDataset, test: LabelledDataset, _: list[str]) -> Arm:
        source = ClassifierSource(
            options.curve.model,
            splits.labels,
            from_scratch=from_scratch,
            max_seq_length=splits.max_seq_length,
            pad_token_id=getattr(splits.processor, "pad_token_id", None),
        )

        def learn(places: NDArray[np.int64], seed: int) -> Labels:
            rows: LabelledDataset = pool.subset(places)
            if isinstance(rows, ImageDataset):
                rows.augmentation = augmentation_of(options.data, rows.pixels.shape[1:], seed=seed)
            folder = Path(options.curve.output_dir) / "trainer.tmp"
            trainer = train(source.build(seed), rows, options.recipe, seed=seed, scratch_folder=folder)
            return np.asarray(predict_logits(trainer, test).argmax(axis=1))

        return learn

    return make


def _frozen(options: CurveOptions, splits: Splits, pool: LabelledDataset, test: LabelledDataset, _: list[str]) -> Arm:
    embed_rows = _image_embedder if isinstance(pool, ImageDataset) else _text_embedder
    embedder = embed_rows(options.curve.model, pool, splits)
    features, test_features = (_embedded(embedder, rows, options.recipe) for rows in (pool, test))
    assert pool.labels is not None and test.labels is not None
    return probe_arm(features, pool.labels, test_features, test.labels)


def _text_embedder(model: str, _: LabelledDataset, splits: Splits) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what maps a batch to the mean of the last layer over the tokens of each row, (B, D)."""
    try:
        encoder = AutoModel.from_pretrained(model, dtype=torch.float32)
    except Exception as error:  # transformers raises whatever its parsers meet
        raise InputError(
            f"the weights of {model!r} cannot be read ({type(error).__name__}: {error}); change --model"
        ) from error
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    encoder.to(default_device()).eval()
    choose_attention(encoder, splits.max_seq_length)

    def embed_batch(batch: dict[str, Tensor]) -> Tensor:
        states = encoder(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)  # (B, L) -> (B, L, 1)
        mean: Tensor = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return mean

    return embed_batch


def _image_embedder(model: str, pool: LabelledDataset, _: Splits) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what maps a batch to what the architecture's own classifier is fed, (B, D)."""
    assert isinstance(pool, ImageDataset)
    _, num_channels, height, _ = pool.pixels.shape
    with naming_the_model_flag():
        encoder = build_image_encoder(
            config_name="", model_name_or_path=model, image_size=height, num_channels=num_channels, dropout=0.0
        )
    encoder.to(default_device()).eval()
    return lambda batch: embed(encoder, batch["pixel_values"])


def _embedded(
    embedder: Callable[[dict[str, Tensor]], Tensor], rows: LabelledDataset, recipe: Recipe
) -> NDArray[np.float32]:
    features: list[NDArray[np.float32]] = []
    device = default_device()
    order = np.argsort(rows.lengths, kind="stable")
    plain = rows.subset(np.arange(len(rows)))  # images without augmentation
    plain.labels = None
    with torch.no_grad():
        for first in range(0, len(order), recipe.per_device_eval_batch_size):
            batch = plain.__getitems__(order[first : first + recipe.per_device_eval_batch_size].tolist())
            features.append(embedder({name: values.to(device) for name, values in batch.items()}).cpu().numpy())
    ordered = np.concatenate(features)
    result = np.empty_like(ordered)
    result[order] = ordered
    return result


def _floor(
    options: CurveOptions, splits: Splits, pool: LabelledDataset, test: LabelledDataset, test_texts: list[str]
) -> Arm:
    labels, test_labels = pool.labels, test.labels
    assert labels is not None and test_labels is not None
    if isinstance(pool, ImageDataset):
        assert isinstance(test, ImageDataset)
        rows = [part.pixels.reshape(len(part), -1).astype(np.float32) / 255 for part in (pool, test)]
        return probe_arm(rows[0], labels, rows[1], test_labels)
    texts = np.array(_joined(splits, "train"), dtype=object)

    def learn(places: NDArray[np.int64], seed: int) -> Labels:
        # Words and pairs of words; their weights too come from the labelled rows alone.
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
        pipeline = make_pipeline(words, LogisticRegression(max_iter=500))
        return fit_cross_validated(pipeline, _TFIDF_GRID, texts[places], labels[places], test_texts, seed=seed)

    return learn


_ARM_MAKERS: dict[str, Callable[[CurveOptions, Splits, LabelledDataset, LabelledDataset, list[str]], Arm]] = {
    "fine_tuned": _trained(from_scratch=False),
    "frozen_probe": _frozen,
    "from_scratch": _trained(from_scratch=True),
    "floor": _floor,
}


def _settings(options: CurveOptions) -> dict[str, Any]:
    """Return what every measurement of a folder has in common; seeds, arms and numbers of labels may be added to."""
    return {
        "model": options.curve.model,
        "model_sha256": _sha256_of_weights(Path(options.curve.model)),
        "max_test_rows": options.curve.max_test_rows,
        "data": dataclasses.asdict(options.data),
        "recipe": dataclasses.asdict(options.recipe),
    }


def _sha256_of_weights(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else None


class _Log:
    """The folder of a measurement: each finished training is a line of rows.jsonl."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Read what was measured before; writes nothing.

        Raises:
            InputError: the folder cannot be used, or holds something else.
        """
        check_creatable(folder, flag="--output_dir")
        self.folder, self.settings = folder, settings
        self.finished: list[Measurement] = []
        known = folder / "settings.json"
        if known.exists():
            earlier = _read_settings(known)
            changed = [name for name in settings if earlier.get(name) != json.loads(json.dumps(settings[name]))]
            if changed:
                raise InputError(
                    f"{folder} holds a measurement with another {', '.join(changed)}; pass a new --output_dir"
                )
            self.finished = _read_measurements(folder / "rows.jsonl")
        elif folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not an empty folder; pass a new one as --output_dir")

    def open(self) -> None:
        """Make the folder ready to be added to."""
        make_folder(self.folder, flag="--output_dir")
        write_json(self.folder / "settings.json", self.settings)
        # A line that was cut off when the process ended is dropped before another one is added to it.
        write_text(self.folder / "rows.jsonl", "".join(_line(row) for row in self.finished))

    def add(self, row: Measurement) -> None:
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(_line(row))
        count = row.num_per_class or "all"
        sys.stdout.write(f"{count:>6} {row.arm:<12} seed {row.seed}: {row.accuracy:.4f}  {row.seconds:6.1f} s\n")
        sys.stdout.flush()

    def write_results(self, results: dict[str, Any]) -> None:
        write_json(self.folder / "label_efficiency.json", results | {"settings": self.settings} | describe_run())


def _line(row: Measurement) -> str:
    return json.dumps(dataclasses.asdict(row)) + "\n"


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); pass a new --output_dir") from error
    return settings if isinstance(settings, dict) else {}


def _read_measurements(path: Path) -> list[Measurement]:
    """Return the lines that are complete."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True) if path.exists() else [], start=1):
        if not line.endswith("\n"):
            break
        try:
            found.append(Measurement(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}, is no measurement; remove the line, or pass a new --output_dir"
            ) from error
    return found
