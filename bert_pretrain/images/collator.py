"""Turn images into batches of tensors, in a new order every epoch.

Called by the loader, in worker processes if wanted. Image numbers enter; a batch with the pixels as
they are stored and whatever random numbers the objective will need on the device leaves. Both are
pure functions of (seed, epoch, image).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.images.corpus import ImageCorpus

# What an objective draws for (images, epoch): int64 (B,) and a number to tensors whose first
# dimension is B.
Draw = Callable[[NDArray[np.int64], int], dict[str, Tensor]]

EVALUATION_EPOCH = (
    -1
)  # held-out images are the same at every evaluation, and unlike those of any training epoch


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
    """Reads the pixels of images and draws their random numbers."""

    def __init__(self, corpus: ImageCorpus, draw: Draw, *, evaluation: bool) -> None:
        """Keep what every batch needs.

        Args:
            corpus: the decoded images.
            draw: returns what the objective needs beside the pixels.
            evaluation: whether the random numbers are the same in every epoch.
        """
        self.corpus = corpus
        self.draw = draw
        self.evaluation = evaluation

    def collate(
        self, instances: ImagePlan, rows: NDArray[np.int64], epoch: int
    ) -> dict[str, Tensor]:
        """Make the batch of some images; which rows of their epoch they are makes no difference.

        Returns:
            `pixels` uint8 (B, C, H, W), `image_ids` int64 (B,), and what `draw` returns.
        """
        images = instances.images
        pixels = np.ascontiguousarray(self.corpus.pixels[images].transpose(0, 3, 1, 2))
        batch = {
            "pixels": torch.from_numpy(pixels),
            "image_ids": torch.from_numpy(images.astype(np.int64)),
        }
        return batch | self.draw(images, EVALUATION_EPOCH if self.evaluation else epoch)

    def num_units(self, batch: dict[str, Tensor]) -> int:
        """Return the number of images of a batch."""
        return len(batch["pixels"])
