"""Configurations of image encoders: the named sizes, folders and Hub ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    ConvNextV2Config,
    PreTrainedConfig,
    ViTConfig,
)

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.models.loaded_models import check_sizes

# Pixels of an image: the side of a square, or height and width (a list where JSON was read).
InputSize: TypeAlias = "int | Sequence[int]"

# Parameters are those at 32x32x3. `vit-small` and `vit-base` are the shapes of Touvron et al. 2021
# (DeiT, table 1) and Dosovitskiy et al. 2021 (table 1); `vit-tiny`, `vit-mini` and
# `convnextv2-mini` are for small images and few processors. `convnextv2-atto` and `convnextv2-tiny`
# are those of Woo et al. 2023 (appendix A.1). `convnextv2-micro` has the stem of a ViT, 8 x 8
# places, and most of its weights in its last stage: per second of a processor it learns most from
# small photographs.
IMAGE_SIZES: dict[str, dict[str, Any]] = {
    "vit-tiny": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4},  # 1.2 M
    "vit-mini": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6},  # 2.7 M
    "vit-small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},  # 21.3 M
    "vit-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},  # 85.1 M
    "convnextv2-mini": {"hidden_sizes": [32, 64, 128], "depths": [2, 2, 2]},  # 0.4 M
    "convnextv2-micro": {
        "hidden_sizes": [96, 192, 384],
        "depths": [1, 1, 2],
        "stem": "vit",
    },  # 3.2 M
    "convnextv2-atto": {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]},  # 3.4 M
    "convnextv2-tiny": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},  # 27.9 M
}
LAYER_NORM_EPS = 1e-6  # Dosovitskiy et al. and He et al. 2022; transformers' default is 1e-12
MAX_PATCH_SIZE = 16
# Patches along a side that a ViT has at least, where the image allows patches of 2 pixels.
MIN_GRID = 8


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
        InputError: no ViT patch divides the image.
    """
    fields = IMAGE_SIZES[name] | {
        "image_size": image_size,
        "num_channels": num_channels,
        "layer_norm_eps": LAYER_NORM_EPS,
    }
    is_convolutional = "depths" in fields
    if is_convolutional and fields.pop("stem", "") != "vit":
        # The published stem of 4 pixels leaves too small a map of small images to halve further.
        shorter = min(sides(image_size))
        patch_size = 1 if shorter < 16 else 2 if shorter < 96 else 4
    else:
        patch_size = vit_patch_size(image_size)
    if is_convolutional:
        num_stages = len(fields["depths"])
        return ConvNextV2Config(num_stages=num_stages, patch_size=patch_size, **fields)
    width = 4 * fields["hidden_size"]
    return ViTConfig(
        intermediate_size=width, patch_size=patch_size, encoder_stride=patch_size, **fields
    )


def vit_patch_size(image_size: InputSize) -> int:
    """Return the patch edge in pixels: 8 -> 2, 32 -> 4, 64 -> 8, 224 -> 16, 64 x 96 -> 16.

    It is the smallest divisor of both sides from 2 to 16 that leaves at most 8 patches along the
    side of a square, or as many in all, or the largest if all leave more.

    Raises:
        InputError: `image_size` has no such divisor.
    """
    height, width = sides(image_size)
    common = math.gcd(height, width)
    divisors = [size for size in range(2, MAX_PATCH_SIZE + 1) if common % size == 0]
    if not divisors:
        shown = image_size if height == width else f"{height}x{width}"
        raise InputError(
            f"`image_size` is {shown}, which no patch of 2 to {MAX_PATCH_SIZE} pixels divides",
            advice="pass another `image_size`, such as a multiple of 8, or a convolutional "
            "`config_name`",
        )
    is_enough = (size for size in divisors if height * width <= (MIN_GRID * size) ** 2)
    return next(is_enough, divisors[-1])


def read_encoder_config(
    config_name: str, *, image_size: InputSize, num_channels: int
) -> PreTrainedConfig:
    """Return the configuration that `config_name` means, for images of a size and channels.

    Raises:
        InputError: it is none of `IMAGE_SIZES` and no image classifier's configuration.
    """
    if config_name in IMAGE_SIZES:
        return image_encoder_config(config_name, image_size=image_size, num_channels=num_channels)
    config = read_config(config_name, parameter="config_name")
    config.num_channels = num_channels
    if hasattr(config, "image_size"):
        config.image_size = image_size
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
        raise InputError(
            f"{name!r} {lack}",
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
