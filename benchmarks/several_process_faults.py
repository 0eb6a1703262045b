"""What is done to a run of two processes, or to their launcher.

Each fault gets the `Setting` of a run and its launcher, and returns whether it came before the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import psutil
from fault_setting import SECONDS_TO_FOLLOW, Fault, LostError, Setting, has_saved, is_alive, lasts


def one_process(number: signal.Signals) -> Fault:
    """Send a signal to one of two processes at any moment after another checkpoint."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        if not (has_saved(setting, process) and lasts(setting, process, share=0.2)):
            return False
        workers = psutil.Process(process.pid).children()
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(setting.generator.choice(workers).pid, number)
        return process.wait() != 0

    return apply


def one_killed_of_restarting(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Kill one of two processes after a checkpoint; their launcher must bring the run to its end.

    Raises:
        LostError: it does not.
    """
    said_before = setting.num_said
    if one_process(signal.SIGKILL)(setting, process):
        raise LostError(f"a launcher that starts again ends with {process.returncode}")
    return b"continuing from " in setting.said(said_before)  # else the run had just ended


def all_killed_for_others(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Kill all processes after another checkpoint, and let another number of them go on."""
    if not (has_saved(setting, process) and lasts(setting, process, share=0.2)):
        return False
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has noticed, and ended
            worker.kill()
    process.wait()
    numbers = (setting.kind.num_processes, setting.kind.other_num_processes)
    setting.num_processes = numbers[setting.num_processes == numbers[0]]
    return True


def launcher_killed(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Kill the launcher of two processes, which must end by themselves."""
    if not has_saved(setting, process):
        return False
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    limit = time.monotonic() + SECONDS_TO_FOLLOW
    while alive := [worker for worker in workers if is_alive(worker)]:
        if time.monotonic() > limit:
            for worker in alive:
                worker.kill()
            raise LostError(f"{len(alive)} processes outlive their launcher")
        time.sleep(0.1)
    return True
