"""Images in a column of a table: of Parquet files, or of a data set that `datasets` loads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pretrain.data.names import files_fingerprint, is_saved_dataset
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.images.decoding import ImageRow, ImageSource, Label

DATASET_ADVICE = "`dataset_name` takes 'digits', a folder of images or a Hub id"
DEFAULT_LABEL_COLUMN = "label"
_ROWS_PER_READ = 64
# Above it, a column of integers holds identifiers or measurements, not classes.
_MAX_CLASS_NUMBER = 99_999


def open_parquet(
    paths: list[Path], image_column: str, label_column: str, *, parameter: str
) -> ImageSource:
    """Open Parquet files, which `parameter` gave; see `open_image_source`."""
    num_rows = 0
    labels: list[Any] = []  # the feature in each file
    for path in paths:
        with _open_parquet_file(path, parameter) as file:
            num_rows += file.metadata.num_rows
            labels.append(_label_feature(str(path), file.schema_arrow, image_column, label_column))
        if labels[-1] != labels[0]:
            raise InputError(
                f"the labels of {path} are {labels[-1]}, those of {paths[0]} {labels[0]}",
                advice=f"they must agree in all `{parameter}`",
            )
    columns = [image_column] if labels[0] is None else [image_column, label_column]

    def read() -> Iterator[ImageRow]:
        for path in paths:
            with _open_parquet_file(path, parameter) as file:
                batches = file.iter_batches(batch_size=_ROWS_PER_READ, columns=columns)
                yield from _rows_of(batches, str(path), columns)

    return ImageSource(
        description=listed(paths),
        fingerprint=files_fingerprint(paths, image_column, label_column),
        num_rows=num_rows,
        label_names=_class_names(labels[0]),
        read=read,
    )


def listed(paths: list[Path]) -> str:
    """Return the names of a few of the files."""
    return ", ".join([path.name for path in paths[:4]] + ["..."] * (len(paths) > 4))


@contextlib.contextmanager
def _open_parquet_file(path: Path, parameter: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; raise `InputError` if it, or what is read in the block, is damaged."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path} is not a Parquet file ({first_line(error)})",
            advice=f"`{parameter}` takes Parquet files with a column of images, shards (.tar, not "
            "compressed) or image files, all of one kind; `dataset_name` a folder of images",
        ) from error


def open_dataset(
    name: str,
    config_name: str | None,
    split: str,
    image_column: str,
    label_column: str,
    *,
    split_parameter: str,
) -> ImageSource:
    """Open a data set that `datasets` saved or loads; see `open_image_source`."""
    from datasets.fingerprint import generate_fingerprint

    dataset = _load_split(name, config_name, split, split_parameter)
    schema = dataset.features.arrow_schema
    label = _label_feature(f"the data set {name!r}", schema, image_column, label_column)
    columns = [image_column] if label is None else [image_column, label_column]
    described = json.dumps([generate_fingerprint(dataset), split, columns])
    # The Arrow format leaves images encoded: one that cannot be decoded does not end the pass.
    arrow = dataset.select_columns(columns).with_format("arrow")

    def read() -> Iterator[ImageRow]:
        tables = arrow.iter(batch_size=_ROWS_PER_READ)
        batches = (batch for table in tables for batch in table.to_batches())
        yield from _rows_of(batches, name, columns)

    return ImageSource(
        description=f"{name} ({split})",
        fingerprint=hashlib.sha256(described.encode()).hexdigest(),
        num_rows=len(dataset),
        label_names=_class_names(label),
        read=read,
        fetch=partial(_dataset_row, arrow, name, columns),
    )


def _dataset_row(arrow: Any, name: str, columns: list[str], number: int) -> ImageRow:
    """Return one row of a mapped data set, in the Arrow format."""
    batches = arrow[number : number + 1].to_batches()
    return next(_rows_of(batches, name, columns, first=number))


def _load_split(name: str, config_name: str | None, split: str, split_parameter: str) -> Any:
    """Return a split of what `datasets` saved in a folder, or loads from a folder or the Hub."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    is_saved = is_saved_dataset(Path(name))
    try:
        dataset = load_from_disk(name) if is_saved else load_dataset(name, config_name)
    except Exception as error:  # datasets raises whatever its builders and the network raise
        # What a builder says is wrapped in a sentence that says nothing.
        cause = first_line(error.__cause__ or error)
        raise InputError(
            f"the data set {name!r} cannot be loaded ({cause})", advice=DATASET_ADVICE
        ) from error
    if not isinstance(dataset, DatasetDict):
        dataset = {"train": dataset}  # saved without splits; any other name is a mistake
    if split not in dataset:
        raise InputError(
            f"the data set {name!r} has no split {split!r}",
            advice=f"it has {', '.join(map(str, dataset))}; change `{split_parameter}`",
        )
    return dataset[split]


def _label_feature(where: str, schema: pa.Schema, image_column: str, label_column: str) -> Any:
    """Check that both columns can be used; return the feature of the labels, None without any."""
    from datasets import ClassLabel, Features, Value

    listed = ", ".join(map(repr, schema.names)) or "none"
    if image_column not in schema.names:
        raise InputError(
            f"{where} has no column {image_column!r}",
            advice=f"it has {listed}; pass the one of images as `image_column`",
        )
    image_type = schema.field(image_column).type
    if pa.types.is_struct(image_type):
        holds_images = any(image_type.get_field_index(name) >= 0 for name in ("bytes", "path"))
    else:
        holds_images = image_type in (
            pa.binary(),
            pa.large_binary(),
            pa.string(),
            pa.large_string(),
        )
    if not holds_images:
        raise InputError(
            f"the column {image_column!r} of {where} holds {image_type}, not images",
            advice=f"the columns are {listed}; pass the one of images as `image_column`",
        )
    if label_column not in schema.names:
        if label_column == DEFAULT_LABEL_COLUMN:
            return None
        raise InputError(
            f"{where} has no column {label_column!r}",
            advice=f"it has {listed}; change `label_column` or leave it out",
        )
    field = schema.field(label_column)
    feature = Features.from_arrow_schema(pa.schema([field], metadata=schema.metadata))[label_column]
    kinds = ("int", "uint", "string", "large_string")
    is_value = isinstance(feature, Value) and feature.dtype.startswith(kinds)
    if not is_value and not isinstance(feature, ClassLabel):
        raise InputError(
            f"the column {label_column!r} of {where} holds {field.type}, but labels must be "
            "integers, strings or a ClassLabel",
            advice="change `label_column`",
        )
    return feature


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the names of a `ClassLabel`; None of another feature or of none."""
    return tuple(feature.names) if hasattr(feature, "names") else None


def _rows_of(
    batches: Iterable[pa.RecordBatch], where: str, columns: list[str], *, first: int = 0
) -> Iterator[ImageRow]:
    """Yield the rows of record batches with a column of images and, if wanted, one of labels.

    They are numbered from `first` on.
    """
    from datasets import Image

    number = first
    for batch in batches:
        images = Image().cast_storage(batch.column(columns[0])).to_pylist()
        labels = batch.column(columns[1]).to_pylist() if len(columns) > 1 else [None] * len(images)
        for content, label in zip(images, labels, strict=True):
            path = content and content["path"]
            name = f"row {number} of {where}" + (f" ({path})" if path else "")
            yield ImageRow(name, content, checked_label(label, name))
            number += 1


def checked_label(label: Label, name: str) -> Label:
    """Return a label, if it can be one.

    Raises:
        InputError: it is a number that no class has.
    """
    if isinstance(label, str):
        return sys.intern(label)  # one object for each class, not for each image
    if label is not None and not -1 <= label <= _MAX_CLASS_NUMBER:
        raise InputError(
            f"{name} has the label {label}, but class numbers must lie in 0..{_MAX_CLASS_NUMBER} "
            "(-1 = none)",
            advice="change `label_column`",
        )
    return label
