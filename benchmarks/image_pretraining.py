"""What image encoders learn without labels: k-NN and linear probe, beside the floors.

Each arm and seed is the command that a user would type, in a process of its own, followed by
`bert-pretrain evaluate` on images that pretraining never saw. The autoencoder is also judged by
what it is trained for: its reconstruction of held-out images beside that of PCA with as many
numbers. Point it at any labelled images in parquet files; the numbers in the README are of 10,000
training and 2,000 test images of CIFAR-10. Finished runs in --work_dir are kept and not repeated,
so a measurement that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from results import write_results

PROGRAM = Path(__file__).parents[1] / "run_pretraining.py"
# What an arm adds to the recipe `small_images` of its objective.
ARMS = {
    "nt_xent": ["--objective", "contrastive", "--loss", "nt_xent"],
    "triplet": [
        "--objective",
        "contrastive",
        "--loss",
        "triplet",
        "--negatives",
        "semi_hard",
        "--max_steps",
        "600",
    ],
    "autoencoder": ["--objective", "autoencoder"],
}


def run_arm(arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pretrain and evaluate one arm with one seed, or read what was found before."""
    folder = arguments.work_dir / f"{arm}-{seed}"
    result_file = folder / "result.json"
    if result_file.is_file():
        return dict(json.loads(result_file.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    run_dir = folder / "run"
    flags = [
        "--recipe",
        "small_images",
        "--data_files",
        *arguments.train_files,
        "--seed",
        str(seed),
        *ARMS[arm],
    ]
    flags += ["--output_dir", str(run_dir), *arguments.flags]
    if (run_dir / "run.json").is_file():
        flags += ["--resume_from_checkpoint", "latest"]
    start = time.perf_counter()
    run([str(PROGRAM), *flags], folder / "pretraining.log")
    minutes = (time.perf_counter() - start) / 60
    suites = [
        "-m",
        "bert_pretrain",
        "evaluate",
        "--model",
        str(run_dir / "final"),
        "--suite",
        "knn",
        "linear_probe",
    ]
    images = ["--data_files", *arguments.train_files, "--test_files", *arguments.test_files]
    run([*suites, *images, "--json", str(folder / "evaluation.json")], folder / "evaluation.log")
    figures = json.loads((folder / "evaluation.json").read_text())["figures"]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["split"] == "validation"][-1]
    kept = {
        key: last[key]
        for key in ("step", "reconstruction_loss", "pca_reconstruction_loss")
        if key in last
    }
    result = figures | kept | {"minutes": minutes, "seed": seed}
    result_file.write_text(json.dumps(result, indent=1))
    return dict(result)


def run(command: list[str], log: Path) -> None:
    """Run Python on a command line and keep what it prints."""
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, check=True
        )


def main() -> None:
    """Print a line per arm and figure, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train_files", nargs="+", required=True, help="parquet with image and label columns"
    )
    parser.add_argument("--test_files", nargs="+", required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/image_pretraining"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="further flags for run_pretraining.py, after --")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    for arm in arguments.arms:
        runs[arm] = [run_arm(arm, seed, arguments) for seed in arguments.seeds]
        print(f"{arm}, {len(runs[arm])} seeds")
        for name in [key for key in runs[arm][0] if key != "seed"]:
            values = [result[name] for result in runs[arm]]
            figures[f"{arm}_{name}"] = statistics.median(values)
            print(
                f"  {name:32} median {statistics.median(values):8.4f}  from {min(values):.4f} to "
                f"{max(values):.4f}"
            )
    write_results(arguments.json, figures, runs=runs)


if __name__ == "__main__":
    main()
