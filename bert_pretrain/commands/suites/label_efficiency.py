"""The suite `label_efficiency`: the accuracy of a model on a task against the number of labels.

It trains, has flags of its own and runs alone. `--output_dir` gets rows.jsonl with every training
as soon as it is finished, label_efficiency.json and label_efficiency.png; the same command
continues a measurement that was ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from huggingface_hub import try_to_load_from_cache
from transformers import HfArgumentParser

from bert_pretrain.commands.suites.context import SuiteResult
from bert_pretrain.config.evaluating import LabelEfficiencyArguments, check_label_efficiency
from bert_pretrain.config.finetuning import (
    AdaptationArguments,
    RecipeArguments,
    TaskDataArguments,
)
from bert_pretrain.config.flags import parse_flags, pick
from bert_pretrain.data.atomic import atomic_file, write_json
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.adaptation import ADAPTED, Adaptation, adapt
from bert_pretrain.downstream.labelled_rows import LabelledSource
from bert_pretrain.downstream.models import is_image_config, read_model_config
from bert_pretrain.downstream.sources import (
    Splits,
    describe_overlap,
    labelled_rows_sha256,
    open_splits,
    overlap_with_training,
)
from bert_pretrain.downstream.tasks import find_task
from bert_pretrain.downstream.training import FinetuningRecipe
from bert_pretrain.errors import InputError, spell
from bert_pretrain.evaluation.features import Labels
from bert_pretrain.evaluation.label_efficiency import (
    Measurement,
    MeasurementLog,
    Point,
    default_counts,
    measure_curve,
    summarize,
)
from bert_pretrain.evaluation.label_efficiency_arms import ARMS, CurveTask, make_arm
from bert_pretrain.evaluation.statistics import format_interval
from bert_pretrain.hardware import describe_run
from bert_pretrain.models.loading import describe_excess

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CurveOptions(NamedTuple):
    """All flags of a measurement."""

    curve: LabelEfficiencyArguments
    data: TaskDataArguments
    unlabelled: AdaptationArguments
    recipe: RecipeArguments


def parse_options(arguments: Sequence[str]) -> CurveOptions:
    """Return the flags of the curve, or raise `InputError` if the parser does not know one."""
    parser = HfArgumentParser(
        (LabelEfficiencyArguments, TaskDataArguments, AdaptationArguments, RecipeArguments),
        prog="bert-pretrain evaluate --suite label_efficiency",
        description="Accuracy against the number of labels: pretrained and fine-tuned, the same "
        "after learning from texts without labels, pretrained and frozen, and from scratch.",
        allow_abbrev=False,
    )
    return CurveOptions(*parse_flags(parser, arguments))


def run_label_efficiency(options: CurveOptions) -> SuiteResult:
    """Measure, or go on measuring, and write the files.

    Raises:
        InputError: something cannot be used; nothing has been written then.
    """
    curve = options.curve
    check_label_efficiency(curve, arms=ARMS, adapt_minutes=options.unlabelled.adapt_minutes)
    log = MeasurementLog(Path(curve.output_dir))
    log.require(_settings(options))
    splits = _open_splits(options)
    labels, test_labels = (splits.rows[name].labels for name in ("train", "test"))
    assert labels is not None and test_labels is not None
    counts = _counts(curve, labels)
    log.require(
        {"model_revision": _revision(curve.model)}
        | {f"{name}_rows_sha256": labelled_rows_sha256(splits, name) for name in ("train", "test")}
    )
    task = CurveTask(
        model=curve.model,
        splits=splits,
        labels=labels,
        recipe=pick(FinetuningRecipe, options.recipe),
        augmentation=options.data.augmentation,
        scratch_folder=log.folder / "trainer.tmp",
    )
    arms = {name: make_arm(name, task) for name in dict.fromkeys(curve.arms) if name != ADAPTED}
    overlap = overlap_with_training(splits)
    _print_notes(splits, overlap)
    with log.opened():
        if ADAPTED in curve.arms:
            adapted = dataclasses.replace(task, model=_adapted(options, splits, log.folder))
            arms[ADAPTED] = make_arm(ADAPTED, adapted)
        measurements = measure_curve(
            arms,
            labels,
            test_labels,
            counts=counts,
            seeds=curve.seeds,
            finished=log.finished,
            on_measurement=partial(_keep, log),
        )
        points = summarize(measurements, reference="from_scratch")
        details = [dataclasses.asdict(point) for point in points]
        result = SuiteResult(format_points(points), figures_of(points), details)
        record = {"test_rows": len(test_labels), "overlap_with_training": overlap}
        record |= {"figures": result.figures, "points": result.details, "settings": log.settings}
        write_json(log.folder / "label_efficiency.json", record | describe_run())
        floor = ("TF-IDF" if splits.texts else "pixels") + " + logistic regression"
        source = options.data.train_file or options.data.dataset_name or options.data.task
        _draw_curve(
            points,
            log.folder / "label_efficiency.png",
            title=curve.title or Path(source).name.split(".")[0],
            labels_of_arms=ARMS | {"floor": floor},
        )
    return result


def _settings(options: CurveOptions) -> dict[str, Any]:
    """Return what all measurements of a folder share; seeds, arms and counts may be added to."""
    return {
        "model": options.curve.model,
        "model_sha256": _sha256_of_weights(Path(options.curve.model)),
        "max_test_rows": options.curve.max_test_rows,
        "data": dataclasses.asdict(options.data),
        "unlabelled": dataclasses.asdict(options.unlabelled),
        "recipe": dataclasses.asdict(options.recipe),
    }


def _sha256_of_weights(folder: Path) -> str | None:
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else None


def _revision(model: str) -> str | None:
    """Return the revision of a model on the Hub, as it lies in the cache; None for a folder."""
    if Path(model).is_dir():
        return None
    config = try_to_load_from_cache(model, "config.json")
    return Path(config).parent.name if isinstance(config, str) else None


def _adapted(options: CurveOptions, splits: Splits, folder: Path) -> str:
    """Return the encoder after it has learnt from texts without labels, in a folder."""
    texts, seed = _unlabelled_texts(options), options.curve.seeds[0]
    model, _ = adapt(texts, options.curve.model, splits, folder, seed=seed)
    return model


def _unlabelled_texts(options: CurveOptions) -> Adaptation:
    minutes, files = options.unlabelled.adapt_minutes, options.unlabelled.unlabelled_files
    return Adaptation(minutes, tuple(files or ()), options.data.text_column)


def _open_splits(options: CurveOptions) -> Splits:
    """Return the rows that may be learnt from, `train`, and those that are predicted, `test`."""
    curve, data = options.curve, options.data
    task = find_task(data.task)
    is_image = is_image_config(read_model_config(curve.model))
    data.check(is_image=is_image, has_dataset=task.dataset is not None)
    options.unlabelled.check(is_image=is_image)
    _unlabelled_texts(options).check()
    source = pick(LabelledSource, data, pixel_range=data.pixel_range.ends)
    splits = open_splits(curve.model, source, task, seed=0, measured_on=("test", "validation"))
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
            "the test rows have no labels, so no accuracy can be measured",
            advice="change `test_file` or `test_split`",
        )
    order = permutation(len(test), 0, Purpose.EVALUATION_ROW)
    places = np.sort(order[: curve.max_test_rows or None])
    rows = {"train": splits.rows["train"], "test": test.subset(places)}
    texts = splits.texts and {
        "train": splits.texts["train"],
        "test": splits.texts[name].subset(places),
    }
    return dataclasses.replace(splits, rows=rows, texts=texts)


def _counts(curve: LabelEfficiencyArguments, labels: Labels) -> list[int]:
    counts = curve.counts or default_counts(labels)
    largest = int(np.unique(labels, return_counts=True)[1].max())
    if max(counts) > largest:  # the point would be that of all rows
        raise InputError(
            f"`num_labels` has {max(counts)} but no class has more than {largest:,} training rows",
            advice="pass all for all of them as `num_labels`",
        )
    return counts


def _print_notes(splits: Splits, overlap: Any) -> None:
    excess = describe_excess(splits.max_seq_length, splits.processor) if splits.texts else None
    warnings = filter(None, (excess, describe_overlap(splits, overlap)))
    for line in (*splits.notes, *(f"WARNING: {warning}" for warning in warnings)):
        sys.stdout.write(f"{spell(line)}\n")


def _keep(log: MeasurementLog, row: Measurement) -> None:
    log.add(row)
    name = f"{row.num_per_class or 'all':>6} {row.arm:<12} seed {row.seed}"
    sys.stdout.write(f"{name}: {row.accuracy:.4f}  {row.seconds:6.1f} s\n")
    sys.stdout.flush()


def format_points(points: Sequence[Point]) -> str:
    """Lay the curve out as text: a line for each number of labels and arm."""
    width = max(len("arm"), *(len(point.arm) for point in points))
    head = f"{'labels/class':>12}  {'rows':>6}  {'arm':<{width}}"
    lines = [f"{head}  {'accuracy [95 %]':<22}  difference [95 %]"]
    for point in points:
        line = f"{point.num_per_class or 'all':>12}  {point.num_rows:>6}  {point.arm:<{width}}  "
        line += f"{format_interval(point.mean, point.interval):<22}"
        if point.difference is not None:
            line += "  " + format_interval(point.difference, point.difference_interval, sign="+")
        lines.append(line.rstrip())
    compared = next((point.versus for point in points if point.versus), None)
    note = f"{max(point.num_seeds for point in points)} seeds; intervals: 95 %, Student's t over "
    note += "seeds" + (f"; difference: to {compared}, paired by seed" if compared else "")
    return "\n".join([*lines, note])


def figures_of(points: Sequence[Point]) -> dict[str, float]:
    """Return means and gains by name, such as `fine_tuned_16_accuracy` and `fine_tuned_16_gain`."""
    figures = {}
    for point in points:
        name = f"{point.arm}_{point.num_per_class or 'all'}"
        figures[f"{name}_accuracy"] = point.mean
        if point.difference is not None:
            figures[f"{name}_gain"] = point.difference
        if point.difference_interval is not None:
            figures[f"{name}_gain_low"], figures[f"{name}_gain_high"] = point.difference_interval
    return figures


def _draw_curve(
    points: Sequence[Point], path: Path, *, title: str, labels_of_arms: dict[str, str]
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    plot_curve(axes, points, title=title, labels_of_arms=labels_of_arms)
    axes.legend()
    with atomic_file(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def plot_curve(
    axes: Axes, points: Sequence[Point], *, title: str, labels_of_arms: dict[str, str]
) -> None:
    """Draw accuracy with its intervals against labels per class; a legend is left to the caller."""
    # Told apart with any colour vision.
    colours = ["#0072B2", "#CC79A7", "#009E73", "#D55E00", "#7F7F7F"]
    counts = list(dict.fromkeys(point.num_per_class for point in points))
    largest = max((count for count in counts if count), default=1)
    place = {count: float(count or largest * 4) for count in counts}
    for number, (arm, label) in enumerate(labels_of_arms.items()):
        own = [point for point in points if point.arm == arm]
        if not own:
            continue
        # Beside one another, so that no interval hides another one.
        x = [place[point.num_per_class] * 1.06 ** (number - 2) for point in own]
        half = [(point.interval[1] - point.mean) if point.interval else 0.0 for point in own]
        style: dict[str, Any] = {"color": colours[number], "label": label, "capsize": 3}
        style |= {"markersize": 4, "fmt": "o--" if arm == "floor" else "o-"}
        axes.errorbar(x, [point.mean for point in own], half, **style)
    axes.set_xscale("log")
    axes.set_xticks(list(place.values()), [str(count or "all") for count in counts])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.0, high))
    axes.set(xlabel="labels per class", ylabel="accuracy")
    axes.set_title(title, parse_math=False)  # a $ in it is a letter
    axes.grid(alpha=0.3)
