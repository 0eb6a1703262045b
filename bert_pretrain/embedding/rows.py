"""What is embedded: texts and images with the place where each is found, in order.

Names of files and data sets enter; a `RowSource` leaves, which reads one row at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from bert_pretrain.data.content import check_unchanged, hash_files
from bert_pretrain.data.names import existing_files
from bert_pretrain.data.row_files import file_kind, open_parquet
from bert_pretrain.downstream.tables import class_names_of
from bert_pretrain.images.decoding import ImageSource
from bert_pretrain.images.sources import open_image_source
from bert_pretrain.images.tables import DEFAULT_LABEL_COLUMN
from bert_pretrain.text.cells import LabelColumn
from bert_pretrain.text.data_sets import open_text_column
from bert_pretrain.text.documents import TextSource, files_of
from bert_pretrain.text.embedded import embedded_documents, embedded_key
from bert_pretrain.text.file_search import FoundFiles
from bert_pretrain.text.text_files import FileReader


class Row(NamedTuple):
    """A text or an image, and where it is found.

    Attributes:
        file: the file, folder or data set that holds it.
        number: its place there, from 0; rows that are skipped later have one too.
        content: a text, or an `images.decoding.ImageRow`; perhaps something that is neither.
        label: as text; None = it has none.
    """

    file: str
    number: int
    content: Any
    label: str | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"row {self.number} of {self.file}"


@dataclass(frozen=True)
class RowSource:
    """Rows that can be read again and again, always in the same order.

    Attributes:
        description: what the source is, for people.
        identity: equal lists of plain values mean equal rows.
        read: starts a new pass over the rows.
        num_rows: how many rows a pass has; None = not known before.
        notes: what was left out of folders, a line each.
    """

    description: str
    identity: list[Any]
    read: Callable[[], Iterator[Row]]
    num_rows: int | None = None
    notes: tuple[str, ...] = ()


def open_text_rows(text: TextSource, *, label_column: str | None = None) -> RowSource:
    """Find texts: each cell of a column, each document of a .txt.

    A text is as it stands there: `text.newline` is not looked at.

    Args:
        text: where they are.
        label_column: of labels; None = the column `label`, where there is one.

    Raises:
        InputError: a file is missing, empty, of an unknown kind or cannot be read, or the data set
            cannot be loaded; for reading, a row lacks the column.
    """
    label = LabelColumn(label_column or DEFAULT_LABEL_COLUMN, label_column is not None)
    how = [text.text_column, *label, text.document_boundary, text.tsv_quotes]
    found = files_of(text)
    if found is not None:
        return _text_files(text, found, label, how)
    if text.dataset_name in (None, "docs"):

        def read_embedded() -> Iterator[Row]:
            for number, document in enumerate(embedded_documents()):
                yield Row("docs", number, document)

        return RowSource(
            "docs: the documentation inside this Python", [embedded_key()], read_embedded
        )
    name = str(text.dataset_name)
    column = open_text_column(
        name,
        text.dataset_config_name,
        text.dataset_split,
        text.text_column,
        streaming=text.streaming,
        label=label,
    )

    def read() -> Iterator[Row]:
        for number, (cell, value) in enumerate(column.read_labelled()):
            yield Row(name, number, cell, label_text(value, column.label_names))

    return RowSource(
        f"{name} ({text.dataset_split})", [column.identity, name, text.dataset_split, how], read
    )


def _text_files(
    text: TextSource, found: FoundFiles, label: LabelColumn, how: list[Any]
) -> RowSource:
    reader = FileReader(text.text_column, text.document_boundary, text.tsv_quotes)
    files = hash_files(found.paths)

    def read() -> Iterator[Row]:
        for file in files:
            names = None
            if file_kind(file.path) == ".parquet":
                with open_parquet(file.path, parameter="data_files") as parquet:
                    names = class_names_of(parquet.schema_arrow).get(label.name)
            for number, (cell, value) in enumerate(reader.read_labelled(file.path, label)):
                yield Row(str(file.path), number, cell, label_text(value, names))
            check_unchanged(file)

    return RowSource(
        _listed([path.name for path in found.paths]),
        # With their names, which go into what is written.
        [[[str(file.path), file_kind(file.path), file.hash] for file in files], how],
        read,
        notes=tuple(found.notes),
    )


def open_image_rows(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    data_files: list[str] | None = None,
    image_column: str = "image",
    label_column: str | None = None,
) -> RowSource:
    """Find images; see `images.sources.open_image_source` for the arguments and errors.

    `label_column` None = the column `label`, where there is one.
    """

    def opened(**which: Any) -> ImageSource:
        return open_image_source(
            image_column=image_column, label_column=label_column or DEFAULT_LABEL_COLUMN, **which
        )

    if data_files:
        opened(data_files=data_files)  # which compares the files' labels
        paths = dict.fromkeys(path for pattern in data_files for path in existing_files(pattern))
        # One by one, because a row's number is its place in its own file.
        sources = {str(path): opened(data_files=[str(path)]) for path in paths}
    else:
        source = opened(
            dataset_name=dataset_name,
            dataset_config_name=dataset_config_name,
            dataset_split=dataset_split,
        )
        sources = {dataset_name or "digits": source}

    def read() -> Iterator[Row]:
        for name, source in sources.items():
            for number, image in enumerate(source.read()):
                label = None if image.label == -1 else image.label
                yield Row(name, number, image, label_text(label, source.label_names))

    return RowSource(
        _listed([source.description for source in sources.values()]),
        [[[name, source.fingerprint] for name, source in sources.items()]],
        read,
        num_rows=sum(source.num_rows for source in sources.values()),
    )


def label_text(value: Any, names: tuple[str, ...] | None) -> str | None:
    """Return a label as text: the name of a class number where names are declared.

    Texts stay as they are; other values are written as JSON.
    """
    if value is None or isinstance(value, str):
        return value
    if names is not None and isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else None
    return json.dumps(value, ensure_ascii=False, default=str)


def _listed(names: list[str]) -> str:
    return ", ".join([*names[:4], *["..."] * (len(names) > 4)])
