"""Tables of labelled rows: a file or a data set enters; columns and the texts in them leave."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bert_pretrain.data.json_files import read_json
from bert_pretrain.data.names import is_saved_dataset, refuse_missing_folder
from bert_pretrain.data.row_files import (
    Quotes,
    describe_kinds,
    file_kind,
    is_unicode,
    open_parquet,
    read_delimited,
)
from bert_pretrain.downstream.tasks import Task
from bert_pretrain.errors import InputError, first_line

if TYPE_CHECKING:
    import datasets

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Table:
    """Rows as columns of equal length.

    Attributes:
        description: names the file or split in messages.
        columns: cells by column name.
        class_names: names of the class numbers of columns whose file or data set declares them.
        is_typed: texts and numbers are told apart; in CSV and TSV files all cells are texts.
    """

    description: str
    columns: dict[str, list[Any]]
    class_names: dict[str, tuple[str, ...]]
    is_typed: bool = True

    def column(self, name: str, *, parameter: str) -> list[Any]:
        """Return the cells of a column; raise `InputError` if there is none of that name."""
        if name not in self.columns:
            listed = ", ".join(map(repr, self.columns)) or "none"
            raise InputError(
                f"{self.description} has no column {name!r}",
                advice=f"it has {listed}; pass one of them as `{parameter}`",
            )
        return self.columns[name]


def read_table(path: str, *, parameter: str, tsv_quotes: Quotes = "none") -> Table:
    """Read a whole file; its extension, one of `EXTENSIONS` also compressed, is the format.

    Raises:
        InputError: there is no such file, it cannot be read, or it has no rows.
    """
    file = Path(path)
    if not file.is_file():
        what = f"{path!r} is a folder" if file.is_dir() else f"there is no file {path!r}"
        raise InputError(what, advice=f"change `{parameter}`")
    kind = file_kind(file)
    if kind not in EXTENSIONS:
        raise InputError(
            f"{path} has an unknown extension",
            advice=f"`{parameter}` takes {describe_kinds(EXTENSIONS)}",
        )
    class_names: dict[str, tuple[str, ...]] = {}
    if kind in (".csv", ".tsv"):
        found = read_delimited(file, parameter=parameter, tsv_quotes=tsv_quotes)
        header, *rows = [*found] or [[]]
        names = [  # a name that comes again gets a number, as pandas does it
            f"{name}.{count}" if (count := header[:place].count(name)) else name
            for place, name in enumerate(header)
        ]
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=False))
    elif kind == ".parquet":
        with open_parquet(file, parameter=parameter) as parquet:
            content = parquet.read()
            columns = _columns_of(content)  # here, because it finds texts that are not UTF-8
            class_names = class_names_of(content.schema)
    else:
        objects = [row for _, row in read_json(file, parameter=parameter)]
        columns = {
            name: [row.get(name) for row in objects]
            for name in dict.fromkeys(itertools.chain(*objects))
        }
    if not any(columns.values()):
        raise InputError(f"{path} has no rows", advice=f"change `{parameter}`")
    return Table(path, columns, class_names, is_typed=kind not in (".csv", ".tsv"))


def open_dataset(name: str, config_name: str | None) -> dict[str, datasets.Dataset]:
    """Return the splits of a data set, saved or loaded by `datasets`; else raise `InputError`."""
    import datasets

    try:
        is_saved = is_saved_dataset(Path(name))
        loaded = (
            datasets.load_from_disk(name) if is_saved else datasets.load_dataset(name, config_name)
        )
    except Exception as error:  # datasets raises whatever its builders and the network raise
        refuse_missing_folder(name, what="a data set", parameter="dataset_name")
        raise InputError(
            f"the data set {name!r} cannot be loaded ({first_line(error)})",
            advice="`dataset_name` takes a folder or a Hub id",
        ) from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def table_of(dataset: datasets.Dataset, description: str) -> Table:
    """Return the rows of a data set; raise `InputError` if its files are damaged."""
    try:
        # As Arrow, so that images or sounds beside the texts are not decoded.
        columns = _columns_of(dataset.with_format("arrow")[:])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{description} cannot be read ({first_line(error)})",
            advice="repair it or change `dataset_name`",
        ) from error
    return Table(description, columns, class_names_of(dataset.features.arrow_schema))


def _columns_of(content: pa.Table) -> dict[str, list[Any]]:
    return {name: content.column(name).to_pylist() for name in content.column_names}


def class_names_of(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the class names of columns, which `datasets` keeps in the schema's metadata."""
    import datasets

    names = {}
    for name, feature in datasets.Features.from_arrow_schema(schema).items():
        inner = feature.feature if isinstance(feature, datasets.Sequence) else feature
        if isinstance(inner, datasets.ClassLabel):
            names[name] = tuple(inner.names)
    return names


@dataclass(frozen=True)
class Texts:
    """Texts of one split, or the first and the second ones of its pairs."""

    first: list[str]
    second: list[str] | None

    def subset(self, places: NDArray[np.integer[Any]]) -> Texts:
        """Return these texts, in this order."""
        second = None if self.second is None else [self.second[place] for place in places]
        return Texts([self.first[place] for place in places], second)

    def joined(self) -> list[str]:
        """Return each text, or pair of texts, as one."""
        if self.second is None:
            return self.first
        return [" ".join(pair) for pair in zip(self.first, self.second, strict=True)]


def read_texts(
    table: Table, task: Task, *, text_column: str | None, text_pair_column: str | None
) -> Texts:
    """Return the texts of the columns given, else the task's, else `text` and `text_pair` if there.

    Raises:
        InputError: a column is missing, is empty, or holds something other than text.
    """
    columns = task.text_columns or ()
    has_columns = all(name in table.columns for name in columns)
    first = text_column or (columns[0] if columns and has_columns else "text")
    second = text_pair_column or (columns[1] if len(columns) > 1 and has_columns else None)
    if second is None and ((not columns and "text_pair" in table.columns) or len(columns) > 1):
        second = "text_pair"
    texts = Texts(
        _strings(table, first, "text_column"),
        _strings(table, second, "text_pair_column") if second else None,
    )
    if not any(text.strip() for text in texts.first):
        raise InputError(
            f"the column {first!r} of {table.description} is empty", advice="change `text_column`"
        )
    return texts


def _strings(table: Table, name: str, parameter: str) -> list[str]:
    cells = table.column(name, parameter=parameter)
    for place, cell in enumerate(cells):
        # A JSON file may hold half a character, such as \ud83d, which no tokenizer accepts.
        if not isinstance(cell, str) or not is_unicode(cell):
            raise InputError(
                f"the column {name!r} of {table.description} holds {cell!r:.80} in row "
                f"{place + 1}, which is not a text",
                advice=f"repair the row, or pass another column as `{parameter}`",
            )
    return cells
