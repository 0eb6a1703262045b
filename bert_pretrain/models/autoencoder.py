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
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from bert_pretrain.errors import InputError
from bert_pretrain.models.image_encoder import (
    build_image_encoder,
    embed,
    embedding_width,
    encoder_from_config,
    find_pretraining,
    load_weights,
    prepare_encoder,
    pretraining_subfolder,
)
from bert_pretrain.models.image_encoder_config import as_encoder_config
from bert_pretrain.models.initialisation import init_by_fan_in

MAX_FIRST_GRID = 7  # the decoder begins with a map of 4 to 7 pixels a side
FIRST_CHANNELS, MIN_CHANNELS = 128, 32


class ImageAutoencoderConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """Configuration of an `ImageAutoencoder`."""

    model_type = "image_autoencoder"
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012  # transformers reads it as a plain class attribute

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
            encoder: the encoder's configuration, or its dict; default a `ViTConfig`.
            hidden_size: width of the encoder's own embedding.
            embedding_dim: width of e.
            image_size: height and width of the reconstruction, pixels.
            num_channels: its channels.
            decoder_channels: widths of the decoder's maps, each twice as large as the one before;
                default by size.
            kwargs: further `PreTrainedConfig` fields.
        """
        self.encoder = as_encoder_config(encoder)
        self.hidden_size = hidden_size
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        self.num_channels = num_channels
        self.decoder_channels = list(decoder_channels or default_decoder_channels(image_size))
        super().__init__(**kwargs)


@dataclass
class ImageAutoencoderOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """What a forward pass returns.

    Attributes:
        embeddings: float (B, embedding_dim), e.
        reconstruction: float (B, C, H, W), x' in normalised pixel space.
    """

    embeddings: Tensor = None  # type: ignore[assignment]
    reconstruction: Tensor = None  # type: ignore[assignment]


class ImageAutoencoder(PreTrainedModel):  # type: ignore[misc]
    """x -> E -> e -> D -> x', without any other path from x to x'."""

    config_class = ImageAutoencoderConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(
        self, config: ImageAutoencoderConfig, encoder: PreTrainedModel | None = None
    ) -> None:
        """Build the decoder, and the encoder unless it is given, initialised by the global seed."""
        super().__init__(config)
        self.encoder = encoder_from_config(config.encoder) if encoder is None else encoder
        self.bottleneck = nn.Linear(config.hidden_size, config.embedding_dim)
        self.decoder = Decoder(
            config.embedding_dim,
            image_size=config.image_size,
            num_channels=config.num_channels,
            channels=config.decoder_channels,
        )
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """Load from a checkpoint or from an exported folder; see `PreTrainedModel.from_pretrained`."""
        if "subfolder" not in kwargs:
            kwargs["subfolder"] = find_pretraining(
                pretrained_model_name_or_path, cls.config_class.model_type, **kwargs
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        init_by_fan_in(module)

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

    def plain_encoder(self) -> PreTrainedModel:
        """Return the encoder that is evaluated and exported, without the bottleneck; `embed` reads it."""
        return self.encoder


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
    """Return the widths of the decoder's maps, from one of at most 7 pixels a side to the image's size or just above.

    32 pixels give [128, 64, 32, 32]: maps of 4, 8, 16 and 32 pixels.
    """
    num_doublings = max(0, math.ceil(math.log2(image_size / MAX_FIRST_GRID)))
    return [max(MIN_CHANNELS, FIRST_CHANNELS >> i) for i in range(num_doublings + 1)]


def build_autoencoder(
    *,
    config_name: str,
    model_name_or_path: str | None,
    image_size: int,
    num_channels: int,
    dropout: float,
    embedding_dim: int,
) -> ImageAutoencoder:
    """Return the model to pretrain, in training mode.

    Args:
        config_name: see `build_image_encoder`.
        model_name_or_path: weights to continue from: an image encoder, to which a fresh decoder is
            added, or an `ImageAutoencoder` with its decoder (a run's `final`, or a checkpoint).
        image_size: height and width, pixels.
        num_channels: channels of an image.
        dropout: probability of the encoder's dropout modules while pretraining.
        embedding_dim: width of e.

    Raises:
        InputError: as `build_image_encoder`, or the autoencoder to continue has another embedding
            or image size.
    """
    images = {"image_size": image_size, "num_channels": num_channels}
    continued = None
    if model_name_or_path is not None:
        continued = pretraining_subfolder(model_name_or_path, ImageAutoencoderConfig.model_type)
    if continued is None:
        encoder = build_image_encoder(
            config_name=config_name,
            model_name_or_path=model_name_or_path,
            dropout=dropout,
            **images,
        )
        config = ImageAutoencoderConfig(
            encoder=encoder.config,
            hidden_size=embedding_width(encoder, **images),
            embedding_dim=embedding_dim,
            image_size=image_size,
            num_channels=num_channels,
        )
        return ImageAutoencoder(config, encoder=encoder)
    source = str(model_name_or_path)
    model: ImageAutoencoder = load_weights(ImageAutoencoder, source, subfolder=continued)
    for name, wanted in (("embedding_dim", embedding_dim), ("image_size", image_size)):
        found = getattr(model.config, name)
        if found != wanted:
            raise InputError(
                f"{name} is {wanted} but {source} has {found}", advice=f"pass `{name}` {found}"
            )
    prepare_encoder(model.encoder, source=source, dropout=dropout, **images)
    model.train()
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
