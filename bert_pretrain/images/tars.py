"""Images in tar archives laid out as WebDataset shards, read one by one at their places.

A sample is what shares a name up to the first dot of its last part: `n01/0001.jpg` and
`n01/0001.cls`, the number of its class. Shards are read at random places rather than in passes, so
that the order of training is the same on any number of workers and processes.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from bert_pretrain.data.names import existing_files, files_fingerprint
from bert_pretrain.errors import InputError
from bert_pretrain.images.decoding import ImageRow, ImageSource, Label
from bert_pretrain.images.tables import checked_label

_CLASS = ".cls"


@dataclass
class _Index:
    """Where samples lie, in the order of shards and of the images in them.

    Attributes:
        shards: paths of the archives.
        places: int64 (N, 3), shard, first byte and number of bytes of an image.
        names: of the images in their shards.
        labels: class numbers, None where a sample has none.
    """

    shards: list[str]
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 3), dtype=np.int64))
    names: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)


def open_tars(patterns: list[str], *, parameter: str) -> ImageSource:
    """Open uncompressed tar archives of encoded images; see `open_image_source`.

    Raises:
        InputError: a file is no such archive, a sample has two images or a class that is no number,
            or there are no images; `parameter` gave the patterns.
    """
    found = (path for pattern in patterns for path in existing_files(pattern, parameter=parameter))
    paths = list(dict.fromkeys(found))
    index = _Index([str(path) for path in paths])
    places = []
    for number, path in enumerate(paths):
        try:
            with tarfile.open(path, "r:") as archive:
                samples = _samples(archive, str(path))
        except (tarfile.TarError, OSError) as error:
            raise InputError(
                f"{path} is not a whole tar archive without compression ({error})",
                advice=f"`{parameter}` takes .tar files, whose images are compressed themselves",
            ) from error
        for name, first_byte, num_bytes, label in samples:
            places.append((number, first_byte, num_bytes))
            index.names.append(name)
            index.labels.append(label)
    if not places:
        raise InputError(
            f"{paths[0]} holds no images",
            advice=f"pass `{parameter}` archives with files such as 0001.jpg and 0001.cls",
        )
    index.places = np.array(places, dtype=np.int64)
    fetch = partial(_tar_row, index)
    return ImageSource(
        description=", ".join([path.name for path in paths[:4]] + ["..."] * (len(paths) > 4)),
        fingerprint=files_fingerprint(paths),
        num_rows=len(places),
        label_names=None,
        read=lambda: map(fetch, range(len(places))),
        fetch=fetch,
    )


def _samples(archive: tarfile.TarFile, where: str) -> list[tuple[str, int, int, Label]]:
    """Return name, first byte, number of bytes and class of each image of an archive, in order."""
    known = PIL.Image.registered_extensions()
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, Label] = {}
    for member in archive:
        folder, slash, name = member.name.rpartition("/")
        base, dot, extension = name.partition(".")
        if not member.isfile() or not base:  # a folder, or a hidden file
            continue
        sample, suffix = folder + slash + base, dot + extension.lower()
        if known.get(suffix) in PIL.Image.OPEN:
            if sample in images:
                raise InputError(
                    f"the sample {sample!r} of {where} has two images, {images[sample][0]} and "
                    f"{member.name}",
                    advice="give each image a name of its own up to the first dot",
                )
            images[sample] = (member.name, member.offset_data, member.size)
        elif suffix == _CLASS:
            labels[sample] = _class_number(archive, member, where)
    return [(*image, labels.get(sample)) for sample, image in images.items()]


def _class_number(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> Label:
    file = archive.extractfile(member)
    text = file.read().decode(errors="replace").strip() if file is not None else ""
    if not text.isdecimal():
        raise InputError(
            f"{member.name} of {where} holds {text[:20]!r}, not the number of a class",
            advice=f"write one number into each {_CLASS} file",
        )
    return checked_label(int(text), f"{member.name} of {where}")


def _tar_row(index: _Index, number: int) -> ImageRow:
    shard, first_byte, num_bytes = index.places[number].tolist()
    with Path(index.shards[shard]).open("rb") as file:
        file.seek(first_byte)
        content = {"path": None, "bytes": file.read(num_bytes)}
    name = f"{index.names[number]} of {index.shards[shard]}"
    return ImageRow(name, content, index.labels[number])
