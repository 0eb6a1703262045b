"""The models that pretrain an image encoder under a head: an autoencoder, and one for contrast.

Enters: normalised images. Leaves: their embeddings, and what the loss reads, reconstructions or
projections. Every row is computed from its own image alone, unless the encoder normalises batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from bert_pretrain.models.image_encoder import embed
from bert_pretrain.models.image_encoder_config import InputSize, sides
from bert_pretrain.models.local_images import check_local_size, other_size_inputs
from bert_pretrain.models.pretraining_model import (
    EncoderWithHead,
    EncoderWithHeadConfig,
    build_with_head,
)

MAX_FIRST_GRID = 7  # the decoder begins with a map of 4 to 7 pixels a side
FIRST_CHANNELS, MIN_CHANNELS = 128, 32


class ImageAutoencoderConfig(EncoderWithHeadConfig):
    """Configuration of an `ImageAutoencoder`."""

    model_type = "image_autoencoder"

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        hidden_size: int = 768,
        embedding_dim: int = 64,
        image_size: InputSize = 224,
        num_channels: int = 3,
        decoder_channels: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Describe encoder and decoder; `embedding_dim` is the width of e.

        `decoder_channels` are the widths of the decoder's maps, each map twice as large as the one
        before; default by size.
        """
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        self.num_channels = num_channels
        self.decoder_channels = list(
            decoder_channels or default_decoder_channels(max(sides(image_size)))
        )
        super().__init__(encoder, hidden_size, **kwargs)


@dataclass
class ImageAutoencoderOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """Embeddings e, float (B, embedding_dim), and reconstructions x', normalised (B, C, H, W)."""

    embeddings: Tensor = None  # type: ignore[assignment]
    reconstruction: Tensor = None  # type: ignore[assignment]


class ImageAutoencoder(EncoderWithHead):
    """x -> E -> e -> D -> x': the decoder sees a low-dimensional embedding and nothing else.

    e is the output of transformers' encoder and one linear layer; x' is normalised as x is.
    """

    config_class = ImageAutoencoderConfig

    def __init__(
        self, config: ImageAutoencoderConfig, encoder: PreTrainedModel | None = None
    ) -> None:
        """Build bottleneck and decoder on an encoder; see `EncoderWithHead`."""
        super().__init__(config, encoder)
        self.bottleneck = nn.Linear(config.hidden_size, config.embedding_dim)
        self.decoder = Decoder(
            config.embedding_dim,
            image_size=config.image_size,
            num_channels=config.num_channels,
            channels=config.decoder_channels,
        )
        self.post_init()

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Return e, float (B, embedding_dim), of normalised images (B, C, H, W)."""
        embedding: Tensor = self.bottleneck(embed(self.encoder, pixel_values))
        return embedding

    def decode(self, embeddings: Tensor) -> Tensor:
        """Return the normalised images that embeddings, or anything between them, stand for."""
        pixel_values: Tensor = self.decoder(embeddings)
        return pixel_values

    def forward(self, pixel_values: Tensor) -> ImageAutoencoderOutput:
        """Encode and decode normalised images (B, C, H, W), noisy if the autoencoder denoises."""
        embeddings = self.encode(pixel_values)
        return ImageAutoencoderOutput(embeddings=embeddings, reconstruction=self.decode(embeddings))


class Decoder(nn.Module):
    """e -> image: a linear map plus a small map that convolutions refine while it grows.

    The linear map is the decoder of principal component analysis: what PCA of the same dimension
    can draw, this decoder can, and the convolutions learn what is left.
    """

    def __init__(
        self,
        embedding_dim: int,
        *,
        image_size: InputSize,
        num_channels: int,
        channels: Sequence[int],
    ) -> None:
        """Build it; see `ImageAutoencoderConfig`."""
        super().__init__()
        self.image_shape = (num_channels, *sides(image_size))
        growth = 2 ** (len(channels) - 1)
        self.first_grid = tuple(math.ceil(side / growth) for side in sides(image_size))
        self.linear = nn.Linear(embedding_dim, math.prod(self.image_shape))
        self.first_map = nn.Linear(embedding_dim, channels[0] * math.prod(self.first_grid))
        self.growth = nn.Sequential(*(_grow(before, after) for before, after in pairwise(channels)))
        self.to_pixels = nn.Conv2d(channels[-1], num_channels, kernel_size=3, padding=1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return images (B, C, H, W) of embeddings (B, embedding_dim)."""
        _, height, width = self.image_shape
        first_map = self.first_map(embeddings).unflatten(1, (-1, *self.first_grid))
        # The last map may be a few pixels larger than the image.
        refined = self.to_pixels(self.growth(first_map))[:, :, :height, :width]
        image: Tensor = self.linear(embeddings).unflatten(1, self.image_shape) + refined
        return image


def default_decoder_channels(image_size: int) -> list[int]:
    """Return the widths of the decoder's maps, from 7 pixels a side at most to the longer side.

    32 pixels give [128, 64, 32, 32]: maps of 4, 8, 16 and 32 pixels.
    """
    num_doublings = max(0, math.ceil(math.log2(image_size / MAX_FIRST_GRID)))
    return [max(MIN_CHANNELS, FIRST_CHANNELS >> i) for i in range(num_doublings + 1)]


def _grow(before: int, after: int) -> nn.Module:
    # Nearest neighbour and a convolution: a transposed convolution leaves a chequerboard. Group
    # normalisation because it reads one image alone.
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(before, after, kernel_size=3, padding=1),
        nn.GroupNorm(num_groups=8, num_channels=after),
        nn.GELU(),
    )


def build_autoencoder(
    *, embedding_dim: int, image_size: InputSize, num_channels: int, **encoder: Any
) -> ImageAutoencoder:
    """Return the model to pretrain, in training mode; for all else see `build_with_head`."""
    images: dict[str, Any] = {"image_size": image_size, "num_channels": num_channels}
    head = {"embedding_dim": embedding_dim, **images}
    model: ImageAutoencoder = build_with_head(ImageAutoencoder, head=head, **images, **encoder)
    return model


class ContrastiveConfig(EncoderWithHeadConfig):
    """Configuration of a `ContrastiveModel`; `projection_dim` 0 = the embedding itself."""

    model_type = "image_contrastive"

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        hidden_size: int = 768,
        projection_dim: int = 128,
        **kwargs: Any,
    ) -> None:
        """Describe the encoder and the head."""
        self.projection_dim = projection_dim
        super().__init__(encoder, hidden_size, **kwargs)


@dataclass
class ContrastiveOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """The encoder's embeddings, float (B, D), and projections (B, projection_dim) of any length."""

    embeddings: Tensor = None  # type: ignore[assignment]
    projections: Tensor = None  # type: ignore[assignment]


class ContrastiveModel(EncoderWithHead):
    """Encoder and projection head (linear, GELU, linear), for losses that compare views of images.

    The head has no batch normalisation, unlike SimCLR's: its statistics would tie a row to the
    other rows of its process, so that the gradient would depend on the number of processes, and let
    the model tell views of one batch apart. The encoders' own last layer norm keeps the head's
    input in range instead.

    Source: Chen et al. 2020 (SimCLR), section 2.1.
    """

    config_class = ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, encoder: PreTrainedModel | None = None) -> None:
        """Build the head on an encoder; see `EncoderWithHead`."""
        super().__init__(config, encoder)
        width, projection_dim = config.hidden_size, config.projection_dim
        self.other_size_inputs = other_size_inputs(self.encoder)
        self.projection: nn.Module = nn.Identity()
        if projection_dim:
            layers = nn.Linear(width, width), nn.GELU(), nn.Linear(width, projection_dim)
            self.projection = nn.Sequential(*layers)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, local_pixel_values: Tensor | None = None
    ) -> ContrastiveOutput:
        """Embed and project normalised images; all views of an image in one call.

        Args:
            pixel_values: float (B, C, H, W).
            local_pixel_values: float (L, C, h, w), smaller ones, whose rows follow the others' in
                the output; None = there are none. Batch normalisation treats them apart.
        """
        embeddings = embed(self.encoder, pixel_values)
        if local_pixel_values is not None:
            of_local = embed(self.encoder, local_pixel_values, **self.other_size_inputs)
            embeddings = torch.cat([embeddings, of_local])
        return ContrastiveOutput(embeddings=embeddings, projections=self.projection(embeddings))


def build_contrastive(
    *, projection_dim: int, local_view_size: tuple[int, int] | None = None, **encoder: Any
) -> ContrastiveModel:
    """Return the model to pretrain, in training mode.

    Args:
        projection_dim: see `ContrastiveConfig`.
        local_view_size: height and width of smaller images that it is to embed beside the others.
        encoder: see `build_with_head`.

    Raises:
        InputError: as `build_with_head`, or the encoder does not take images of that other size.
    """
    head = {"projection_dim": projection_dim}
    model: ContrastiveModel = build_with_head(ContrastiveModel, head=head, **encoder)
    if local_view_size is not None:
        source = encoder["model_name_or_path"] or encoder["config_name"]
        check_local_size(
            model.encoder, local_view_size, image_size=encoder["image_size"], source=source
        )
    return model
