"""Two processes of one thread against one process of two threads, on the same updates.

bert-small on the embedded corpus, rows of 128 tokens, windows of 4 micro-batches, the same rows in
an update on both layouts: what is lost is what the processes say to each other, once a window. Runs
of both layouts alternate; a run counts by the median of its updates after the first two, a layout
by the median of its runs.

It needs an idle machine, and says so where the load before a run was higher. Where other programs
hold the cores, the two threads spin at each other's barriers and the ratio rises far above 1, which
is no scaling: measured at a load of 3 to 5 on two cores, 3.9; with OMP_WAIT_POLICY=passive, which
ends the spinning, 0.88 with single rounds from 0.88 to 1.66.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import write_results

PROGRAM = str(Path(__file__).parents[1] / "run_pretraining.py")
ACCUMULATION = 4
MOST_LOAD = 0.5  # average number of busy threads before the first run
NUM_WARMUP = 2  # updates that are not counted
LAYOUTS = {"1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}


def tokens_per_second(
    run_dir: Path, *, num_processes: int, num_threads: int, arguments: argparse.Namespace
) -> float:
    """Run the program on a layout and return the median rate of its updates, over all processes."""
    launcher = f"-m torch.distributed.run --standalone --nproc_per_node {num_processes}".split()
    flags = {
        "config_name": arguments.config_name,
        "max_seq_length": 128,
        "global_batch_size": arguments.global_batch_size,
        "per_device_train_batch_size": arguments.global_batch_size // ACCUMULATION // num_processes,
        "gradient_accumulation_steps": ACCUMULATION,
        "num_cpu_threads": num_threads,
        "max_steps": NUM_WARMUP + arguments.num_updates,
        "optimizer": arguments.optimizer,
        "max_eval_rows": 16,
        "eval_steps": 0,
        "save_steps": 0,
        "logging_steps": 1,
        "output_dir": run_dir,
    }
    command = [sys.executable, *(launcher if num_processes > 1 else []), PROGRAM]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if arguments.fsdp and num_processes > 1:
        environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    assert f"{num_processes} process(es)" in done.stdout
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rates = [row["tokens_per_second"] for row in rows if row["split"] == "train"]
    return statistics.median(rates[NUM_WARMUP:])


def main() -> None:
    """Alternate the layouts, print a table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_updates", type=int, default=4, help="counted, in each run")
    parser.add_argument("--config_name", default="small")
    parser.add_argument("--global_batch_size", type=int, default=32, help="rows of an update")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--fsdp", action="store_true", help="shard the model of the two processes")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for name, (num_processes, num_threads) in LAYOUTS.items():
                loads.append(os.getloadavg()[0])  # the first one says what else runs here
                rate = tokens_per_second(
                    Path(folder) / f"{number}-{num_processes}",
                    num_processes=num_processes,
                    num_threads=num_threads,
                    arguments=arguments,
                )
                rates[name].append(rate)
                print(f"round {number + 1}  {name:24} {rate:10,.0f} tokens/s", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"\n{'layout':24} {'tokens/s':>10} {'slowest':>10} {'fastest':>10}")
    for name, found in rates.items():
        print(f"{name:24} {medians[name]:10,.0f} {min(found):10,.0f} {max(found):10,.0f}")
    alone, together = (medians[name] for name in LAYOUTS)
    print(f"ratio {together / alone:.3f}")
    if loads[0] > MOST_LOAD:
        print(f"NOTE: the load was {loads[0]:.1f} at the start: the ratio is no measurement")
    figures = {"scaling_ratio": together / alone}
    figures |= {
        "one_process_tokens_per_second": alone,
        "two_processes_tokens_per_second": together,
    }
    write_results(arguments.json, figures, runs=rates | {"load before each run": loads})


if __name__ == "__main__":
    main()
