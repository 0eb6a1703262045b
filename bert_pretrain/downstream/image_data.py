"""Labelled images as pixels, resized by the model's own image processor, and what is done to them in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bert_pretrain.errors import InputError, first_line
from bert_pretrain.images.augmentation import AugmentationRule
from bert_pretrain.images.decoding import ImageRow, ImageSource, converted_image, load_image
from bert_pretrain.images.sources import open_image_source
from bert_pretrain.images.views import Augmentation

_IMAGES_AT_ONCE = 256
AUGMENTATIONS: dict[str, AugmentationRule] = {
    "crop": AugmentationRule(crop_area=(0.6, 1.0), crop_aspect=(3 / 4, 4 / 3)),
    "crop_flip": AugmentationRule(crop_area=(0.6, 1.0), crop_aspect=(3 / 4, 4 / 3), flip_prob=0.5),
}


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
        resized = processor(images, do_rescale=False, do_normalize=False, return_tensors="np")[
            "pixel_values"
        ]
        blocks.append(np.asarray(resized).round().clip(0, 255).astype(np.uint8))
        labels += [None if row.label == -1 else row.label for row in rows]
    if not blocks:
        raise InputError(f"{source.description} has no images", advice="change `dataset_name`")
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
        raise InputError(
            f"{row.name} cannot be decoded ({first_line(error)})", advice="repair or remove it"
        ) from error


def augmentation_of(name: str, shape: tuple[int, ...], *, seed: int) -> Augmentation | None:
    """Return what the flag --augmentation asks for, for images of a shape (C, H, W).

    Raises:
        InputError: the images are not square, or have another number of channels than can be
            augmented.
    """
    if name == "none":
        return None
    num_channels, height, width = shape
    if height != width or num_channels not in (1, 3, 4):
        raise InputError(
            f"images of the shape {shape} (C, H, W) cannot be augmented",
            advice="pass `augmentation` none",
        )
    return Augmentation(
        AUGMENTATIONS[name],
        num_channels=num_channels,
        image_size=height,
        seed=seed,
    )
