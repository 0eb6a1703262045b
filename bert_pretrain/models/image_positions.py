"""Learnt positions of image encoders, for images of another size than they were learnt at."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from bert_pretrain.models.image_encoder_config import InputSize, image_size_of, sides

_TABLE = "embeddings.position_embeddings"  # of ViT, DeiT and their kin


@torch.no_grad()
def stretched(
    encoder: PreTrainedModel, image_size: InputSize
) -> tuple[PreTrainedConfig | None, dict[str, Tensor]]:
    """Return configuration and weights of an encoder for images of another size.

    The grid of positions is resized by bicubic interpolation, as transformers does under
    `interpolate_pos_encoding`; positions of [CLS] and its kin stay. The configuration says the new
    size, so that stock transformers loads the result as any other model and computes the same.

    Returns:
        None and nothing if the encoder has no such table or its patches do not divide the images.

    Source: Dosovitskiy et al. 2021, section 3.2.
    """
    config: Any = copy.deepcopy(encoder.config)
    table = encoder.base_model.state_dict().get(_TABLE)
    patch_size = getattr(config, "patch_size", None)
    if table is None or not isinstance(patch_size, int):
        return None, {}
    height, width = sides(image_size)
    if height % patch_size or width % patch_size:
        return None, {}
    grid = [side // patch_size for side in sides(config.image_size)]
    num_special = table.shape[1] - math.prod(grid)
    special, patches = table[:, :num_special], table[:, num_special:]
    # (1, P, D) -> (1, D, rows, columns)
    on_grid = patches.unflatten(1, grid).permute(0, 3, 1, 2)
    size = (height // patch_size, width // patch_size)
    resized = F.interpolate(on_grid, size, mode="bicubic", align_corners=False)
    config.image_size = image_size_of(height, width)
    name = f"{encoder.base_model_prefix}.{_TABLE}"
    positions = torch.cat([special, resized.flatten(2).mT], dim=1)
    return config, encoder.state_dict() | {name: positions}
