"""Labelled images as pixels: read by the package's decoder, sized by a model's image processor.

A `LabelledSource` of images and an image processor enter; `LabelledRows` of each split leave.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from bert_pretrain.data.names import refuse_missing_folder
from bert_pretrain.downstream.labelled_rows import LabelledRows, LabelledSource
from bert_pretrain.errors import InputError
from bert_pretrain.images.decoding import Conversion, ImageSource, Label, Outcome, decode_rows
from bert_pretrain.images.levels import PixelRange, describe_absurdity, has_levels
from bert_pretrain.images.sources import open_image_source
from bert_pretrain.images.survey import describe_mixture, survey
from bert_pretrain.models.image_processor import PIXEL_RANGE, read_pixel_range, resized_side

_NAMED_BAD_IMAGES = 3


def read_image_splits(
    source: LabelledSource, processor: Any, *, num_channels: int
) -> dict[str, LabelledRows]:
    """Decode images and let the model's image processor resize and crop them, but not normalise.

    Memory holds all images as the processor sizes them, and a few as they are in their files. The
    levels of images of more than 8 bits that become black and white are noted in `processor`, which
    is saved with what is trained.

    Raises:
        InputError: there are none, one cannot be decoded, or they are not all of one size.
    """
    if source.train_file:
        opened = {role: _open(source, role, file=path) for role, path in source.files.items()}
    else:
        splits = source.splits.items()
        opened = {role: _open(source, role, split=split) for role, split in splits if split}
    known = source.pixel_range or read_pixel_range(processor)
    _, pixel_range = survey(
        opened["train"],
        num_channels=num_channels,
        pixel_range=PixelRange(*known) if known else None,
    )

    def fit(image: PIL.Image.Image) -> NDArray[np.uint8]:
        found = processor([image], do_rescale=False, do_normalize=False, return_tensors="np")
        pixels = np.asarray(found["pixel_values"][0]).round().clip(0, 255)
        return pixels.astype(np.uint8).transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)

    conversion = Conversion(num_channels, pixel_range, resized_side(processor), fit)
    if pixel_range is not None:
        setattr(processor, PIXEL_RANGE, list(pixel_range))
    return {role: _read(images, conversion, source) for role, images in opened.items()}


def _open(
    source: LabelledSource, role: str, *, split: str = "train", file: str | None = None
) -> ImageSource:
    try:
        return open_image_source(
            dataset_name=source.dataset_name,
            dataset_config_name=source.dataset_config_name,
            dataset_split=split,
            data_files=[file] if file else None,
            image_column=source.image_column,
            label_column=source.label_column,
            files_parameter=f"{role}_file",
            split_parameter=f"{role}_split",
        )
    except InputError:
        if source.dataset_name:
            refuse_missing_folder(
                source.dataset_name, what="a data set of images", parameter="dataset_name"
            )
        raise


def _read(images: ImageSource, conversion: Conversion, source: LabelledSource) -> LabelledRows:
    """Decode the images of a split."""
    bad: list[Outcome] = []
    modes: Counter[str] = Counter()

    def usable() -> Iterator[tuple[NDArray[np.uint8], Outcome]]:
        for outcome in decode_rows(images.read(), conversion):
            if outcome.pixels is not None:
                yield outcome.pixels, outcome
            elif source.on_bad_image == "error":
                raise outcome.refusal()
            else:
                bad.append(outcome)

    labels: list[Label] = []
    content, moments = np.empty((images.num_rows, 0, 0, 0), np.uint8), np.zeros(0, np.int64)
    for place, (pixels, outcome) in enumerate(usable()):
        channels_first = pixels.transpose(2, 0, 1)
        if place == 0:
            content = np.empty((images.num_rows, *channels_first.shape), np.uint8)
            moments = np.zeros((2, len(channels_first)), np.int64)
        if channels_first.shape != content.shape[1:]:
            raise InputError(
                f"{outcome.name} has the shape {channels_first.shape} (C, H, W), but others "
                f"{content.shape[1:]}",
                advice="resize the images, or change `model` to one whose image processor does",
            )
        content[place] = channels_first
        moments += np.frombuffer(outcome.moments, np.int64).reshape(moments.shape)
        modes[outcome.mode] += 1
        labels.append(None if outcome.label == -1 else outcome.label)
    if not labels:
        raise InputError(
            f"{images.description} has no images that can be used"
            + (f" ({bad[0].name}: {bad[0].reason})" if bad else ""),
            advice="change `dataset_name`",
        )
    content = content[: len(labels)]
    warnings = [
        describe_mixture(modes, conversion.num_channels),
        _describe_strange(moments, num_pixels=len(content) * math.prod(content.shape[2:])),
    ]
    notes = [
        _describe_levels(images, conversion, modes),
        _describe_bad(images, bad),
        *(f"WARNING: {warning}" for warning in warnings if warning),
    ]
    return LabelledRows(
        images.description,
        content,
        labels,
        images.label_names,
        notes=tuple(filter(None, notes)),
    )


def _describe_levels(images: ImageSource, conversion: Conversion, modes: Iterable[str]) -> str:
    if not any(map(has_levels, modes)):
        return ""
    return (
        f"images: grey levels {conversion.pixel_range} of those of more than 8 bits of "
        f"{images.description} become 0:255 (`pixel_range`)"
    )


def _describe_bad(images: ImageSource, bad: list[Outcome]) -> str:
    if not bad:
        return ""
    named = ", ".join(f"{each.name} ({each.reason})" for each in bad[:_NAMED_BAD_IMAGES])
    more = ", ..." if len(bad) > _NAMED_BAD_IMAGES else ""
    of_all = f"{len(bad):,} of {images.num_rows:,} of {images.description}"
    return f"images: {of_all} skipped: {named}{more}"


def _describe_strange(moments: NDArray[np.int64], *, num_pixels: int) -> str | None:
    """Return a warning if hardly anything can be seen; moments (2, C) are sums, and of squares."""
    mean, of_squares = moments[0] / (255 * num_pixels), moments[1] / (255**2 * num_pixels)
    std = np.sqrt(np.maximum(of_squares - mean**2, 0))
    return describe_absurdity(mean.tolist(), std.tolist())
