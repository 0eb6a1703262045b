"""What pretraining is worth with few labels: the curves of one encoder on several tasks.

Each task is `bert-pretrain evaluate --suite label_efficiency`, five seeds, in a process of its own,
once for each of --models: runs of one recipe with several pretraining seeds. Intervals know both
draws (`statistics.two_way_interval`). With --adapt_minutes each encoder is also fine-tuned after it
has learnt masked words of the task's training texts, without their labels: general and adapted are
told apart. Finished trainings in --work_dir are not repeated. A task is a name, a file to learn
from and a file to predict:

    python benchmarks/label_efficiency.py --models runs/1/final runs/2/final runs/3/final
    --task trec trec_train.jsonl trec_test.jsonl --task subj subj_train.jsonl subj_test.jsonl

Without --models table and picture are those of the results in --json; --write puts the table
between the marks of documents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from results import read_runs, replace_marked, write_results

from bert_pretrain.commands.suites.label_efficiency import plot_curve
from bert_pretrain.downstream.adaptation import ADAPTED
from bert_pretrain.evaluation.label_efficiency import Point
from bert_pretrain.evaluation.label_efficiency_arms import ARMS
from bert_pretrain.evaluation.statistics import format_interval, two_way_interval

# Arms that do not read the weights: one model measures them for all that are built alike.
WITHOUT_WEIGHTS = ("from_scratch", "floor")
# What an encoder without its weights is made of.
_ARCHITECTURE = ("config.json", "tokenizer.json")


@dataclass(frozen=True)
class Curve:
    """Accuracies of one task.

    Attributes:
        accuracies: by number of labels and arm, float (M, S): of each model, with each seed; (1, S)
            for `WITHOUT_WEIGHTS`.
        num_rows: labelled rows by number of labels a class; 0 = all.
    """

    task: str
    accuracies: dict[tuple[int, str], NDArray[np.float64]]
    num_rows: dict[int, int]

    @property
    def counts(self) -> list[int]:
        """Numbers of labels per class, as they were measured."""
        return list(self.num_rows)

    def gain(self, count: int, arm: str, other: str) -> NDArray[np.float64]:
        """Return the differences of two arms on the same rows, (M, S)."""
        return self.accuracies[count, arm] - self.accuracies[count, other]

    def points(self) -> list[Point]:
        """Return what a picture shows."""
        found = []
        for (count, arm), values in self.accuracies.items():
            mean, interval = two_way_interval(values)
            other = None if arm == "from_scratch" else "from_scratch"
            gain, gain_interval = (
                two_way_interval(self.gain(count, arm, other)) if other else (None, None)
            )
            found.append(
                Point(
                    arm=arm,
                    num_per_class=count,
                    num_rows=self.num_rows[count],
                    num_seeds=values.shape[1],
                    mean=mean,
                    interval=interval,
                    versus=other,
                    difference=gain,
                    difference_interval=gain_interval,
                )
            )
        return found


def run_suite(
    model: str, task: tuple[str, str, str], arms: list[str], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure a task with one model, or go on measuring; return its trainings."""
    name, train_file, test_file = task
    folder = arguments.work_dir / name / model.strip("/").replace("/", "_")
    command = ["-m", "bert_pretrain", "evaluate", "--suite", "label_efficiency"]
    command += ["--model", model, "--output_dir", str(folder), "--title", name]
    command += ["--train_file", train_file, "--test_file", test_file, "--seeds"]
    command += [*map(str, arguments.seeds), "--num_labels", *arguments.num_labels, "--arms", *arms]
    if ADAPTED in arms:
        command += ["--adapt_minutes", str(arguments.adapt_minutes)]
    subprocess.run(
        [sys.executable, *command, *arguments.flags], check=True, stdout=subprocess.DEVNULL
    )
    rows = map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    wanted = {0 if word == "all" else int(word) for word in arguments.num_labels}
    return [
        row
        for row in rows
        if row["arm"] in arms and row["seed"] in arguments.seeds and row["num_per_class"] in wanted
    ]


def measure(task: tuple[str, str, str], arguments: argparse.Namespace) -> Curve:
    """Measure a task with all models."""
    arms = [arm for arm in ARMS if arm != ADAPTED or arguments.adapt_minutes]
    by_model = [run_suite(arguments.models[0], task, arms, arguments)]
    others = [arm for arm in arms if arm not in WITHOUT_WEIGHTS]
    by_model += [run_suite(model, task, others, arguments) for model in arguments.models[1:]]
    return curve_of(task[0], by_model, arguments.seeds)


def curve_of(task: str, by_model: list[list[dict[str, Any]]], seeds: list[int]) -> Curve:
    """Return the curve of the trainings of each model."""
    arms = dict.fromkeys(row["arm"] for row in by_model[0])
    found = [{(r["num_per_class"], r["arm"], r["seed"]): r for r in rows} for rows in by_model]
    num_rows = {count: row["num_rows"] for (count, *_), row in found[0].items()}
    # All of a task, 0, comes last.
    num_rows = dict(sorted(num_rows.items(), key=lambda item: item[0] or float("inf")))
    accuracies = {}
    for count, arm in itertools.product(num_rows, arms):
        holders = found[:1] if arm in WITHOUT_WEIGHTS else found
        values = [[rows[count, arm, seed]["accuracy"] for seed in seeds] for rows in holders]
        accuracies[count, arm] = np.array(values)
    return Curve(task, accuracies, num_rows)


def refuse_unlike(models: list[str]) -> None:
    """Raise `SystemExit` unless the models differ in their weights alone."""
    for model, name in itertools.product(models[1:], _ARCHITECTURE):
        if (Path(model) / name).read_bytes() != (Path(models[0]) / name).read_bytes():
            raise SystemExit(f"{model} and {models[0]} differ in {name}: measure them one by one")


def table(curves: list[Curve]) -> str:
    """Return the table of Markdown: means, spread over all trainings, gains with intervals."""
    head = ["task", "labels per class", "encoder", "from scratch", "fine-tuned", "sd"]
    head += ["gain over scratch", "over frozen", "over TF-IDF or pixels"]
    lines = [head, ["---"] * len(head)]
    for curve, (arm, encoder) in itertools.product(
        curves, {"fine_tuned": "general", ADAPTED: "adapted"}.items()
    ):
        for count in curve.counts:
            tuned = curve.accuracies.get((count, arm))
            if tuned is None:
                continue
            spread = f"{tuned.std(ddof=1):.3f}" if tuned.size > 1 else ""
            cells = [curve.task, str(count or "all"), encoder]
            cells += [f"{curve.accuracies[count, 'from_scratch'].mean():.3f}"]
            cells += [f"{tuned.mean():.3f}", spread]
            cells += [
                format_interval(*two_way_interval(curve.gain(count, arm, other)), sign="+")
                for other in ("from_scratch", "frozen_probe", "floor")
            ]
            lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def draw(curves: list[Curve], path: Path) -> None:
    """Draw the curves of all tasks beside one another, under one legend."""
    columns = min(len(curves), 2)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows + 0.4), layout="constrained")
    for place, curve in enumerate(curves, start=1):
        axes = figure.add_subplot(rows, columns, place)
        plot_curve(axes, curve.points(), title=curve.task, labels_of_arms=ARMS)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table, and write figures and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=[], help="one for each pretraining seed")
    parser.add_argument(
        "--task", nargs=3, action="append", default=[], metavar=("NAME", "TRAIN", "TEST")
    )
    parser.add_argument("--num_labels", nargs="+", default=["16", "64", "256"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--adapt_minutes", type=float, default=0.0, help="0 = no adapted encoder")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--figure", type=Path, help="PNG with the curves of all tasks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="documents with marks")
    parser.add_argument("flags", nargs="*", help="further flags of the suite, after --")
    arguments = parser.parse_args()
    if arguments.models and not arguments.task:
        parser.error("--models are measured on tasks: pass --task too")
    if not arguments.models and not (arguments.json and arguments.json.is_file()):
        parser.error("pass --models to measure, or --json a file of results to show")
    refuse_unlike(arguments.models)
    if arguments.models:
        curves = [measure(tuple(task), arguments) for task in arguments.task]
        write(curves, arguments.json)
    else:
        curves = kept_curves(arguments.json)
    print(table(curves), end="")
    if arguments.figure is not None:
        draw(curves, arguments.figure)
    for path in arguments.write:
        path.write_text(replace_marked(path.read_text(), "few labels", table(curves)))


def write(curves: list[Curve], path: Path | None) -> None:
    """Write the results of all tasks."""
    figures = {
        f"{curve.task}_{count or 'all'}_{arm}": float(values.mean())
        for curve in curves
        for (count, arm), values in curve.accuracies.items()
    }
    runs = [
        {
            "task": curve.task,
            "labels": count,
            "rows": curve.num_rows[count],
            "arm": arm,
            "accuracies": values.tolist(),
        }
        for curve in curves
        for (count, arm), values in curve.accuracies.items()
    ]
    write_results(path, figures, runs=runs)


def kept_curves(path: Path) -> list[Curve]:
    """Return the curves that a file of results holds."""
    runs = read_runs(path)
    return [
        Curve(
            task,
            {(r["labels"], r["arm"]): np.array(r["accuracies"]) for r in runs if r["task"] == task},
            {r["labels"]: r["rows"] for r in runs if r["task"] == task},
        )
        for task in dict.fromkeys(run["task"] for run in runs)
    ]


if __name__ == "__main__":
    main()
