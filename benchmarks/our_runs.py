"""Runs of the package as a user starts them: the program in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from judging import ROOT, Judge, environment

from bert_pretrain.data.run_folder import list_checkpoints, read_rows
from bert_pretrain.training.checkpoint import read_state

PROGRAM = [str(ROOT / "run_pretraining.py")]
# The clock of --max_hours runs on while the program evaluates, before its first update too. The
# judge has rows of its own.
FEW_OWN_ROWS = ["--max_eval_rows", "64"]


def train(run_dir: Path, flags: list[str], *, program: list[str] = PROGRAM) -> dict[str, Any]:
    """Train, and return what the run says of itself in metrics.jsonl.

    Args:
        run_dir: is removed first.
        flags: of the program.
        program: script and its own arguments, before the flags.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, *program, *flags, "--output_dir", str(run_dir)]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    rows = read_rows(run_dir / "metrics.jsonl")
    *_, checkpoint = list_checkpoints(run_dir / "checkpoints")
    *_, last = [row for row in rows if row["split"] == "validation"]
    training = [row for row in rows if row["split"] == "train"]
    return {
        "command_minutes": (time.perf_counter() - start) / 60,
        "updates": last["step"],
        "tokens": training[-1]["tokens"],
        "tokens_per_second": training[-1]["tokens"] / read_state(checkpoint)["elapsed"],
        "own_evaluation": {
            name: value for name, value in last.items() if isinstance(value, float | int)
        },
    }


def judged_curve(run_dir: Path, judge: Judge, *, most: int) -> list[dict[str, float]]:
    """Return what checkpoints of a run reached, against its minutes of training.

    Args:
        run_dir: of a finished run.
        judge: of all runs.
        most: checkpoints judged, evenly chosen; the last is the exported model.
    """
    checkpoints = sorted(
        run_dir.glob("checkpoints/step-*"), key=lambda path: (len(str(path)), path)
    )
    last = len(checkpoints) - 1
    chosen = {round(last * (part + 1) / most) for part in range(most)} if last else {0}
    curve = []
    for number in sorted(chosen):
        checkpoint = checkpoints[number]
        state = read_state(checkpoint)
        folder = run_dir / "final" if number == last else checkpoint
        curve.append(
            {"minutes": state["elapsed"] / 60, "step": state["step"]} | judge.judge_folder(folder)
        )
    return curve
