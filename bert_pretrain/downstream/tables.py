"""Read labelled rows: CSV, TSV, JSON lines and Parquet files, also compressed, and splits of data sets.

A path or the name of a data set enters; a `Table` of columns leaves. What a cell means is decided in `labels`.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, load_dataset, load_from_disk

from bert_pretrain.errors import InputError

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Table:
    """Rows as columns of equal length.

    Attributes:
        description: what it is, for messages.
        columns: cells by column name; those of CSV and TSV files are strings.
        class_names: names of the class numbers of columns whose file or data set tells them.
    """

    description: str
    columns: dict[str, list[Any]]
    class_names: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values()), []))

    def column(self, name: str, *, flag: str) -> list[Any]:
        """Return the cells of a column.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.columns:
            listed = ", ".join(map(repr, self.columns)) or "none"
            raise InputError(f"{self.description} has no column {name!r}; it has {listed}; pass one of them as {flag}")
        return self.columns[name]


def read_file(path: str, *, flag: str) -> Table:
    """Read a file; its extension tells the format.

    Args:
        path: .csv, .tsv, .jsonl (or .json of one object a line) or .parquet, each also with .gz.
        flag: that named it, for messages.

    Raises:
        InputError: there is no such file, or it cannot be read, or has no rows.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"there is no file {path!r}; change {flag}")
    kind = Path(file.stem).suffix.lower() if file.suffix == ".gz" else file.suffix.lower()
    if kind not in EXTENSIONS:
        raise InputError(f"{path} has an unknown extension; {flag} takes {', '.join(EXTENSIONS)}, each also with .gz")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        table = _PARSERS[kind](content, path)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is not a complete gzip file ({error}); change {flag}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x}); convert it or change {flag}"
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a {kind[1:]} file ({reason}); repair it or change {flag}") from error
    if not len(table):
        raise InputError(f"{path} has no rows; change {flag}")
    return table


def _parse_separated(content: bytes, path: str, *, separator: str) -> Table:
    # Cells stay what is written: "NA", "null" and "01" are texts as well as any other.
    frame = pd.read_csv(
        io.StringIO(content.decode("utf-8-sig")), sep=separator, dtype=str, keep_default_na=False, na_filter=False
    )
    # Where the first row has more cells than the header, pandas takes the first ones for names of rows.
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{path} has more cells in row 1 than its header; put texts with {separator!r} in quotes")
    return Table(path, {str(name): frame[name].tolist() for name in frame.columns}, {})


def _parse_json_lines(content: bytes, path: str) -> Table:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number}, is not JSON ({error.msg}); each line must be an object"
            ) from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}, is a {type(row).__name__}; each line must be an object")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, {})


def _parse_parquet(content: bytes, path: str) -> Table:
    table = pq.read_table(io.BytesIO(content))
    names = _class_names(Features.from_arrow_schema(table.schema))
    return Table(path, {name: table.column(name).to_pylist() for name in table.column_names}, names)


_PARSERS: dict[str, Callable[[bytes, str], Table]] = {
    ".csv": partial(_parse_separated, separator=","),
    ".tsv": partial(_parse_separated, separator="\t"),
    ".jsonl": _parse_json_lines,
    ".json": _parse_json_lines,
    ".parquet": _parse_parquet,
}


def _class_names(features: Features) -> dict[str, tuple[str, ...]]:
    inner = {name: item.feature if isinstance(item, Sequence) else item for name, item in features.items()}
    return {name: tuple(item.names) for name, item in inner.items() if isinstance(item, ClassLabel)}


def open_dataset(name: str, config_name: str | None) -> dict[str, Dataset]:
    """Return the splits of a data set: a folder saved by `datasets`, or what `load_dataset` finds there or on the Hub.

    Raises:
        InputError: it cannot be loaded.
    """
    try:
        is_saved = (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file()
        loaded = load_from_disk(name) if is_saved else load_dataset(name, config_name)
    except Exception as error:  # datasets raises whatever its builders and the network raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the data set {name!r} cannot be loaded ({reason}); --dataset_name takes a folder or a Hub id"
        ) from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def table_of(dataset: Dataset, description: str) -> Table:
    """Return the rows of a data set."""
    columns = {name: list(dataset[name]) for name in dataset.column_names}
    return Table(description, columns, _class_names(dataset.features))
