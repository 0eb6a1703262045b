"""Readers of files of text, CSV, TSV and Parquet, plain or compressed; `json_files` has JSON's.

A path and the name of the parameter that gave it enter; lines or rows leave, one after the other.
Whatever is wrong with a file is one `InputError` that names both. A stranger's file cannot fill the
memory: lines have a longest length, and what a compressed file holds is so many times its size at
most.

`datasets.load_dataset` infers types, copies all rows to a cache and gives no line; pandas fills the
missing cells of a short row without a word, and joins rows between two stray quotes.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pretrain.errors import InputError

Quotes = Literal["none", "minimal"]  # of TSV files, see `read_tsv`
# What undoes each, and its name.
_COMPRESSIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    ".gz": (gzip.open, "gzip"),
    ".bz2": (bz2.open, "bzip2"),
    ".xz": (lzma.open, "xz"),
    ".zst": (lambda path: pa.input_stream(str(path), compression="zstd"), "Zstandard"),
}
# Of a .csv the first one that divides its header: where a comma is decimal, ";" is usual.
_CSV_SEPARATORS = (",", ";", "\t")
LONGEST_LINE = 2**27  # bytes; dozens of novels
csv.field_size_limit(LONGEST_LINE)  # Python's own, 128 KiB, is less than a document may have
# Far beyond what compression makes of text; of one byte again and again gzip makes a thousandth.
_MOST_TIMES_AS_LARGE = 200
_SMALL_CONTENT = 2**26  # bytes, which may be any number of times as large
_BYTES_AT_ONCE = 2**18
_PARQUET_ROWS_AT_ONCE = 1000
_PARQUET_BYTES_AT_ONCE = 2**26


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can write a text: half of a surrogate pair, as in JSON, it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def file_kind(path: Path) -> str:
    """Return the extension in lower case, without that of the compression."""
    kind = path.suffix.lower()
    return Path(path.stem).suffix.lower() if kind in _COMPRESSIONS else kind


def describe_kinds(extensions: Sequence[str]) -> str:
    """Return the names of kinds of files and of compressions, for messages."""
    *others, last = _COMPRESSIONS
    return f"{', '.join(extensions)}, each also with {', '.join(others)} or {last}"


def read_lines(path: Path, *, parameter: str, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, with or without byte order mark, each with its end.

    Args:
        path: of the file.
        parameter: which gave it.
        newline: None = every end becomes a line feed; "" = they stay as they are.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is binary.
    """
    with (
        opened(path, parameter, longest_line=LONGEST_LINE) as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline) as file,
    ):
        for line in file:
            if "\0" in line:
                raise InputError(
                    f"{path} is a binary file (it holds NUL bytes)", advice=f"change `{parameter}`"
                )
            yield line


def read_delimited(
    path: Path, *, parameter: str, tsv_quotes: Quotes = "none"
) -> Iterator[list[str]]:
    """Yield the header and the rows of a .csv or .tsv; see `read_csv` and `read_tsv`."""
    if file_kind(path) == ".csv":
        return read_csv(path, parameter=parameter)
    return read_tsv(path, parameter=parameter, quotes=tsv_quotes)


def read_csv(path: Path, *, parameter: str) -> Iterator[list[str]]:
    """Yield the header and the rows of a CSV file, all with as many cells; empty lines are skipped.

    Cells stay as they are written: "NA", "null" and "01" are texts like any other.

    Raises:
        InputError: as for `read_lines`, a row has another number of cells than the header, or
            quotes are not as a CSV file's.
    """
    header = next(read_lines(path, parameter=parameter), "")
    separator = next((mark for mark in _CSV_SEPARATORS if _divides(mark, header)), ",")
    advice = f"put texts with {separator!r} in quotes, and double the quotes in them, or change "
    lines = read_lines(path, parameter=parameter, newline="")  # ends of lines in cells stay, too
    yield from _quoted_rows(lines, separator, path, kind="CSV", advice=f"{advice}`{parameter}`")


def _divides(mark: str, header: str) -> bool:
    """Return whether a mark stands in a line outside quotes."""
    return any(len(cells) > 1 for cells in csv.reader([header], delimiter=mark))


def read_tsv(path: Path, *, parameter: str, quotes: Quotes = "none") -> Iterator[list[str]]:
    """Yield the header and the rows of a TSV file, all with as many cells; empty lines are skipped.

    Where `quotes` is `none`, they are letters, as in GLUE's files; `minimal` = they surround cells
    that hold a tab, a quote or a line end, as pandas and csv write them.

    Raises:
        InputError: as for `read_lines`, or a row has another number of cells than the header.
    """
    advice = f"put one tab between cells, or change `tsv_quotes` ({quotes}) or `{parameter}`"
    lines = read_lines(path, parameter=parameter)
    if quotes == "minimal":
        yield from _quoted_rows(lines, "\t", path, kind="TSV", advice=advice)
    else:
        split = (line.removesuffix("\n").split("\t") if line.strip(" \n") else [] for line in lines)
        yield from _rows_of_one_width(enumerate(split, start=1), path, advice=advice)


def _quoted_rows(
    lines: Iterator[str], separator: str, path: Path, *, kind: str, advice: str
) -> Iterator[list[str]]:
    """Yield rows whose cells may be in quotes; raise `InputError` where these are not as usual."""
    rows, last = csv.reader(lines, delimiter=separator, strict=True), 0

    def numbered() -> Iterator[tuple[int, list[str]]]:
        nonlocal last
        for cells in rows:
            yield rows.line_num, cells
            last = rows.line_num

    try:
        yield from _rows_of_one_width(numbered(), path, advice=advice)
    except csv.Error as error:
        raise InputError(
            f"{path} has cells that are not quoted as a {kind} file's ({error}, after line {last})",
            advice=advice,
        ) from error


def _rows_of_one_width(
    numbered: Iterable[tuple[int, list[str]]], path: Path, *, advice: str
) -> Iterator[list[str]]:
    """Yield rows without empty ones; raise `InputError` where one is not as wide as the first."""
    width = 0
    for number, cells in numbered:
        # A cell that is empty, and the only one, is a row of a file of one column.
        if not cells or (width != 1 and len(cells) == 1 and not cells[0].strip(" ")):
            continue
        width = width or len(cells)
        if len(cells) != width:
            raise InputError(
                f"{path}, line {number}, has {len(cells)} cells but its header has {width}",
                advice=advice,
            )
        yield cells


@contextlib.contextmanager
def open_parquet(path: Path, *, parameter: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; raise `InputError` if it cannot be read, or is none."""
    with opened(path, parameter) as file:
        try:
            # Parquet is read from its end, which a compressed stream cannot do.
            is_compressed = path.suffix.lower() in _COMPRESSIONS
            yield pq.ParquetFile(io.BytesIO(file.read()) if is_compressed else file)
        except (gzip.BadGzipFile, InputError):
            raise
        except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} is not a Parquet file ({reason})",
                advice=f"repair it or change `{parameter}`",
            ) from error


def read_parquet_columns(
    path: Path, names: Sequence[str], *, parameter: str
) -> Iterator[dict[str, Any]]:
    """Yield rows of some columns, cells by name, each as Python has it.

    Memory holds some rows, fewer where rows are large by what the file says of their size.

    Raises:
        InputError: as for `open_parquet`, or a column cannot be read.
    """
    with open_parquet(path, parameter=parameter) as parquet:
        metadata = parquet.metadata
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        largest = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
        rows = min(_PARQUET_ROWS_AT_ONCE, _PARQUET_BYTES_AT_ONCE // (largest + 1) + 1)
        for batch in parquet.iter_batches(batch_size=rows, columns=list(names)):
            yield from batch.select(list(names)).to_pylist()


class _Watched(io.RawIOBase):
    """The bytes of an open file, as long as they are what text may be.

    Raises, when read:
        InputError: a line is too long, or too much comes out of a compressed file.
    """

    def __init__(self, source: Any, path: Path, parameter: str, *, longest_line: int) -> None:
        self._source, self._path, self._parameter = source, path, parameter
        self._longest_line = longest_line  # 0 = any
        is_compressed = path.suffix.lower() in _COMPRESSIONS
        most = max(_SMALL_CONTENT, _MOST_TIMES_AS_LARGE * path.stat().st_size)
        self._most = most if is_compressed else math.inf
        self._num_read = self._line_began = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block: bytes = self._source.read(len(buffer))
        end = block.rfind(b"\n")
        if end >= 0:
            self._line_began = self._num_read + end + 1
        self._num_read += len(block)
        if self._num_read > self._most:
            raise InputError(
                f"{self._path} holds more than {_MOST_TIMES_AS_LARGE} times its own size: text "
                "does not, a file made to fill the memory does",
                advice=f"decompress it if it is what you mean, or change `{self._parameter}`",
            )
        if self._longest_line and self._num_read - self._line_began > self._longest_line:
            raise InputError(
                f"{self._path} has a line of more than {self._longest_line:,} bytes",
                advice=f"divide it into lines, or change `{self._parameter}`",
            )
        buffer[: len(block)] = block
        return len(block)


@contextlib.contextmanager
def opened(path: Path, parameter: str, *, longest_line: int = 0) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed; errors on the way become one `InputError`.

    Args:
        path: of the file.
        parameter: that named it.
        longest_line: bytes; 0 = any, for files that are not read by lines.
    """
    plain = (lambda path: path.open("rb"), "plain")
    open_binary, kind = _COMPRESSIONS.get(path.suffix.lower(), plain)
    try:
        with open_binary(path) as file:
            if kind == "plain" and not longest_line:
                yield file  # which can be read from its end, as Parquet is
            else:
                watched = _Watched(file, path, parameter, longest_line=longest_line)
                yield io.BufferedReader(watched, _BYTES_AT_ONCE)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x})",
            advice=f"convert it or change `{parameter}`",
        ) from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise InputError(
            f"{path} is not a complete {kind} file ({error})",
            advice=f"change `{parameter}`",
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error})", advice=f"change `{parameter}`"
        ) from error
