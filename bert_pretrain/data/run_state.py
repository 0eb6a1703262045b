"""What a run directory says of its run from outside: whether a process is at work in it, and whether it has ended.

Whoever writes into the folder of a run holds it, for as long as the process lives. `final/` keeps
the record of the start that it was written by: once the run is continued, run.json has a later one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bert_pretrain.data.run_records import read_run_json
from bert_pretrain.errors import InputError

if sys.platform != "win32":
    import fcntl

# A process that was killed may leave workers behind, which notice it after five seconds and hold
# the folder until then.
_PATIENCE_SECONDS = 10.0


class FinalModel(NamedTuple):
    """What lies in `final/` of a run.

    Attributes:
        step: updates that it has had; None if its record does not say.
        is_end: whether it is the end of the run; not once the run is continued.
    """

    step: int | None
    is_end: bool


def read_final(run_dir: Path) -> FinalModel | None:
    """Return what lies in `final/` of a run; None if it has not ended yet, or is no run of pretraining.

    Raises:
        InputError: a record is damaged.
    """
    if not (run_dir / "final/run.json").is_file():
        return None
    record = read_run_json(run_dir / "final")
    return FinalModel(
        record.get("step"), record.get("started") == read_run_json(run_dir).get("started")
    )


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder until the block, or this process, ends.

    The folder itself is locked, so that nothing is left behind. Where the file system has no locks
    nothing is kept.

    Raises:
        InputError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not _lock(handle, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise InputError(
                    f"another process is at work in {folder}: it trains or publishes there",
                    advice="wait until it has ended",
                )
            time.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(
                handle, fcntl.LOCK_UN
            )  # for child processes too, which have inherited the handle
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Return whether another process writes into a folder, as far as its file system can tell."""
    if sys.platform == "win32":
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        return not _lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True
