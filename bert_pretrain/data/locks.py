"""Which process works in a folder: whoever writes into a run directory holds its lock.

The system frees the lock when the process ends, also when it is killed. The lock file stays: if
each holder removed it, two processes could hold two files of the same name.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bert_pretrain.errors import InputError

LOCK_FILE = ".lock"  # in the folder; it is not part of the folder's content
# The workers of a process that was killed may live on for five seconds and keep its lock.
TIMEOUT_SECONDS = 10.0


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder until the end of the block or of this process.

    Where no lock can be made (a read-only folder, some network file systems), a warning says so and
    the block runs unprotected.

    Raises:
        InputError: another process holds the folder, still after `TIMEOUT_SECONDS`.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=TIMEOUT_SECONDS)
    except Timeout:
        raise InputError(
            f"another process is at work in {folder}: it trains or publishes there",
            advice="wait until it has ended",
        ) from None
    except (OSError, NotImplementedError) as error:
        warnings.warn(
            f"{folder} cannot be locked ({error}): start no second process that writes there",
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Return whether a process holds a folder, as far as its file system can tell."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
