"""Labelled images as pixels, resized by the model's own image processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bert_pretrain.data.images.decoding import converted_image, load_image
from bert_pretrain.data.images.rows import ImageRow, ImageSource
from bert_pretrain.data.images.sources import open_image_source
from bert_pretrain.errors import InputError

_IMAGES_AT_ONCE = 256


class LabelledPixels(NamedTuple):
    """Images uint8 (N, C, H, W), the label of each as in the data, and names of class numbers where there are any."""

    description: str
    pixels: NDArray[np.uint8]
    labels: list[Any]
    class_names: tuple[str, ...] | None


def read_images(processor: Any, *, num_channels: int, **source_flags: Any) -> LabelledPixels:
    """Decode the images of a source and let an image processor resize and crop them.

    Args:
        processor: the model's; it rescales and normalises later, batch by batch.
        num_channels: of the model's input.
        source_flags: as for `open_image_source`.

    Raises:
        InputError: there are none, one cannot be decoded, or they are not all of one size.
    """
    source = open_image_source(**source_flags)
    blocks, labels = [], []
    for rows in _blocks(source):
        images = [_decoded(row, num_channels) for row in rows]
        resized = processor(images, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        blocks.append(np.asarray(resized).round().clip(0, 255).astype(np.uint8))
        labels += [None if row.label == -1 else row.label for row in rows]
    if not blocks:
        raise InputError(f"{source.description} has no images; change --dataset_name")
    return LabelledPixels(source.description, np.concatenate(blocks), labels, source.label_names)


def _blocks(source: ImageSource) -> Iterator[list[ImageRow]]:
    block = []
    for row in source.read():
        block.append(row)
        if len(block) == _IMAGES_AT_ONCE:
            yield block
            block = []
    if block:
        yield block


def _decoded(row: ImageRow, num_channels: int) -> Image.Image:
    try:
        return converted_image(load_image(row), num_channels)
    except Exception as error:  # the decoders of broken files raise whatever they stumble over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{row.name} cannot be decoded ({reason}); repair or remove it") from error
