"""One pass over all images of a source: their pixels, if wanted, and what is known of each.

Images that are there twice are kept once, bad ones are refused or left out, and classes get their
numbers.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bert_pretrain.errors import InputError
from bert_pretrain.images.decoding import (
    ImageSource,
    Label,
    OnBadImage,
    Outcome,
    PictureSize,
    decode_rows,
    picture_conversion,
)
from bert_pretrain.images.levels import PixelRange
from bert_pretrain.images.survey import survey

FORMAT_VERSION = 3  # raised whenever what is written changes
# To train on, and to hold out: a single image has no spread, no neighbour and no negative.
MIN_IMAGES = 2
_NAMED_BAD_IMAGES = 5
_NO_LABEL = (None, -1)


@dataclass(frozen=True)
class DecodingRule:
    """How images are decoded; see the arguments of `open_images`."""

    image_size: PictureSize
    num_channels: int
    on_bad_image: OnBadImage
    pixel_range: PixelRange | None


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """A corpus before its division.

    Attributes:
        pixels: uint8 (N, H, W, C), or what reads like that; with N = 0 if they were not to be kept.
        labels: int64 (N,), -1 where an image has none; None if none has one.
        moments: int64 (N, 2, C), sums of an image's pixels and of their squares.
        places: int64 (N, 3), the row of an image in its source, and its width and height there.
        manifest: what was decoded.
        folder: where this is kept; None = in memory.
    """

    pixels: Any
    labels: NDArray[np.int64] | None
    moments: NDArray[np.int64]
    places: NDArray[np.int64]
    manifest: dict[str, Any]
    folder: Path | None = None


def decode_in_memory(source: ImageSource, rule: DecodingRule) -> DecodedImages:
    """Decode all images of a source that is small."""
    file = io.BytesIO()
    decoded = decode_all(source, rule, file, show_progress=False)
    file.seek(0)
    decoded = replace(decoded, pixels=np.load(file))
    decoded.pixels.flags.writeable = False
    return decoded


def decoded_range(decoded: DecodedImages) -> PixelRange | None:
    """Return the grey levels that became black and white in images of more than 8 bits."""
    found = decoded.manifest["pixel_range"]
    return PixelRange(*found) if found else None


def checked_pixels(outcome: Outcome) -> NDArray[np.uint8]:
    """Return the pixels of an image that could be decoded before.

    Raises:
        InputError: it cannot be decoded any more.
    """
    if outcome.pixels is None:
        raise InputError(
            f"{outcome.name} cannot be decoded any more ({outcome.reason})",
            advice="leave the images as they are while they are read",
        )
    return outcome.pixels


def decode_all(
    source: ImageSource, rule: DecodingRule, file: IO[bytes] | None, *, show_progress: bool
) -> DecodedImages:
    """Decode all rows, into `file`, an .npy, if given; the `pixels` that are returned are empty."""
    num_channels, pixel_range = survey(
        source, num_channels=rule.num_channels, pixel_range=rule.pixel_range
    )
    writer = _Writer(file, source.num_rows)
    bad: list[str] = []
    outcomes = tqdm(
        decode_rows(source.read(), picture_conversion(rule.image_size, num_channels, pixel_range)),
        total=source.num_rows,
        desc="decoding",
        unit=" images",
        disable=not show_progress,
    )
    for row, outcome in enumerate(outcomes):
        if outcome.pixels is not None:
            writer.add(row, outcome, outcome.pixels)
            continue
        if rule.on_bad_image == "error":
            raise outcome.refusal()
        bad.append(f"{outcome.name} ({outcome.reason})")
    num_images = len(writer.labels)
    if num_images < 2 * MIN_IMAGES:
        skipped = "; ".join(bad[:_NAMED_BAD_IMAGES]) or "none"
        raise InputError(
            f"{source.description} holds {num_images} distinct images, but at least "
            f"{2 * MIN_IMAGES} are needed ({writer.num_duplicates} duplicates; skipped: {skipped})",
            advice="pass another `dataset_name` or `data_files`",
        )
    writer.finish()
    labels, label_names = _numbered(writer.labels, source.label_names)
    content = writer.digests + (b"" if labels is None else labels.tobytes())
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": {"description": source.description, "fingerprint": source.fingerprint},
        "content": hashlib.sha256(content).hexdigest(),
        "image_size": rule.image_size,
        "pixel_range": pixel_range,
        "shape": writer.shape,
        "label_names": label_names,
        "modes": dict(writer.modes),
        "counts": {
            "images": num_images,
            "duplicates": writer.num_duplicates,
            "contradictions": writer.num_contradictions,
            "skipped": len(bad),
        },
        "skipped": bad[:_NAMED_BAD_IMAGES],
        "versions": {name: metadata.version(name) for name in ("datasets", "pillow")},
    }
    moments = np.frombuffer(writer.moments, dtype=np.int64).reshape(num_images, 2, num_channels)
    places = np.frombuffer(writer.places, dtype=np.int64).reshape(num_images, 3)
    pixels = np.empty((0, *writer.shape), dtype=np.uint8)
    return DecodedImages(pixels, labels, moments, places, manifest)


class _Writer:
    """Appends distinct images of one size to an .npy file, if any, and keeps what is known of each.

    Digests, moments and places are bytes: a Python object for each image would take several times
    as much.
    """

    def __init__(self, file: IO[bytes] | None, num_rows: int) -> None:
        self.shape: tuple[int, ...] = ()
        self.labels: list[Label] = []
        self.digests = bytearray()
        self.moments = bytearray()
        self.places = bytearray()
        self.modes: Counter[str] = Counter()
        self.num_duplicates = self.num_contradictions = 0
        self._file = file
        self._num_rows = num_rows
        self._seen: dict[bytes, int] = {}  # the place of the first image of a digest
        self._contradicted: set[int] = set()  # places of images in several classes
        self._first_name = ""

    def add(self, row: int, outcome: Outcome, pixels: NDArray[np.uint8]) -> None:
        if not self.shape:
            self.shape, self._first_name = pixels.shape, outcome.name
            self._write_header(self._num_rows)
        if pixels.shape != self.shape:
            raise InputError(
                f"{outcome.name} has {_size(pixels.shape)} pixels (width x height), but "
                f"{self._first_name} has {_size(self.shape)}",
                advice=f"pass `image_size` (such as {min(self.shape[:2])}) to bring all to one "
                "size",
            )
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        if digest in self._seen:
            self.num_duplicates += 1
            self._note_label(self._seen[digest], outcome.label)
            return
        self._seen[digest] = len(self.labels)
        if self._file is not None:
            self._file.write(pixels.tobytes())
        self.digests += digest
        self.moments += outcome.moments
        self.places += np.array([row, *outcome.sides], dtype=np.int64).tobytes()
        self.labels.append(outcome.label)
        self.modes[outcome.mode] += 1

    def _note_label(self, place: int, label: Label) -> None:
        """Take note of the label of another copy of an image; a copy without one says nothing."""
        known = self.labels[place]
        if label in _NO_LABEL or place in self._contradicted:
            return
        if known in _NO_LABEL:
            self.labels[place] = label
        elif known != label:  # whichever came first would be as wrong as right
            self.num_contradictions += 1
            self.labels[place] = None
            self._contradicted.add(place)

    def finish(self) -> None:
        if self._file is not None:
            self._file.seek(0)
        self._write_header(len(self.labels))

    def _write_header(self, num_images: int) -> None:
        if self._file is None:
            return
        # NumPy pads the header for any length of the first axis, so it can be rewritten in place.
        description = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, description)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _numbered(
    labels: list[Label], names: tuple[str, ...] | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return class numbers (N,), -1 without one, and names of classes; None and () without any."""
    distinct = {label for label in labels if label not in _NO_LABEL}
    if not distinct:
        return None, ()
    texts = sorted(label for label in distinct if isinstance(label, str))
    if names is None:
        largest = max((label for label in distinct if isinstance(label, int)), default=-1)
        names = tuple(texts) or tuple(map(str, range(largest + 1)))
    keys: Iterable[Label] = texts or range(len(names))
    number = {label: place for place, label in enumerate(keys)}
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64), names
