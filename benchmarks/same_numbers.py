"""Record to the last bit what short runs of every objective compute; compare earlier records.

A change of form must not change a number. Each run makes 40 updates of a tiny model on the embedded
data in float32, on one and on two processes of one thread: `python benchmarks/same_numbers.py
--json before.json`, then, after the change, `python benchmarks/same_numbers.py --against
before.json`. Records of other versions or processors differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import write_results

from bert_pretrain.training.metrics import OF_THE_MACHINE

PROGRAM = str(Path(__file__).parents[1] / "run_pretraining.py")
COMMON = (
    "--max_steps 40 --eval_steps 20 --save_steps 0 --logging_steps 1 --mixed_precision no "
    "--num_cpu_threads 1"
)
TEXT = "--config_name tiny --max_eval_rows 200 --per_device_train_batch_size 32"
RUNS = {
    "mlm_nsp": TEXT,
    "mlm": f"--objective mlm {TEXT}",
    "google": f"--pair_mode google --masking whole_word --optimizer adamw {TEXT}",
    "dropout": f"--dropout 0.1 --gradient_checkpointing {TEXT}",
    "autoencoder": "--objective autoencoder --noise_std 0.1 --per_device_train_batch_size 32",
    "masked_autoencoder": "--objective autoencoder --mask_ratio 0.75 --config_name vit-tiny "
    "--per_device_train_batch_size 32",
    "triplet": "--objective contrastive --per_device_train_batch_size 32",
    "nt_xent": "--objective contrastive --loss nt_xent --config_name vit-tiny "
    "--per_device_train_batch_size 32",
}


def record(flags: str, run_dir: Path, *, num_processes: int) -> dict[str, Any]:
    """Run the program; return metrics without the machine's numbers, and the weights' digest."""
    launcher = f"-m torch.distributed.run --standalone --nproc_per_node {num_processes}".split()
    command = [
        sys.executable,
        *(launcher if num_processes > 1 else []),
        PROGRAM,
        *COMMON.split(),
        *flags.split(),
    ]
    done = subprocess.run(
        [*command, "--output_dir", str(run_dir)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    assert f"{num_processes} process(es)" in done.stdout
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {key: value for key, value in row.items() if not key.endswith(OF_THE_MACHINE)}
        for row in rows
    ]
    return {
        "rows": kept,
        "weights": hashlib.sha256((run_dir / "final/model.safetensors").read_bytes()).hexdigest(),
    }


def largest_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Return the largest relative difference of equally named numbers; infinite if rows differ."""
    if [row["step"] for row in ours] != [row["step"] for row in theirs]:
        return float("inf")
    differences = [0.0]
    for mine, other in zip(ours, theirs, strict=True):
        for key, value in other.items():
            if isinstance(value, int | float):
                found = mine.get(key, float("inf"))
                difference = abs(found - value) / max(abs(value), 1e-12)
                differences.append(difference if difference == difference else float("inf"))
    return max(differences)


def main() -> None:
    """Make the runs, print and write what they computed; exit 1 if a record is not met exactly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path, help="file that --json wrote before")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    arguments = parser.parse_args()
    earlier = json.loads(arguments.against.read_text())["runs"] if arguments.against else {}
    runs, is_same = {}, True
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            for num_processes in arguments.processes:
                key = f"{name} on {num_processes}"
                found = record(
                    RUNS[name], Path(folder) / key.replace(" ", "_"), num_processes=num_processes
                )
                runs[key] = found
                line = f"{key:24} {found['rows'][-1]['loss']:.6f} {found['weights'][:12]}"
                if key in earlier:
                    same = found["weights"] == earlier[key]["weights"]
                    difference = largest_difference(found["rows"], earlier[key]["rows"])
                    is_same &= same and difference == 0
                    weights = "identical" if same else "OTHER"
                    line += f"  {weights} weights, numbers differ by {difference:.1e}"
                print(line, flush=True)
    if arguments.against and not runs.keys() <= earlier.keys():
        raise SystemExit(f"{arguments.against} has no {', '.join(runs.keys() - earlier.keys())}")
    write_results(
        arguments.json, {key: run["rows"][-1]["loss"] for key, run in runs.items()}, runs=runs
    )
    raise SystemExit(not is_same)


if __name__ == "__main__":
    main()
