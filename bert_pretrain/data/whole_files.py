"""Files and folders that appear whole or not at all: they are written aside and renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_pretrain.errors import InputError


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give the path of a file to write in place of another one, and let it take the other's place when it is done.

    Args:
        path: where the file is to appear; what is there stays if the writing fails.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, allow_nan: bool = False) -> None:
    """Write a JSON file.

    Args:
        path: where it is to appear.
        content: as `json.dumps` takes it.
        allow_nan: write numbers that are none as NaN, which is no JSON, instead of raising
            `ValueError`.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=allow_nan) + "\n")


def replace_folder(aside: Path, target: Path) -> None:
    """Let a folder take the place of another one, if that exists, which is never there by half."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(aside, target)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill in place of another one, and let it take the other's place when it is done.

    Args:
        folder: where it is to appear; what is there stays if the writing fails.

    Raises:
        InputError: it is the folder one is in, or one above, which cannot be replaced.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"{folder} is the current folder or holds it and cannot be replaced",
            advice="pass a folder below it",
        )
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)  # what a process that was killed left
    try:
        aside.mkdir(parents=True)
        yield aside
        replace_folder(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def check_creatable(folder: Path, *, parameter: str) -> None:
    """Raise `InputError` unless a folder is there or can be made, as far as that can be told without making it."""
    nearest = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        where = (
            "is no folder to write into"
            if nearest == folder.absolute()
            else f"cannot be created in {nearest}"
        )
        raise InputError(f"{folder} {where}", advice=f"pass another `{parameter}`")


def make_folder(folder: Path, *, parameter: str) -> None:
    """Make a folder for results, once all that can be checked before is checked.

    Raises:
        InputError: it cannot be made or written to.
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
