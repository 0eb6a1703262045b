"""What is done to the files of a run, and to the disk that they are on.

Each fault gets the `Setting` of a run and its process, and returns whether it came before the end.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fault_setting import Fault, Setting, appears, ended_by_itself, has_saved, trains

from bert_pretrain.data.run_folder import list_checkpoints


def after_a_kill(damage: Callable[[Setting], None]) -> Fault:
    """Kill the run once there are two checkpoints, and damage what it left."""

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        if not has_saved(setting, process, total=2):
            return False
        process.kill()
        process.wait()
        damage(setting)
        return True

    return apply


def _newest(setting: Setting) -> Path:
    """Return the newest checkpoint, and note that it is no longer whole."""
    *_, newest = list_checkpoints(setting.run_dir / "checkpoints")
    setting.damaged.add(newest.name)
    return newest


def _any_file(setting: Setting, folder: Path) -> Path:
    return setting.generator.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def flip_a_bit(setting: Setting) -> None:
    """Flip a bit of any file of the newest checkpoint."""
    path = _any_file(setting, _newest(setting))
    content = bytearray(path.read_bytes())
    content[setting.generator.randrange(len(content))] ^= 1 << setting.generator.randrange(8)
    path.write_bytes(content)


def cut_a_file(setting: Setting) -> None:
    """Cut any file of the newest checkpoint short."""
    path = _any_file(setting, _newest(setting))
    os.truncate(path, setting.generator.randrange(path.stat().st_size))


def empty_the_newest(setting: Setting) -> None:
    """Leave the newest checkpoint an empty folder."""
    newest = _newest(setting)
    shutil.rmtree(newest)
    newest.mkdir()


def lose_run_json(setting: Setting) -> None:
    """Remove run.json."""
    (setting.run_dir / "run.json").unlink(missing_ok=True)


def disk_full_while(pattern: str | None) -> Fault:
    """Let no file grow any more, once there is one of a pattern, or at any moment of the training.

    A limit on the sizes of files fails as a full disk does: in the middle of a write.
    """

    def apply(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
        said_before = setting.num_said
        if pattern is None:
            if not trains(setting, process):
                return False
            time.sleep(setting.generator.uniform(0, 0.3) * setting.seconds)
        elif not appears(setting, process, pattern):
            return False
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
        return ended_by_itself(setting, process, since=said_before)

    return apply


def disk_read_only(setting: Setting, process: subprocess.Popen[bytes]) -> bool:
    """Take the right to write from the run's folders and from metrics.jsonl, and give it back."""
    if not has_saved(setting, process):
        return False
    said_before, run_dir = setting.num_said, setting.run_dir
    places = {run_dir: 0o555, run_dir / "checkpoints": 0o555, run_dir / "metrics.jsonl": 0o444}
    before = {place: place.stat().st_mode for place in places}
    try:
        for place, mode in places.items():
            place.chmod(mode)
        return ended_by_itself(setting, process, since=said_before)
    finally:
        for place, mode in before.items():
            place.chmod(mode)
