"""Which files the data flags mean: paths, globs and folders of data sets."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from bert_pretrain.errors import InputError


def existing_files(pattern: str) -> list[Path]:
    """Return the files that a path or a glob means, sorted.

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
            advice="`data_files` takes paths and globs of existing files",
        )
    return found


def files_fingerprint(files: Iterable[Path], *more: str) -> str:
    """Return a hash of paths, sizes and times of files and of `more`; it tells when what they hold may have changed."""
    sha256 = hashlib.sha256()
    for path in files:
        status = (
            path.stat() if path.exists() else path.lstat()
        )  # a dangling link is a bad image, no reason to stop
        sha256.update(
            json.dumps([str(path.resolve()), status.st_size, status.st_mtime_ns]).encode()
        )
    sha256.update(json.dumps(more).encode())
    return sha256.hexdigest()


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` itself saved a data set in a folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
