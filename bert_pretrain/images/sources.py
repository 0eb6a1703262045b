"""Where images come from: the embedded digits, the files of a folder, tars, a column of a table.

Names enter; an `ImageSource` leaves, whose rows hold encoded bytes or paths and come one at a time,
so that no data set is ever held in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image

from bert_pretrain.data.names import (
    existing_files,
    files_fingerprint,
    is_saved_dataset,
    refuse_undecodable,
)
from bert_pretrain.errors import InputError
from bert_pretrain.images.decoding import ImageRow, ImageSource
from bert_pretrain.images.tables import (
    DATASET_ADVICE,
    DEFAULT_LABEL_COLUMN,
    listed,
    open_dataset,
    open_parquet,
)
from bert_pretrain.images.tars import open_tars

_HELD_OUT = "val|valid|validate|validation|dev|test|testing|eval|evaluation|hold-?out|held-?out"
_HELD_OUT += "|unlabell?ed"
# What a name may go on with and still be that of a split: val2017, test_set, validation-images.
_MORE = r"([\W_]*(\d+|sets?|splits?|data|images?|imgs?|photos?|pictures?|files?))*"
_HELD_OUT_FOLDER = re.compile(f"({_HELD_OUT}){_MORE}", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(f"(train|training|{_HELD_OUT}){_MORE}", re.IGNORECASE)
_HELD_OUT_WORD = re.compile(rf"(?<![^\W\d_])({_HELD_OUT})(set)?(?![^\W\d_])", re.IGNORECASE)
# A folder with such files is a data set of its own format, or says more about its images than their
# folders do.
_DATASET_EXTENSIONS = {".parquet", ".arrow", ".csv", ".jsonl", ".zip", ".tar", ".gz"}


def open_image_source(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    data_files: list[str] | None = None,
    image_column: str = "image",
    label_column: str = DEFAULT_LABEL_COLUMN,
    files_parameter: str = "data_files",
    split_parameter: str = "dataset_split",
) -> ImageSource:
    """Find the images of a data set or of files.

    Args:
        dataset_name: `digits` (also None) for scikit-learn's 1,797 handwritten digits of 8 x 8
            pixels, whose grey levels v in 0..16 become round(v * 255 / 16); a folder of images,
            flat or with a subfolder for each class, below subfolders named by split if there are
            any; a folder saved by `datasets`; or what `datasets.load_dataset` takes.
        dataset_config_name: configuration of a data set that `load_dataset` loads.
        dataset_split: split of a data set that has several.
        data_files: paths or globs of Parquet files, of WebDataset shards (.tar), or of image files,
            which have no labels, in place of a data set.
        image_column: column of encoded images: of the `Image` feature, bytes, a struct of bytes and
            path, or paths.
        label_column: column of class numbers, class names (numbered in sorted order) or the
            `ClassLabel` feature; only the default one may be missing.
        files_parameter: that gave `data_files`, for messages.
        split_parameter: that gave `dataset_split`, for messages.

    Raises:
        InputError: there are no images, a file or data set cannot be read, a column is missing or
            of another type.
    """
    if data_files:
        return _open_files(data_files, image_column, label_column, files_parameter)
    if dataset_name is None or dataset_name == "digits":
        if dataset_split != "train":
            raise InputError(
                f"'digits' has no split {dataset_split!r}, only train",
                advice=f"leave out `{split_parameter}`",
            )
        return _open_digits()
    folder = Path(dataset_name)
    if folder.is_dir() and not is_saved_dataset(folder):
        files = sorted(_visible_files(folder))
        if not any(path.suffix.lower() in _DATASET_EXTENSIONS for path in files):
            return _open_folder(folder, files, dataset_split, split_parameter)
    return open_dataset(
        dataset_name,
        dataset_config_name,
        dataset_split,
        image_column,
        label_column,
        split_parameter=split_parameter,
    )


def _open_files(
    patterns: list[str], image_column: str, label_column: str, parameter: str
) -> ImageSource:
    found = (path for pattern in patterns for path in existing_files(pattern, parameter=parameter))
    paths = list(dict.fromkeys(found))
    if all(map(_is_image, paths)):
        source = _source_of(paths, listed(paths), label_names=())
    elif all(path.suffix == ".tar" for path in paths):
        source = open_tars(paths, parameter=parameter)
    else:
        source = open_parquet(paths, image_column, label_column, parameter=parameter)
    return replace(source, warning=_describe_held_out(paths, parameter))


def _describe_held_out(paths: list[Path], parameter: str) -> str:
    """Return a warning if images to validate or test on are read beside others; "" if not.

    Folders named so are refused, but the names of files say less: `test` may be a person's word.
    """
    held_out = [path.name for path in paths if _HELD_OUT_WORD.search(path.stem)]
    if not held_out or len(held_out) == len(paths):
        return ""
    return (
        f"{len(held_out):,} of the {len(paths):,} `{parameter}`, such as {held_out[0]}, are named "
        "as images to validate or test on, and are read like the others; leave them out if nothing "
        "is to be learnt from them"
    )


def _open_digits() -> ImageSource:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    labels = digits.target.tolist()

    def read() -> Iterator[ImageRow]:
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            yield ImageRow(f"digit {number}", image, label)

    return ImageSource(
        description="digits: scikit-learn's handwritten digits",
        fingerprint=hashlib.sha256(pixels.tobytes() + bytes(labels)).hexdigest(),
        num_rows=len(pixels),
        label_names=tuple(map(str, digits.target_names)),
        read=read,
        is_embedded=True,
    )


def _visible_files(folder: Path) -> Iterator[Path]:
    """Walk over the files below a folder, without hidden ones and those of `__MACOSX`."""
    seen = set()  # a link may lead up again
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:
            subfolders.clear()
            continue
        seen.add(place)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__")))
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _open_folder(folder: Path, files: list[Path], split: str, split_parameter: str) -> ImageSource:
    """Open a folder of image files, labelled by the rule of `datasets`' image folders.

    The folder that an image lies in names its class, if there are several such folders and all are
    equally deep.
    """
    files = list(filter(_is_image, files))
    root = _split_folder(folder, files, split, split_parameter)
    files = [path for path in files if path.is_relative_to(root)]
    if not files:
        raise InputError(f"{root} holds no images", advice=DATASET_ADVICE)
    for path in files:
        refuse_undecodable(path)
    parents = {path.parent for path in files}
    names = sorted({parent.name for parent in parents})
    is_labelled = len(names) > 1 and len({len(parent.parts) for parent in parents}) == 1
    return _source_of(files, str(root), label_names=tuple(names) if is_labelled else ())


def _is_image(path: Path) -> bool:
    return PIL.Image.registered_extensions().get(path.suffix.lower()) in PIL.Image.OPEN


def _source_of(files: list[Path], description: str, label_names: tuple[str, ...]) -> ImageSource:
    """Return image files as a source; the folders that they lie in name their classes, if any."""
    fetch = partial(_file_row, files, {name: number for number, name in enumerate(label_names)})
    return ImageSource(
        description=description,
        fingerprint=files_fingerprint(files),
        num_rows=len(files),
        label_names=label_names or None,
        read=lambda: map(fetch, range(len(files))),
        fetch=fetch,
    )


def _file_row(files: list[Path], class_number: dict[str, int], number: int) -> ImageRow:
    """Return the row of a file; a folder without classes has no numbers of any."""
    path = files[number]
    content = {"path": str(path), "bytes": None}
    return ImageRow(str(path), content, class_number.get(path.parent.name))


def _split_folder(folder: Path, files: list[Path], split: str, parameter: str) -> Path:
    """Return the subfolder of a split, or the folder itself where it has no splits.

    Its subfolders are splits if all of them are named so, in any case of letters: a class may be
    called `train`, but hardly all classes are.

    Raises:
        InputError: there is no such split, or images to test on would be trained on, as classes.
    """
    subfolders = {parts[0] for path in files if len(parts := path.relative_to(folder).parts) > 1}
    named = sorted(filter(_SPLIT_FOLDER.fullmatch, subfolders))
    if not subfolders or len(named) < len(subfolders):
        if split != "train":  # else what is asked for as test images would be the training images
            raise InputError(
                f"{folder} has no subfolders of splits, so no {split!r}",
                advice=f"leave out `{parameter}`",
            )
        _refuse_splits_below(folder, files)
        return folder
    found = [name for name in named if name.lower() == split.lower()]
    if not found:
        raise InputError(
            f"{folder} has no split {split!r}",
            advice=f"it has {', '.join(named)}; change `{parameter}`",
        )
    root = folder / (split if split in found else found[0])
    _refuse_splits_below(root, [path for path in files if path.is_relative_to(root)])
    return root


def _refuse_splits_below(root: Path, files: list[Path]) -> None:
    """Raise `InputError` if images to validate or test on lie in folders below others.

    A class may be called `train`, but hardly `val` or `test`.
    """
    direct = {path.parent.relative_to(root) for path in files}
    parents = direct.union(*(parent.parents for parent in direct))
    splits = [parent for parent in parents if _HELD_OUT_FOLDER.fullmatch(parent.name)]
    if not splits:
        return
    first = min(splits, key=lambda parent: (len(parent.parts), parent))
    siblings = sorted({each.name for each in parents if each.parent == first.parent and each.name})
    raise InputError(
        f"{root} would be read as a whole, but its subfolder {first} is named as a split, beside "
        f"{', '.join(name for name in siblings if name != first.name) or 'no other'}",
        advice=f"pass {root / first.parent} if all its subfolders are splits, or the folder of one "
        "split; put splits above classes; rename what is a class",
    )
