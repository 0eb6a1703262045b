"""Decoded images, kept in a mapped file that later runs reuse.

A source enters; the pixels of all its images leave, with what is known of each.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bert_pretrain.data.atomic import atomic_folder
from bert_pretrain.errors import InputError
from bert_pretrain.images.copies import LABELS_FILE, MANIFEST, MOMENTS_FILE, PIXELS_FILE, hold
from bert_pretrain.images.decoding import (
    Conversion,
    ImageSource,
    Label,
    OnBadImage,
    Outcome,
    centre_square,
    decode_rows,
)
from bert_pretrain.images.levels import PixelRange
from bert_pretrain.images.survey import survey

FORMAT_VERSION = 2  # raised whenever what is written changes
# To train on, and to hold out: a single image has no spread, no neighbour and no negative.
MIN_IMAGES = 2
_NAMED_BAD_IMAGES = 5


@dataclass(frozen=True)
class DecodingRule:
    """How images are decoded; see the arguments of `open_images`."""

    image_size: int
    num_channels: int
    on_bad_image: OnBadImage
    pixel_range: PixelRange | None


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """A corpus before its division.

    Attributes:
        pixels: uint8 (N, H, W, C).
        labels: int64 (N,), -1 where an image has none; None if none has one.
        moments: int64 (N, 2, C), sums of an image's pixels and of their squares.
        manifest: what was decoded.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    moments: NDArray[np.int64]
    manifest: dict[str, Any]


def decode_in_memory(source: ImageSource, rule: DecodingRule) -> DecodedImages:
    """Decode all images of a source that is small."""
    file = io.BytesIO()
    decoded = _decode(source, rule, file, show_progress=False)
    file.seek(0)
    decoded = replace(decoded, pixels=np.load(file))
    decoded.pixels.flags.writeable = False
    return decoded


def decode_once(
    source: ImageSource, rule: DecodingRule, cache_dir: Path, *, show_progress: bool
) -> DecodedImages:
    """Decode all images of a source into a folder, unless they are there, and map them.

    Processes that call this at once do the work once. The folder appears whole or not at all.

    Raises:
        InputError: an image cannot be used, or what is there is damaged.
    """
    determinants = [FORMAT_VERSION, source.fingerprint, astuple(rule), metadata.version("pillow")]
    key = hashlib.sha256(json.dumps(determinants).encode()).hexdigest()
    folder = cache_dir.absolute() / key[:20]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with atomic_folder(folder) as aside:
                with (aside / PIXELS_FILE).open("wb") as file:
                    decoded = _decode(source, rule, file, show_progress=show_progress)
                np.save(aside / MOMENTS_FILE, decoded.moments)
                if decoded.labels is not None:
                    np.save(aside / LABELS_FILE, decoded.labels)
                (aside / MANIFEST).write_text(json.dumps(decoded.manifest, indent=1) + "\n")
        hold(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        pixels = np.load(folder / PIXELS_FILE, mmap_mode="r")
        moments = np.load(folder / MOMENTS_FILE)
        labels = np.load(folder / LABELS_FILE) if manifest["label_names"] else None
    except (OSError, ValueError) as error:
        raise InputError(
            f"the decoded images in {folder} are not complete ({error})",
            advice="remove the folder, and they are decoded again",
        ) from error
    return DecodedImages(pixels, labels, moments, manifest)


def _decode(
    source: ImageSource, rule: DecodingRule, file: IO[bytes], *, show_progress: bool
) -> DecodedImages:
    """Decode all rows into `file`, an .npy; the `pixels` of what is returned are empty."""
    num_channels, pixel_range = survey(
        source, num_channels=rule.num_channels, pixel_range=rule.pixel_range
    )
    fit = partial(centre_square, size=rule.image_size)
    writer = _Writer(file, source.num_rows)
    bad: list[str] = []
    for outcome in tqdm(
        decode_rows(source.read(), Conversion(num_channels, pixel_range, rule.image_size, fit)),
        total=source.num_rows,
        desc="decoding",
        unit=" images",
        disable=not show_progress,
    ):
        if outcome.pixels is not None:
            writer.add(outcome, outcome.pixels)
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
    return DecodedImages(np.empty((0, *writer.shape), dtype=np.uint8), labels, moments, manifest)


class _Writer:
    """Appends distinct images of one size to an .npy file and keeps what is known of each.

    Digests and moments are bytes: a Python object for each image would take several times as much.
    """

    def __init__(self, file: IO[bytes], num_rows: int) -> None:
        self.shape: tuple[int, ...] = ()
        self.labels: list[Label] = []
        self.digests = bytearray()
        self.moments = bytearray()
        self.modes: Counter[str] = Counter()
        self.num_duplicates = self.num_contradictions = 0
        self._file = file
        self._num_rows = num_rows
        self._seen: dict[bytes, int] = {}  # the place of the first image of a digest
        self._first_name = ""

    def add(self, outcome: Outcome, pixels: NDArray[np.uint8]) -> None:
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
            first = self._seen[digest]
            # Whichever label came first would be as wrong as right.
            if self.labels[first] is not None and self.labels[first] != outcome.label:
                self.num_contradictions += 1
                self.labels[first] = None
            return
        self._seen[digest] = len(self.labels)
        self._file.write(pixels.tobytes())
        self.digests += digest
        self.moments += outcome.moments
        self.labels.append(outcome.label)
        self.modes[outcome.mode] += 1

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header(len(self.labels))

    def _write_header(self, num_images: int) -> None:
        # NumPy pads the header for any length of the first axis, so it can be rewritten in place.
        description = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, description)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _numbered(
    labels: list[Label], names: tuple[str, ...] | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return class numbers (N,), -1 without one, and names of classes; None and () without any."""
    distinct = {label for label in labels if label not in (None, -1)}
    if not distinct:
        return None, ()
    texts = sorted(label for label in distinct if isinstance(label, str))
    if names is None:
        largest = max((label for label in distinct if isinstance(label, int)), default=-1)
        names = tuple(texts) or tuple(map(str, range(largest + 1)))
    keys: Iterable[Label] = texts or range(len(names))
    number = {label: place for place, label in enumerate(keys)}
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64), names
