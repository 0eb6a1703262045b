"""Files that paths and globs name, what tells that they changed, and folders of data sets."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from bert_pretrain.errors import InputError


def existing_files(pattern: str, *, parameter: str = "data_files") -> list[Path]:
    """Return the files that a path or a glob means, sorted.

    Args:
        pattern: path or glob.
        parameter: that gave it.

    Raises:
        InputError: there is none.
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    found = sorted(
        Path(path) for path in glob.glob(pattern, recursive=True) if Path(path).is_file()
    )
    if not found:
        raise InputError(
            f"there is no file {pattern!r}",
            advice=f"`{parameter}` takes paths and globs of existing files",
        )
    return found


def files_fingerprint(files: Iterable[Path], *more: str) -> str:
    """Return a hash of `more` and of the paths, sizes and times of files: it tells of changes."""
    sha256 = hashlib.sha256()
    for path in files:
        # A dangling link is a bad image, which whoever reads it reports.
        status = path.stat() if path.exists() else path.lstat()
        sha256.update(
            json.dumps([str(path.resolve()), status.st_size, status.st_mtime_ns]).encode()
        )
    sha256.update(json.dumps(more).encode())
    return sha256.hexdigest()


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder holds a data set that `datasets` saved."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
