"""Images as arrays of features: an encoder's embeddings of them, or their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bert_pretrain.errors import InputError

Features: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[np.integer[Any]]


def extract_features(
    model: Callable[[Tensor], Tensor],
    pixels: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the embedding of every image, without augmentation, in evaluation mode.

    Args:
        model: maps normalised `pixel_values` float32 (B, C, H, W) on `device` to embeddings (B, D).
            A module is put into evaluation mode and afterwards back; of any other callable the mode
            is the caller's business.
        pixels: uint8 (N, H, W, C), at least one image.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        batch_size: images of one forward pass.
        device: where `model` computes.

    Returns:
        float32 (N, D).

    Raises:
        InputError: an embedding is not finite.
    """
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    shape = (1, len(mean), 1, 1)
    means = torch.tensor(mean, dtype=torch.float32, device=device).view(shape)
    deviations = torch.tensor(std, dtype=torch.float32, device=device).view(shape)
    batches = []
    with torch.no_grad():
        for first in range(0, len(pixels), batch_size):
            # A copy: the array may be a read-only map of a file. (B, H, W, C) -> (B, C, H, W)
            images = torch.from_numpy(np.array(pixels[first : first + batch_size])).permute(
                0, 3, 1, 2
            )
            values = images.to(device).float() / 255
            batches.append(model((values - means) / deviations).float().cpu().numpy())
    if isinstance(model, nn.Module):
        model.train(was_training)
    features = np.concatenate(batches)
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise InputError(
            f"the embeddings of {bad:,} of {len(features):,} images are not finite: the encoder "
            "has diverged",
            advice="pass an earlier checkpoint as `model`",
        )
    return features


def normalised_rows(
    pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """Return images as float32 rows (N, H * W * C), normalised exactly as an encoder's input.

    Args:
        pixels: uint8 (N, H, W, C).
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(normalised.reshape(len(pixels), -1))
