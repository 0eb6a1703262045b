"""Images that are not decoded yet: where they come from, what they are called and how they are labelled.

Flags that name a source enter; an `ImageSource` leaves, whose rows hold encoded bytes or paths and come one at a time,
so that no data set is ever held in memory. `bert_pretrain.data.images` decodes them.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from numpy.typing import NDArray

from bert_pretrain.errors import InputError

Label: TypeAlias = "int | str | None"

DEFAULT_LABEL_COLUMN = "label"
_ROWS_PER_READ = 64
_MAX_CLASS_NUMBER = 99_999  # above it, a column of integers holds identifiers or measurements, not classes
_SPLIT_FOLDERS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
# A folder with such files is a data set of its own format, or says more about its images than their folders do.
_DATASET_EXTENSIONS = {".parquet", ".arrow", ".csv", ".jsonl", ".zip", ".tar", ".gz"}


@dataclass(frozen=True)
class ImageRow:
    """One image as it is stored.

    Attributes:
        name: what to call it before a user: a path, or a file and the row in it, counted from 0.
        content: pixels uint8 (H, W); or `bytes` and `path` as `datasets.Image(decode=False)` gives them, either None;
            or None where the row holds no image.
        label: class number, -1 or None where there is none, or class name.
    """

    name: str
    content: NDArray[np.uint8] | dict[str, Any] | None
    label: Label


@dataclass(frozen=True)
class ImageSource:
    """Images that can be read again and again, always in the same order.

    Attributes:
        description: what the source is, for people.
        fingerprint: changes when the images may have changed.
        num_rows: how many rows a pass has.
        label_names: name of each class number, where the source tells them.
        is_embedded: whether the images come with an installed package and are few.
        read: starts a new pass over the rows.
    """

    description: str
    fingerprint: str
    num_rows: int
    label_names: tuple[str, ...] | None
    is_embedded: bool
    read: Callable[[], Iterator[ImageRow]]


def open_image_source(
    *,
    dataset_name: str | None,
    dataset_config_name: str | None,
    dataset_split: str,
    data_files: list[str] | None,
    image_column: str,
    label_column: str,
) -> ImageSource:
    """Find the images that the data flags name.

    Args:
        dataset_name: `digits` for scikit-learn's handwritten digits (also None); a folder of images, flat or with a
            subfolder for each class, below subfolders named by split if there are any; a folder saved by `datasets`;
            or another data set that `datasets.load_dataset` knows, by folder or Hub id.
        dataset_config_name: configuration of a data set that `load_dataset` loads.
        dataset_split: split of a data set that has several.
        data_files: paths or globs of Parquet files, in place of a data set.
        image_column: column of encoded images: of the `Image` feature, bytes, a struct of bytes and path, or paths.
        label_column: column of class numbers, class names or the `ClassLabel` feature; only the default one may be
            missing.

    Raises:
        InputError: there are no images, a file or data set cannot be read, a column is missing or of another type.
    """
    if data_files:
        return _open_parquet(data_files, image_column, label_column)
    if dataset_name in (None, "digits"):
        if dataset_split != "train":
            raise InputError(f"'digits' has no split {dataset_split!r}, only train; leave out --dataset_split")
        return _open_digits()
    assert dataset_name is not None
    folder = Path(dataset_name)
    if folder.is_dir() and not _is_saved_dataset(folder):
        files = sorted(_visible_files(folder))
        if not any(path.suffix.lower() in _DATASET_EXTENSIONS for path in files):
            return _open_folder(folder, files, dataset_split)
    return _open_dataset(dataset_name, dataset_config_name, dataset_split, image_column, label_column)


def _open_digits() -> ImageSource:
    # Slow to import, and needed for this source alone.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), grey levels 0..16 before
    labels = digits.target.tolist()

    def read() -> Iterator[ImageRow]:
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            yield ImageRow(f"digit {number}", image, label)

    return ImageSource(
        description="digits: scikit-learn's handwritten digits",
        fingerprint=hashlib.sha256(pixels.tobytes() + bytes(labels)).hexdigest(),
        num_rows=len(pixels),
        label_names=tuple(map(str, digits.target_names)),
        is_embedded=True,
        read=read,
    )


def _visible_files(folder: Path) -> Iterator[Path]:
    """Walk over the files below a folder, leaving out hidden ones and what archivers and editors add (`__MACOSX`)."""
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _open_folder(folder: Path, files: list[Path], split: str) -> ImageSource:
    """Open a folder of image files, labelled by the rule of `datasets`' image folders.

    The folder that an image lies in names its class, if there are several such folders and all are equally deep.
    """
    known = PIL.Image.registered_extensions()
    files = [path for path in files if known.get(path.suffix.lower()) in PIL.Image.OPEN]
    root = _split_folder(folder, files, split)
    files = [path for path in files if path.is_relative_to(root)]
    if not files:
        raise InputError(f"{root} holds no images; --dataset_name takes 'digits', a folder of images or a Hub id")
    parents = {path.parent for path in files}
    names = sorted({parent.name for parent in parents})
    is_labelled = len(names) > 1 and len({len(parent.parts) for parent in parents}) == 1
    class_number = {name: number for number, name in enumerate(names)}

    def read() -> Iterator[ImageRow]:
        for path in files:
            label = class_number[path.parent.name] if is_labelled else None
            yield ImageRow(str(path), {"path": str(path), "bytes": None}, label)

    return ImageSource(
        description=str(root),
        fingerprint=_files_fingerprint(files),
        num_rows=len(files),
        label_names=tuple(names) if is_labelled else None,
        is_embedded=False,
        read=read,
    )


def _split_folder(folder: Path, files: list[Path], split: str) -> Path:
    """Return the subfolder of a split, or the folder itself unless all its subfolders are named like splits.

    A class may be called `train`, but hardly all classes are called like splits.
    """
    subfolders = {parts[0] for path in files if len(parts := path.relative_to(folder).parts) > 1}
    if not subfolders or not subfolders <= _SPLIT_FOLDERS:
        if split != "train":  # else what is asked for as test images would be the training images
            raise InputError(f"{folder} has no subfolders of splits, so no {split!r}; leave out --dataset_split")
        return folder
    if split not in subfolders:
        raise InputError(
            f"{folder} has no split {split!r}; it has {', '.join(sorted(subfolders))}; change --dataset_split"
        )
    return folder / split


def _files_fingerprint(files: Iterable[Path], *more: str) -> str:
    sha256 = hashlib.sha256()
    for path in files:
        status = path.stat() if path.exists() else path.lstat()  # a dangling link is a bad image, no reason to stop
        sha256.update(json.dumps([str(path.resolve()), status.st_size, status.st_mtime_ns]).encode())
    sha256.update(json.dumps(more).encode())
    return sha256.hexdigest()


def _open_parquet(patterns: list[str], image_column: str, label_column: str) -> ImageSource:
    paths = list(dict.fromkeys(path for pattern in patterns for path in _existing_files(pattern)))
    num_rows = 0
    label_features: list[Any] = []
    for path in paths:
        with _open_parquet_file(path) as file:
            schema = file.schema_arrow
            num_rows += file.metadata.num_rows
        label = _check_columns(str(path), schema, image_column, label_column)
        label_features.append(label)
        if label != label_features[0]:
            raise InputError(
                f"the labels of {path} are {label}, those of {paths[0]} {label_features[0]}; "
                "they must agree in all --data_files"
            )
    columns = [image_column] if label_features[0] is None else [image_column, label_column]

    def read() -> Iterator[ImageRow]:
        for path in paths:
            with _open_parquet_file(path) as file:
                batches = file.iter_batches(batch_size=_ROWS_PER_READ, columns=columns)
                yield from _rows_of(batches, str(path), columns)

    return ImageSource(
        description=", ".join(path.name for path in paths[:4]) + (", ..." if len(paths) > 4 else ""),
        fingerprint=_files_fingerprint(paths, image_column, label_column),
        num_rows=num_rows,
        label_names=_class_names(label_features[0]),
        is_embedded=False,
        read=read,
    )


def _existing_files(pattern: str) -> list[Path]:
    if Path(pattern).is_file():
        return [Path(pattern)]
    found = sorted(Path(path) for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not found:
        raise InputError(f"there is no file {pattern!r}; --data_files takes paths and globs of existing files")
    return found


def _open_parquet_file(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a Parquet file ({error}); --data_files takes Parquet files with a column of images, "
            "--dataset_name a folder of images"
        ) from error


def _open_dataset(name: str, config_name: str | None, split: str, image_column: str, label_column: str) -> ImageSource:
    try:
        dataset = load_from_disk(name) if _is_saved_dataset(Path(name)) else load_dataset(name, config_name)
    except Exception as error:  # datasets raises whatever its builders and the network raise
        cause = error.__cause__ or error  # what a builder says is wrapped in a sentence that says nothing
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise InputError(
            f"the data set {name!r} cannot be loaded ({reason}); "
            "--dataset_name takes 'digits', a folder of images or a Hub id"
        ) from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise InputError(
                f"the data set {name!r} has no split {split!r}; it has {', '.join(map(str, dataset))}; "
                "change --dataset_split"
            )
        dataset = dataset[split]
    schema = dataset.features.arrow_schema
    label = _check_columns(f"the data set {name!r}", schema, image_column, label_column)
    columns = [image_column] if label is None else [image_column, label_column]
    described = json.dumps([dataset._fingerprint, split, columns])

    def read() -> Iterator[ImageRow]:
        # The Arrow format leaves images encoded, so that one that cannot be decoded does not end the pass.
        tables = dataset.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS_PER_READ)
        yield from _rows_of((batch for table in tables for batch in table.to_batches()), name, columns)

    return ImageSource(
        description=f"{name} ({split})",
        fingerprint=hashlib.sha256(described.encode()).hexdigest(),
        num_rows=len(dataset),
        label_names=_class_names(label),
        is_embedded=False,
        read=read,
    )


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _check_columns(where: str, schema: pa.Schema, image_column: str, label_column: str) -> Any:
    """Return the feature of the labels, None if there are none, after checking that both columns can be used."""
    listed = ", ".join(map(repr, schema.names)) or "none"
    if image_column not in schema.names:
        raise InputError(
            f"{where} has no column {image_column!r}; it has {listed}; pass the one of images as --image_column"
        )
    image_type = schema.field(image_column).type
    if not _holds_images(image_type):
        raise InputError(
            f"the column {image_column!r} of {where} holds {image_type}, not images; the columns are {listed}; "
            "pass the one of images as --image_column"
        )
    if label_column not in schema.names:
        if label_column == DEFAULT_LABEL_COLUMN:
            return None
        raise InputError(
            f"{where} has no column {label_column!r}; it has {listed}; change --label_column or leave it out"
        )
    described = Features.from_arrow_schema(pa.schema([schema.field(label_column)], metadata=schema.metadata))
    feature = described[label_column]
    is_value = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "string", "large_string"))
    if not is_value and not isinstance(feature, ClassLabel):
        raise InputError(
            f"the column {label_column!r} of {where} holds {schema.field(label_column).type}, but labels must be "
            "integers, strings or a ClassLabel; change --label_column"
        )
    return feature


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0)
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    return any(check(kind) for check in checks)


def _class_names(feature: Any) -> tuple[str, ...] | None:
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def _rows_of(batches: Iterable[pa.RecordBatch], where: str, columns: list[str]) -> Iterator[ImageRow]:
    """Yield the rows of record batches whose columns are the images and, if there are two, the labels."""
    number = 0
    for batch in batches:
        images = Image().cast_storage(batch.column(columns[0])).to_pylist()
        labels = batch.column(columns[1]).to_pylist() if len(columns) > 1 else [None] * len(images)
        for content, label in zip(images, labels, strict=True):
            path = content and content["path"]
            name = f"row {number} of {where}" + (f" ({path})" if path else "")
            yield ImageRow(name, content, _checked_label(label, name))
            number += 1


def _checked_label(label: Label, name: str) -> Label:
    if isinstance(label, str):
        return sys.intern(label)  # one object for each class, not for each image
    if label is not None and not -1 <= label <= _MAX_CLASS_NUMBER:
        raise InputError(
            f"{name} has the label {label}, but class numbers must lie in 0..{_MAX_CLASS_NUMBER} (-1 = none); "
            "change --label_column"
        )
    return label
