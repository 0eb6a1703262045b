"""The label-efficiency curve of a model on a task: arms made of the model, and the files of a measurement.

Flags enter; a table, figures and details leave, and in `--output_dir` rows.jsonl with every
training as soon as it is finished (a measurement that was ended is continued by the same command),
label_efficiency.json and .png.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.config.finetuning import RecipeArguments, TaskDataArguments
from bert_pretrain.config.flags import flag, flags, parse_flags, pick
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.labelled_rows import LabelledSource
from bert_pretrain.downstream.models import is_image_config, read_model_config
from bert_pretrain.downstream.row_digests import (
    describe_overlap,
    labelled_rows_sha256,
    overlap_with_training,
)
from bert_pretrain.downstream.sources import Splits, open_splits
from bert_pretrain.downstream.tasks import find_task
from bert_pretrain.downstream.training import FinetuningRecipe
from bert_pretrain.errors import InputError, spell
from bert_pretrain.evaluation.features import Labels
from bert_pretrain.evaluation.label_efficiency import (
    check_curve,
    default_counts,
    measure_curve,
    summarize,
)
from bert_pretrain.evaluation.label_efficiency_log import MeasurementLog
from bert_pretrain.evaluation.label_efficiency_report import (
    draw_curve,
    figures_of,
    format_points,
    points_as_json,
)
from bert_pretrain.evaluation.suites.context import SuiteResult
from bert_pretrain.evaluation.suites.label_efficiency_arms import ARMS, CurveTask, make_arm
from bert_pretrain.models.positions import describe_excess


@dataclass
class LabelEfficiencyArguments:
    """What the curve is measured with. The test rows are --test_file, else --validation_file, else rows held out."""

    _argument_group_name: ClassVar[str] = "label efficiency"

    model: str = field(metadata={"help": "Folder or Hub id of a pretrained text or image encoder."})
    output_dir: str = field(
        metadata={"help": "Folder of rows.jsonl, label_efficiency.json and .png."}
    )
    num_labels: list[str] | None = flags(
        "Labels per class, such as 1 4 16 64 all. Default: powers of 4 as long as every class has "
        "more, then all."
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        metadata={
            "help": "Each draws its own labelled rows, head and order; the interval is over them."
        },
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
    recipe: RecipeArguments


def parse_options(arguments: Sequence[str]) -> CurveOptions:
    """Return the flags of the curve, which trains and so has flags that no other suite has.

    Raises:
        InputError: there is a flag that the parser does not know.
    """
    parser = HfArgumentParser(
        (LabelEfficiencyArguments, TaskDataArguments, RecipeArguments),
        prog="bert-pretrain evaluate --suite label_efficiency",
        description="Accuracy against the number of labels: pretrained and fine-tuned, pretrained "
        "and frozen, and from "
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
    _check(options, counts or [])
    log = MeasurementLog(Path(curve.output_dir))
    log.require(_settings(options))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    splits = _open_splits(options)
    labels, test_labels = (splits.rows[name].labels for name in ("train", "test"))
    assert labels is not None and test_labels is not None
    _check_classes_have(counts or [], labels)
    log.require(
        {"model_revision": getattr(splits.config, "_commit_hash", None)}
    )  # of one on the Hub
    log.require(
        {f"{name}_rows_sha256": labelled_rows_sha256(splits, name) for name in ("train", "test")}
    )
    task = CurveTask(
        curve.model,
        splits,
        pick(FinetuningRecipe, options.recipe),
        data.augmentation,
        log.folder / "trainer.tmp",
    )
    arms = {name: make_arm(name, task) for name in dict.fromkeys(curve.arms)}
    sys.stdout.write("".join(f"{spell(note)}\n" for note in splits.notes))
    overlap = overlap_with_training(splits)
    excess = describe_excess(splits.max_seq_length, splits.processor) if splits.texts else None
    for warning in filter(None, (excess, describe_overlap(splits, overlap))):
        sys.stdout.write(f"WARNING: {warning}\n")
    with log.opened():
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
        title = (
            curve.title
            or Path(data.train_file or data.dataset_name or data.task).name.split(".")[0]
        )
        figures, details = figures_of(points), points_as_json(points)
        floor = ("TF-IDF" if splits.texts else "pixels") + " + logistic regression"
        draw_curve(
            points,
            log.folder / "label_efficiency.png",
            title=title,
            labels_of_arms=ARMS | {"floor": floor},
        )
        results = {"figures": figures, "points": details, "test_rows": len(test_labels)}
        log.write_results(results | {"overlap_with_training": overlap})
    return SuiteResult(format_points(points), figures, details)


def _check(options: CurveOptions, counts: list[int]) -> None:
    """Check what can be checked before anything is opened."""
    curve = options.curve
    check_curve(counts, curve.seeds)
    unknown = [name for name in curve.arms if name not in ARMS]
    if unknown or not curve.arms:
        raise InputError(
            f"arms are {curve.arms} but must be of {', '.join(ARMS)}", advice="change `arms`"
        )
    if curve.max_test_rows < 0:
        raise InputError(
            f"max_test_rows is {curve.max_test_rows} but must be at least 0",
            advice="change `max_test_rows`",
        )


def _counts(curve: LabelEfficiencyArguments) -> list[int] | None:
    if curve.num_labels is None:
        return None
    if any(word != "all" and not (word.isdecimal() and int(word)) for word in curve.num_labels):
        raise InputError(
            f"num_labels are {' '.join(curve.num_labels)} but must be numbers from 1 or all",
            advice="change `num_labels`",
        )
    return [0 if word == "all" else int(word) for word in curve.num_labels]


def _check_classes_have(counts: list[int], labels: Labels) -> None:
    """Raise `InputError` if a number of labels is more than any class has: the point would be that of all rows."""
    largest = int(np.unique(labels, return_counts=True)[1].max())
    if max(counts, default=0) > largest:
        raise InputError(
            f"num_labels has {max(counts)} but no class has more than {largest:,} training rows",
            advice="pass all for all of them as `num_labels`",
        )


def _open_splits(options: CurveOptions) -> Splits:
    """Return the rows that may be learnt from, `train`, and those that are predicted, `test`."""
    curve, data = options.curve, options.data
    task = find_task(data.task)
    is_image = is_image_config(read_model_config(curve.model))
    data.check(is_image=is_image, has_dataset=task.dataset is not None)
    source = pick(LabelledSource, data)
    splits = open_splits(curve.model, source, task, seed=0, needs_validation=False)
    if splits.labels.problem_type != "single_label_classification":
        raise InputError(
            f"the labels are those of {splits.labels.problem_type.replace('_', ' ')}, but labels "
            "per class need single classes",
            advice="change `task` or `label_column`",
        )
    name = "test" if "test" in splits.rows else "validation"
    test = splits.rows[name]
    if test.labels is None:
        raise InputError(
            "the test rows have no labels, so that nothing can be counted",
            advice="change `test_file` or `test_split`",
        )
    places = np.arange(len(test))
    if curve.max_test_rows and len(test) > curve.max_test_rows:
        places = np.sort(permutation(len(test), 0, Purpose.EVALUATION_ROW)[: curve.max_test_rows])
    rows = {"train": splits.rows["train"], "test": test.subset(places)}
    texts = (
        {"train": splits.texts["train"], "test": splits.texts[name].subset(places)}
        if splits.texts
        else {}
    )
    return dataclasses.replace(splits, rows=rows, texts=texts)


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
