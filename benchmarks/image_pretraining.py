"""What image encoders learn without labels, and what that is worth with few of them.

Each arm is a way to pretrain: `--recipe small_images` of its objective, for as many updates as one
core makes in --minutes, with several seeds. Each encoder is judged by `bert-pretrain evaluate` on
images that pretraining never saw: k-NN and linear probe beside the floors, then, with a few labels
per class, fine-tuned and frozen beside the same architecture from scratch. Intervals know both
draws, of pretraining and of fine-tuning (`statistics.two_way_interval`).

    python benchmarks/image_pretraining.py --train_file train.parquet --test_file test.parquet

takes any labelled images in parquet files. What is finished in --work_dir is not repeated. --arms
may be measured in pieces, by several processes too; --json keeps those of other arms. Without
--train_file tables and picture are those of the results in --json; --write puts tables between
marks of documents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from label_efficiency import WITHOUT_WEIGHTS, Curve, curve_of, draw
from results import read_runs, replace_marked, write_results

from bert_pretrain.config.evaluating import FLOORS
from bert_pretrain.data.run_folder import read_rows
from bert_pretrain.evaluation.statistics import format_interval, two_way_interval

PROGRAM = Path(__file__).parents[1] / "run_pretraining.py"
_TRIPLET = "--objective contrastive --loss triplet --negatives"
_AUTOENCODER = "--objective autoencoder"
# The flags of an arm, and the updates that one core of an EPYC without bfloat16 made in a minute.
ARMS = {
    "triplet, random negatives": (f"{_TRIPLET} random", 34),
    "triplet, semi-hard negatives": (f"{_TRIPLET} semi_hard", 34),
    "NT-Xent": ("--objective contrastive --loss nt_xent", 34),
    "autoencoder": (_AUTOENCODER, 75),
    "denoising autoencoder": (f"{_AUTOENCODER} --noise_std 0.3", 75),
    "masked autoencoder": (f"{_AUTOENCODER} --mask_ratio 0.75 --config_name vit-tiny", 75),
}
# What a row of metrics says that the evaluation does not.
_MEASURED = ("step", "reconstruction_loss", "pca_reconstruction_loss")
SUITES = ("knn", "linear_probe")
# What the figures of a suite are called: those of the encoder, trained and not, and of pixels.
ENCODERS = ("", "random_encoder_")
PIXELS = {"PCA": "pca", "raw pixels": "pixels"}
MARK = "image pretraining"
WITH_WEIGHTS = ("fine_tuned", "frozen_probe")


def pretrain(
    arm: str, seed: int, floors: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Pretrain and judge the frozen encoder beside floors, or read what was found before."""
    folder = folder_of(arm, seed, arguments)
    result_file = folder / "result.json"
    if result_file.is_file():
        return dict(json.loads(result_file.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    run_dir = folder / "run"
    flags, updates_per_minute = ARMS[arm]
    max_steps = round(arguments.minutes * updates_per_minute)
    command = ["--recipe", "small_images", "--data_files", arguments.train_file, *flags.split()]
    command += ["--seed", str(seed), "--max_steps", str(max_steps), "--output_dir", str(run_dir)]
    command += ["--eval_steps", str(max_steps), "--resume_from_checkpoint", "auto"]
    start = time.perf_counter()
    run([str(PROGRAM), *command, *arguments.flags], folder / "pretraining.log")
    minutes = (time.perf_counter() - start) / 60
    suites = ["--suite", *SUITES, "--json", str(folder / "evaluation.json"), "--floors", *floors]
    images = ["--data_files", arguments.train_file, "--test_files", arguments.test_file]
    evaluate = ["-m", "bert_pretrain", "evaluate", "--model", str(run_dir / "final")]
    run([*evaluate, *suites, *images], folder / "evaluation.log")
    judged = json.loads((folder / "evaluation.json").read_text())["figures"]
    *_, last = [row for row in read_rows(run_dir / "metrics.jsonl") if row["split"] == "validation"]
    kept = {key: last[key] for key in _MEASURED if key in last}
    result = {"arm": arm, "seed": seed, "minutes": minutes} | kept | judged
    result_file.write_text(json.dumps(result, indent=1))
    return result


def folder_of(arm: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return where an encoder is and what was found of it."""
    return Path(arguments.work_dir) / f"{arm.replace(', ', '-').replace(' ', '_')}-{seed}"


def fine_tune(
    arm: str, seed: int, curves: Sequence[str], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Learn from few labels, or go on with it; return all trainings with one encoder."""
    folder = folder_of(arm, seed, arguments)
    command = ["-m", "bert_pretrain", "evaluate", "--suite", "label_efficiency", "--model"]
    command += [str(folder / "run/final"), "--output_dir", str(folder / "curve")]
    command += ["--train_file", arguments.train_file, "--test_file", arguments.test_file]
    command += ["--num_labels", *map(str, arguments.num_labels), "--arms", *curves]
    command += ["--seeds", *map(str, arguments.finetuning_seeds)]
    run(command, folder / "curve.log")
    lines = (folder / "curve/rows.jsonl").read_text().splitlines()
    return [
        row
        for row in map(json.loads, lines)
        if row["arm"] in curves
        and row["seed"] in arguments.finetuning_seeds
        and row["num_per_class"] in arguments.num_labels
    ]


def run(command: list[str], log: Path) -> None:
    """Run Python on a command line and keep what it prints."""
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, check=True
        )


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each encoder, and one for each arm's accuracies with few labels."""
    encoders: list[dict[str, Any]] = []
    trainings: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in arguments.arms}
    untrained: dict[bytes, list[dict[str, Any]]] = {}
    # Whoever measures in pieces has all arms of a seed before the next seed.
    for number, (seed, arm) in enumerate(itertools.product(arguments.seeds, arguments.arms)):
        # Pixels are the same for all, and untrained encoders nearly so.
        floors = ["random_encoder"] if seed == arguments.seeds[0] else ["none"]
        encoders.append(pretrain(arm, seed, floors if number else FLOORS, arguments))
        found = fine_tune(arm, seed, WITH_WEIGHTS, arguments)
        config = folder_of(arm, seed, arguments) / "run/final/config.json"
        if seed == arguments.seeds[0]:
            architecture = config.read_bytes()
            if architecture not in untrained:
                untrained[architecture] = fine_tune(arm, seed, WITHOUT_WEIGHTS, arguments)
            found += untrained[architecture]
        trainings[arm].append(found)
    curves = [curve_of(arm, rows, arguments.finetuning_seeds) for arm, rows in trainings.items()]
    return encoders + [
        {
            "arm": curve.task,
            "labels": count,
            "rows": curve.num_rows[count],
            "of": name,
            "accuracies": values.tolist(),
        }
        for curve in curves
        for (count, name), values in curve.accuracies.items()
    ]


def encoders_of(arm: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of an arm's encoders."""
    return [row for row in runs if row["arm"] == arm and "seed" in row]


def curves_in(runs: list[dict[str, Any]]) -> dict[str, Curve]:
    """Return the accuracies with few labels, by arm."""
    measured = [row for row in runs if "labels" in row]
    return {
        arm: Curve(
            arm,
            {
                (r["labels"], r["of"]): np.array(r["accuracies"])
                for r in measured
                if r["arm"] == arm
            },
            {r["labels"]: r["rows"] for r in measured if r["arm"] == arm},
        )
        for arm in dict.fromkeys(row["arm"] for row in measured)
    }


def tables(runs: list[dict[str, Any]]) -> str:
    """Return the tables of Markdown: frozen encoders, and few labels."""
    arms = dict.fromkeys(row["arm"] for row in runs)
    head = ["pretraining", "seeds", "updates", "minutes"]
    head += ["k-NN", "untrained", "linear probe", "untrained"]
    lines = [head, ["---"] * len(head)]
    for arm in arms:
        rows = encoders_of(arm, runs)
        cells = [arm, str(len(rows)), f"{rows[0]['step']:,}"]
        cells += [spread([row["minutes"] for row in rows], ".1f")]
        for suite in SUITES:
            cells += [spread(figures(f"{name}{suite}_accuracy", rows)) for name in ENCODERS]
        lines.append(cells)
    rows = [row for arm in arms for row in encoders_of(arm, runs)]
    for name, key in PIXELS.items():
        values = [spread(figures(f"{key}_{suite}_accuracy", rows)) for suite in SUITES]
        lines.append([name, "", "", "", values[0], "", values[1], ""])
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + "\n"
    head = ["labels per class", "pretraining", "raw pixels", "from scratch", "frozen", "fine-tuned"]
    lines = [[*head, "gain over scratch"], ["---"] * (len(head) + 1)]
    curves = curves_in(runs)
    for count in next(iter(curves.values())).counts:
        for arm, curve in curves.items():
            cells = [str(count), arm]
            for name in ("floor", "from_scratch", "frozen_probe", "fine_tuned"):
                cells += [f"{curve.accuracies[count, name].mean():.3f}"]
            gain = two_way_interval(curve.gain(count, "fine_tuned", "from_scratch"))
            lines.append([*cells, format_interval(*gain, sign="+")])
    return text + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def figures(key: str, rows: list[dict[str, Any]]) -> list[float]:
    """Return a figure of the encoders for which it was measured."""
    return [row[key] for row in rows if key in row]


def spread(values: list[float], form: str = ".3f") -> str:
    """Return the median of some numbers, and their range where they differ."""
    median, low, high = (
        f"{v:{form}}" for v in (statistics.median(values), min(values), max(values))
    )
    return median if low == high else f"{median} ({low} to {high})"


def main() -> None:
    """Print the tables, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train_file", help="parquet with image and label columns")
    parser.add_argument("--test_file")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of pretraining")
    parser.add_argument("--minutes", type=float, default=4.0, help="of pretraining, on one core")
    parser.add_argument("--num_labels", type=int, nargs="+", default=[10, 25, 100])
    parser.add_argument("--finetuning_seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/image_pretraining"))
    parser.add_argument("--figure", type=Path, help="PNG with the curves of all arms")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="documents with marks")
    parser.add_argument("flags", nargs="*", help="further flags for run_pretraining.py, after --")
    arguments = parser.parse_args()
    if bool(arguments.train_file) != bool(arguments.test_file):
        parser.error("pass both --train_file and --test_file")
    if arguments.train_file:
        others = [row for row in read_runs(arguments.json) if row["arm"] not in arguments.arms]
        order = list(ARMS)
        runs = sorted(others + measure(arguments), key=lambda row: order.index(row["arm"]))
        accuracies = {
            f"{row['arm']}_{row['seed']}_knn": row["knn_accuracy"] for row in runs if "seed" in row
        }
        write_results(arguments.json, accuracies, runs=runs)
    elif arguments.json and arguments.json.is_file():
        runs = read_runs(arguments.json)
    else:
        parser.error("pass --train_file and --test_file to measure, or --json a file to show")
    print(tables(runs), end="")
    if arguments.figure is not None:
        draw(list(curves_in(runs).values()), arguments.figure)
    for path in arguments.write:
        path.write_text(replace_marked(path.read_text(), MARK, tables(runs)))


if __name__ == "__main__":
    main()
