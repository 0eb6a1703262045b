"""Learning images by reconstruction: through a narrow embedding, from noise, or from a few of their patches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.data.random import Purpose, uniform
from bert_pretrain.evaluation.features import normalised_rows, pca_reconstruction_error
from bert_pretrain.evaluation.pictures import reconstructions
from bert_pretrain.images.collator import EVALUATION_EPOCH
from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.losses.reconstruction import (
    ReconstructionKind,
    masked_patch_loss,
    reconstruction_loss,
)
from bert_pretrain.models.masked_autoencoder import MaskedAutoencoder
from bert_pretrain.objectives.images import ImageObjective, channels_last
from bert_pretrain.objectives.interface import Batch, LossTerm


class AutoencoderObjective(ImageObjective):
    """Give an image back from its embedding, which is all that the decoder sees (Hinton and Salakhutdinov 2006).

    With `noise_std` the input is noisy and the target is not (Vincent et al. 2008).
    """

    term = "reconstruction"

    def __init__(
        self,
        corpus: ImageCorpus,
        make_model: Callable[[], PreTrainedModel],
        *,
        kind: ReconstructionKind,
        embedding_dim: int,
        noise_std: float,
        **rows: Any,
    ) -> None:
        """Measure what principal components of the same number reach on the held-out images.

        Args:
            corpus: the decoded images.
            make_model: returns the model to train.
            kind: distance between image and reconstruction.
            embedding_dim: width of the embedding, for the comparison.
            noise_std: deviation of the Gaussian noise on training inputs, in normalised pixels; 0 =
                none.
            rows: see `ImageObjective`.
        """
        super().__init__(corpus, make_model, **rows)
        self.kind = kind
        self.noise_std = noise_std
        bank, held_out = (
            normalised_rows(corpus.pixels[images], corpus.mean.tolist(), corpus.std.tolist())
            for images in (self.bank_images, self.evaluated_images)
        )
        self._pca_loss = pca_reconstruction_error(bank, held_out, embedding_dim, kind)

    def draw(self, images: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Draw the input noise of training images; held-out ones stay clean."""
        if not self.noise_std or epoch == EVALUATION_EPOCH:
            return {}
        height, width, channels = self.corpus.pixels.shape[1:]
        numbers = np.arange(channels * height * width)
        first, second = (
            uniform(self.seed, Purpose.INPUT_NOISE, epoch, images[:, None], i, numbers)
            for i in (0, 1)
        )
        # Box and Muller 1958; 1 - u lies in (0, 1].
        noise = np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)
        return {
            "noise": torch.from_numpy(noise.astype(np.float32).reshape(-1, channels, height, width))
        }

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Return the reconstruction error, a sum over images of the mean over their pixels."""
        target = self.normalize(batch["pixels"].float() / 255)
        source = target + self.noise_std * batch["noise"] if "noise" in batch else target
        reconstruction = model(pixel_values=source).reconstruction
        return {self.term: LossTerm(reconstruction_loss(reconstruction, target, self.kind))}

    def measures(self, model: PreTrainedModel, means: dict[str, float]) -> dict[str, float]:
        """Return the error of PCA on the same images, and what every image objective measures."""
        return {f"pca_{self.term}_loss": self._pca_loss} | super().measures(model, means)

    def draw_batch(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw images above their reconstructions."""
        images = batch["pixels"].float() / 255
        output = model(pixel_values=self.normalize(images))
        path = folder / "reconstructions.png"
        reconstructions(channels_last(images), self.denormalize(output.reconstruction), path)


class MaskedAutoencoderObjective(ImageObjective):
    """Predict the patches that the encoder did not see (He et al. 2022)."""

    term = "reconstruction"

    def __init__(
        self,
        corpus: ImageCorpus,
        make_model: Callable[[], PreTrainedModel],
        *,
        normalize_target: bool,
        **rows: Any,
    ) -> None:
        """Keep what the loss needs.

        Args:
            corpus: the decoded images.
            make_model: returns the model to train.
            normalize_target: whether the target of a patch is scaled to mean 0 and deviation 1.
            rows: see `ImageObjective`.
        """
        super().__init__(corpus, make_model, **rows)
        self.num_patches = 0  # of an image; the model says
        self.normalize_target = normalize_target

    def build_model(self) -> PreTrainedModel:
        """Return the model to train, whose patches are those that masks are drawn for."""
        model = super().build_model()
        self.num_patches = model.num_patches
        return model

    def draw(self, images: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Draw the numbers whose order decides which patches are hidden."""
        key = (self.seed, Purpose.PATCH_MASK, epoch, images[:, None])
        return {"patch_noise": torch.from_numpy(uniform(*key, np.arange(self.num_patches)))}

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Return the error of the hidden patches, a sum over images of the mean over their hidden patches."""
        output = model(
            pixel_values=self.normalize(batch["pixels"].float() / 255), noise=batch["patch_noise"]
        )
        total, num_hidden = masked_patch_loss(
            output.logits, output.patches, output.mask, normalize_target=self.normalize_target
        )
        # Every image hides the same number of patches.
        return {self.term: LossTerm(total * len(batch["image_ids"]) / num_hidden)}

    def draw_batch(self, model: MaskedAutoencoder, batch: Batch, folder: Path) -> None:
        """Draw images above what is seen of them, filled up with what is predicted.

        A prediction for a normalised target has no brightness and contrast of its own; it gets
        those of the true patch, which flatters the picture, not the loss.
        """
        images = batch["pixels"].float() / 255
        output = model(pixel_values=self.normalize(images), noise=batch["patch_noise"])
        predicted = output.logits.float()
        if self.normalize_target:
            variance, mean = torch.var_mean(output.patches, dim=-1, keepdim=True)
            predicted = predicted * variance.sqrt() + mean
        filled = torch.where(output.mask[:, :, None] > 0, predicted, output.patches)
        reconstructions(
            channels_last(images),
            self.denormalize(model.unpatchify(filled)),
            folder / "reconstructions.png",
        )
