"""Images in tar archives laid out as WebDataset shards, read one by one at their places.

A sample is what shares a name up to the first dot of its last part: `n01/0001.jpg` and
`n01/0001.cls`, the number or the name of its class. Shards are read at random places rather than in
passes, so that the order of training is the same on any number of workers and processes. The
webdataset library reads shards in passes alone and shuffles in a buffer, so what it wrote is
indexed here; and a compressed archive has no places to read at.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from bert_pretrain.data.names import files_fingerprint
from bert_pretrain.errors import InputError
from bert_pretrain.images.decoding import ImageRow, ImageSource, Label
from bert_pretrain.images.tables import checked_label, listed

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


def open_tars(paths: list[Path], *, parameter: str) -> ImageSource:
    """Open uncompressed tar archives of encoded images; see `open_image_source`.

    Raises:
        InputError: a file is no such archive or a part of one, a sample has two images or an empty
            class, classes are numbers here and names there, or there are no images; `parameter`
            gave the paths.
    """
    index = _Index([str(path) for path in paths])
    places = []
    for number, path in enumerate(paths):
        try:
            with tarfile.open(path, "r:") as archive:
                samples = _samples(archive, str(path))
                _refuse_unended(archive)
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
    _refuse_mixed(index)
    index.places = np.array(places, dtype=np.int64)
    fetch = partial(_tar_row, index)
    return ImageSource(
        description=listed(paths),
        fingerprint=files_fingerprint(paths),
        num_rows=len(places),
        label_names=None,
        read=lambda: map(fetch, range(len(places))),
        fetch=fetch,
    )


def _refuse_unended(archive: tarfile.TarFile) -> None:
    """Raise `tarfile.ReadError` unless a block of zeros follows the last member that was read.

    tarfile takes a header that is cut off, damaged or missing for the end, and tells no one.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(
            f"after {len(archive.getmembers())} files follows neither another file nor the end"
        )


def _refuse_mixed(index: _Index) -> None:
    """Raise `InputError` if some classes are numbers and others names: one kind would be lost."""
    labelled = zip(index.names, index.labels, strict=True)
    named = [name for name, label in labelled if isinstance(label, str)]
    if named and any(isinstance(label, int) for label in index.labels):
        raise InputError(
            f"the class of {named[0]} is a name, but those of other images are numbers",
            advice=f"write either numbers or names into all {_CLASS} files",
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
            labels[sample] = _class_of(archive, member, where)
    return [(*image, labels.get(sample)) for sample, image in images.items()]


def _class_of(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> Label:
    """Return the number or else the name that a member holds as text."""
    file = archive.extractfile(member)
    try:
        text = file.read().decode().strip() if file is not None else ""
    except UnicodeDecodeError as error:
        raise InputError(
            f"{member.name} of {where} is not UTF-8 ({error})",
            advice="write the number or the name of the class in UTF-8",
        ) from error
    if not text:
        raise InputError(
            f"{member.name} of {where} is empty, but must hold the number or the name of a class",
            advice=f"write it, or leave out the {_CLASS} file of an image without a class",
        )
    return checked_label(int(text) if text.isdecimal() else text, f"{member.name} of {where}")


def _tar_row(index: _Index, number: int) -> ImageRow:
    shard, first_byte, num_bytes = index.places[number].tolist()
    with Path(index.shards[shard]).open("rb") as file:
        file.seek(first_byte)
        content = {"path": None, "bytes": file.read(num_bytes)}
    name = f"{index.names[number]} of {index.shards[shard]}"
    return ImageRow(name, content, index.labels[number])
