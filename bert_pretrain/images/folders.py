"""Images in the files of a folder, which may be divided into splits and into classes by its subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from bert_pretrain.data.files import files_fingerprint
from bert_pretrain.errors import InputError
from bert_pretrain.images.rows import ImageRow, ImageSource

_SPLIT_FOLDERS = {
    "train",
    "training",
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
}


def visible_files(folder: Path) -> Iterator[Path]:
    """Walk over the files below a folder, leaving out hidden ones and what archivers and editors add (`__MACOSX`)."""
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def open_folder(
    folder: Path, files: list[Path], split: str, split_parameter: str = "dataset_split"
) -> ImageSource:
    """Open a folder of image files, labelled by the rule of `datasets`' image folders.

    The folder that an image lies in names its class, if there are several such folders and all are
    equally deep.
    """
    known = PIL.Image.registered_extensions()
    files = [path for path in files if known.get(path.suffix.lower()) in PIL.Image.OPEN]
    root = _split_folder(folder, files, split, split_parameter)
    files = [path for path in files if path.is_relative_to(root)]
    if not files:
        raise InputError(
            f"{root} holds no images",
            advice="`dataset_name` takes 'digits', a folder of images or a Hub id",
        )
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
        fingerprint=files_fingerprint(files),
        num_rows=len(files),
        label_names=tuple(names) if is_labelled else None,
        is_embedded=False,
        read=read,
    )


def _split_folder(folder: Path, files: list[Path], split: str, parameter: str) -> Path:
    """Return the subfolder of a split, or the folder itself unless all its subfolders are named like splits.

    A class may be called `train`, but hardly all classes are called like splits.
    """
    subfolders = {parts[0] for path in files if len(parts := path.relative_to(folder).parts) > 1}
    if not subfolders or not subfolders <= _SPLIT_FOLDERS:
        if split != "train":  # else what is asked for as test images would be the training images
            raise InputError(
                f"{folder} has no subfolders of splits, so no {split!r}",
                advice=f"leave out `{parameter}`",
            )
        return folder
    if split not in subfolders:
        raise InputError(
            f"{folder} has no split {split!r}",
            advice=f"it has {', '.join(sorted(subfolders))}; change `{parameter}`",
        )
    return folder / split
