"""Readers of JSON lines, and of JSON files that hold one array.

A path and the name of the parameter that gave it enter; objects leave, one after the other, each
with the number of its line. Whatever is wrong is one `InputError` that names file and line.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from bert_pretrain.data.row_files import LONGEST_LINE, file_kind, opened, read_lines
from bert_pretrain.errors import InputError, first_line

_BLANKS = re.compile(r"[ \t\r\n]*")
_LETTERS_AT_ONCE = 2**20


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: it is none, or nested more deeply than the parser can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_object(line: str) -> dict[str, Any]:
    """Return the object of a line of JSON.

    Raises:
        ValueError: there is none; the message continues "line 3, ...".
    """
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({_reason(error)})") from error
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, not an object")
    return row


def read_json_lines(path: Path, *, parameter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of each line of a file; empty lines are skipped.

    Raises:
        InputError: as for `read_lines`, or a line is not an object.
    """
    for number, line in enumerate(read_lines(path, parameter=parameter), start=1):
        if not line.strip():
            continue
        try:
            yield number, parse_object(line)
        except ValueError as error:
            or_array = ", or the file one array" if file_kind(path) == ".json" else ""
            raise InputError(
                f"{path}, line {number}, {error}",
                advice=f"each line must be an object{or_array}; repair it or change `{parameter}`",
            ) from error


def read_json(path: Path, *, parameter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of each row of a file of JSON lines, or of a .json of one array.

    The first letter tells which a .json is. Memory holds one object and a block of the file.

    Raises:
        InputError: as for `read_json_lines`, or the array has a member that is not an object.
    """
    if file_kind(path) == ".json" and _first_letter(path, parameter) == "[":
        return _read_array(path, parameter)
    return read_json_lines(path, parameter=parameter)


def _first_letter(path: Path, parameter: str) -> str:
    # Not the first line, which may be all of the file.
    with (
        opened(path, parameter) as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig") as file,
    ):
        return _Unread(file).next_letter()


def _read_array(path: Path, parameter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with (
        opened(path, parameter) as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig") as file,
    ):
        text = _Unread(file)
        try:
            yield from text.members()
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError | UnicodeDecodeError):  # the latter is `opened`'s
                raise
            line = text.line
            if isinstance(error, json.JSONDecodeError):
                line += text.text.count("\n", text.place, error.pos)
            raise InputError(
                f"{path}, line {line}, is not an array of objects as JSON has it "
                f"({_reason(error)})",
                advice=f"repair it, or change `{parameter}`",
            ) from error


class _Unread:
    """The part of a JSON file that is still to be read."""

    def __init__(self, file: TextIO) -> None:
        self.text, self.place, self.line = "", 0, 1  # the next letter is text[place], on this line
        self._file = file
        self._decoder = json.JSONDecoder()

    def members(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield line number and object of each member of the array that the file is."""
        self._expect("[")
        if self.next_letter() != "]":
            while True:
                if self.next_letter() != "{":
                    raise ValueError("each member must be an object")
                line = self.line
                yield line, self._value()
                if self.next_letter() != ",":
                    break
                self._expect(",")
        self._expect("]")
        if self.next_letter():
            raise ValueError("something follows the array")

    def _expect(self, letter: str) -> None:
        found = self.next_letter()
        if found != letter:
            raise ValueError(f"{found!r} in place of {letter!r}" if found else "it ends too early")
        self.place += 1

    def next_letter(self) -> str:
        """Skip blanks and return the letter behind them, "" at the end of the file."""
        while True:
            found = _BLANKS.match(self.text, self.place)
            self._move(found.end() if found else self.place)
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._read_on():
                return ""

    def _value(self) -> Any:
        """Return the value that begins at the next letter."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                # Cut off by the end of what was read, inside a string or up to \\uXXXX before it.
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - 12
                if not (is_cut and self._read_on()):
                    raise
            else:
                self._move(end)
                return value

    def _move(self, place: int) -> None:
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def _read_on(self) -> bool:
        """Forget what was read and read a block more; return whether there was one."""
        rest = self.text[self.place :]
        if len(rest) > LONGEST_LINE:
            raise ValueError(f"an object is longer than {LONGEST_LINE:,} letters")
        # As much again, so that a long object is not begun anew too often.
        block = self._file.read(max(_LETTERS_AT_ONCE, len(rest)))
        self.text, self.place = rest + block, 0
        return bool(block)


def _reason(error: ValueError | RecursionError) -> str:
    # A number of thousands of digits is a ValueError but not a JSONDecodeError.
    return error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
