"""Copies of decoded images on disk: what they hold, who uses them, and how they are removed.

Each copy is a folder. Beside it lie two files: `.lock`, locked while it is made or removed, and
`.use`, whose lock all processes share that read it. Its time is that of the last use.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, which removes no file that a process has mapped
    fcntl = None  # type: ignore[assignment]

PIXELS_FILE, LABELS_FILE, MOMENTS_FILE = "pixels.npy", "labels.npy", "moments.npy"
MANIFEST = "manifest.json"
# What this process reads, until it ends: to close a file would free its lock.
_HELD: dict[Path, IO[bytes]] = {}


@dataclass(frozen=True)
class Copy:
    """The decoded images in a folder.

    Attributes:
        description: of the images, and of where they come from.
        num_bytes: of all its files.
        last_used: seconds since 1970.
    """

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


def list_copies(cache_dir: Path) -> list[Copy]:
    """Return the copies in a folder and what was left of unfinished ones, longest unused first."""
    folders = (path for path in cache_dir.iterdir() if path.is_dir()) if cache_dir.is_dir() else ()
    return sorted(map(_describe, folders), key=lambda copy: (copy.last_used, copy.folder))


def is_used(copy: Copy) -> bool:
    """Return whether a process reads a copy, or makes it."""
    with _alone_with(copy.folder) as is_free:
        return not is_free


def remove(copy: Copy) -> bool:
    """Remove a copy unless a process reads it or makes it; return whether it is gone."""
    with _alone_with(copy.folder) as is_free:
        if is_free:
            shutil.rmtree(copy.folder, ignore_errors=True)
            # The lock stays: another process may be waiting for it.
            with contextlib.suppress(OSError):
                _use_file(copy.folder).unlink(missing_ok=True)
        return not copy.folder.exists()


@contextlib.contextmanager
def _alone_with(folder: Path) -> Iterator[bool]:
    """Yield whether no process uses a copy; if so, none can begin to in this block."""
    # Without what `atomic_folder` adds to the name of an unfinished one.
    finished = folder.with_name(folder.name.split(".")[0])
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(f"{finished}.lock", timeout=0))
            # Whoever has used it since has made the file.
            if fcntl is not None and _use_file(folder).exists():
                file = stack.enter_context(_use_file(folder).open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (Timeout, OSError, NotImplementedError):
            yield False
        else:
            yield True


def _use_file(folder: Path) -> Path:
    return Path(f"{folder}.use")


def _describe(folder: Path) -> Copy:
    files = [path for path in folder.rglob("*") if path.is_file()]
    use = _use_file(folder)
    last_used = (use if use.exists() else folder).stat().st_mtime
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        height, width, _ = manifest["shape"]
        count = len(np.load(folder / MOMENTS_FILE, mmap_mode="r"))
        description = f"{count:,} of {width} x {height} from {manifest['source']['description']}"
    except (OSError, ValueError, KeyError, TypeError):
        description = "unfinished or damaged"
    return Copy(folder, description, sum(path.stat().st_size for path in files), last_used)
