"""Files and folders that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bert_pretrain.errors import InputError, MachineError, hide_secrets

# Of folders that nobody else makes, so that what an ended process left may be removed.
_ASIDE, _REPLACED = ".bert-pretrain.tmp", ".bert-pretrain.old"


@contextlib.contextmanager
def naming_disk(folder: Path) -> Iterator[None]:
    """Let an error of writing below a folder, in this block, name the folder and its disk.

    Raises:
        MachineError: a file could not be written.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_writing(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        free = ""
        with contextlib.suppress(OSError):
            existing = next(path for path in (folder, *folder.parents) if path.exists())
            free = f"; {shutil.disk_usage(existing).free / 2**20:,.0f} MiB of its disk are free"
        raise MachineError(
            f"what belongs into {folder.absolute()} cannot be written ({reason}{free}). What was "
            "there before is as it was"
        ) from error


def _is_of_writing(error: Exception) -> bool:
    """Return whether an error is one of writing, as the libraries that write for us raise it."""
    is_of_tokenizers = type(error) is Exception and "(os error " in str(error)  # Rust's words
    return isinstance(error, OSError | SafetensorError) or is_of_tokenizers


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end of the block.

    If the block fails, an older file stays as it was.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; it appears whole or not at all."""
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, allow_nan: bool = False) -> None:
    """Write a JSON file without this environment's secrets; it appears whole or not at all.

    Raises:
        ValueError: there is a NaN or an infinity, which standard JSON does not have, and
            `allow_nan` is False.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=allow_nan)
    write_text(path, hide_secrets(text) + "\n")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, and rename it to `folder` at the end of the block.

    If the block fails, an older folder stays as it was, and no folder above it is left behind. Of
    a link the folder that it leads to is replaced, on the disk where that lies.

    Raises:
        InputError: it is the current folder or one above it, which cannot be replaced.
    """
    folder = Path(os.path.realpath(folder))  # "." has no name
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"{folder} is the current folder or holds it and cannot be replaced",
            advice="pass a folder below it as `output_dir`",
        )
    aside = folder.with_name(folder.name + _ASIDE)
    shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
    absent_parents = [path for path in folder.parents if not path.exists()]
    try:
        aside.mkdir(parents=True)
        yield aside
        replace_folder(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in absent_parents:  # the innermost first
            with contextlib.suppress(OSError):  # somebody uses it meanwhile
                parent.rmdir()
        raise


def replace_folder(aside: Path, target: Path) -> None:
    """Rename a finished folder to `target`; an older `target` is moved away first, then removed."""
    _give_usual_modes(aside)
    old = target.with_name(target.name + _REPLACED)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(aside, target)
    shutil.rmtree(old, ignore_errors=True)


def _give_usual_modes(folder: Path) -> None:
    """Let whoever may read new files of this process read all files: safetensors hides its own."""
    probe = folder / ".mode"
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(usual)


def check_creatable(folder: Path, *, parameter: str) -> None:
    """Check, without making it, that a folder exists or can be made, and can be written to.

    Raises:
        InputError: it cannot; `parameter` gave the folder.
    """
    absolute = folder.absolute()
    # A link to nothing is there, and no folder.
    nearest = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not (nearest.is_dir() and _takes_a_file(nearest)):
        below = f"cannot be created in {nearest}"
        problem = "is no folder to write into" if nearest == absolute else below
        raise InputError(f"{folder} {problem}", advice=f"pass another `{parameter}`")


def _takes_a_file(folder: Path) -> bool:
    """Return whether a file can be made in a folder; permissions alone do not tell, as in /proc."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def make_folder(folder: Path, *, parameter: str) -> None:
    """Make a folder for results.

    Raises:
        InputError: it cannot be made or written to; `parameter` gave the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made ({error.strerror})", advice=f"change `{parameter}`"
        ) from error
    if not writable:
        raise InputError(
            f"{folder} cannot be written to", advice=f"change `{parameter}` or its permissions"
        )
