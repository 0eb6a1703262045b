"""Kill a run at random, resume it each time, and compare it bit for bit with a whole one.

The kills (SIGKILL) fall anywhere, also while the text is being prepared. Everything after `--` goes
to run_pretraining.py, for example: `python benchmarks/kill_and_resume.py -- --data_files
my_text.jsonl.gz --max_steps 60 --save_steps 10`. It also reports the largest resident memory of the
uninterrupted run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import write_results

from bert_pretrain.training.metrics import OF_THE_MACHINE

PROGRAM = str(Path(__file__).parents[1] / "run_pretraining.py")


def command(flags: list[str], run_dir: Path) -> list[str]:
    """Return the command that starts or resumes a run."""
    resume = ["--resume_from_checkpoint", "latest"] if (run_dir / "run.json").is_file() else []
    return [sys.executable, PROGRAM, *flags, "--output_dir", str(run_dir), *resume]


def content(run_dir: Path) -> tuple[list[dict[str, float]], str]:
    """Return the metrics without the machine's numbers, and the digest of the exported weights."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {key: value for key, value in row.items() if not key.endswith(OF_THE_MACHINE)}
        for row in rows
    ]
    return kept, hashlib.sha256((run_dir / "final/model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """Run both, compare, print and write the figures; exit 1 if they differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="flags for run_pretraining.py, after --")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, killed = folder / "whole", folder / "killed"
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        start = time.perf_counter()
        subprocess.run(
            command(arguments.flags, whole),
            env=environment | {"HF_HOME": str(folder / "a")},
            check=True,
            **quiet,
        )
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        environment["HF_HOME"] = str(folder / "b")
        moments = []
        while True:
            process = subprocess.Popen(command(arguments.flags, killed), env=environment, **quiet)
            # The first kill falls into the preparation, the others anywhere.
            share = 0.2 if not moments else generator.uniform(0.1, 0.7)
            try:
                status = process.wait(share * seconds if len(moments) < arguments.kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                moments.append(round(share * seconds, 1))
                print(
                    f"killed after {moments[-1]} s, run directory "
                    f"{'there' if killed.exists() else 'not there yet'}"
                )
                continue
            if status:
                raise SystemExit(f"a resumed run ended with status {status}")
            break
        is_equal = content(whole) == content(killed)
    print(f"{len(moments)} kills; metrics and weights {'identical' if is_equal else 'DIFFERENT'}")
    print(f"uninterrupted: {seconds:.0f} s, largest resident memory {memory:,.0f} MB")
    figures = {
        "kills": len(moments),
        "is_identical": int(is_equal),
        "seconds": seconds,
        "peak_rss_mb": memory,
    }
    write_results(arguments.json, figures, runs=moments)
    raise SystemExit(not is_equal)


if __name__ == "__main__":
    main()
