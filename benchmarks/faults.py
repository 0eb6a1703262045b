"""Do to runs what machines do to them, let the same command go on, and compare with a whole run.

Each fault is tried --times times, each time on the run as the last one left it; every start, the
first one too, is the same command with `--resume_from_checkpoint auto`. Then the run goes on to its
end, and its metrics and weights must be those of an undisturbed run to the last bit; anything else
counts as lost. No temporary file may be left. Faults are added to --json, each in place of its
earlier ones. Flags for run_pretraining.py follow after --.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from results import read_runs, write_results

from bert_pretrain.data.run_folder import list_checkpoints
from bert_pretrain.training.metrics import OF_THE_MACHINE

PROGRAM = str(Path(__file__).parents[1] / "run_pretraining.py")
FLAGS = "--max_steps 120 --save_steps 10 --eval_steps 40 --max_hours 0 --max_eval_rows 256"
_SECONDS_BETWEEN_LOOKS = 0.002


@dataclass
class Setting:
    """Where the runs of a fault are, and what is random about it."""

    folder: Path
    flags: list[str]
    num_processes: int
    seconds: float  # of an undisturbed run
    generator: random.Random

    @property
    def run_dir(self) -> Path:
        """The run that is disturbed."""
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        """Where its text is prepared."""
        return self.folder / "cache"

    def start(self) -> subprocess.Popen[bytes]:
        """Start or continue the run."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [sys.executable, *(launcher if self.num_processes == 2 else []), PROGRAM]
        command += [*self.flags, "--output_dir", str(self.run_dir)]
        command += ["--resume_from_checkpoint", "auto", "--stuck_timeout", "20"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.cache)}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


Fault = Callable[[Setting, subprocess.Popen[bytes]], bool]  # whether it came before the end


def at_random(number: signal.Signals) -> Fault:
    """Send a signal at any moment."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(setting.generator.uniform(0.1, 0.7) * setting.seconds)
            return False
        process.send_signal(number)
        process.wait()
        return True

    return apply


def killed_while(pattern: str) -> Fault:
    """Kill the run while a file or folder of a pattern exists below the run or its cache."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        delay = setting.generator.uniform(0, 0.05)
        while not any(any(place.glob(pattern)) for place in (setting.run_dir, setting.cache)):
            if process.poll() is not None:
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        time.sleep(delay)
        process.kill()
        process.wait()
        return True

    return apply


def one_process(number: signal.Signals) -> Fault:
    """Send a signal to one of two processes once there is another checkpoint."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        before = list_checkpoints(setting.run_dir / "checkpoints")[-1:]
        while list_checkpoints(setting.run_dir / "checkpoints")[-1:] == before:
            if process.poll() is not None:
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        workers = psutil.Process(process.pid).children()
        os.kill(setting.generator.choice(workers).pid, number)
        process.wait()
        return True

    return apply


def after_a_kill(damage: Callable[[Path, random.Random], None]) -> Fault:
    """Kill the run once there are two checkpoints, and damage what it left."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        while len(list_checkpoints(setting.run_dir / "checkpoints")) < 2:
            if process.poll() is not None:
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
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


FAULTS: dict[str, tuple[int, Fault]] = {  # processes, and what is done
    "killed at random": (1, at_random(signal.SIGKILL)),
    "killed in preparation": (1, killed_while("bert_pretrain/prepared/*.tmp")),
    "killed in a checkpoint": (1, killed_while("checkpoints/step-*.tmp")),
    "killed in export": (1, killed_while("final.new*")),
    "SIGTERM at random": (1, at_random(signal.SIGTERM)),
    "SIGINT at random": (1, at_random(signal.SIGINT)),
    "SIGUSR1 at random": (1, at_random(signal.SIGUSR1)),
    "bit flipped in the newest checkpoint": (1, after_a_kill(flip_a_bit)),
    "newest checkpoint cut short": (1, after_a_kill(cut_a_file)),
    "newest checkpoint empty": (1, after_a_kill(empty_the_newest)),
    "run.json lost": (1, after_a_kill(lose_run_json)),
    "one of two killed": (2, one_process(signal.SIGKILL)),
    "one of two told to stop": (2, one_process(signal.SIGTERM)),
    "one of two hangs": (2, one_process(signal.SIGSTOP)),
}


def content(run_dir: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the metrics without the machine's numbers, and the digest of the exported weights."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {key: value for key, value in row.items() if not key.endswith(OF_THE_MACHINE)}
        for row in rows
    ]
    return kept, hashlib.sha256((run_dir / "final/model.safetensors").read_bytes()).hexdigest()


def leftovers(run_dir: Path) -> list[str]:
    """Return what a finished run should not have left."""
    return [path.name for path in run_dir.rglob("*") if path.suffix in (".tmp", ".old", ".new")]


@contextlib.contextmanager
def made_setting(
    flags: list[str], num_processes: int, seconds: float, generator: random.Random
) -> Iterator[Setting]:
    """Yield the setting of a fault in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        yield Setting(Path(name), flags, num_processes, seconds, generator)


def try_fault(
    setting: Setting, fault: Fault, *, times: int, whole: tuple[list[dict[str, Any]], str]
) -> dict[str, Any]:
    """Return how often a fault came, and whether anything was lost."""
    num_tried = 0
    for _ in range(3 * times):
        if num_tried == times:
            break
        if fault(setting, setting.start()):
            num_tried += 1
        else:  # the run has ended before; what follows is tried on a new one
            shutil.rmtree(setting.run_dir, ignore_errors=True)
            shutil.rmtree(setting.cache, ignore_errors=True)
    status = setting.start().wait()
    is_same = status == 0 and content(setting.run_dir) == whole
    left = leftovers(setting.run_dir)
    if not is_same or left:
        print((setting.folder / "log").read_text()[-3000:], f"left: {left}")
    return {"tried": num_tried, "lost": 0 if is_same and not left else num_tried}


def totals(runs: list[dict[str, Any]]) -> dict[str, int]:
    """Return how often faults were tried in all, and how many runs lost something."""
    return {key: sum(run[key] for run in runs) for key in ("tried", "lost")}


def main() -> None:
    """Try all faults, print the table, write the figures; exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=4, help="of each fault")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help=f"default: {FLAGS}")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    flags = arguments.flags or FLAGS.split()
    wholes: dict[int, tuple[tuple[list[dict[str, Any]], str], float]] = {}
    runs = [run for run in read_runs(arguments.json) if run["fault"] not in arguments.faults]
    for name in arguments.faults:
        num_processes, fault = FAULTS[name]
        if num_processes not in wholes:
            with made_setting(flags, num_processes, 0.0, generator) as setting:
                start = time.perf_counter()
                if setting.start().wait():
                    sys.exit((setting.folder / "log").read_text()[-3000:])
                seconds = time.perf_counter() - start
                wholes[num_processes] = content(setting.run_dir), seconds
        whole, seconds = wholes[num_processes]
        with made_setting(flags, num_processes, seconds, generator) as setting:
            found = try_fault(setting, fault, times=arguments.times, whole=whole)
        runs.append({"fault": name, "processes": num_processes} | found)
        write_results(arguments.json, totals(runs), runs=runs)
    for run in [*runs, {"fault": "all"} | totals(runs)]:
        print(f"{run['fault']:40} tried {run['tried']:3}, lost {run['lost']:3}")
    sys.exit(totals(runs)["lost"] > 0)


if __name__ == "__main__":
    main()
