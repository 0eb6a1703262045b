"""Decoded images in files that later runs reuse.

A source enters; the pixels of all its images leave, mapped, with what is known of each. The
manifest holds the digests of all files, which are compared as those of a prepared corpus are.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bert_pretrain.data.atomic import atomic_folder
from bert_pretrain.data.copies import Shelf, hold
from bert_pretrain.data.digests import damages, digests_of, unseal, write_sealed
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.errors import InputError
from bert_pretrain.images.decoded import (
    FORMAT_VERSION,
    DecodedImages,
    DecodingRule,
    checked_pixels,
    decode_all,
    decoded_range,
)
from bert_pretrain.images.decoding import ImageSource, decode_rows, picture_conversion

PIXELS_FILE, LABELS_FILE, MOMENTS_FILE = "pixels.npy", "labels.npy", "moments.npy"
PLACES_FILE = "places.npy"
MANIFEST = "manifest.json"

Content = TypeVar("Content")


def decode_once(
    source: ImageSource,
    rule: DecodingRule,
    cache_dir: Path,
    *,
    keeps_pixels: bool = True,
    show_progress: bool,
) -> DecodedImages:
    """Decode all images of a source into a folder, unless they are there undamaged, and map them.

    Processes that call this at once do the work once. The folder appears whole or not at all.
    Without `keeps_pixels` it holds what is known of each image and no pixels.

    Raises:
        InputError: an image cannot be used.
    """

    def write(aside: Path) -> dict[str, Any]:
        kept = (aside / PIXELS_FILE).open("wb") if keeps_pixels else nullcontext()
        with kept as file:
            decoded = decode_all(source, rule, file, show_progress=show_progress)
        np.save(aside / MOMENTS_FILE, decoded.moments)
        np.save(aside / PLACES_FILE, decoded.places)
        if decoded.labels is not None:
            np.save(aside / LABELS_FILE, decoded.labels)
        return decoded.manifest

    folder = _folder(source, rule, cache_dir, "decoded" if keeps_pixels else "known")
    return _written_once(folder, write, open_decoded)


def open_decoded(folder: Path) -> DecodedImages:
    """Map the images that `decode_once` has decoded into a folder.

    Raises:
        InputError: they are not all there, or not what was written.
    """
    with _reading(folder) as manifest:
        pixels = np.empty((0, *manifest["shape"]), dtype=np.uint8)
        if PIXELS_FILE in manifest["files"]:
            pixels = np.load(folder / PIXELS_FILE, mmap_mode="r")
        moments, places = np.load(folder / MOMENTS_FILE), np.load(folder / PLACES_FILE)
        labels = np.load(folder / LABELS_FILE) if manifest["label_names"] else None
    return DecodedImages(pixels, labels, moments, places, manifest, folder)


def decode_whole(
    source: ImageSource,
    rule: DecodingRule,
    decoded: DecodedImages,
    cache_dir: Path,
    *,
    show_progress: bool,
) -> NDArray[np.uint8]:
    """Return the images of a corpus whole, each squeezed into the sides of its decoded pixels.

    They are decoded once, as by `decode_once`.

    Returns:
        uint8 (N, H, W, C), mapped.

    Raises:
        InputError: an image has changed since it was decoded.
    """
    num_images, height, width, num_channels = decoded.pixels.shape

    def write(aside: Path) -> dict[str, Any]:
        is_kept = np.zeros(source.num_rows, dtype=bool)
        is_kept[decoded.places[:, 0]] = True
        rows = (row for row, keep in zip(source.read(), is_kept, strict=True) if keep)
        pixels = np.lib.format.open_memmap(
            aside / PIXELS_FILE, "w+", np.uint8, decoded.pixels.shape
        )
        conversion = picture_conversion((height, width), num_channels, decoded_range(decoded))
        outcomes = tqdm(
            decode_rows(rows, conversion),
            total=num_images,
            desc="decoding whole images",
            unit=" images",
            disable=not show_progress,
        )
        for place, outcome in enumerate(outcomes):
            pixels[place] = checked_pixels(outcome)
        pixels.flush()
        # Beside the pixels of another folder lies what is known of each image.
        np.save(aside / MOMENTS_FILE, decoded.moments)
        return decoded.manifest

    def read(folder: Path) -> NDArray[np.uint8]:
        with _reading(folder):
            return np.asanyarray(np.load(folder / PIXELS_FILE, mmap_mode="r"))

    return _written_once(_folder(source, rule, cache_dir, "whole"), write, read)


def _written_once(
    folder: Path, write: Callable[[Path], dict[str, Any]], read: Callable[[Path], Content]
) -> Content:
    """Return what a folder holds; it is written unless it is there undamaged.

    Args:
        folder: to read.
        write: writes its files and returns what the manifest tells of them.
        read: raises `InputError` if something is missing or damaged.
    """
    with _lock(folder):
        if folder.exists():
            try:
                found = read(folder)
            except InputError as error:
                tqdm.write(f"NOTE: {error.problem}; they are decoded again", file=sys.stderr)
            else:
                hold(folder)
                return found
        with atomic_folder(folder) as aside:
            manifest = {name: value for name, value in write(aside).items() if name != "files"}
            files = digests_of(aside, [path.name for path in aside.iterdir()])
            write_sealed(aside / MANIFEST, manifest | {"files": files})
        hold(folder)
        return read(folder)


@contextmanager
def _reading(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the manifest of a folder whose files are as they were written.

    Raises:
        InputError: they are not, or something of them cannot be read in the block.
    """
    try:
        manifest = unseal(parse_json((folder / MANIFEST).read_text(encoding="utf-8")))
        if damaged := damages(folder, manifest["files"]):
            name, (what, _) = next(iter(damaged.items()))
            raise ValueError(f"{name} {what}")
        yield manifest
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"the decoded images in {folder} are not complete ({error})",
            advice="remove the folder, and they are decoded again",
        ) from error


def _folder(source: ImageSource, rule: DecodingRule, cache_dir: Path, what: str) -> Path:
    """Return where what was decoded of a source is kept; the folder's parent exists."""
    versions = [FORMAT_VERSION, metadata.version("pillow")]
    determinants = [what, *versions, source.fingerprint, astuple(rule)]
    key = hashlib.sha256(json.dumps(determinants).encode()).hexdigest()
    folder = cache_dir.absolute() / key[:20]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _lock(folder: Path) -> FileLock:
    return FileLock(f"{folder}.lock")


def decoded_copies(cache_dir: Path) -> Shelf:
    """Return where decoded images are kept, for whoever lists and removes them."""
    return Shelf(cache_dir, _describe, _lock)


def _describe(folder: Path) -> str:
    manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    height, width, _ = manifest["shape"]
    count = len(np.load(folder / MOMENTS_FILE, mmap_mode="r"))
    return f"{count:,} images of {width} x {height} from {manifest['source']['description']}"
