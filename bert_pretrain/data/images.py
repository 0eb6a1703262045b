"""Images decoded once to uint8 and kept: in memory if they are embedded, else in a mapped file that later runs reuse.

Flags that name a data set enter; an `ImageCorpus` leaves, which loaders, evaluation and the exported image processor
read. Resizing and cropping happen here, so that an epoch costs a copy of bytes and no decoder.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import PIL.Image
from datasets import Image
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bert_pretrain.data.image_sources import DEFAULT_LABEL_COLUMN, ImageRow, ImageSource, Label, open_image_source
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.errors import InputError

OnBadImage: TypeAlias = Literal["error", "skip"]

FORMAT_VERSION = 1  # raised whenever what is written changes
PIXELS_FILE, LABELS_FILE, MOMENTS_FILE, MANIFEST = "pixels.npy", "labels.npy", "moments.npy", "manifest.json"
MIN_STD = 1 / 255  # one grey level; a constant channel, such as opaque alpha, must not divide by zero
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_ROWS_PER_BLOCK = 16  # decoded by a thread at a time; bounds what is in flight
_NAMED_BAD_IMAGES, _NAMED_CLASSES = 5, 20


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageCorpus:
    """Decoded images and their division into training and validation images.

    Attributes:
        pixels: uint8 (N, H, W, C), read-only; no two images are equal. In memory, or mapped from a file.
        labels: int64 (N,), class numbers, -1 where an image has none; None if none has one.
        label_names: name of each class number; empty if `labels` is None.
        train_images: int64, sorted indices of the images to train on.
        validation_images: int64, sorted indices of those held out.
        mean: float32 (C,), mean of each channel over the training images, pixels in [0, 1].
        std: float32 (C,), their standard deviation (of the population), at least `MIN_STD`.
        manifest: what the corpus is and was made of; `key` changes if and only if pixels, labels, order or division
            do, wherever the images came from.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...]
    train_images: NDArray[np.int64]
    validation_images: NDArray[np.int64]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    manifest: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send a worker process the path to map, not the pixels."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.pixels, np.memmap):
            values["pixels"] = Path(str(self.pixels.filename))
        return _unpickle, (values,)


def _unpickle(values: dict[str, Any]) -> ImageCorpus:
    if isinstance(values["pixels"], Path):
        values["pixels"] = np.load(values["pixels"], mmap_mode="r")
    return ImageCorpus(**values)


def open_images(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    data_files: list[str] | None = None,
    image_column: str = "image",
    label_column: str = DEFAULT_LABEL_COLUMN,
    image_size: int = 0,
    num_channels: int = 0,
    on_bad_image: OnBadImage = "error",
    validation_share: float,
    seed: int,
    cache_dir: Path | None = None,
    show_progress: bool = True,
) -> ImageCorpus:
    """Open the images that the data flags name, decoding them unless that was done before.

    Images that are equal after decoding are kept once, so that none is both trained on and held out. Processes that
    call this at once do the work once: the first decodes, the others wait. Beside the file that is written, memory
    holds some blocks of images and about 200 bytes for each one.

    Args:
        dataset_name: `digits` (default) for scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, whose grey levels
            v in 0..16 become round(v * 255 / 16); a folder of images; a folder saved by `datasets`; or a Hub id.
        dataset_config_name: configuration of a Hub data set.
        dataset_split: split of a data set that has several.
        data_files: paths or globs of Parquet files, in place of a data set.
        image_column: column that holds the images.
        label_column: column that holds the labels: class numbers, names (numbered in sorted order) or a `ClassLabel`.
            Only the default one may be missing.
        image_size: side in pixels of the square that every image becomes: its shorter side is resized to that (bicubic,
            antialiased), its centre cropped. 0 = the images' own size, which must be the same for all.
        num_channels: 1 (grey), 3 (RGB) or 4 (RGBA); 0 = as in the first image.
        on_bad_image: what to do about an image that is corrupt, truncated or missing: stop, or skip and count it.
        validation_share: share of images held out, in (0, 1), drawn at random; at least 2.
        seed: of that draw.
        cache_dir: where decoded images are kept; default a folder under the Hugging Face cache.
        show_progress: whether to draw a progress bar.

    Raises:
        InputError: the images cannot be used, or a value is out of range.
    """
    if image_size < 0:
        raise InputError(f"image_size is {image_size} but must be at least 0 (the images' own size); pass --image_size")
    if num_channels not in (0, *_MODES):
        raise InputError(
            f"num_channels is {num_channels} but must be 1 (grey), 3 (RGB), 4 (RGBA) or 0 (as in the first image); "
            "pass --num_channels"
        )
    source = open_image_source(
        dataset_name=dataset_name,
        dataset_config_name=dataset_config_name,
        dataset_split=dataset_split,
        data_files=data_files,
        image_column=image_column,
        label_column=label_column,
    )
    recipe = _Recipe(image_size, num_channels, on_bad_image)
    if source.is_embedded:
        file = io.BytesIO()
        decoded = _decode(source, recipe, file, show_progress=False)
        file.seek(0)
        decoded = replace(decoded, pixels=np.load(file))
        decoded.pixels.flags.writeable = False
    else:
        folder = (cache_dir or Path(HF_HOME) / "bert_pretrain" / "images") / _cache_key(source, recipe)[:20]
        decoded = _decode_once(source, recipe, folder.absolute(), show_progress=show_progress)
    return _divide(decoded, validation_share, seed)


@dataclass(frozen=True)
class _Recipe:
    image_size: int
    num_channels: int
    on_bad_image: OnBadImage


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A corpus before its division; `moments` is int64 (N, 2, C), sums of an image's pixels and of their squares."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    moments: NDArray[np.int64]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class _Outcome:
    """What became of a row: pixels uint8 (H, W, C) and their moments, or the reason why there are none."""

    name: str
    label: Label
    mode: str = ""
    pixels: NDArray[np.uint8] | None = None
    moments: bytes = b""
    reason: str = ""


def _cache_key(source: ImageSource, recipe: _Recipe) -> str:
    determinants = [
        FORMAT_VERSION,
        source.fingerprint,
        [getattr(recipe, field.name) for field in fields(recipe)],
        metadata.version("pillow"),
    ]
    return hashlib.sha256(json.dumps(determinants).encode()).hexdigest()


def _decode_once(source: ImageSource, recipe: _Recipe, folder: Path, *, show_progress: bool) -> _Decoded:
    """Decode into `folder` unless it is there, and map it. A process that is killed leaves nothing that looks whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            aside = Path(f"{folder}.tmp")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            try:
                with (aside / PIXELS_FILE).open("wb") as file:
                    decoded = _decode(source, recipe, file, show_progress=show_progress)
                np.save(aside / MOMENTS_FILE, decoded.moments)
                if decoded.labels is not None:
                    np.save(aside / LABELS_FILE, decoded.labels)
                (aside / MANIFEST).write_text(json.dumps(decoded.manifest, indent=1) + "\n")
                os.replace(aside, folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        pixels = np.load(folder / PIXELS_FILE, mmap_mode="r")
        moments = np.load(folder / MOMENTS_FILE)
        labels = np.load(folder / LABELS_FILE) if manifest["label_names"] else None
    except (OSError, ValueError) as error:
        raise InputError(
            f"the decoded images in {folder} are not complete ({error}); remove the folder, and they are decoded again"
        ) from error
    return _Decoded(pixels, labels, moments, manifest)


def _decode(source: ImageSource, recipe: _Recipe, file: IO[bytes], *, show_progress: bool) -> _Decoded:
    """Decode all rows into `file`, an .npy of (N, H, W, C), and return the rest; its `pixels` are empty."""
    num_channels = recipe.num_channels or _channels_of_first(source)
    writer = _Writer(file, source.num_rows)
    bad: list[str] = []
    outcomes = _outcomes(source.read(), lambda row: _decode_row(row, recipe.image_size, num_channels))
    progress = tqdm(outcomes, total=source.num_rows, desc="decoding", unit=" images", disable=not show_progress)
    for outcome in progress:
        if outcome.pixels is not None:
            writer.add(outcome, outcome.pixels)
            continue
        if recipe.on_bad_image == "error":
            raise InputError(
                f"{outcome.name} cannot be decoded ({outcome.reason}); repair or remove it, or pass --on_bad_image skip"
            )
        bad.append(f"{outcome.name} ({outcome.reason})")
    if len(writer.labels) < 4:
        raise InputError(
            f"{source.description} holds {len(writer.labels)} distinct images, but at least 4 are needed "
            f"({writer.num_duplicates} duplicates; skipped: {'; '.join(bad[:_NAMED_BAD_IMAGES]) or 'none'}); "
            "pass another --dataset_name or --data_files"
        )
    writer.finish()
    labels, label_names = _numbered(writer.labels, source.label_names)
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": {"description": source.description, "fingerprint": source.fingerprint},
        "content": hashlib.sha256(writer.digests + (b"" if labels is None else labels.tobytes())).hexdigest(),
        "image_size": recipe.image_size,
        "label_names": label_names,
        "modes": dict(writer.modes),
        "counts": {"images": len(writer.labels), "duplicates": writer.num_duplicates, "skipped": len(bad)},
        "skipped": bad[:_NAMED_BAD_IMAGES],
        "versions": {name: metadata.version(name) for name in ("datasets", "pillow")},
    }
    moments = np.frombuffer(writer.moments, dtype=np.int64).reshape(len(writer.labels), 2, num_channels)
    return _Decoded(np.empty((0, *writer.shape), dtype=np.uint8), labels, moments, manifest)


class _Writer:
    """Appends distinct images of one size to an .npy file and keeps what is known of each.

    Digests and moments are kept as bytes, because a Python object for each image would take several times as much.
    """

    def __init__(self, file: IO[bytes], num_rows: int) -> None:
        self.shape: tuple[int, ...] = ()
        self.labels: list[Label] = []
        self.digests = bytearray()
        self.moments = bytearray()
        self.modes: Counter[str] = Counter()
        self.num_duplicates = 0
        self._file = file
        self._num_rows = num_rows
        self._seen: set[bytes] = set()
        self._first_name = ""

    def add(self, outcome: _Outcome, pixels: NDArray[np.uint8]) -> None:
        if not self.shape:
            self.shape, self._first_name = pixels.shape, outcome.name
            self._write_header(self._num_rows)
        if pixels.shape != self.shape:
            raise InputError(
                f"{outcome.name} has {_size(pixels.shape)} pixels (width x height), but {self._first_name} has "
                f"{_size(self.shape)}; pass --image_size (such as {min(self.shape[:2])}) to bring all to one size"
            )
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        if digest in self._seen:
            self.num_duplicates += 1
            return
        self._seen.add(digest)
        self._file.write(pixels.tobytes())
        self.digests += digest
        self.moments += outcome.moments
        self.labels.append(outcome.label)
        self.modes[outcome.mode] += 1

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header(len(self.labels))

    def _write_header(self, num_images: int) -> None:
        # NumPy pads the header for any length of the first axis, so that it can be rewritten in place.
        description = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, description)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _outcomes(rows: Iterator[ImageRow], decode: Callable[[ImageRow], _Outcome]) -> Iterator[_Outcome]:
    """Decode rows in threads (Pillow releases the interpreter lock) and yield them in order, few blocks ahead."""
    num_threads = min(32, os.cpu_count() or 1)
    blocks = iter(lambda: list(islice(rows, _ROWS_PER_BLOCK)), [])
    pending: deque[Future[list[_Outcome]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for block in blocks:
            pending.append(pool.submit(lambda block: [decode(row) for row in block], block))
            if len(pending) > num_threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _channels_of_first(source: ImageSource) -> int:
    """Return the number of channels of the first image that can be used; 3 if none can."""
    for row in source.read():
        try:
            image = load_image(row)
            is_grey = image.mode.split(";")[0] in _GREY_MODES
            num_channels = 1 if is_grey else 4 if image.has_transparency_data else 3
            converted_image(image, num_channels)
        except Exception:  # the pass that follows reports it
            continue
        return num_channels
    return 3


def _decode_row(row: ImageRow, image_size: int, num_channels: int) -> _Outcome:
    try:
        image = load_image(row)
        mode = image.mode
        image = _centre_square(converted_image(image, num_channels), image_size)
    except PIL.UnidentifiedImageError:  # its own message is an address in memory
        return _Outcome(row.name, row.label, reason="no image in a known format")
    except Exception as error:  # the decoders of broken files raise whatever they stumble over
        return _Outcome(row.name, row.label, reason=(str(error) or type(error).__name__).splitlines()[0])
    pixels = np.asarray(image).reshape(image.height, image.width, num_channels)
    sums = pixels.sum(axis=(0, 1), dtype=np.int64)
    squares = np.square(pixels, dtype=np.uint32).sum(axis=(0, 1), dtype=np.int64)
    return _Outcome(row.name, row.label, mode, pixels, np.stack([sums, squares]).tobytes())


def load_image(row: ImageRow) -> PIL.Image.Image:
    """Return the image of a row, decoded to its last pixel and turned as its EXIF data say."""
    if row.content is None:
        raise ValueError("the row is empty")
    if isinstance(row.content, np.ndarray):
        return PIL.Image.fromarray(row.content)
    image: PIL.Image.Image = Image().decode_example(row.content)
    return image


def converted_image(image: PIL.Image.Image, num_channels: int) -> PIL.Image.Image:
    """Convert to grey (ITU-R 601-2 luma), RGB or RGBA; what loses its transparency is laid on white.

    That is what the image processors of transformers do. 16-bit grey levels v become round(v / 257); Pillow alone
    would cut them off at 255.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a scale")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError(f"its grey levels {values.min()}..{values.max()} exceed 16 bits")
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if num_channels != 4 and image.has_transparency_data:
        background = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(_MODES[num_channels])


def _centre_square(image: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """Resize the shorter side to `size` and crop the centre, on the pixel grid of transformers' image processors."""
    if not size:
        return image
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _numbered(labels: list[Label], names: tuple[str, ...] | None) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return the class number of each label (N,), -1 where there is none, and the names; None and () without labels."""
    distinct = {label for label in labels if label not in (None, -1)}
    if not distinct:
        return None, ()
    number: dict[Label, int] = {}
    if names is None:
        texts = sorted(label for label in distinct if isinstance(label, str))
        number = {text: place for place, text in enumerate(texts)}
        names = tuple(texts) or tuple(map(str, range(max(label for label in distinct if isinstance(label, int)) + 1)))
    if not number:
        number = {place: place for place in range(len(names))}
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64), names


def _divide(decoded: _Decoded, validation_share: float, seed: int) -> ImageCorpus:
    """Hold out a random share of the images and measure the others."""
    num_images, *_ = decoded.pixels.shape
    num_validation = max(2, math.ceil(validation_share * num_images))
    if not 0 < validation_share < 1 or num_images - num_validation < 2:
        raise InputError(
            f"validation_share is {validation_share} of {num_images} images, but it must lie in (0, 1) and leave at "
            "least 2 images to train on; change --validation_share"
        )
    order = permutation(num_images, seed, Purpose.IMAGE_SPLIT)
    train_images = np.sort(order[num_validation:])
    mean, std = _mean_and_std(decoded.moments[train_images], math.prod(decoded.pixels.shape[1:3]))
    determinants = [FORMAT_VERSION, decoded.pixels.shape, decoded.manifest["content"], validation_share, seed]
    counts = {"training": len(train_images), "validation": num_validation}
    return ImageCorpus(
        pixels=decoded.pixels,
        labels=decoded.labels,
        label_names=tuple(decoded.manifest["label_names"]),
        train_images=train_images,
        validation_images=np.sort(order[:num_validation]),
        mean=mean,
        std=std,
        manifest=decoded.manifest
        | {
            "key": hashlib.sha256(json.dumps(determinants).encode()).hexdigest(),
            "validation_share": validation_share,
            "seed": seed,
            "counts": decoded.manifest["counts"] | counts,
        },
    )


def _mean_and_std(moments: NDArray[np.int64], pixels_per_image: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of each channel, pixels in [0, 1], from the moments int64 (N, 2, C).

    The difference of squares is taken between Python integers, where nothing cancels or overflows.
    """
    count = len(moments) * pixels_per_image
    mean, std = [], []
    for total, squares in moments.sum(axis=0).T.tolist():
        mean.append(total / (255 * count))
        std.append(max(MIN_STD, math.sqrt(squares * count - total * total) / (255 * count)))
    return np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)


def image_card(corpus: ImageCorpus) -> str:
    """Describe a corpus as text: what it holds, what was left out and why, and where its pixels are."""
    manifest = corpus.manifest
    counts = manifest["counts"]
    _, height, width, num_channels = corpus.pixels.shape
    skipped = f"{counts['skipped']:,}"
    if counts["skipped"]:
        more = ", ..." if counts["skipped"] > len(manifest["skipped"]) else ""
        skipped += ": " + ", ".join(manifest["skipped"]) + more
    modes = ", ".join(f"{count:,} {mode}" for mode, count in sorted(manifest["modes"].items()))
    fit = f"from {modes}" + (", shorter side resized, centre cropped" if manifest["image_size"] else "")
    place = f"mapped from {corpus.pixels.filename}" if isinstance(corpus.pixels, np.memmap) else "in memory"
    return "\n".join(
        [
            f"images           {manifest['source']['description']}",
            f"number           {counts['images']:,} ({counts['training']:,} training, {counts['validation']:,} held "
            f"out); duplicates dropped: {counts['duplicates']:,}; skipped: {skipped}",
            f"size             {width} x {height} pixels (width x height), {_MODES[num_channels]} ({fit})",
            f"classes          {_classes(corpus)}",
            f"mean, std        {_listed(corpus.mean)}, {_listed(corpus.std)} of the training pixels in [0, 1]",
            f"pixels           {corpus.pixels.nbytes:,} bytes {place}",
        ]
    )


def _classes(corpus: ImageCorpus) -> str:
    if corpus.labels is None:
        return "no labels"
    per_class = np.bincount(corpus.labels[corpus.labels >= 0], minlength=len(corpus.label_names))
    if len(per_class) > _NAMED_CLASSES:
        text = f"{len(per_class):,} of {per_class.min():,} to {per_class.max():,} images"
    else:
        text = ", ".join(f"{name} {count:,}" for name, count in zip(corpus.label_names, per_class, strict=True))
    num_unlabelled = int((corpus.labels < 0).sum())
    return text + (f"; without a label: {num_unlabelled:,}" if num_unlabelled else "")


def _listed(values: NDArray[np.float32]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
