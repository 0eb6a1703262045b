"""What machines do to runs: each fault is a function that does it to a run that has begun.

It gets the `Setting` of the run and its process, and returns whether the fault came before the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from bert_pretrain.data.run_folder import list_checkpoints

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for a Hub on 127.0.0.1
from loopback_hub import Fault as HubFault
from loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
PUSH = "--save_steps 50 --push_to_hub --hub_model_id tester/words --hub_strategy every_save"
_SECONDS_BETWEEN_LOOKS = 0.002
_SECONDS_TO_END = 120  # for a process that is to end by itself
_SECONDS_TO_FOLLOW = 30  # for processes whose launcher is gone
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h


class LostError(Exception):
    """Something was lost, or somebody stayed behind, before the run could go on."""


@dataclass
class Setting:
    """Where the runs of a fault are, and what is random about it."""

    folder: Path
    flags: list[str]
    num_processes: int
    seconds: float  # of the training of an undisturbed run
    generator: random.Random
    hub: LoopbackHub | None = None

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
        hub = self.hub.environment(self.folder) if self.hub else {"HF_HUB_OFFLINE": "1"}
        return os.environ | hub | ours

    def start(self) -> subprocess.Popen[bytes]:
        """Start or continue the run."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
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


def _obey_permissions() -> None:
    """Let a process of root be refused where permissions refuse others."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)


def _keep(process: subprocess.Popen[bytes], path: Path) -> None:
    assert process.stdout is not None
    with path.open("ab") as log:
        shutil.copyfileobj(process.stdout, log)


Fault = Callable[[Setting, subprocess.Popen[bytes]], bool]  # whether it came before the end


def comes(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> bool:
    """Wait until something is so; return whether it was before the process had ended."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
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


def at_random(number: signal.Signals) -> Fault:
    """Send a signal at any moment of the training."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        if not trains(setting, process):
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(setting.generator.uniform(0, 0.5) * setting.seconds)
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


def one_process(number: signal.Signals) -> Fault:
    """Send a signal to one of two processes at any moment after another checkpoint."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        if not has_saved(setting, process):
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(setting.generator.uniform(0, 0.2) * setting.seconds)
            return False
        workers = psutil.Process(process.pid).children()
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(setting.generator.choice(workers).pid, number)
        return process.wait() != 0

    return apply


def launcher_killed(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Kill the launcher of two processes, which must end by themselves."""
    if not has_saved(setting, process):
        return False
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    limit = time.monotonic() + _SECONDS_TO_FOLLOW
    while alive := [worker for worker in workers if is_alive(worker)]:
        if time.monotonic() > limit:
            for worker in alive:
                worker.kill()
            raise LostError(f"{len(alive)} processes outlive their launcher")
        time.sleep(0.1)
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

    limit = time.monotonic() + _SECONDS_TO_FOLLOW
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


def after_a_kill(damage: Callable[[Path, random.Random], None]) -> Fault:
    """Kill the run once there are two checkpoints, and damage what it left."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        if not has_saved(setting, process, total=2):
            return False
        process.kill()
        process.wait()
        damage(setting.run_dir, setting.generator)
        return True

    return apply


def flip_a_bit(run_dir: Path, generator: random.Random) -> None:
    """Flip a bit of any file of the newest checkpoint."""
    *_, newest = list_checkpoints(run_dir / "checkpoints")
    path = generator.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def cut_a_file(run_dir: Path, generator: random.Random) -> None:
    """Cut any file of the newest checkpoint short."""
    *_, newest = list_checkpoints(run_dir / "checkpoints")
    path = generator.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    os.truncate(path, generator.randrange(path.stat().st_size))


def empty_the_newest(run_dir: Path, generator: random.Random) -> None:
    """Leave the newest checkpoint an empty folder."""
    *_, newest = list_checkpoints(run_dir / "checkpoints")
    shutil.rmtree(newest)
    newest.mkdir()


def lose_run_json(run_dir: Path, generator: random.Random) -> None:
    """Remove run.json."""
    (run_dir / "run.json").unlink(missing_ok=True)


def ended_by_itself(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the end of a run that cannot write; return whether it came before its own end.

    Raises:
        LostError: it does not end, or not as one that says what the machine refuses.
    """
    said_before = setting.log.stat().st_size if setting.log.exists() else 0
    try:
        status = process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        raise LostError("the run goes on though it cannot write") from None
    time.sleep(0.5)  # until all that it said has been kept
    said = setting.log.read_bytes()[said_before:]
    if status not in (0, 1) or b"Traceback" in said:
        raise LostError(f"the run ends with {status}")
    return status == 1


def disk_full_while(pattern: str | None) -> Fault:
    """Let no file grow any more, once there is one of a pattern, or at any moment of the training.

    A limit on the sizes of files fails as a full disk does: in the middle of a write.
    """

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        if pattern is None:
            if not trains(setting, process):
                return False
            time.sleep(setting.generator.uniform(0, 0.3) * setting.seconds)
        elif not appears(setting, process, pattern):
            return False
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
        return ended_by_itself(setting, process)

    return apply


def disk_read_only(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Take the right to write from the run's folders and from metrics.jsonl, and give it back."""
    if not has_saved(setting, process):
        return False
    run_dir = setting.run_dir
    places = {run_dir: 0o555, run_dir / "checkpoints": 0o555, run_dir / "metrics.jsonl": 0o444}
    before = {place: place.stat().st_mode for place in places}
    try:
        for place, mode in places.items():
            place.chmod(mode)
        return ended_by_itself(setting, process)
    finally:
        for place, mode in before.items():
            place.chmod(mode)


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


class Kind(NamedTuple):
    """A fault: what is done, to how many processes, and with which flags beside the others."""

    fault: Fault
    num_processes: int = 1
    flags: str = ""
    with_hub: bool = False
    is_kill: bool = True  # with -9


FAULTS: dict[str, Kind] = {
    "killed at random": Kind(at_random(signal.SIGKILL)),
    "killed before it trains": Kind(killed_in_start),
    "killed in preparation": Kind(killed_while("bert_pretrain/prepared/*.tmp")),
    "killed in a checkpoint": Kind(killed_while("checkpoints/step-*.tmp")),
    "killed in an evaluation": Kind(killed_in_evaluation),
    "killed in the export": Kind(killed_while("final.new*")),
    "killed in a push": Kind(killed_while("hub/[0-9]*-*", seconds=3.0), flags=PUSH, with_hub=True),
    "Hub away in a push, then killed": Kind(hub_away, flags=PUSH, with_hub=True),
    "SIGTERM at random": Kind(at_random(signal.SIGTERM), is_kill=False),
    "SIGINT at random": Kind(at_random(signal.SIGINT), is_kill=False),
    "SIGUSR1 at random": Kind(at_random(signal.SIGUSR1), is_kill=False),
    "killed, bit flipped in the newest checkpoint": Kind(after_a_kill(flip_a_bit)),
    "killed, newest checkpoint cut short": Kind(after_a_kill(cut_a_file)),
    "killed, newest checkpoint empty": Kind(after_a_kill(empty_the_newest)),
    "killed, run.json lost": Kind(after_a_kill(lose_run_json)),
    "disk full in preparation": Kind(
        disk_full_while("bert_pretrain/prepared/*.tmp"), is_kill=False
    ),
    "disk full in a checkpoint": Kind(disk_full_while("checkpoints/step-*.tmp"), is_kill=False),
    "disk full, no row of metrics": Kind(
        disk_full_while(None), flags="--save_steps 0", is_kill=False
    ),
    "disk read-only": Kind(disk_read_only, is_kill=False),
    "one of two killed": Kind(one_process(signal.SIGKILL), num_processes=2),
    "one of two told to stop": Kind(one_process(signal.SIGTERM), num_processes=2, is_kill=False),
    "one of two hangs": Kind(one_process(signal.SIGSTOP), num_processes=2, is_kill=False),
    "launcher of two killed": Kind(launcher_killed, num_processes=2),
}
