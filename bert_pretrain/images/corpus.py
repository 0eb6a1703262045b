"""Images as uint8, decoded once or whenever read, divided into training and held-out images.

Names of a data set enter; an `ImageCorpus` leaves.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from numpy.typing import NDArray

from bert_pretrain.data.digests import unseal, write_sealed
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.errors import InputError
from bert_pretrain.images.cache import decode_once, decode_whole
from bert_pretrain.images.decoded import (
    FORMAT_VERSION,
    MIN_IMAGES,
    DecodedImages,
    DecodingRule,
    decode_in_memory,
    decoded_range,
)
from bert_pretrain.images.decoding import (
    MODES,
    ImageSource,
    OnBadImage,
    PictureSize,
    picture_conversion,
)
from bert_pretrain.images.levels import PixelRange
from bert_pretrain.images.sources import open_image_source
from bert_pretrain.images.streaming import StreamedPixels

ImageReading: TypeAlias = Literal["cache", "stream"]

# One grey level: a constant channel, such as opaque alpha, must not divide by zero.
MIN_STD = 1 / 255


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageCorpus:
    """Images and their division into training and validation images.

    Attributes:
        pixels: uint8 (N, H, W, C), read-only, in memory, mapped, or decoded when it is indexed; no
            two images are equal.
        labels: int64 (N,), class numbers, -1 where an image has none; None if none has one.
        label_names: name of each class number; empty if `labels` is None.
        train_images: int64, sorted indices of the images to train on.
        validation_images: int64, sorted indices of those held out.
        mean: float32 (C,), mean of each channel over the training images, pixels in [0, 1].
        std: float32 (C,), their population standard deviation, at least `MIN_STD`.
        manifest: what the corpus is and was made of; `key` changes if and only if pixels, labels,
            order or division do.
        whole: uint8 (N, H, W, C), each image whole, squeezed into the sides of `pixels`, where
            these show only its centre and crops are to see all of it.
        stretch: float64 (N,), width / height of each image divided by W / H, where crops are cut
            from whole images; None = all 1, or crops are cut from `pixels`.
        warning: of its source, see `ImageSource`.
    """

    pixels: NDArray[np.uint8] | StreamedPixels
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...]
    train_images: NDArray[np.int64]
    validation_images: NDArray[np.int64]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    manifest: dict[str, Any]
    whole: NDArray[np.uint8] | None = None
    stretch: NDArray[np.float64] | None = None
    warning: str = ""

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what JSON can hold about this corpus, computed once and kept in a file beside it.

        `name` tells all that it depends on beside the corpus. Processes that ask at once compute it
        once.
        """
        folder = self._folder()
        if folder is None:
            return compute()
        file = folder / f"{name}-{self.manifest['key'][:20]}.json"
        with FileLock(f"{folder}.lock"):
            try:
                record = unseal(json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):  # not there yet, or damaged
                record = {"value": compute()}
                write_sealed(file, record)
            return record["value"]

    @property
    def provenance(self) -> dict[str, Any]:
        """What tells these images from others, for the record of a run."""
        folder = self._folder()
        return {
            "key": self.manifest["key"],
            "folder": None if folder is None else str(folder),
            "fingerprint": self.manifest["source"]["fingerprint"],
            "files": self.manifest.get("files", {}),
        }

    def _folder(self) -> Path | None:
        """Return where the images, or what is known of them, are kept; None = in memory."""
        if isinstance(self.pixels, StreamedPixels):
            return self.pixels.folder
        if isinstance(self.pixels, np.memmap):
            return Path(str(self.pixels.filename)).parent
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Send a worker process the path to map, not the pixels."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("pixels", "whole"):
            if isinstance(values[name], np.memmap):
                values[name] = Path(str(values[name].filename))
        return _unpickle, (values,)


def _unpickle(values: dict[str, Any]) -> ImageCorpus:
    for name in ("pixels", "whole"):
        if isinstance(values[name], Path):
            values[name] = np.load(values[name], mmap_mode="r")
    return ImageCorpus(**values)


def default_cache_dir() -> Path:
    """Return where decoded images are kept: below the Hugging Face cache, which HF_HOME moves."""
    return Path(HF_HOME) / "bert_pretrain" / "images"


def open_images(
    *,
    validation_share: float,
    seed: int,
    image_size: PictureSize = 0,
    num_channels: int = 0,
    on_bad_image: OnBadImage = "error",
    pixel_range: tuple[float, float] | None = None,
    reading: ImageReading = "cache",
    with_whole: bool = False,
    cache_dir: Path | None = None,
    show_progress: bool = True,
    **source: Any,
) -> ImageCorpus:
    """Open images, decoding them unless that was done before.

    Images that are equal after decoding are kept once, so that none is both trained on and held
    out. Where processes call this at once, the first decodes and the others wait. Memory holds a
    few blocks of images and about 300 bytes for each image.

    Streamed images are decoded once too, to find out the same of them; then no pixels are kept.

    Args:
        validation_share: share of images held out, in (0, 1), drawn at random; at least 2.
        seed: of that draw.
        image_size: side in pixels of the square that every image becomes: its shorter side is
            resized (bicubic, antialiased), its centre cropped. Height and width = all of it is
            resized to these. 0 = the images' own size, the same for all.
        num_channels: 1 (grey), 3 (RGB) or 4 (RGBA); 0 = as in most images of a sample.
        on_bad_image: whether to stop at an image that is corrupt, truncated or missing, or to skip
            and count it.
        pixel_range: grey levels that become black and white in images of more than 8 bits; None =
            0 to what the smallest number of bits holds that all of them fit into.
        reading: whether pixels are decoded once and kept, or whenever they are read.
        with_whole: whether crops are to see what lies beyond the centres that become squares.
        cache_dir: where decoded images are kept; default a folder under the Hugging Face cache.
        show_progress: whether to draw a progress bar.
        source: which images; see `open_image_source`.

    Raises:
        InputError: the images cannot be used, or a value is out of range.
    """
    if min(image_size if isinstance(image_size, tuple) else (image_size,)) < 0:
        allowed = "at least 0 (the images' own size)"
        raise InputError.out_of_range("image_size", image_size, allowed)
    if num_channels not in (0, *MODES):
        allowed = "1 (grey), 3 (RGB), 4 (RGBA) or 0 (as in most images)"
        raise InputError.out_of_range("num_channels", num_channels, allowed)
    images = open_image_source(**source)
    levels = PixelRange(*pixel_range) if pixel_range else None
    rule = DecodingRule(image_size, num_channels, on_bad_image, levels)
    cache_dir = cache_dir or default_cache_dir()
    if reading == "stream":
        decoded = _streamed(images, rule, cache_dir, show_progress)
    elif images.is_embedded:
        decoded = decode_in_memory(images, rule)
    else:
        decoded = decode_once(images, rule, cache_dir, show_progress=show_progress)
    corpus = replace(_divide(decoded, validation_share, seed), warning=images.warning)
    if not with_whole:
        return replace(corpus, stretch=None)
    # To height and width, images are resized whole; streamed ones are cropped as they are stored.
    is_cropped = isinstance(image_size, int) and isinstance(decoded.pixels, np.ndarray)
    if corpus.stretch is None or not is_cropped:
        return corpus
    whole = decode_whole(images, rule, decoded, cache_dir, show_progress=show_progress)
    return replace(corpus, whole=whole)


def _streamed(
    images: ImageSource, rule: DecodingRule, cache_dir: Path, show_progress: bool
) -> DecodedImages:
    """Return what is known of images that are to be decoded whenever they are read.

    Raises:
        InputError: they cannot be read one by one.
    """
    if images.fetch is None:
        raise InputError(
            f"{images.description} cannot be streamed: its images "
            + ("are embedded" if images.is_embedded else "lie in groups of rows"),
            advice="pass a folder of images or a data set as `dataset_name`, or .tar files as "
            "`data_files`; or leave out `image_reading`",
        )
    known = decode_once(images, rule, cache_dir, keeps_pixels=False, show_progress=show_progress)
    assert known.folder is not None
    shape = (len(known.places), *known.pixels.shape[1:])
    conversion = picture_conversion(rule.image_size, shape[-1], decoded_range(known))
    pixels = StreamedPixels(images.fetch, known.places, conversion, shape, known.folder)
    return replace(known, pixels=pixels)


def _divide(decoded: DecodedImages, validation_share: float, seed: int) -> ImageCorpus:
    """Hold out a random share of the images and measure the others."""
    num_images, *_ = decoded.pixels.shape
    num_validation = max(MIN_IMAGES, math.ceil(validation_share * num_images))
    if not 0 < validation_share < 1 or num_images - num_validation < MIN_IMAGES:
        raise InputError(
            f"`validation_share` is {validation_share} of {num_images} images, but it must lie in "
            f"(0, 1) and leave at least {MIN_IMAGES} images to train on",
            advice="change `validation_share`",
        )
    order = permutation(num_images, seed, Purpose.IMAGE_SPLIT)
    train_images = np.sort(order[num_validation:])
    mean, std = _mean_and_std(decoded.moments[train_images], math.prod(decoded.pixels.shape[1:3]))
    content = decoded.manifest["content"]
    determinants = [FORMAT_VERSION, decoded.pixels.shape, content, validation_share, seed]
    counts = {"training": len(train_images), "validation": num_validation}
    _, height, width, _ = decoded.pixels.shape
    stretch = decoded.places[:, 1] / decoded.places[:, 2] / (width / height)
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
        stretch=None if (stretch == 1).all() else stretch,
    )


def _mean_and_std(
    moments: NDArray[np.int64], pixels_per_image: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of each channel from moments int64 (N, 2, C).

    The difference of squares is taken between Python integers, where nothing cancels or overflows.
    """
    count = len(moments) * pixels_per_image
    mean, std = [], []
    for total, squares in moments.sum(axis=0).T.tolist():
        mean.append(total / (255 * count))
        std.append(max(MIN_STD, math.sqrt(squares * count - total * total) / (255 * count)))
    return np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
