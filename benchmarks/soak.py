"""Train for --minutes, save, evaluate, log and push to a Hub that comes and goes, and watch.

Looked at are the memory of the training process and its loader, and the open files and threads of
the training process. Memory is what Linux calls Pss_Anon: pages that hold no file's content, where
the share of a page that a forked loader has in common with its parent is counted once. (What each
has alone, USS, grows as such pages part, although little memory more is taken.) After a warm-up,
the first quarter, the median memory of the last third of the looks may be 2 % above that of the
first third, and the median numbers of files and threads no more than they were. Pushes are
processes of their own, which come and go; the two pipes to one may be open at any look. It needs
Linux and the extra `test`. Flags for run_pretraining.py follow after --.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from results import write_results

from bert_pretrain.data.run_folder import read_rows

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for a corpus, and a Hub on 127.0.0.1
from loopback_hub import Fault, LoopbackHub, running_hub
from runs import write_corpus, write_model_config

ROOT = Path(__file__).parents[1]
FLAGS = "--data_files corpus.jsonl --config_name config --max_seq_length 48 --mixed_precision no "
FLAGS += "--num_cpu_threads 1 --dropout 0.1 --ema_decay 0.99 "
FLAGS += "--save_steps 50 --eval_steps 200 --logging_steps 5 "
FLAGS += "--dataloader_num_workers 1 --push_to_hub --hub_model_id tester/words "
FLAGS += "--hub_strategy every_save --hub_max_wait 60"
MOST_GROWTH = 0.02
_SECONDS_BETWEEN_LOOKS = 1.0
# What the Hub does, again and again, for so many seconds: it answers, refuses, and drops the line.
_WEATHER = ((None, 20.0), (503, 8.0), (None, 20.0), ("cut", 8.0))


@dataclass(frozen=True)
class Look:
    """What the run had at one moment."""

    mebibytes: float
    num_files: int
    num_threads: int


def look_at(process: psutil.Process) -> Look | None:
    """Return what a run has; None if it has just ended."""
    try:
        members = [process]
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if not any("publishing.hub" in word for word in child.cmdline()):
                    members.append(child)
        memory = sum(map(own_mebibytes, members))
        return Look(memory, process.num_fds(), process.num_threads())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None


def own_mebibytes(process: psutil.Process) -> float:
    """Return Pss_Anon of a process; 0 if it has just ended."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 2**10


def change_weather(hub: LoopbackHub, is_over: threading.Event, times: Counter[str]) -> None:
    """Let a Hub come and go until it is over."""
    while True:
        for answer, seconds in _WEATHER:
            hub.faults = [] if answer is None else [Fault(".", answer, times=10**9)]
            times[str(answer)] += 1
            if is_over.wait(seconds):
                hub.faults = []
                return


def watch(process: subprocess.Popen[bytes]) -> list[Look]:
    """Return what a run had, look by look, until it ended."""
    looks = []
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        if look := look_at(watched):
            looks.append(look)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return looks


def figures_of(looks: list[Look], *, warmup_share: float) -> dict[str, float]:
    """Return medians of the first and the last third after the warm-up, and the growth."""
    after = looks[round(len(looks) * warmup_share) :]
    third = max(1, len(after) // 3)
    parts = {"early": after[:third], "late": after[-third:]}
    figures: dict[str, float] = {"looks": len(looks)}
    for name, part in parts.items():
        figures[f"memory_mib_{name}"] = statistics.median(look.mebibytes for look in part)
        figures[f"open_files_{name}"] = statistics.median(look.num_files for look in part)
        figures[f"threads_{name}"] = statistics.median(look.num_threads for look in part)
    growth = figures["memory_mib_late"] / figures["memory_mib_early"] - 1
    return figures | {"memory_growth_share": growth}


def is_steady(figures: dict[str, float]) -> bool:
    """Return whether memory, files and threads stayed what they were."""
    return figures["memory_growth_share"] < MOST_GROWTH and all(
        figures[f"{name}_late"] <= figures[f"{name}_early"] for name in ("open_files", "threads")
    )


def soak(
    minutes: float, warmup_minutes: float, flags: list[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the figures of a run, and what happened in it."""
    in_all = warmup_minutes + minutes
    with tempfile.TemporaryDirectory() as name, running_hub() as hub:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl", num_documents=600)
        write_model_config(folder / "config")
        length = ["--max_hours", str(in_all / 60), "--max_steps", "0"]
        command = [sys.executable, str(ROOT / "run_pretraining.py"), *flags, *length]
        ours = hub.environment(folder) | {"PYTHONPATH": str(ROOT)}
        times: Counter[str] = Counter()
        is_over = threading.Event()
        weather = threading.Thread(target=change_weather, args=(hub, is_over, times))
        weather.start()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--output_dir", "run"],
                cwd=folder,
                env=os.environ | ours,
                stdout=log,
                stderr=log,
            )
            try:
                looks = watch(process)
            finally:
                process.kill()
                is_over.set()
                weather.join()
        if process.returncode:
            sys.exit((folder / "log").read_text()[-3000:])
        rows = read_rows(folder / "run/metrics.jsonl")
        happened = {
            "minutes": minutes,
            "warmup_minutes": warmup_minutes,
            "updates": max(row["step"] for row in rows),
            "evaluations": sum(row["split"] == "validation" for row in rows),
            "rows": len(rows),
            "commits": len(hub.model("words").commits),
            "hub_away": sum(count for answer, count in times.items() if answer != "None"),
        }
        parts = [looks[len(looks) * part // 40 :][: max(1, len(looks) // 40)] for part in range(40)]
        series = [round(statistics.median(look.mebibytes for look in part), 1) for part in parts]
        figures = figures_of(looks, warmup_share=warmup_minutes / in_all)
        return figures, happened | {"memory_mib": series}


def main() -> None:
    """Soak, print and write the figures; exit 1 if anything has grown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="that are looked at")
    parser.add_argument("--warmup_minutes", type=float, default=30.0, help="before them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help=f"default: {FLAGS}")
    arguments = parser.parse_args()
    figures, happened = soak(
        arguments.minutes, arguments.warmup_minutes, arguments.flags or FLAGS.split()
    )
    numbers = {name: value for name, value in happened.items() if name != "memory_mib"} | figures
    for name, value in numbers.items():
        print(f"{name:24} {value:12,.4g}")
    write_results(arguments.json, numbers, runs=[happened])
    sys.exit(not is_steady(figures))


if __name__ == "__main__":
    main()
