"""An image encoder with a projection head, for losses that compare views of images.

Enters: normalised images. Leaves: their embeddings, which evaluation and the export keep, and their
projections, which the loss reads (Chen et al. 2020, section 2.1). Every row is computed from its
own image alone.
"""

from __future__ import annotations

from dataclasses import dataclass
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


class ContrastiveConfig(EncoderWithHeadConfig):
    """Configuration of a `ContrastiveModel`."""

    model_type = "image_contrastive"

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        hidden_size: int = 768,
        projection_dim: int = 128,
        **kwargs: Any,
    ) -> None:
        """Describe the encoder and the head.

        Args:
            encoder: see `EncoderWithHeadConfig`.
            hidden_size: width of the encoder's embedding.
            projection_dim: width of the projection; 0 = the embedding itself.
            kwargs: further `PreTrainedConfig` fields.
        """
        self.projection_dim = projection_dim
        super().__init__(encoder, hidden_size, **kwargs)


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


class ContrastiveModel(EncoderWithHead):
    """Encoder and projection head: linear, GELU, linear.

    The head has no batch normalisation, unlike SimCLR's: its statistics would tie a row to the
    other rows of its process, so that the gradient would depend on the number of processes, and let
    the model tell views of one batch apart. The encoders' own last layer norm keeps the head's
    input in range instead.
    """

    config_class = ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, encoder: PreTrainedModel | None = None) -> None:
        """Build the head on an encoder; see `EncoderWithHead`."""
        super().__init__(config, encoder)
        self.projection = _projection_head(config.hidden_size, config.projection_dim)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> ContrastiveOutput:
        """Embed and project images.

        Args:
            pixel_values: float (B, C, H, W), normalised; a loss over two views passes both in one
                call, B = 2 N.
        """
        embeddings = embed(self.encoder, pixel_values)
        return ContrastiveOutput(embeddings=embeddings, projections=self.projection(embeddings))


def build_contrastive(*, projection_dim: int, **encoder: Any) -> ContrastiveModel:
    """Return the model to pretrain, in training mode.

    Args:
        projection_dim: width of the projection; 0 = no head.
        encoder: what else `build_with_head` takes.

    Raises:
        InputError: as `build_with_head`.
    """
    head = {"projection_dim": projection_dim}
    model: ContrastiveModel = build_with_head(ContrastiveModel, head=head, **encoder)
    return model


def _projection_head(hidden_size: int, projection_dim: int) -> nn.Module:
    if projection_dim == 0:
        return nn.Identity()
    return nn.Sequential(
        nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, projection_dim)
    )
