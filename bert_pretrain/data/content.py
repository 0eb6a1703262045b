"""What files hold: a hash of their bytes, computed once for each state of a file.

Paths enter; paths with a hash leave. The hash is the same wherever the file lies, so that what is
made of it can go on elsewhere; one of a compressed file is that of the compressed bytes. Hashes are
kept in the cache by path, size and times, so that later runs need not read the files for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from filelock import FileLock
from huggingface_hub import constants
from tqdm.auto import tqdm

from bert_pretrain.data.atomic import write_text
from bert_pretrain.errors import InputError

CACHE_FILE = "hashes.json"
_BLOCK_SIZE = 2**20
_KEEP_AFTER = 2**34  # bytes hashed, lest an interrupted run begin anew
# A file that changes twice within a tick of the file system's clock looks as if it did once.
_SETTLED_NANOSECONDS = 2 * 10**9

_State: TypeAlias = tuple[int, int, int]  # size in bytes, times of last change of content, status
_Known: TypeAlias = dict[str, tuple[_State, str]]  # state and hash by path


class HashedFile(NamedTuple):
    """A file, the state in which it was read, and the SHA-256 of its bytes then, hexadecimal."""

    path: Path
    state: _State
    hash: str


def hash_files(paths: Iterable[Path], *, anew: bool = False) -> list[HashedFile]:
    """Return files with the hashes of their bytes.

    Of processes that ask for the same files at once one computes and the others wait. With `anew`
    every file is read, whatever is known of it: a disk may give other bytes than it was given.

    Raises:
        InputError: a file cannot be read, or changes meanwhile.
    """
    paths = list(paths)
    folder = Path(constants.HF_HOME) / "bert_pretrain" / "content"
    known = {} if anew else _read_known(folder)
    found = [_look_up(path, known) for path in paths]
    if None not in found:
        return [file for file in found if file]
    with contextlib.suppress(OSError):  # without a cache it takes longer, no more
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        return _hash_unknown(paths, known, folder=None)
    names = json.dumps([str(path.resolve()) for path in paths])
    # Who asks for other files need not wait, but nor should every list leave a file of its own.
    with FileLock(folder / f"{hashlib.sha256(names.encode()).hexdigest()[:2]}.lock"):
        return _hash_unknown(paths, {} if anew else _read_known(folder), folder)


def check_unchanged(file: HashedFile) -> None:
    """Raise `InputError` if a file is no longer the one that was hashed, by size and time."""
    if _state_of(file.path)[:2] != file.state[:2]:
        raise _changed(file.path)


def _hash_unknown(paths: list[Path], known: _Known, folder: Path | None) -> list[HashedFile]:
    """Hash what is not known, and keep the hashes in a folder if there is one."""
    found = {path: _look_up(path, known) for path in paths}
    total = sum(path.stat().st_size for path, file in found.items() if file is None)
    new: list[HashedFile] = []
    num_bytes = 0
    with tqdm(total=total, desc="hashing", unit="B", unit_scale=True, delay=5) as progress:
        for path, file in found.items():
            if file is not None:
                continue
            begin = time.time_ns()
            file = found[path] = _hash(path, progress.update)
            num_bytes += file.state[0]
            if begin - max(file.state[1:]) > _SETTLED_NANOSECONDS:
                new.append(file)
            if folder is not None and num_bytes > _KEEP_AFTER:
                _keep(new, folder)
                new, num_bytes = [], 0
    if folder is not None and new:
        _keep(new, folder)
    return [file for file in map(found.__getitem__, paths) if file]


def _hash(path: Path, advance: Callable[[int], object]) -> HashedFile:
    state = _state_of(path)
    # 1.8 GB/s where the processor has instructions for it, and anybody can check it.
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_SIZE):
                sha256.update(block)
                advance(len(block))
    except OSError as error:
        raise _unreadable(path, error) from error
    if _state_of(path) != state:
        raise _changed(path)
    return HashedFile(path, state, sha256.hexdigest())


def _state_of(path: Path) -> _State:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    # Anybody can set the time of the content, nobody that of the status.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be read ({error.strerror})",
        advice="change its permissions, or what is to be read",
    )


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path} changes while it is read", advice="start again when nothing writes it any more"
    )


def _look_up(path: Path, known: _Known) -> HashedFile | None:
    state = _state_of(path)
    known_state, digest = known.get(str(path.resolve()), (None, ""))
    return HashedFile(path, state, digest) if state == known_state else None


def _read_known(folder: Path) -> _Known:
    """Return what the cache knows; nothing if there is none or it is damaged."""
    try:
        content = json.loads((folder / CACHE_FILE).read_text(encoding="utf-8"))
        return {path: (tuple(state), str(digest)) for path, (state, digest) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(files: list[HashedFile], folder: Path) -> None:
    """Add hashes to the cache, if it can be written, and drop those of files that are gone."""
    cache = folder / CACHE_FILE
    with contextlib.suppress(OSError), FileLock(f"{cache}.lock"):
        known = {path: entry for path, entry in _read_known(folder).items() if Path(path).exists()}
        known |= {str(file.path.resolve()): (file.state, file.hash) for file in files}
        write_text(cache, json.dumps(known))
