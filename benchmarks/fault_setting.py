"""A run that machines do something to: where it is, how it is started, what is seen of it.

The faults themselves are in `single_process_faults`, `several_process_faults` and `disk_faults`,
their names in `fault_kinds`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from bert_pretrain.data.run_folder import list_checkpoints

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for a Hub on 127.0.0.1
from loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
SECONDS_TO_FOLLOW = 30  # for processes whose launcher is gone
_SECONDS_BETWEEN_LOOKS = 0.002
_SECONDS_TO_END = 120  # for a process that is to end by itself
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h


# What does it to a run that has begun; returns whether it came before the end.
Fault = Callable[["Setting", subprocess.Popen[bytes]], bool]


class LostError(Exception):
    """Something was lost, or somebody stayed behind, before the run could go on."""


class Kind(NamedTuple):
    """A fault: what is done, to how many processes, and with which flags beside the others."""

    fault: Fault
    num_processes: int = 1
    flags: str = ""  # that change no number of a run
    recipe: str = ""  # flags of the undisturbed run too
    with_hub: bool = False
    is_kill: bool = True  # with -9
    other_num_processes: int = 0  # that go on after a fault, in turn with the first; 0 = the same
    tolerance: float = 0.0  # relative, of the curve; 0 = all is the same to the last bit
    is_sharded: bool = False
    max_restarts: int = 0  # of the launcher


@dataclass
class Setting:
    """Where the runs of a fault are, and what is random about it."""

    folder: Path
    kind: Kind
    flags: list[str]
    seconds: float  # of the training of an undisturbed run
    generator: random.Random
    hub: LoopbackHub | None = None
    damaged: set[str] = field(default_factory=set)  # checkpoints that a fault has damaged, by name

    def __post_init__(self) -> None:
        """Begin with the processes of the kind."""
        self.num_processes = self.kind.num_processes

    @property
    def run_dir(self) -> Path:
        """The run that is disturbed."""
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        """Where its text is prepared."""
        return self.folder / "cache"

    @property
    def log(self) -> Path:
        """What all starts have printed."""
        return self.folder / "log"

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a start."""
        ours = {"HF_HOME": str(self.cache), "PYTHONPATH": str(ROOT)}
        if self.kind.is_sharded:  # as `accelerate launch` with configs/accelerate/fsdp2.yaml
            ours |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        hub = self.hub.environment(self.folder) if self.hub else {"HF_HUB_OFFLINE": "1"}
        return os.environ | hub | ours

    def start(self) -> subprocess.Popen[bytes]:
        """Start or continue the run."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        launcher += ["--max-restarts", str(self.kind.max_restarts)]
        command = [sys.executable, *(launcher if self.num_processes == 2 else [])]
        command += [str(ROOT / "run_pretraining.py"), *self.flags, "--output_dir", "run"]
        command += ["--resume_from_checkpoint", "auto", "--stuck_timeout", "20"]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_obey_permissions,
        )
        # Through a pipe: a limit on the sizes of files is not to keep the run from speaking.
        threading.Thread(target=_keep, args=(process, self.log), daemon=True).start()
        return process

    @property
    def num_said(self) -> int:
        """How many bytes all starts have printed until now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def said(self, since: int) -> bytes:
        """Return what a start that has ended has printed after so many bytes."""
        time.sleep(0.5)  # until all of it has been kept
        return self.log.read_bytes()[since:]


def _obey_permissions() -> None:
    """Let a process of root be refused where permissions refuse others."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)


def _keep(process: subprocess.Popen[bytes], path: Path) -> None:
    assert process.stdout is not None
    with path.open("ab") as log:
        shutil.copyfileobj(process.stdout, log)


def comes(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> bool:
    """Wait until something is so; return whether it was before the process had ended."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True


def lasts(setting: Setting, process: subprocess.Popen[bytes], *, share: float) -> bool:
    """Wait for at most a share of a training's time, at random; return whether the run goes on."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(setting.generator.uniform(0, share) * setting.seconds)
        return False
    return True


def trains(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a run trains: it begins metrics.jsonl, or writes it again."""
    path = setting.run_dir / "metrics.jsonl"

    def written() -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    before = written()
    return comes(process, lambda: written() != before)


def has_saved(setting: Setting, process: subprocess.Popen[bytes], *, total: int = 1) -> bool:
    """Wait until a run has another checkpoint, of at least so many."""
    before = list_checkpoints(setting.run_dir / "checkpoints")

    def is_there() -> bool:
        found = list_checkpoints(setting.run_dir / "checkpoints")
        return len(found) >= total and found[-1:] != before[-1:]

    return comes(process, is_there)


def appears(setting: Setting, process: subprocess.Popen[bytes], pattern: str) -> bool:
    """Wait until a file or folder of a pattern is made below the run or its cache."""

    def present() -> set[tuple[str, int, int]]:
        found = set()
        for place in (setting.run_dir, setting.cache):
            for path in place.glob(pattern):
                with contextlib.suppress(OSError):  # it has just been renamed
                    status = path.stat()
                    found.add((path.name, status.st_ino, status.st_ctime_ns))
        return found

    before = present()  # what an earlier start has left
    return comes(process, lambda: bool(present() - before))


def ended_by_itself(
    setting: Setting,
    process: subprocess.Popen[bytes],
    *,
    since: int,
    status: int = 1,
    message: bytes = b"",
) -> bool:
    """Wait for the end of a run that cannot go on; return whether it came before its own end.

    Args:
        setting: of the run.
        process: of the run.
        since: what all starts had printed before the fault, in bytes.
        status: that it must end with.
        message: what must stand in the one line with which it says why.

    Raises:
        LostError: it does not end, or not so.
    """
    try:
        found = process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        raise LostError("the run goes on though it cannot") from None
    if found == 0:
        return False
    said = setting.said(since)
    errors = [line for line in said.splitlines() if b"error: " in line]
    is_one_line = len(errors) == 1 and message in errors[0]
    if found != status or not is_one_line or b"Traceback" in said:
        raise LostError(f"the run ends with {found} and {len(errors)} messages, not as it should")
    return True


def stays_behind(setting: Setting) -> list[str]:
    """Return the commands of processes of a setting's runs that do not end, and end them."""

    def alive() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HF_HOME") == str(setting.cache) and is_alive(process):
                    found.append(process)
        return found

    limit = time.monotonic() + SECONDS_TO_FOLLOW
    while (found := alive()) and time.monotonic() < limit:
        time.sleep(0.1)
    names = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(process.cmdline())[:200])
            process.kill()
    return names


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; one that nobody has waited for does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
