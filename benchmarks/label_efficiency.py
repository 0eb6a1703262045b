"""What pretraining is worth with few labels: the curves of one model on several tasks.

Each task is `bert-pretrain evaluate --suite label_efficiency`, five seeds, in a process of its own;
finished trainings in --work_dir are not repeated. A task is a name, a file to learn from and a file
to predict:

    python benchmarks/label_efficiency.py --model runs/bert/final --task trec trec_train.jsonl
    trec_test.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from results import write_results

from bert_pretrain.commands.suites.label_efficiency import plot_curve
from bert_pretrain.evaluation.label_efficiency import Point
from bert_pretrain.evaluation.label_efficiency_arms import ARMS


def measure(
    name: str, train_file: str, test_file: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure one task, or go on measuring; returns what its label_efficiency.json holds."""
    folder = arguments.work_dir / name
    command = ["-m", "bert_pretrain", "evaluate", "--suite", "label_efficiency"]
    command += ["--model", arguments.model, "--output_dir", str(folder), "--title", name]
    command += ["--train_file", train_file, "--test_file", test_file]
    command += ["--num_labels", *arguments.num_labels, "--arms", *ARMS, *arguments.flags]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads((folder / "label_efficiency.json").read_text()))


def draw(names: list[str], work_dir: Path, path: Path) -> None:
    """Draw the curves of all tasks beside one another, under one legend."""
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows + 0.4), layout="constrained")
    for place, name in enumerate(names, start=1):
        measured = json.loads((work_dir / name / "label_efficiency.json").read_text())
        points = [Point(**point) for point in measured["points"]]
        axes = figure.add_subplot(rows, columns, place)
        plot_curve(axes, points, title=name, labels_of_arms=ARMS)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print a line per task, number of labels and arm, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--task", nargs=3, action="append", required=True, metavar=("NAME", "TRAIN", "TEST")
    )
    parser.add_argument("--num_labels", nargs="+", default=["16", "64"])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--figure", type=Path, help="PNG with the curves of all tasks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="further flags of the suite, after --")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    for name, train_file, test_file in arguments.task:
        measured = measure(name, train_file, test_file, arguments)
        figures |= {f"{name}_{key}": value for key, value in measured["figures"].items()}
        for point in measured["points"]:
            line = f"{name:10} {point['num_per_class'] or 'all':>5}  {point['arm']:<13} "
            line += f"{point['mean']:.3f}"
            if point["difference_interval"]:
                low, high = point["difference_interval"]
                line += f"  to scratch {point['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            print(line, flush=True)
    if arguments.figure is not None:
        draw([task[0] for task in arguments.task], arguments.work_dir, arguments.figure)
    write_results(arguments.json, figures, runs=5)


if __name__ == "__main__":
    main()
