"""What is done to a run of one process: signals at any or at a chosen moment, a Hub that is away.

Each fault gets the `Setting` of a run and its process, and returns whether it came before the end.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from fault_setting import (
    Fault,
    LostError,
    Setting,
    appears,
    comes,
    ended_by_itself,
    lasts,
    stays_behind,
    trains,
)

from bert_pretrain.data.run_folder import list_checkpoints

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for a Hub on 127.0.0.1
from loopback_hub import Fault as HubFault

_WORKER_NAME = "pt_data_worker"  # as torch calls a loader's worker


def at_random(number: signal.Signals) -> Fault:
    """Send a signal at any moment of the training."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        if not (trains(setting, process) and lasts(setting, process, share=0.5)):
            return False
        process.send_signal(number)
        status = process.wait()
        if status == 0:  # it had just come to its end
            return False
        if number != signal.SIGKILL:
            if status != 128 + number:
                raise LostError(f"{number.name} ends the run with {status}")
            if not list_checkpoints(setting.run_dir / "checkpoints"):
                raise LostError(f"{number.name} ends the run without a checkpoint")
        return True

    return apply


def killed_while(pattern: str, *, seconds: float = 0.05) -> Fault:
    """Kill the run at most so many seconds after it has made a file or folder of a pattern."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        if not appears(setting, process, pattern):
            return False
        time.sleep(setting.generator.uniform(0, seconds))
        if process.poll() is not None:
            return False
        process.kill()
        process.wait()
        return True

    return apply


def killed_in_start(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Kill the run before it trains."""
    path = setting.run_dir / "metrics.jsonl"
    before = path.stat().st_mtime_ns if path.exists() else 0
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(setting.generator.uniform(0.1, 6.0))
        return False
    if path.exists() and path.stat().st_mtime_ns != before:
        return False  # it trains already, and may do so to its end
    process.kill()
    process.wait()
    return True


def killed_in_evaluation(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Kill the run when the row of training before an evaluation is there, and its own is not."""
    interval = int(setting.flags[setting.flags.index("--eval_steps") + 1])

    def evaluates() -> bool:
        lines = (setting.run_dir / "metrics.jsonl").read_text().splitlines()
        try:
            row = json.loads(lines[-1])
        except (ValueError, IndexError):  # the line is still being written
            return False
        return bool(row["split"] == "train" and row["step"] % interval == 0)

    if not (trains(setting, process) and comes(process, evaluates)):
        return False
    time.sleep(setting.generator.uniform(0, 0.02))
    process.kill()
    process.wait()
    return True


def worker_killed(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Kill a process that reads rows for the run, which must end by itself and say why."""
    if not (trains(setting, process) and lasts(setting, process, share=0.3)):
        return False
    said_before = setting.num_said
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if child.name() == _WORKER_NAME]
        setting.generator.choice(workers).kill()
    except (psutil.NoSuchProcess, IndexError):  # the run has read all its rows
        return False
    message = b"a process that reads rows has died"
    came = ended_by_itself(setting, process, since=said_before, message=message)
    if left := stays_behind(setting):
        raise LostError(f"left: {left}")
    return came


def second_run(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Give the command once more while the run trains; it must be refused, and the run go on."""
    if not (trains(setting, process) and lasts(setting, process, share=0.5)):
        return False
    process.send_signal(signal.SIGSTOP)  # so that it is still at work when the other comes
    try:
        said_before, message = setting.num_said, b"another process is at work in run"
        second = setting.start()
        if not ended_by_itself(setting, second, since=said_before, status=2, message=message):
            raise LostError("a second run in the folder is not refused")
    finally:
        process.send_signal(signal.SIGCONT)
    if status := process.wait():
        raise LostError(f"a run beside which another was refused ends with {status}")
    return True


def hub_away(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Cut all lines to the Hub in a push, some seconds long, and kill the run when it is back."""
    assert setting.hub is not None
    if not appears(setting, process, "hub/[0-9]*-*"):
        return False
    setting.hub.faults = [HubFault(".", "cut", times=10**9)]
    time.sleep(setting.generator.uniform(0.5, 3.0))
    status = process.poll()
    setting.hub.faults = []
    if status not in (None, 0):
        raise LostError(f"a run without its Hub ends with {status}")
    time.sleep(setting.generator.uniform(0, 1.0))
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True
