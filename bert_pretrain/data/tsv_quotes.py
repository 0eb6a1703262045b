"""Whether the quotes of a TSV file are letters, as in the files of GLUE, or put around cells, as pandas and csv do.

Nothing in the file says so, and to take one for the other loses rows without a word: a stray quote
at the beginning of a cell joins all lines up to the next one, and a text with a line end in quotes
is cut into rows that do not exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from bert_pretrain.errors import InputError

# A cell as writers of quoted cells leave it: in quotes if it holds a quote, which is doubled, a tab
# or a line end.
_CELL = re.compile(r'"[^"]*(?:""[^"]*)*"|[^"\t]*')


class _Misfit(NamedTuple):
    line: int
    num_cells: int | None  # None where the quotes are not in pairs around cells
    width: int


def has_quoted_cells(open_lines: Callable[[], Iterable[str]], *, name: str, parameter: str) -> bool:
    """Return whether quotes are put around cells: if the lines fit the header only so, or show the marks of a writer.

    Args:
        open_lines: starts a new pass over the lines, each with its end.
        name: of the file.
        parameter: that named it.

    Raises:
        InputError: the lines fit the header neither with quotes as letters nor with quoted cells.
    """
    misfit = _first_misfit(_lines_as_records(open_lines()))
    if misfit is None:
        return _shows_a_writer(open_lines())
    other = _first_misfit(_quoted_records(open_lines()))
    if other is None:
        return True
    beside = (
        f" (with cells in quotes line {other.line} does not fit)"
        if other.line != misfit.line
        else ""
    )
    raise InputError(
        f"{name}, line {misfit.line}, has {misfit.num_cells} cells but its header has "
        f"{misfit.width}{beside}",
        advice=f"put one tab between cells, or change `{parameter}`",
    )


def _first_misfit(records: Iterable[tuple[int, list[str] | None]]) -> _Misfit | None:
    width = 0
    for line, cells in records:
        if cells is None or len(cells) != (width or len(cells)):
            return _Misfit(line, None if cells is None else len(cells), width)
        width = len(cells)
    return None


def _shows_a_writer(lines: Iterable[str]) -> bool:
    """Return whether lines that fit as they are have quotes such as only a writer of quoted cells leaves.

    Those are in pairs around whole cells, and they are doubled within one, or around each cell of
    the header too.
    """
    is_doubled = is_header_quoted = False
    for number, (_, cells) in enumerate(_lines_as_records(lines)):
        quoted = [cell for cell in cells if '"' in cell]
        if not all(map(_CELL.fullmatch, quoted)):
            return False
        is_header_quoted |= number == 0 and len(quoted) == len(cells)
        is_doubled |= any('""' in cell[1:-1] for cell in quoted)
    return is_doubled or is_header_quoted


def _lines_as_records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line that is not empty, with quotes as letters."""
    for number, line in enumerate(lines, start=1):
        if line.strip(" \n"):
            yield number, line.removesuffix("\n").split("\t")


def _quoted_records(lines: Iterable[str]) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the number of the first line and the cells of each record; None if its quotes are not around cells."""
    first, record, num_quotes = 1, list[str](), 0
    for number, line in enumerate(lines, start=1):
        record.append(line)
        num_quotes += line.count('"')
        if num_quotes % 2:  # a quoted cell goes on in the next line
            continue
        if line.strip(" \n") or len(record) > 1:
            yield first, _quoted_cells("".join(record).removesuffix("\n"))
        first, record, num_quotes = number + 1, [], 0
    if record:
        yield first, None


def _quoted_cells(record: str) -> list[str] | None:
    cells = []
    place = -1
    while place < len(record):
        found = _CELL.match(record, place + 1)
        assert found is not None  # the empty cell matches everywhere
        cells.append(found.group())
        place = found.end()
        if record[place : place + 1] not in ("\t", ""):
            return None
    return cells
