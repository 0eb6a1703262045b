"""What the first command reaches: the default run, whole, with several seeds.

Each seed is the command that the README names, in a process of its own and with an empty cache, so
that gathering and tokenising the corpus are in the time. It reports the held-out masked-LM loss
against the unigram entropy of the training tokens, next-sentence accuracy, and the wall-clock time
from command to exported model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import write_results

PROGRAM = Path(__file__).parents[1] / "run_pretraining.py"


def run_once(seed: int, flags: list[str], folder: Path) -> dict[str, float]:
    """Run the default command with a seed and return its last validation row and its time."""
    environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "accelerate.commands.launch", str(PROGRAM)]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--seed", str(seed), "--output_dir", str(folder / "run"), *flags],
        env=environment,
        check=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["split"] == "validation"][-1]
    rates = [row["tokens_per_second"] for row in rows if row["split"] == "train"]
    return {
        "seed": seed,
        "minutes": seconds / 60,
        "updates": last["step"],
        "tokens_per_second": statistics.median(rates),
        "mlm_loss": last["mlm_loss"],
        "nats_below_unigram": last["unigram_entropy"] - last["mlm_loss"],
        "mlm_accuracy": last["mlm_accuracy"],
        "nsp_accuracy": last["nsp_accuracy"],
    }


def main() -> None:
    """Print a line per seed and the spread; write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="flags for run_pretraining.py, after --")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run_once(seed, arguments.flags, Path(folder)))
        print("  ".join(f"{name} {value:.4g}" for name, value in runs[-1].items()), flush=True)
    figures = {}
    for name in [key for key in runs[0] if key != "seed"]:
        values = [run[name] for run in runs]
        figures[name] = statistics.median(values)
        print(
            f"{name:20} median {figures[name]:10.4g}  from {min(values):.4g} to {max(values):.4g}"
        )
    write_results(arguments.json, figures, runs=runs)


if __name__ == "__main__":
    main()
