"""What a model does with images while nobody labels them; the objectives for images share it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from bert_pretrain.data.loader import Batch
from bert_pretrain.objectives.interface import LossTerm


class Pretext(ABC):
    """What a model does with images while nobody gives it labels (a pretext task).

    Attributes:
        term: name of its loss.
        loss_kind: how `collapse_warnings` calls it.
    """

    term: ClassVar[str]
    loss_kind: ClassVar[str]

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> LossTerm:
        """Run the model once and return the loss of a batch, a sum over images."""

    @abstractmethod
    def draw_picture(self, model: PreTrainedModel, batch: Batch, folder: Path) -> None:
        """Draw what the model makes of a few held-out images."""

    def collapse_context(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what `collapse_warnings` is told of the loss, by name of its argument.

        Args:
            row: of an evaluation.
        """
        return {"loss": self.loss_kind}
