"""What pretraining is worth with few labels: the label-efficiency curves of one model on several tasks.

Each task is `python -m bert_pretrain.evaluate --suite label_efficiency`, five seeds, in a process of its own; finished
trainings in --work_dir are not repeated. A task is a name, a file to learn from and a file to predict:

    python benchmarks/label_efficiency.py --model runs/bert/final --task trec trec_train.jsonl trec_test.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from results import write_results


def main() -> None:
    """Print a line per task, number of labels and arm, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", nargs=3, action="append", required=True, metavar=("NAME", "TRAIN", "TEST"))
    parser.add_argument("--num_labels", nargs="+", default=["16", "64"])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="further flags of the suite, after --")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    for name, train_file, test_file in arguments.task:
        folder = arguments.work_dir / name
        command = ["-m", "bert_pretrain.evaluate", "--suite", "label_efficiency", "--model", arguments.model]
        command += ["--train_file", train_file, "--test_file", test_file, "--output_dir", str(folder), "--title", name]
        command += ["--num_labels", *arguments.num_labels]
        command += ["--arms", "fine_tuned", "frozen_probe", "from_scratch", "floor", *arguments.flags]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        measured = json.loads((folder / "label_efficiency.json").read_text())
        figures |= {f"{name}_{key}": value for key, value in measured["figures"].items()}
        for point in measured["points"]:
            line = f"{name:10} {point['num_per_class'] or 'all':>5}  {point['arm']:<13} {point['mean']:.3f}"
            if point["difference_interval"]:
                low, high = point["difference_interval"]
                line += f"  to scratch {point['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            print(line, flush=True)
    write_results(arguments.json, figures, runs=5)


if __name__ == "__main__":
    main()
