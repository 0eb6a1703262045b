"""The documents in files of text, as they stand there.

A path enters; documents leave one after the other: of a .txt with all their newlines, of other
files the cells of a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bert_pretrain.data.json_files import read_json
from bert_pretrain.data.row_files import (
    Quotes,
    file_kind,
    open_parquet,
    read_delimited,
    read_lines,
    read_parquet_columns,
)
from bert_pretrain.errors import InputError
from bert_pretrain.text.cells import LabelColumn, missing_column, outer_column, text_in

DocumentBoundary: TypeAlias = Literal["blank_line", "line", "file"]

LONGEST_DOCUMENT = 2**28  # letters between two blank lines, many times those of a novel
_SAMPLED_FILES = 16


@dataclass(frozen=True)
class FileReader:
    """How files become documents; see `TextSource`."""

    text_column: str
    document_boundary: DocumentBoundary
    tsv_quotes: Quotes

    def read(self, path: Path) -> Iterator[Any]:
        """Yield the documents of a file as they stand in it; what is not text may be among them.

        Raises:
            InputError: the file cannot be read, or lacks the column.
        """
        return (text for text, _ in self.read_labelled(path, None))

    def read_labelled(self, path: Path, label: LabelColumn | None) -> Iterator[tuple[Any, Any]]:
        """Yield what `read` yields, each with its label; None = it has none.

        Raises:
            InputError: as `read`, or the file lacks a column of labels that was asked for.
        """
        kind, column = file_kind(path), self.text_column
        if kind == ".txt":
            yield from ((text, None) for text in self._read_text(path))
        elif kind in (".jsonl", ".json"):
            for number, row in read_json(path, parameter="data_files"):
                yield self._of_row(row, label, f"{path}, line {number},")
        elif kind in (".csv", ".tsv"):
            rows = read_delimited(path, parameter="data_files", tsv_quotes=self.tsv_quotes)
            header = next(rows, [])
            if column not in header:
                raise missing_column(path, column, header)
            name = label and label.among(header, path)
            for cells in rows:
                yield cells[header.index(column)], name and cells[header.index(name)]
        else:
            yield from self._read_parquet(path, label)

    def _of_row(self, row: Any, label: LabelColumn | None, where: object) -> tuple[Any, Any]:
        try:
            text = text_in(row, self.text_column)
        except KeyError as error:
            raise missing_column(where, self.text_column, row) from error
        return text, label and label.in_row(row, where)

    def _read_text(self, path: Path) -> Iterator[str]:
        lines = (line.strip() for line in read_lines(path, parameter="data_files"))
        if self.document_boundary == "line":
            yield from filter(None, lines)
        elif self.document_boundary == "blank_line":
            runs = groupby(lines, key=bool)
            yield from ("\n".join(_bounded(run, path)) for has_text, run in runs if has_text)
        else:
            yield "\n".join(_bounded(lines, path, is_whole=True))

    def _read_parquet(self, path: Path, label: LabelColumn | None) -> Iterator[tuple[Any, Any]]:
        column = self.text_column
        with open_parquet(path, parameter="data_files") as parquet:
            names = parquet.schema_arrow.names
        outer = outer_column(column, names)
        if outer is None:
            raise missing_column(path, column, names)
        others = [label and label.among(names, path)]
        columns = list(dict.fromkeys([outer, *filter(None, others)]))
        for row in read_parquet_columns(path, columns, parameter="data_files"):
            yield self._of_row(row, label, path)

    def sample(self, paths: list[Path], size: int) -> Iterator[str]:
        """Yield texts from the beginnings of some files, spread evenly, of `size` letters in all.

        Those of a .txt come as one, because the whole file may be one document.
        """
        count = min(len(paths), _SAMPLED_FILES)
        for path in (paths[number * len(paths) // count] for number in range(count)):
            if file_kind(path) == ".txt" and self.document_boundary != "line":
                lines = read_lines(path, parameter="data_files")
                yield "".join(first_texts(lines, size // count))
            else:
                yield from first_texts(self.read(path), size // count)


def _bounded(lines: Iterable[str], path: Path, *, is_whole: bool = False) -> Iterator[str]:
    """Yield the lines of a document, unless they are so many that it can hardly be one.

    With `is_whole` the file is to be one document.
    """
    size = 0
    for line in lines:
        size += len(line)
        if size > LONGEST_DOCUMENT:
            raise InputError(
                f"{path} has more than {size:,} letters, but is to be one document"
                if is_whole
                else f"{path} has no blank line within {size:,} letters, but one ends a document",
                advice=f"pass `document_boundary` line{' or blank_line' if is_whole else ''}",
            )
        yield line


def first_texts(texts: Iterable[Any], size: int) -> Iterator[str]:
    """Yield the first texts, of `size` letters in all, each of which may be cut."""
    for text in texts:
        if size <= 0:
            return
        if isinstance(text, str):
            yield text[:size]
            size -= len(text)
        size -= 1  # nor may there be too many empty ones
