"""The named sizes of image encoders: transformers' own classes, with random initial weights.

A name is a key of `IMAGE_SIZES`. What of a configuration depends on the images (patches, windows)
`image_encoder_config` adds.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from transformers import (
    BeitConfig,
    ConvNextConfig,
    ConvNextV2Config,
    Dinov2Config,
    PreTrainedConfig,
    ResNetConfig,
    SwinConfig,
    Swinv2Config,
    ViTConfig,
)

# How an encoder first divides an image, so that small images, too, leave a map to work on:
# `patches` as a ViT of at most 16 pixels (`patches14`: 14), `stages` by 1 to 4 pixels before stages
# that halve the map, `windows` likewise with room for windows, `fixed` by strides that the class
# has no field for.
Stem: TypeAlias = Literal["patches", "patches14", "stages", "windows", "fixed"]


class NamedSize(NamedTuple):
    """A size: the class of its configuration, the fields that make the size, and its stem."""

    config_class: type[PreTrainedConfig]
    fields: dict[str, Any]
    stem: Stem


def _vit(width: int, layers: int, heads: int) -> NamedSize:
    fields = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return NamedSize(ViTConfig, fields | {"intermediate_size": 4 * width}, "patches")


def _beit(width: int, layers: int, heads: int) -> NamedSize:
    # Without the bias of relative positions, which is off by default, nothing would tell where a
    # patch is. The mean of the patches is what the classifier is fed.
    fields = {"use_relative_position_bias": True, "use_mean_pooling": True}
    return NamedSize(BeitConfig, _vit(width, layers, heads).fields | fields, "patches")


def _dinov2(width: int, layers: int, heads: int) -> NamedSize:
    fields = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return NamedSize(Dinov2Config, fields | {"use_mask_token": False}, "patches14")


def _convnext(widths: list[int], depths: list[int]) -> NamedSize:
    return NamedSize(ConvNextConfig, {"hidden_sizes": widths, "depths": depths}, "stages")


def _convnextv2(widths: list[int], depths: list[int], stem: Stem = "stages") -> NamedSize:
    return NamedSize(ConvNextV2Config, {"hidden_sizes": widths, "depths": depths}, stem)


def _swin(
    width: int, depths: list[int], config_class: type[PreTrainedConfig] = SwinConfig
) -> NamedSize:
    heads = [width * 2**stage // 32 for stage in range(4)]  # 32 wide
    fields = {"embed_dim": width, "depths": depths, "num_heads": heads}
    return NamedSize(config_class, fields, "windows")


def _resnet(layer_type: str, widths: list[int], depths: list[int]) -> NamedSize:
    fields = {"layer_type": layer_type, "hidden_sizes": widths, "depths": depths}
    return NamedSize(ResNetConfig, fields, "fixed")


_BASIC, _BOTTLENECK = [64, 128, 256, 512], [256, 512, 1024, 2048]

# Parameters are those of the encoder at 32 x 32 x 3, of a ResNet at any size. `vit-tiny`,
# `vit-mini`, `convnextv2-mini` and `convnextv2-micro` are for small images and few processors.
# `convnextv2-micro` has the stem of a ViT, 8 x 8 places, and most of its weights in its last stage:
# per second of a processor it learns most from small photographs. The others are published:
#
# vit: Touvron et al. 2021 (DeiT, table 1), Dosovitskiy et al. 2021 (table 1).
# beit: Bao et al. 2022, section 3.1. dinov2: Oquab et al. 2023 (table 17 and its repository).
# convnext: Liu et al. 2022, section 3; convnextv2: Woo et al. 2023 (appendix A.1).
# swin: Liu et al. 2021, section 3.3; swinv2: Liu et al. 2022, section 3.4.
# resnet: He et al. 2016, table 1.
IMAGE_SIZES: dict[str, NamedSize] = {
    "vit-tiny": _vit(128, 6, 4),  # 1.2 M
    "vit-mini": _vit(192, 6, 6),  # 2.7 M
    "vit-small": _vit(384, 12, 6),  # 21.3 M
    "vit-base": _vit(768, 12, 12),  # 85.1 M
    "vit-large": _vit(1024, 24, 16),  # 302.4 M
    "beit-base": _beit(768, 12, 12),
    "beit-large": _beit(1024, 24, 16),
    "dinov2-small": _dinov2(384, 12, 6),
    "dinov2-base": _dinov2(768, 12, 12),
    "dinov2-large": _dinov2(1024, 24, 16),
    "convnext-tiny": _convnext([96, 192, 384, 768], [3, 3, 9, 3]),
    "convnext-small": _convnext([96, 192, 384, 768], [3, 3, 27, 3]),
    "convnext-base": _convnext([128, 256, 512, 1024], [3, 3, 27, 3]),
    "convnextv2-mini": _convnextv2([32, 64, 128], [2, 2, 2]),  # 0.4 M
    "convnextv2-micro": _convnextv2([96, 192, 384], [1, 1, 2], "patches"),  # 3.2 M
    "convnextv2-atto": _convnextv2([40, 80, 160, 320], [2, 2, 6, 2]),  # 3.4 M
    "convnextv2-nano": _convnextv2([80, 160, 320, 640], [2, 2, 8, 2]),
    "convnextv2-tiny": _convnextv2([96, 192, 384, 768], [3, 3, 9, 3]),  # 27.9 M
    "convnextv2-base": _convnextv2([128, 256, 512, 1024], [3, 3, 27, 3]),
    "swin-tiny": _swin(96, [2, 2, 6, 2]),
    "swin-small": _swin(96, [2, 2, 18, 2]),
    "swin-base": _swin(128, [2, 2, 18, 2]),
    "swinv2-tiny": _swin(96, [2, 2, 6, 2], Swinv2Config),
    "swinv2-small": _swin(96, [2, 2, 18, 2], Swinv2Config),
    "swinv2-base": _swin(128, [2, 2, 18, 2], Swinv2Config),
    "resnet18": _resnet("basic", _BASIC, [2, 2, 2, 2]),
    "resnet34": _resnet("basic", _BASIC, [3, 4, 6, 3]),
    "resnet50": _resnet("bottleneck", _BOTTLENECK, [3, 4, 6, 3]),
    "resnet101": _resnet("bottleneck", _BOTTLENECK, [3, 4, 23, 3]),
    "resnet152": _resnet("bottleneck", _BOTTLENECK, [3, 8, 36, 3]),
}
