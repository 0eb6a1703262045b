"""An image encoder with a projection head, for losses that compare views of images.

Enters: normalised images. Leaves: their embeddings, which evaluation and the export keep, and their
projections, which the loss reads (Chen et al. 2020, section 2.1). Every row is computed from its
own image alone.
"""

from __future__ import annotations

from dataclasses import dataclass
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


class ContrastiveConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """Configuration of a `ContrastiveModel`."""

    model_type = "image_contrastive"
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012  # transformers reads it as a plain class attribute

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        hidden_size: int = 768,
        projection_dim: int = 128,
        **kwargs: Any,
    ) -> None:
        """Describe the encoder and the head.

        Args:
            encoder: the encoder's configuration, or its dict; default a `ViTConfig`.
            hidden_size: width of the encoder's embedding.
            projection_dim: width of the projection; 0 = the embedding itself.
            kwargs: further `PreTrainedConfig` fields.
        """
        self.encoder = as_encoder_config(encoder)
        self.hidden_size = hidden_size
        self.projection_dim = projection_dim
        super().__init__(**kwargs)


@dataclass
class ContrastiveOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """What a forward pass returns.

    Attributes:
        embeddings: float (B, D), the encoder's.
        projections: float (B, projection_dim), not normalised; the embeddings themselves if there
            is no head.
    """

    embeddings: Tensor = None  # type: ignore[assignment]
    projections: Tensor = None  # type: ignore[assignment]


class ContrastiveModel(PreTrainedModel):  # type: ignore[misc]
    """Encoder and projection head: linear, GELU, linear.

    The head has no batch normalisation, unlike SimCLR's: its statistics would tie a row to the
    other rows of its process, so that the gradient would depend on the number of processes, and let
    the model tell views of one batch apart. The encoders' own last layer norm keeps the head's
    input in range instead.
    """

    config_class = ContrastiveConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: ContrastiveConfig, encoder: PreTrainedModel | None = None) -> None:
        """Build the head, and the encoder unless it is given, initialised by the global seed."""
        super().__init__(config)
        self.encoder = encoder_from_config(config.encoder) if encoder is None else encoder
        self.projection = _projection_head(config.hidden_size, config.projection_dim)
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

    def forward(self, pixel_values: Tensor) -> ContrastiveOutput:
        """Embed and project images.

        Args:
            pixel_values: float (B, C, H, W), normalised; a loss over two views passes both in one
                call, B = 2 N.
        """
        embeddings = embed(self.encoder, pixel_values)
        return ContrastiveOutput(embeddings=embeddings, projections=self.projection(embeddings))

    def plain_encoder(self) -> PreTrainedModel:
        """Return the encoder that is evaluated and exported; `embed` reads it."""
        return self.encoder


def build_contrastive(
    *,
    config_name: str,
    model_name_or_path: str | None,
    image_size: int,
    num_channels: int,
    dropout: float,
    projection_dim: int,
) -> ContrastiveModel:
    """Return the model to pretrain, in training mode.

    Args:
        config_name: see `build_image_encoder`.
        model_name_or_path: weights to continue from: an image encoder, to which a fresh head is
            added, or a `ContrastiveModel` with its head (a run's `final`, or a checkpoint).
        image_size: height and width, pixels.
        num_channels: channels of an image.
        dropout: probability of the encoder's dropout modules while pretraining.
        projection_dim: width of the projection; 0 = no head.

    Raises:
        InputError: as `build_image_encoder`, or the head to continue has another width.
    """
    images = {"image_size": image_size, "num_channels": num_channels}
    continued = None
    if model_name_or_path is not None:
        continued = pretraining_subfolder(model_name_or_path, ContrastiveConfig.model_type)
    if continued is None:
        encoder = build_image_encoder(
            config_name=config_name,
            model_name_or_path=model_name_or_path,
            dropout=dropout,
            **images,
        )
        width = embedding_width(encoder, **images)
        config = ContrastiveConfig(
            encoder=encoder.config, hidden_size=width, projection_dim=projection_dim
        )
        return ContrastiveModel(config, encoder=encoder)
    source = str(model_name_or_path)
    model: ContrastiveModel = load_weights(ContrastiveModel, source, subfolder=continued)
    found = model.config.projection_dim
    if found != projection_dim:
        raise InputError(
            f"projection_dim is {projection_dim} but the head of {source} has {found}",
            advice=f"pass `projection_dim` {found}",
        )
    prepare_encoder(model.encoder, source=source, dropout=dropout, **images)
    model.train()
    return model


def _projection_head(hidden_size: int, projection_dim: int) -> nn.Module:
    if projection_dim == 0:
        return nn.Identity()
    return nn.Sequential(
        nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, projection_dim)
    )
