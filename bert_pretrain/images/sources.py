"""Where images come from, what they are called and how they are labelled.

Flags that name a source enter; an `ImageSource` leaves, whose rows hold encoded bytes or paths and
come one at a time, so that no data set is ever held in memory. `bert_pretrain.images.decoding`
decodes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bert_pretrain.data.files import is_saved_dataset
from bert_pretrain.errors import InputError
from bert_pretrain.images.folders import open_folder, visible_files
from bert_pretrain.images.rows import ImageRow, ImageSource
from bert_pretrain.images.tables import open_dataset, open_parquet

# A folder with such files is a data set of its own format, or says more about its images than their
# folders do.
_DATASET_EXTENSIONS = {".parquet", ".arrow", ".csv", ".jsonl", ".zip", ".tar", ".gz"}


def open_image_source(
    *,
    dataset_name: str | None,
    dataset_config_name: str | None,
    dataset_split: str,
    data_files: list[str] | None,
    image_column: str,
    label_column: str,
    files_parameter: str = "data_files",
    split_parameter: str = "dataset_split",
) -> ImageSource:
    """Find the images that the data flags name.

    Args:
        dataset_name: `digits` for scikit-learn's handwritten digits (also None); a folder of
            images, flat or with a subfolder for each class, below subfolders named by split if
            there are any; a folder saved by `datasets`; or another data set that
            `datasets.load_dataset` knows, by folder or Hub id.
        dataset_config_name: configuration of a data set that `load_dataset` loads.
        dataset_split: split of a data set that has several.
        data_files: paths or globs of Parquet files, in place of a data set.
        image_column: column of encoded images: of the `Image` feature, bytes, a struct of bytes and
            path, or paths.
        label_column: column of class numbers, class names or the `ClassLabel` feature; only the
            default one may be missing.
        files_parameter: that gave `data_files`, for messages.
        split_parameter: that gave `dataset_split`, for messages.

    Raises:
        InputError: there are no images, a file or data set cannot be read, a column is missing or
            of another type.
    """
    if data_files:
        return open_parquet(data_files, image_column, label_column, parameter=files_parameter)
    if dataset_name in (None, "digits"):
        if dataset_split != "train":
            raise InputError(
                f"'digits' has no split {dataset_split!r}, only train",
                advice=f"leave out `{split_parameter}`",
            )
        return _open_digits()
    assert dataset_name is not None
    folder = Path(dataset_name)
    if folder.is_dir() and not is_saved_dataset(folder):
        files = sorted(visible_files(folder))
        if not any(path.suffix.lower() in _DATASET_EXTENSIONS for path in files):
            return open_folder(folder, files, dataset_split, split_parameter)
    return open_dataset(
        dataset_name,
        dataset_config_name,
        dataset_split,
        image_column,
        label_column,
        split_parameter=split_parameter,
    )


def _open_digits() -> ImageSource:
    # Slow to import, and needed for this source alone.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(
        np.uint8
    )  # (1797, 8, 8), grey levels 0..16 before
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
