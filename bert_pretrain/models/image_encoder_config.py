"""Configurations of image encoders: the named sizes, folders and Hub ids."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    ResNetConfig,
    ViTConfig,
)

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.models.image_sizes import IMAGE_SIZES
from bert_pretrain.models.loaded_models import check_sizes

# Pixels of an image: the side of a square, or height and width (a list where JSON was read).
InputSize: TypeAlias = "int | Sequence[int]"

LAYER_NORM_EPS = 1e-6  # Dosovitskiy et al. and He et al. 2022; transformers' default is 1e-12
MAX_PATCH_SIZE, DINOV2_PATCH_SIZE = 16, 14  # as published
# Patches along a side that a ViT has at least, where the image allows patches of 2 pixels.
MIN_GRID = 8
# Windows of a Swin have 7 or 8 places a side as published, and no fewer than 4 where the image
# allows it.
MIN_WINDOW, MAX_WINDOW = 4, 8
MIN_SWIN_IMAGE = 16


def sides(image_size: InputSize) -> tuple[int, int]:
    """Return height and width."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def image_size_of(height: int, width: int) -> int | tuple[int, int]:
    """Return what configurations call `image_size`: a number for a square."""
    return height if height == width else (height, width)


def image_encoder_config(
    name: str, *, image_size: InputSize, num_channels: int
) -> PreTrainedConfig:
    """Return the configuration of a size of `IMAGE_SIZES`, with patches that suit the image.

    Raises:
        InputError: no ViT patch divides the image, or it is too small for the architecture.
    """
    config_class, size, stem = IMAGE_SIZES[name]
    fields: dict[str, Any] = size | {"num_channels": num_channels}
    if stem == "fixed":
        config = config_class(**fields)
        refuse_small_images(config, name, image_size)
        return config
    fields["image_size"] = image_size
    if stem == "windows":
        fields |= _windows(name, image_size)
        return config_class(encoder_stride=8 * fields["patch_size"], **fields)
    if stem == "stages":
        # The published stem of 4 pixels leaves too small a map of small images to halve further.
        shorter = min(sides(image_size))
        fields["patch_size"] = 1 if shorter < 16 else 2 if shorter < 96 else 4
    else:
        largest = MAX_PATCH_SIZE if stem == "patches" else DINOV2_PATCH_SIZE
        fields["patch_size"] = vit_patch_size(image_size, largest=largest)
    if "depths" in fields:
        fields["num_stages"] = len(fields["depths"])
    elif config_class is ViTConfig:
        fields["encoder_stride"] = fields["patch_size"]
    return config_class(layer_norm_eps=LAYER_NORM_EPS, **fields)


def vit_patch_size(image_size: InputSize, *, largest: int = MAX_PATCH_SIZE) -> int:
    """Return the patch edge in pixels: 8 -> 2, 32 -> 4, 64 -> 8, 224 -> 16, 64 x 96 -> 16.

    It is the smallest divisor of both sides from 2 to `largest` that leaves at most 8 patches along
    the side of a square, or as many in all, or the largest if all leave more.

    Raises:
        InputError: `image_size` has no such divisor.
    """
    height, width = sides(image_size)
    common = math.gcd(height, width)
    divisors = [size for size in range(2, largest + 1) if common % size == 0]
    if not divisors:
        shown = image_size if height == width else f"{height}x{width}"
        raise InputError(
            f"`image_size` is {shown}, which no patch of 2 to {largest} pixels divides",
            advice="pass another `image_size`, such as a multiple of 8, or a convolutional "
            "`config_name`",
        )
    is_enough = (size for size in divisors if height * width <= (MIN_GRID * size) ** 2)
    return next(is_enough, divisors[-1])


def _windows(name: str, image_size: InputSize) -> dict[str, int]:
    """Return `patch_size` and `window_size` of a Swin, whose three mergings halve the map.

    Windows may not be larger than the last map: transformers' class then fails. Where they divide
    it they divide every map.
    """
    shorter = min(sides(image_size))
    if shorter < MIN_SWIN_IMAGE:
        raise InputError(
            f"`image_size` is {shorter}, of which {name} would leave a single place after "
            "halving its map three times",
            advice=f"pass `image_size` {2 * MIN_SWIN_IMAGE}, to which images are scaled up, or "
            "`config_name` vit-tiny or convnextv2-mini",
        )
    grids = {patch_size: -(-shorter // (8 * patch_size)) for patch_size in (4, 2, 1)}
    patch_size = next((p for p, grid in grids.items() if grid >= MIN_WINDOW), 1)
    grid = grids[patch_size]
    divisors = [size for size in range(MIN_WINDOW, MAX_WINDOW + 1) if grid % size == 0]
    return {"patch_size": patch_size, "window_size": max(divisors, default=min(grid, MAX_WINDOW))}


def refuse_small_images(
    config: PreTrainedConfig, name: str, image_size: InputSize, *, parameter: str = "image_size"
) -> None:
    """Raise `InputError` if a ResNet would see an image, of a size by `parameter`, as one place.

    Its stem of a 7 x 7 convolution and a pooling, each of stride 2, has no field to change. Another
    stem put in its place would not load in transformers, or silently compute something else.
    """
    if not isinstance(config, ResNetConfig):
        return
    stride = 4 * 2 ** (len(config.depths) - 1 + config.downsample_in_first_stage)
    shorter = min(sides(image_size))
    if shorter <= stride:
        raise InputError(
            f"`{parameter}` is {shorter}, but {name} divides each side by {stride} (its first "
            "layers by 4), so that a map of one place is left",
            advice=f"pass `{parameter}` {2 * stride} or more, to which images are scaled up, or "
            "`config_name` convnextv2-tiny or vit-small, whose first layer suits small images",
        )


def read_encoder_config(
    config_name: str, *, image_size: InputSize, num_channels: int
) -> PreTrainedConfig:
    """Return the configuration that `config_name` means, for images of a size and channels.

    Raises:
        InputError: it is none of `IMAGE_SIZES` and no image classifier's configuration, or the
            images are too small for it.
    """
    if config_name in IMAGE_SIZES:
        return image_encoder_config(config_name, image_size=image_size, num_channels=num_channels)
    config = read_config(config_name, parameter="config_name")
    config.num_channels = num_channels
    if hasattr(config, "image_size"):
        config.image_size = image_size
    refuse_small_images(config, config_name, image_size)
    return config


def read_config(name: str, *, parameter: str) -> PreTrainedConfig:
    """Return the configuration in a folder or on the Hub that `parameter` named.

    Raises:
        InputError: there is none, or it is not that of an image classifier of transformers.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers meet
        sizes = IMAGE_SIZES if parameter == "config_name" else ()
        refuse_misnamed_model(name, parameter=parameter, sizes=sizes)
        lack = "is neither a folder nor on the Hub"
        if Path(name).is_dir():
            lack = f"has no config.json of transformers ({first_line(error)})"
        other = f"or one of {', '.join(sizes)}" if sizes else "such as a run's final/"
        close = difflib.get_close_matches(name.lower(), sizes, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(
            f"{name!r} {lack}{meant}",
            advice=f"pass `{parameter}` the folder or Hub id of an image encoder, {other}",
        ) from error
    check_sizes(config, name, parameter=parameter)
    is_classifier = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if not is_classifier or not hasattr(config, "num_channels"):
        raise InputError(
            f"{name!r} is a model of type {config.model_type!r}, which "
            "AutoModelForImageClassification does not build for pixels",
            advice=f"pass `{parameter}` an image encoder such as vit, convnextv2, resnet or dinov2",
        )
    return config
