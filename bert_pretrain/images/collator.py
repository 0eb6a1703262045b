"""Turn images into batches of tensors, in a new order every epoch.

Called by the loader, in worker processes if wanted. Image numbers enter; a batch leaves, with the
pixels as they are stored and the random numbers that a loss needs. Both are pure functions of
(seed, epoch, image), so the layout of a run and its interruptions change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.stream import Batch, Part
from bert_pretrain.images.augmentation import BOX
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.images.streaming import StreamedPixels

# Held-out images are drawn for alike at every evaluation, and unlike in any training epoch.
EVALUATION_EPOCH = -1


# What a loss needs beside the pixels of images int64 (B,) in an epoch, a pure function of seed,
# epoch and image: CPU tensors (B, ...) by name. It is pickled with the collator.
ImageDraw: TypeAlias = Callable[[NDArray[np.int64], int], dict[str, Tensor]]


@dataclass(frozen=True)
class ImagePlan:
    """The images of an epoch in training order, as int64 (N,) numbers in the corpus."""

    images: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def take(self, rows: NDArray[np.int64]) -> ImagePlan:
        """Return the given rows, in that order."""
        return ImagePlan(self.images[rows])


@dataclass(eq=False)
class ImageCollator:
    """Reads the pixels of images and draws their random numbers.

    Attributes:
        corpus: the images.
        draw: returns what the loss needs beside the pixels.
        evaluation: whether the random numbers are the same in every epoch.
        views: what of `draw` are parameters of views, by name, and the height and width of each.
        needs_pixels: whether the loss reads `pixels` beside what its views are cut from.
    """

    corpus: ImageCorpus
    draw: ImageDraw
    evaluation: bool
    views: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    needs_pixels: bool = True
    unit: str = "images"

    def num_units(self, batch: dict[str, Tensor]) -> int:
        """Return the number of images of a batch."""
        return len(batch["image_ids"])

    def collate(self, parts: Sequence[Part], progress: float = 0.0) -> dict[str, Tensor]:
        """Return `pixels` uint8 (B, C, H, W), `image_ids` int64 (B,), and what `draw` returns.

        What views are cut from is `whole`, if the corpus has it, like `pixels`. Of streamed images
        it is a crop for each view, which the parameters then leave as it is; see `view_source`.
        """
        images = np.concatenate([plan.images for _, _, plan in parts]).astype(np.int64)
        per_part = [
            self.draw(plan.images, EVALUATION_EPOCH if self.evaluation else epoch)
            for epoch, _, plan in parts
        ]
        drawn = {name: torch.cat([part[name] for part in per_part]) for name in per_part[0]}
        return self._read(images, drawn) | {"image_ids": torch.from_numpy(images)} | drawn

    def _read(self, images: NDArray[np.int64], drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return pixels by name; parameters of views whose crops are among them are changed."""
        corpus = self.corpus
        if isinstance(corpus.pixels, StreamedPixels) and self.views:
            boxes = [drawn[view][:, BOX].numpy().copy() for view in self.views]
            sizes = list(self.views.values())
            found = corpus.pixels.crops(images, boxes, sizes, with_pixels=self.needs_pixels)
            for view in self.views:
                drawn[view][:, BOX] = torch.tensor(_WHOLE)
            names = ["pixels"] * self.needs_pixels + [_crop(view) for view in self.views]
            return dict(zip(names, map(_channels_first, found), strict=True))
        read = {}
        if corpus.whole is not None and self.views:
            read["whole"] = _channels_first(corpus.whole[images])
        if not read or self.needs_pixels:
            read["pixels"] = _channels_first(corpus.pixels[images])
        return read


_WHOLE = (0.0, 0.0, 1.0, 1.0)  # the box of all of an image


def _crop(view: str) -> str:
    return f"{view}_crop"


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def view_source(batch: Batch, view: str) -> Tensor:
    """Return what the parameters of a view are applied to, uint8 (B, C, H, W)."""
    return next(batch[name] for name in (_crop(view), "whole", "pixels") if name in batch)


@dataclass(frozen=True, eq=False)
class PixelScale:
    """From pixels in [0, 1] to what a model reads and back; mean and deviation float32 (C,)."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    # Both, (C, 1, 1) each, on the devices that asked: a copy a batch would wait for the device.
    _copies: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Return images float (B, C, H, W) in [0, 1] as `pixel_values`."""
        mean, std = self._on(images.device)
        return (images - mean) / std

    def denormalize(self, pixel_values: Tensor) -> Tensor:
        """Return `pixel_values` as images float32 (B, C, H, W), cut to [0, 1], without gradient."""
        mean, std = self._on(pixel_values.device)
        return (pixel_values.detach().float() * std + mean).clamp(0, 1)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._copies:
            mean, std = (torch.as_tensor(value, device=device) for value in (self.mean, self.std))
            self._copies[device] = mean[:, None, None], std[:, None, None]
        return self._copies[device]


def unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1]."""
    return pixels.float() / 255


def channels_last(images: Tensor) -> NDArray[np.float32]:
    """Return images (B, C, H, W) as an array (B, H, W, C) for pictures."""
    return np.asarray(images.permute(0, 2, 3, 1).cpu().numpy())
