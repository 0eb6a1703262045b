"""Copies that the cache keeps of data: what they hold, who uses them, and how they are removed.

Each copy is a folder, locked while it is made or removed. Beside it lies a file `.use`, whose lock
all processes share that read it. Its time is that of the last use.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from bert_pretrain.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, which removes no file that a process has mapped
    fcntl = None  # type: ignore[assignment]

# What this process reads, until it ends: to close a file would free its lock.
_HELD: dict[Path, IO[bytes]] = {}


@dataclass(frozen=True)
class Shelf:
    """A folder of copies of one kind.

    Attributes:
        folder: that holds them.
        describe: returns what the copy in a folder is of; raises an error if it is not whole.
        lock: returns the lock of whoever makes or removes a copy.
    """

    folder: Path
    describe: Callable[[Path], str]
    lock: Callable[[Path], FileLock]


@dataclass(frozen=True)
class Copy:
    """A copy in a folder.

    Attributes:
        shelf: that it lies on.
        description: of the data, and of where they come from.
        num_bytes: of all its files.
        last_used: seconds since 1970.
    """

    shelf: Shelf
    folder: Path
    description: str
    num_bytes: int
    last_used: float


def hold(folder: Path) -> None:
    """Keep a copy from being removed until this process ends, and note that it is used.

    Where nothing can be written or locked, such as on a read-only disk, it does nothing.
    """
    with contextlib.suppress(OSError):
        if folder not in _HELD:
            _HELD[folder] = _use_file(folder).open("ab")
            if fcntl is not None:
                fcntl.flock(_HELD[folder], fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(_use_file(folder))


def list_copies(shelf: Shelf) -> list[Copy]:
    """Return the copies on a shelf and what was left of unfinished ones, longest unused first."""
    place = shelf.folder
    folders = (path for path in place.iterdir() if path.is_dir()) if place.is_dir() else ()
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):  # it has just been renamed or removed
            found.append(_copy_in(folder, shelf))
    return sorted(found, key=lambda copy: (copy.last_used, copy.folder))


def is_used(copy: Copy) -> bool:
    """Return whether a process reads a copy, or makes it."""
    with _alone_with(copy) as is_free:
        return not is_free


def remove(copy: Copy) -> bool:
    """Remove a copy unless a process reads it or makes it; return whether it is gone."""
    with _alone_with(copy) as is_free:
        if is_free:
            shutil.rmtree(copy.folder, ignore_errors=True)
            # The lock stays: another process may be waiting for it.
            with contextlib.suppress(OSError):
                _use_file(copy.folder).unlink(missing_ok=True)
        return not copy.folder.exists()


@contextlib.contextmanager
def _alone_with(copy: Copy) -> Iterator[bool]:
    """Yield whether no process uses a copy; if so, none can begin to in this block."""
    # Without what `atomic_folder` adds to the name of an unfinished one.
    finished = copy.folder.with_name(copy.folder.name.split(".")[0])
    use = _use_file(copy.folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(copy.shelf.lock(finished).acquire(timeout=0))
            # Whoever has used it since has made the file.
            if fcntl is not None and use.exists():
                fcntl.flock(stack.enter_context(use.open("ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (Timeout, OSError, NotImplementedError):
            yield False
        else:
            yield True


def _use_file(folder: Path) -> Path:
    return Path(f"{folder}.use")


def _copy_in(folder: Path, shelf: Shelf) -> Copy:
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    use = _use_file(folder)
    last_used = (use if use.exists() else folder).stat().st_mtime
    try:
        description = shelf.describe(folder)
    except (InputError, OSError, ValueError, KeyError, TypeError):
        description = "unfinished or damaged"
    return Copy(shelf, folder, description, num_bytes, last_used)
