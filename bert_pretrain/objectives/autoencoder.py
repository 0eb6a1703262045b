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
from bert_pretrain.evaluation.pictures import ImageRow, image_rows
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
from bert_pretrain.objectives.image_monitor import NUM_SHOWN, Pretext
from bert_pretrain.objectives.images import MAX_BANK_IMAGES, image_task, model_shape, random_subset
from bert_pretrain.objectives.interface import LossTerm, Task
from bert_pretrain.objectives.pca_baseline import PcaBaseline, pca_baseline, psnr

_HIDDEN_COLOUR = (0.78, 0.69, 0.92)  # violet: no image is mistaken for it


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
        pca: what the autoencoder has to beat; holds the inputs of its picture.

    Source: Hinton and Salakhutdinov 2006; with noise Vincent et al. 2008.
    """

    term = loss_kind = "reconstruction"
    kind: ReconstructionKind
    noise_std: float
    pca: PcaBaseline

    def loss(self, model: nn.Module, batch: Batch) -> LossTerm:
        """Return the error, a sum over images of the mean over their pixels.

        `squared_error` is that of the pixels in [0, 1], as they are seen.
        """
        images = unit_range(batch["pixels"])
        target = self.scale.normalize(images)
        source = target + self.noise_std * batch["noise"] if "noise" in batch else target
        reconstruction = model(pixel_values=source).reconstruction
        seen = self.scale.denormalize(reconstruction)
        return LossTerm(
            reconstruction_loss(reconstruction, target, self.kind),
            metrics={"squared_error": reconstruction_loss(seen, images, "mse")},
        )

    def measures(self, means: dict[str, float]) -> dict[str, float]:
        """Return the peak signal-to-noise ratio of all held-out images, dB."""
        return {f"{self.term}_psnr": psnr(means[f"{self.term}_squared_error"])}

    def draw_picture(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw images above what autoencoder and PCA make of them, with the noise if there is."""
        images = channels_last(unit_range(batch["pixels"]))
        inputs = torch.from_numpy(self.pca.inputs).permute(0, 3, 1, 2).to(batch["pixels"].device)
        output = model(pixel_values=inputs)
        found = channels_last(self.scale.denormalize(output.reconstruction))
        is_noisy = self.noise_std > 0
        seen = [ImageRow("with noise", channels_last(self.scale.denormalize(inputs)))] * is_noisy
        made = {"autoencoder": found, "PCA": self.pca.outputs}
        width = output.embeddings.shape[1]
        image_rows(
            [
                ImageRow("image", images),
                *seen,
                *(ImageRow(name, made[name], _decibels(made[name], images)) for name in made),
            ],
            folder / "reconstructions.png",
            title=f"Held-out images{' with noise' * is_noisy}, given back from {width} numbers "
            "each",
            caption=f"PCA: {width} principal components of training images"
            f"{', without noise' * is_noisy}. Below each image: PSNR of its pixels against the "
            f"image{' without noise' * is_noisy}, higher is closer.",
        )


def _decibels(found: NDArray[Any], images: NDArray[Any]) -> list[str]:
    """Return the PSNR of each of some images (N, H, W, C) in [0, 1]."""
    errors = np.square(found - images).mean(axis=(1, 2, 3)).tolist()
    return [f"{psnr(error):.1f} dB" for error in errors]


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

        Of normalised patches a model predicts neither brightness nor contrast. So they are drawn
        twice: with those of the seen patches on average, which is all that is known, and with those
        of the hidden patches themselves, which only the original tells.
        """
        assert isinstance(model, MaskedAutoencoder)
        images = unit_range(batch["pixels"])
        output = model(pixel_values=self.scale.normalize(images), noise=batch["patch_ranks"])
        patches, predicted = output.patches, output.logits.float()
        is_hidden = output.mask[:, :, None] > 0
        fillings = {"predicted": predicted}
        if self.normalize_target:
            variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)  # (B, P, 1)
            deviation = variance.sqrt()
            of_seen = [_mean_of_seen(values, is_hidden) for values in (deviation, mean)]
            fillings = {
                "predicted": predicted * of_seen[0] + of_seen[1],
                "with the original's\nmean and spread": predicted * deviation + mean,
            }

        def filled(values: Tensor) -> NDArray[np.float32]:
            whole = model.unpatchify(torch.where(is_hidden, values, patches))
            return channels_last(self.scale.denormalize(whole))

        covered = model.unpatchify(is_hidden.expand_as(patches).float())
        num_hidden, num_patches = int(is_hidden[0].sum()), is_hidden.shape[1]
        shown = channels_last(images)
        note = (
            " The model predicts patches of mean 0 and deviation 1. To be drawn they get a mean "
            "and a deviation: in the third row those of the seen patches on average; in the last "
            "each hidden patch's own, taken from the original, which the model does not know."
        )
        image_rows(
            [
                ImageRow("image", shown),
                ImageRow("what the\nencoder sees", _tinted(shown, channels_last(covered))),
                *(ImageRow(name, filled(values)) for name, values in fillings.items()),
            ],
            folder / "reconstructions.png",
            title=f"Held-out images of which {num_hidden} of {num_patches} patches are hidden, and "
            "what is predicted there",
            caption="Violet: hidden. Patches that are seen are drawn as they are."
            + note * self.normalize_target,
        )


def _mean_of_seen(values: Tensor, is_hidden: Tensor) -> Tensor:
    """Return the mean of a number of each patch (B, P, 1) over the seen ones, (B, 1, 1)."""
    is_seen = ~is_hidden
    return (values * is_seen).sum(dim=1, keepdim=True) / is_seen.sum(dim=1, keepdim=True)


def _tinted(images: NDArray[Any], is_hidden: NDArray[Any]) -> NDArray[Any]:
    """Return images (N, H, W, C) in [0, 1] in RGB, violet where something is hidden."""
    colours = images[..., :3] if images.shape[-1] >= 3 else images.repeat(3, axis=-1)
    return np.where(is_hidden[..., :1] > 0, _HIDDEN_COLOUR, colours)


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
    draw = partial(draw_noise, seed=seed, shape=(num_channels, height, width))
    held_out = random_subset(corpus.validation_images, max_eval_rows, seed)
    # Held-out images are evaluated clean. The noise of the picture is what training would add.
    noise = noise_std * draw(held_out[:NUM_SHOWN], 0)["noise"]
    pca = pca_baseline(
        corpus,
        bank=random_subset(corpus.train_images, MAX_BANK_IMAGES, seed),
        held_out=held_out,
        noise=channels_last(noise),
        dimension=embedding_dim,
        kind=kind,
        key="-".join(map(str, (noise_std, seed, max_eval_rows, MAX_BANK_IMAGES, NUM_SHOWN))),
    )
    return image_task(
        corpus,
        Reconstruction(PixelScale(corpus.mean, corpus.std), kind, noise_std, pca),
        partial(build_autoencoder, embedding_dim=embedding_dim, **shape, **encoder),
        draw if noise_std else draw_nothing,
        seed=seed,
        max_eval_rows=max_eval_rows,
        baselines=pca.measures,
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
