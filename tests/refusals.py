"""What every command does with bad input: one message, status 2, and not a file changed."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bert_pretrain.__main__ import main

# What is wrong, with the value met and what is allowed; then what to change.
_MESSAGE = re.compile(r"error: (?P<problem>[^\n]+); (?P<advice>.+)\n", re.DOTALL)

_FLAG = re.compile(r"(?<![\w-])--[a-z]\w*")
# What a message says to start, with the flags of that: they are not of the command that refuses.
_ANOTHER_COMMAND = re.compile(r"(?:bert-pretrain [a-z-]+|run_pretraining\.py)(?: --\w+)+")


@functools.cache
def flags_of(*command: str) -> set[str]:
    """Return the flags that the help of a command names."""
    shown = io.StringIO()
    # A suite of `evaluate` has flags of its own.
    for more in ([], ["--suite", "label_efficiency"]) if command == ("evaluate",) else ([],):
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([*command, *more, "--help"])
    return set(_FLAG.findall(shown.getvalue())) | {"--help"}


def check_what_to_change(words: Sequence[str], message: str) -> None:
    """Check that a message names a flag that the command has, or what was given to it.

    No message names a flag that the command does not have: one of another command that uses the
    same reader, or an argument of a library, from whose message it was taken over.
    """
    num_names = 2 if words[0] == "hub" else 1
    given = {word.split("=")[0] for word in words[num_names:]}
    named = set(_FLAG.findall(_ANOTHER_COMMAND.sub("", message)))
    assert named <= flags_of(*words[:num_names]) | given, message
    assert named or any(len(word) > 1 and word in message for word in given), message


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return mode, size and time of all files below a folder, by name, and of folders the mode."""
    found = {}
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                found[entry.path] = (status.st_mode, status.st_size, status.st_mtime_ns)
                if entry.is_dir(follow_symlinks=False):
                    found[entry.path] = (status.st_mode, 0, 0)
                    folders.append(entry.path)
    return found


def refusal(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that is refused, in the current folder, and return the message.

    Args:
        command: its words as a shell has them, without the program's name.
        capsys: of the test.
    """
    before = snapshot(Path.cwd())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command))
    printed = capsys.readouterr()
    assert stopped.value.code == 2, printed
    assert "Traceback" not in printed.err
    found = _MESSAGE.search(printed.err)
    assert found, printed.err
    assert printed.err.count("error: ") == 1, printed.err
    check_what_to_change(shlex.split(command), found[0])
    after = snapshot(Path.cwd())
    assert before == after, {name for name in before | after if before.get(name) != after.get(name)}
    return found[0]


def check_refusal(command: str, words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a command line is refused with a message in which some words stand."""
    message = refusal(command, capsys)
    assert [word for word in words if word not in message] == [], message


def cases(**groups: tuple[str, Sequence[tuple[str, ...]]]) -> list[Any]:
    """Return parameters (command, words) of a test, of tables of flags and words.

    Each group has what its command lines begin with, and its table.
    """
    return [
        pytest.param(f"{begin} {flags}", words, id=f"{name}: {flags[:60]}")
        for name, (begin, table) in groups.items()
        for flags, *words in table
    ]
