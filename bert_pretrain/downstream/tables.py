"""Read labelled rows: CSV, TSV, JSON lines and Parquet files, also compressed, and splits of data sets.

A path or the name of a data set enters; a `Table` of columns leaves. What a cell means is decided
in `labels`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Sequence,
    load_dataset,
    load_from_disk,
)

from bert_pretrain.data.files import is_saved_dataset
from bert_pretrain.data.names import refuse_missing_folder
from bert_pretrain.data.row_files import file_kind, open_parquet, read_csv, read_json_lines
from bert_pretrain.errors import InputError, first_line

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Table:
    """Rows as columns of equal length.

    Attributes:
        description: what it is, for messages.
        columns: cells by column name; those of CSV and TSV files are strings.
        class_names: names of the class numbers of columns whose file or data set tells them.
        is_typed: texts and numbers are told apart; in CSV and TSV files all cells are texts.
    """

    description: str
    columns: dict[str, list[Any]]
    class_names: dict[str, tuple[str, ...]]
    is_typed: bool = True

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values()), []))

    def column(self, name: str, *, parameter: str) -> list[Any]:
        """Return the cells of a column.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.columns:
            listed = ", ".join(map(repr, self.columns)) or "none"
            raise InputError(
                f"{self.description} has no column {name!r}",
                advice=f"it has {listed}; pass one of them as `{parameter}`",
            )
        return self.columns[name]


def read_file(path: str, *, parameter: str) -> Table:
    """Read a file; its extension tells the format.

    Args:
        path: .csv, .tsv, .jsonl (or .json of one object a line) or .parquet, each also with .gz or
            .zst.
        parameter: that named it, for messages.

    Raises:
        InputError: there is no such file, or it cannot be read, or has no rows.
    """
    file = Path(path)
    if not file.is_file():
        what = f"{path!r} is a folder" if file.is_dir() else f"there is no file {path!r}"
        raise InputError(f"{what}", advice=f"change `{parameter}`")
    kind = file_kind(file)
    if kind not in EXTENSIONS:
        raise InputError(
            f"{path} has an unknown extension",
            advice=f"`{parameter}` takes {', '.join(EXTENSIONS)}, each also with .gz or .zst",
        )
    class_names: dict[str, tuple[str, ...]] = {}
    if kind in (".csv", ".tsv"):
        frame = pd.concat(read_csv(file, parameter=parameter))
        columns = {str(name): frame[name].tolist() for name in frame.columns}
    elif kind in (".jsonl", ".json"):
        rows = [row for _, row in read_json_lines(file, parameter=parameter)]
        columns = {
            name: [row.get(name) for row in rows] for name in dict.fromkeys(itertools.chain(*rows))
        }
    else:
        with open_parquet(file, parameter=parameter) as parquet:
            content = parquet.read()
        class_names = _class_names(Features.from_arrow_schema(content.schema))
        columns = {
            name: cells.to_pylist()
            for name, cells in zip(content.column_names, content.columns, strict=True)
        }
    table = Table(path, columns, class_names, is_typed=kind not in (".csv", ".tsv"))
    if not len(table):
        raise InputError(f"{path} has no rows", advice=f"change `{parameter}`")
    return table


def _class_names(features: Features) -> dict[str, tuple[str, ...]]:
    inner = {
        name: item.feature if isinstance(item, Sequence) else item
        for name, item in features.items()
    }
    return {name: tuple(item.names) for name, item in inner.items() if isinstance(item, ClassLabel)}


def open_dataset(name: str, config_name: str | None) -> dict[str, Dataset]:
    """Return the splits of a data set: a folder saved by `datasets`, or what `load_dataset` finds there or on the Hub.

    Raises:
        InputError: it cannot be loaded.
    """
    try:
        loaded = (
            load_from_disk(name)
            if is_saved_dataset(Path(name))
            else load_dataset(name, config_name)
        )
    except Exception as error:  # datasets raises whatever its builders and the network raise
        refuse_missing_folder(name, what="a data set", parameter="dataset_name")
        raise InputError(
            f"the data set {name!r} cannot be loaded ({first_line(error)})",
            advice="`dataset_name` takes a folder or a Hub id",
        ) from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def table_of(dataset: Dataset, description: str) -> Table:
    """Return the rows of a data set."""
    # As Arrow, so that images or sounds beside the texts are not decoded.
    content = dataset.with_format("arrow")[:]
    columns = {name: content.column(name).to_pylist() for name in content.column_names}
    return Table(description, columns, _class_names(dataset.features))
