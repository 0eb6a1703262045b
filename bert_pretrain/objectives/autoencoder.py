"""Learning images by giving them back: through a narrow embedding, from noise, or from patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.data.random import Purpose, uniform
from bert_pretrain.data.stream import Batch
from bert_pretrain.evaluation.features import normalised_rows, pca_reconstruction_error
from bert_pretrain.evaluation.pictures import reconstructions
from bert_pretrain.images.collator import EVALUATION_EPOCH, PixelScale, channels_last, unit_range
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.losses.distances import (
    ReconstructionKind,
    masked_patch_loss,
    reconstruction_loss,
)
from bert_pretrain.models.image_heads import build_autoencoder
from bert_pretrain.models.masked_autoencoder import (
    MaskedAutoencoder,
    build_masked_autoencoder,
    count_patches,
)
from bert_pretrain.objectives.image_monitor import Pretext
from bert_pretrain.objectives.images import MAX_BANK_IMAGES, image_task, model_shape, random_subset
from bert_pretrain.objectives.interface import LossTerm, Task


def draw_nothing(images: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
    """Return no random numbers."""
    return {}


def draw_noise(
    images: NDArray[np.int64], epoch: int, *, seed: int, shape: tuple[int, int, int]
) -> dict[str, Tensor]:
    """Return `noise` float32 (B, C, H, W), Gaussian of deviation 1; held-out images stay clean."""
    if epoch == EVALUATION_EPOCH:
        return {}
    numbers = np.arange(np.prod(shape))
    first, second = (
        uniform(seed, Purpose.INPUT_NOISE, epoch, images[:, None], i, numbers) for i in (0, 1)
    )
    # Box and Muller 1958; 1 - u lies in (0, 1].
    noise = np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)
    return {"noise": torch.from_numpy(noise.astype(np.float32).reshape(-1, *shape))}


def draw_patches(
    images: NDArray[np.int64], epoch: int, *, seed: int, num_patches: int
) -> dict[str, Tensor]:
    """Return `patch_ranks` float32 (B, P), each row an order of 0..P-1; small ones are seen."""
    keys = uniform(seed, Purpose.PATCH_MASK, epoch, images[:, None], np.arange(num_patches))
    # Ranks are exact in float32, which every device has; the keys need float64.
    ranks = keys.argsort(axis=1).argsort(axis=1)
    return {"patch_ranks": torch.from_numpy(ranks.astype(np.float32))}


@dataclass(frozen=True)
class Reconstruction(Pretext):
    """Give an image back from its embedding, all that the decoder sees.

    With noise the input is noisy and the target is not.

    Attributes:
        kind: distance between image and reconstruction.
        noise_std: deviation of the noise on training inputs, in normalised pixels.

    Source: Hinton and Salakhutdinov 2006; with noise Vincent et al. 2008.
    """

    term = loss_kind = "reconstruction"
    kind: ReconstructionKind
    noise_std: float

    def loss(self, model: nn.Module, batch: Batch) -> LossTerm:
        """Return the error, a sum over images of the mean over their pixels."""
        target = self.scale.normalize(unit_range(batch["pixels"]))
        source = target + self.noise_std * batch["noise"] if "noise" in batch else target
        reconstruction = model(pixel_values=source).reconstruction
        return LossTerm(reconstruction_loss(reconstruction, target, self.kind))

    def draw_picture(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw images above their reconstructions."""
        images = unit_range(batch["pixels"])
        output = model(pixel_values=self.scale.normalize(images))
        reconstructions(
            channels_last(images),
            self.scale.denormalize(output.reconstruction),
            folder / "reconstructions.png",
        )


@dataclass(frozen=True)
class MaskedReconstruction(Pretext):
    """Predict the patches that the encoder did not see (He et al. 2022).

    `normalize_target` scales the target of each patch to mean 0 and deviation 1.
    """

    term = loss_kind = "reconstruction"
    normalize_target: bool

    def loss(self, model: nn.Module, batch: Batch) -> LossTerm:
        """Return the error, a sum over images of the mean over their hidden patches."""
        pixel_values = self.scale.normalize(unit_range(batch["pixels"]))
        output = model(pixel_values=pixel_values, noise=batch["patch_ranks"])
        total, num_hidden = masked_patch_loss(
            output.logits, output.patches, output.mask, normalize_target=self.normalize_target
        )
        # Every image hides the same number of patches.
        return LossTerm(total * len(batch["image_ids"]) / num_hidden)

    def draw_picture(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw images above what is seen of them, filled up with what is predicted.

        A prediction of normalised patches gets the brightness and contrast of the true patch, which
        flatters the picture, not the loss.
        """
        assert isinstance(model, MaskedAutoencoder)
        images = unit_range(batch["pixels"])
        output = model(pixel_values=self.scale.normalize(images), noise=batch["patch_ranks"])
        predicted = output.logits.float()
        if self.normalize_target:
            variance, mean = torch.var_mean(output.patches, dim=-1, keepdim=True)
            predicted = predicted * variance.sqrt() + mean
        filled = torch.where(output.mask[:, :, None] > 0, predicted, output.patches)
        reconstructions(
            channels_last(images),
            self.scale.denormalize(model.unpatchify(filled)),
            folder / "reconstructions.png",
        )


def autoencoder_task(
    corpus: ImageCorpus,
    *,
    embedding_dim: int,
    kind: ReconstructionKind,
    noise_std: float,
    seed: int,
    max_eval_rows: int,
    **encoder: Any,
) -> Task:
    """Return the task of reconstructing images from an embedding of `embedding_dim` numbers.

    For `kind` and `noise_std` (0 = none) see `Reconstruction`, for `seed` and `max_eval_rows`
    `image_task`; `encoder` is what else `build_autoencoder` takes.
    """
    shape = model_shape(corpus)
    _, height, width, num_channels = corpus.pixels.shape

    def pca_loss() -> float:
        """Return the error of as many principal components, on the images that are evaluated."""
        bank, held_out = (
            normalised_rows(corpus.pixels[images], corpus.mean.tolist(), corpus.std.tolist())
            for images in (
                random_subset(corpus.train_images, MAX_BANK_IMAGES, seed),
                random_subset(corpus.validation_images, max_eval_rows, seed),
            )
        )
        return pca_reconstruction_error(bank, held_out, embedding_dim, kind)

    names = (embedding_dim, kind, seed, max_eval_rows, MAX_BANK_IMAGES)
    floor = corpus.remembered("pca-" + "-".join(map(str, names)), pca_loss)
    return image_task(
        corpus,
        Reconstruction(PixelScale(corpus.mean, corpus.std), kind, noise_std),
        partial(build_autoencoder, embedding_dim=embedding_dim, **shape, **encoder),
        partial(draw_noise, seed=seed, shape=(num_channels, height, width))
        if noise_std
        else draw_nothing,
        seed=seed,
        max_eval_rows=max_eval_rows,
        baselines={f"pca_{Reconstruction.term}_loss": floor},
    )


def masked_autoencoder_task(
    corpus: ImageCorpus,
    *,
    mask_ratio: float,
    normalize_target: bool,
    seed: int,
    max_eval_rows: int,
    config_name: str,
    model_name_or_path: str | None,
    dropout: float,
) -> Task:
    """Return the task of predicting hidden patches.

    For `normalize_target` see `MaskedReconstruction`, for `seed` and `max_eval_rows` `image_task`,
    for the rest `build_masked_autoencoder`.
    """
    model: dict[str, Any] = model_shape(corpus) | {
        "config_name": config_name,
        "model_name_or_path": model_name_or_path,
    }
    return image_task(
        corpus,
        MaskedReconstruction(PixelScale(corpus.mean, corpus.std), normalize_target),
        partial(build_masked_autoencoder, mask_ratio=mask_ratio, dropout=dropout, **model),
        partial(draw_patches, seed=seed, num_patches=count_patches(**model)),
        seed=seed,
        max_eval_rows=max_eval_rows,
    )
