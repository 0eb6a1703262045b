"""An image autoencoder whose decoder sees a low-dimensional embedding and nothing else.

Enters: normalised images x. Leaves: e = E(x), the output of transformers' encoder and one linear
layer, and the reconstruction x' = D(e), in the same normalised pixel space. The training loss
compares x' with the clean image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from bert_pretrain.models.image_encoder import embed
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
        image_size: int = 224,
        num_channels: int = 3,
        decoder_channels: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Describe encoder and decoder.

        Args:
            encoder: see `EncoderWithHeadConfig`.
            hidden_size: width of the encoder's own embedding.
            embedding_dim: width of e.
            image_size: height and width of the reconstruction, pixels.
            num_channels: its channels.
            decoder_channels: widths of the decoder's maps, each twice as large as the one before;
                default by size.
            kwargs: further `PreTrainedConfig` fields.
        """
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        self.num_channels = num_channels
        self.decoder_channels = list(decoder_channels or default_decoder_channels(image_size))
        super().__init__(encoder, hidden_size, **kwargs)


@dataclass
class ImageAutoencoderOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """What a forward pass returns.

    Attributes:
        embeddings: float (B, embedding_dim), e.
        reconstruction: float (B, C, H, W), x' in normalised pixel space.
    """

    embeddings: Tensor = None  # type: ignore[assignment]
    reconstruction: Tensor = None  # type: ignore[assignment]


class ImageAutoencoder(EncoderWithHead):
    """x -> E -> e -> D -> x', without any other path from x to x'."""

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
        """Return e.

        Args:
            pixel_values: float (B, C, H, W), normalised.

        Returns:
            float (B, embedding_dim).
        """
        embedding: Tensor = self.bottleneck(embed(self.encoder, pixel_values))
        return embedding

    def decode(self, embeddings: Tensor) -> Tensor:
        """Return the images that embeddings stand for.

        Args:
            embeddings: float (B, embedding_dim), as `encode` returns them or anything between.

        Returns:
            float (B, C, H, W) in normalised pixel space; undo the image processor's mean and std to
            show it.
        """
        pixel_values: Tensor = self.decoder(embeddings)
        return pixel_values

    def forward(self, pixel_values: Tensor) -> ImageAutoencoderOutput:
        """Encode and decode images.

        Args:
            pixel_values: float (B, C, H, W), normalised, with noise added if the autoencoder is to
                denoise.
        """
        embeddings = self.encode(pixel_values)
        return ImageAutoencoderOutput(embeddings=embeddings, reconstruction=self.decode(embeddings))


class Decoder(nn.Module):
    """e -> image: a linear map plus a small map that convolutions refine while it grows.

    The linear map is the decoder of principal component analysis: what PCA of the same dimension
    can draw, this decoder can, and the convolutions learn what is left.
    """

    def __init__(
        self, embedding_dim: int, *, image_size: int, num_channels: int, channels: Sequence[int]
    ) -> None:
        """Build it; see `ImageAutoencoderConfig`."""
        super().__init__()
        self.image_shape = (num_channels, image_size, image_size)
        self.first_grid = math.ceil(image_size / 2 ** (len(channels) - 1))
        self.linear = nn.Linear(embedding_dim, math.prod(self.image_shape))
        self.first_map = nn.Linear(embedding_dim, channels[0] * self.first_grid**2)
        self.growth = nn.Sequential(*(_grow(before, after) for before, after in pairwise(channels)))
        self.to_pixels = nn.Conv2d(channels[-1], num_channels, kernel_size=3, padding=1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return images (B, C, H, W) of embeddings (B, embedding_dim)."""
        _, height, width = self.image_shape
        first_map = self.first_map(embeddings).unflatten(1, (-1, self.first_grid, self.first_grid))
        # The last map is up to a few pixels larger than an image whose size is no power of two
        # times the first.
        refined = self.to_pixels(self.growth(first_map))[:, :, :height, :width]
        image: Tensor = self.linear(embeddings).unflatten(1, self.image_shape) + refined
        return image


def default_decoder_channels(image_size: int) -> list[int]:
    """Return the widths of the decoder's maps, from 7 pixels a side at most to the image's size.

    The last map may be a little larger than the image. 32 pixels give [128, 64, 32, 32]: maps of 4,
    8, 16 and 32 pixels.
    """
    num_doublings = max(0, math.ceil(math.log2(image_size / MAX_FIRST_GRID)))
    return [max(MIN_CHANNELS, FIRST_CHANNELS >> i) for i in range(num_doublings + 1)]


def build_autoencoder(
    *, embedding_dim: int, image_size: int, num_channels: int, **encoder: Any
) -> ImageAutoencoder:
    """Return the model to pretrain, in training mode.

    Args:
        embedding_dim: width of e.
        image_size: height and width, pixels.
        num_channels: channels of an image.
        encoder: `config_name`, `model_name_or_path` and `dropout`, see `build_with_head`.

    Raises:
        InputError: as `build_with_head`.
    """
    images: dict[str, Any] = {"image_size": image_size, "num_channels": num_channels}
    head = {"embedding_dim": embedding_dim, **images}
    model: ImageAutoencoder = build_with_head(ImageAutoencoder, head=head, **images, **encoder)
    return model


def _grow(before: int, after: int) -> nn.Module:
    # Nearest neighbour and a convolution: a transposed convolution leaves a chequerboard. Group
    # normalisation because it reads one image alone.
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(before, after, kernel_size=3, padding=1),
        nn.GroupNorm(num_groups=8, num_channels=after),
        nn.GELU(),
    )
