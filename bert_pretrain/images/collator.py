"""Turn images into batches of tensors, in a new order every epoch.

Called by the loader, in worker processes if wanted. Image numbers enter; a batch leaves, with the
pixels as they are stored and the random numbers that a loss needs. Both are pure functions of
(seed, epoch, image), so batches may be made in any grouping, on any number of processes, and again
after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.loader import Part
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.images.corpus import ImageCorpus

# Held-out images are drawn for alike at every evaluation, and unlike in any training epoch.
EVALUATION_EPOCH = -1


class ImageDraw(Protocol):
    """The random numbers that a loss needs for an image; it is pickled with the collator."""

    def __call__(self, images: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Draw for some images, as a pure function of seed, epoch and image.

        Args:
            images: int64 (B,), numbers in the corpus.
            epoch: `EVALUATION_EPOCH` for held-out images.

        Returns:
            CPU tensors by name, the first dimension of each B.
        """
        ...


@dataclass(frozen=True)
class ImagePlan:
    """The images of an epoch in training order.

    Attributes:
        images: int64 (N,), their numbers in the corpus.
    """

    images: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def take(self, rows: NDArray[np.int64]) -> ImagePlan:
        """Return the given rows, in that order."""
        return ImagePlan(self.images[rows])


def plan_images(images: NDArray[np.int64], *, seed: int, epoch: int) -> ImagePlan:
    """Return all `images` in the order of an epoch."""
    return ImagePlan(images[permutation(len(images), seed, Purpose.TRAINING_ORDER, epoch)])


class ImageCollator:
    """Read the pixels of images and draw their random numbers."""

    unit = "images"

    def __init__(self, corpus: ImageCorpus, draw: ImageDraw, *, evaluation: bool) -> None:
        """Keep what every batch needs.

        Args:
            corpus: the decoded images.
            draw: returns what the loss needs beside the pixels.
            evaluation: whether the random numbers are the same in every epoch.
        """
        self.corpus = corpus
        self.draw = draw
        self.evaluation = evaluation

    def num_units(self, batch: dict[str, Tensor]) -> int:
        """Return the number of images of a batch."""
        return len(batch["image_ids"])

    def collate(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """Make the batch of some images.

        Args:
            parts: rows of one epoch or of several: (epoch, row numbers, these rows of the epoch's
                plan). The row numbers make no difference, and to an evaluation collator the epoch
                makes none.

        Returns:
            `pixels` uint8 (B, C, H, W), `image_ids` int64 (B,), and what `draw` returns.
        """
        images = np.concatenate([plan.images for _, _, plan in parts]).astype(np.int64)
        pixels = np.ascontiguousarray(self.corpus.pixels[images].transpose(0, 3, 1, 2))
        drawn = [
            self.draw(plan.images, EVALUATION_EPOCH if self.evaluation else epoch)
            for epoch, _, plan in parts
        ]
        return {
            "pixels": torch.from_numpy(pixels),
            "image_ids": torch.from_numpy(images),
            **{name: torch.cat([part[name] for part in drawn]) for name in drawn[0]},
        }


@dataclass(frozen=True, eq=False)
class PixelScale:
    """From stored pixels to what a model reads, and back.

    Attributes:
        mean: float32 (C,), of pixels in [0, 1].
        std: float32 (C,), above 0.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def normalize(self, images: Tensor) -> Tensor:
        """Return images float (B, C, H, W) in [0, 1] as `pixel_values`."""
        mean, std = self._on(images.device)
        return (images - mean) / std

    def denormalize(self, pixel_values: Tensor) -> NDArray[np.float32]:
        """Return `pixel_values` as images for a picture, float32 (B, H, W, C) in [0, 1]."""
        mean, std = self._on(pixel_values.device)
        return channels_last((pixel_values.detach().float() * std + mean).clamp(0, 1))

    def _on(self, device: torch.device) -> list[Tensor]:
        values = (self.mean, self.std)
        return [torch.as_tensor(value, device=device)[:, None, None] for value in values]


def unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1]."""
    return pixels.float() / 255


def channels_last(images: Tensor) -> NDArray[np.float32]:
    """Return float (B, C, H, W) in [0, 1] as an array (B, H, W, C) for pictures."""
    return np.asarray(images.permute(0, 2, 3, 1).cpu().numpy())
