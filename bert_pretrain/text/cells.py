"""The text in a row: the cell of a column that may lie within another, and what it says.

A row, as JSON, Arrow or `datasets` give it, and the name of a column enter; a text leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from bert_pretrain.errors import InputError

_NAMED_COLUMNS, _NAMED_LETTERS = 30, 100


def text_in(row: Any, column: str) -> Any:
    """Return the text of a column's cell, see `cell_of` and `text_of`.

    Of lists so deep within each other that nothing can go through them it is None.

    Raises:
        KeyError: there is no such column.
    """
    try:
        return text_of(cell_of(row, column))
    except RecursionError:
        return None


class LabelColumn(NamedTuple):
    """The column of labels; one that nobody asked for by name may be missing."""

    name: str
    is_needed: bool

    def in_row(self, row: Any, where: object) -> Any:
        """Return the label of a row, cells by column; None if there is none.

        Raises:
            InputError: there is no such column but it was asked for; `where` names the row.
        """
        try:
            return cell_of(row, self.name)
        except KeyError as error:
            if self.is_needed:
                raise self.missing(where, row) from error
            return None

    def among(self, columns: Sequence[str], where: object) -> str | None:
        """Return the column that is it, or holds it; None if there is none.

        Raises:
            InputError: as `in_row`; `where` names the table.
        """
        outer = outer_column(self.name, columns)
        if outer is None and self.is_needed:
            raise self.missing(where, columns)
        return outer

    def missing(self, where: object, row: Any) -> InputError:
        """Return the error of a row, or of a list of column names, that lacks it."""
        return missing_column(where, self.name, row, parameter="label_column")


def cell_of(row: Any, column: str) -> Any:
    """Return the cell of a column.

    Args:
        row: cells by column; a cell may again be a row, or a list of rows.
        column: `a.b` is column b within column a, of each row where a holds several, unless there
            is a column of that very name.

    Raises:
        KeyError: there is no such column.
    """
    if isinstance(row, list):
        return [cell_of(member, column) for member in row]
    if row is None:
        return None
    name = outer_column(column, row) if isinstance(row, Mapping) else None
    if name is None:
        raise KeyError(column)
    return row[name] if name == column else cell_of(row[name], column[len(name) + 1 :])


def outer_column(column: str, columns: Collection[str]) -> str | None:
    """Return which of some columns is the one asked for, or holds it; None if none does."""
    parts = column.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in columns), None)


def text_of(cell: Any) -> Any:
    """Return the text of a cell: of a list of texts each is a paragraph; other cells stay."""
    if not isinstance(cell, list):
        return cell
    texts = list(_flat(cell))
    # A blank line ends a paragraph, whatever a single newline means.
    return "\n\n".join(texts) if all(isinstance(text, str) for text in texts) else cell


def _flat(cells: list[Any]) -> Iterator[Any]:
    for cell in cells:
        if isinstance(cell, list):
            yield from _flat(cell)
        elif cell is not None:
            yield cell


def missing_column(
    where: object, column: str, row: Any, *, parameter: str = "text_column"
) -> InputError:
    """Return the error of a row, or of a list of column names, that lacks a column."""
    names = list(islice(_names_in(row), _NAMED_COLUMNS + 1))
    more = ", ..." if len(names) > _NAMED_COLUMNS else ""
    shown = [name[:_NAMED_LETTERS] for name in names[:_NAMED_COLUMNS]]
    listed = ", ".join(map(repr, shown)) or "none"
    return InputError(
        f"{where} has no column {column!r}",
        advice=f"it has {listed}{more}; pass one of them as `{parameter}`",
    )


def _names_in(row: Any) -> Iterator[str]:
    """Yield the columns of a row, and those within them as `a.b`."""
    for name in row:
        yield str(name)
        if isinstance(row, Mapping) and isinstance(row[name], Mapping):
            yield from (f"{name}.{inner}" for inner in _names_in(row[name]))
