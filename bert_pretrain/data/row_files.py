"""Files of lines and of rows, plain or compressed, read piece by piece.

A path and the flag that named it enter; lines, JSON objects, blocks of CSV rows or a Parquet file
leave. What is wrong with a file is one `InputError`, with its name and the flag to change.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pretrain.data.tsv_quotes import has_quoted_cells
from bert_pretrain.errors import InputError, first_line

_COMPRESSED = (".gz", ".zst")
# Of a .csv the first one that its header has: where a comma is decimal, ";" is usual.
_CSV_SEPARATORS = (",", ";", "\t")
_ROWS_PER_BLOCK = 10_000


def is_unicode(text: str) -> bool:
    """Return whether a text can be written in UTF-8: it holds no half of a surrogate pair, as JSON may."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def file_kind(path: Path) -> str:
    """Return the extension in lower case, below the one of a compression."""
    return Path(path.stem).suffix.lower() if path.suffix in _COMPRESSED else path.suffix.lower()


def read_lines(path: Path, *, parameter: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, with or without byte order mark, each with its end.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or binary.
    """
    with _opened(path, parameter) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as file:
        for line in file:
            if "\0" in line:
                raise InputError(
                    f"{path} is a binary file (it holds NUL bytes)", advice=f"change `{parameter}`"
                )
            yield line


def read_json_lines(path: Path, *, parameter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file that has one on each line, with the number of the line; empty lines are left out.

    Raises:
        InputError: as for `read_lines`, or a line is no object.
    """
    for number, line in enumerate(read_lines(path, parameter=parameter), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number of thousands of digits is no JSONDecodeError
            reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
            raise InputError(
                f"{path}, line {number}, is not JSON ({reason})",
                advice=f"each line must be an object; repair it or change `{parameter}`",
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}, is a {type(row).__name__} but each line must be an object",
                advice=f"repair it or change `{parameter}`",
            )
        yield number, row


def read_csv(path: Path, *, parameter: str) -> Iterator[pd.DataFrame]:
    """Yield blocks of rows of a CSV or TSV file with a header; a file without rows gives one empty block.

    Cells stay what is written: "NA", "null" and "01" are texts as well as any other. The quotes of
    a TSV file are letters unless its lines tell that they were put around cells.

    Raises:
        InputError: as for `read_lines`, or the rows do not fit the header.
    """
    is_tsv = file_kind(path) == ".tsv"
    separator = "\t" if is_tsv else _separator_in(next(read_lines(path, parameter=parameter), ""))
    is_quoted = not is_tsv or has_quoted_cells(
        lambda: read_lines(path, parameter=parameter), name=str(path), parameter=parameter
    )
    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    options = {"dtype": str, "keep_default_na": False, "na_filter": False, "quoting": quoting}
    with (
        _opened(path, parameter) as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file,
    ):
        try:
            for block in pd.read_csv(file, sep=separator, chunksize=_ROWS_PER_BLOCK, **options):
                # Where the first row has more cells than the header, pandas takes the first ones
                # for names of rows.
                if not isinstance(block.index, pd.RangeIndex):
                    raise InputError(
                        f"{path} has more cells in row 1 than its header",
                        advice=f"put texts with {separator!r} in quotes, or change `{parameter}`",
                    )
                yield block
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} is not a CSV file ({reason})", advice=f"repair it or change `{parameter}`"
            ) from error


def _separator_in(header: str) -> str:
    return next((separator for separator in _CSV_SEPARATORS if separator in header), ",")


@contextlib.contextmanager
def open_parquet(path: Path, *, parameter: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    with _opened(path, parameter) as file:
        try:
            # Parquet is read from its end, which a compressed stream cannot do.
            yield pq.ParquetFile(io.BytesIO(file.read()) if path.suffix in _COMPRESSED else file)
        except (gzip.BadGzipFile, InputError):
            raise
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} is not a Parquet file ({reason})",
                advice=f"repair it or change `{parameter}`",
            ) from error


@contextlib.contextmanager
def _opened(path: Path, parameter: str) -> Iterator[IO[bytes]]:
    """Open a file to be read, decompressed, and turn what goes wrong on the way into an `InputError`."""
    try:
        with _open_binary(path) as file:
            yield file
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x})",
            advice=f"convert it or change `{parameter}`",
        ) from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(
            f"{path} is not a complete gzip file ({error})", advice=f"change `{parameter}`"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error})", advice=f"change `{parameter}`"
        ) from error


def _open_binary(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]  # a GzipFile reads like a binary file
    if path.suffix == ".zst":
        return pa.input_stream(str(path), compression="zstd")  # type: ignore[no-any-return]  # it reads like a file
    return path.open("rb")
