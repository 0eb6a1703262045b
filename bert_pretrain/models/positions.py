"""How many positions a text model has, and where its table of them begins."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def num_positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens of a row, special ones included; None where nothing limits them.

    Args:
        model: of transformers; its weights are not looked at and may be on the device `meta`.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    is_relative = getattr(model.config, "position_biased_input", True) is False  # DeBERTa
    if not positions or positions < 0 or is_relative:
        return None
    return positions - first_position(position_table(model))


def position_table(model: PreTrainedModel) -> nn.Module | None:
    """Return the table of a text model's positions; None where they are relative."""
    embeddings = getattr(model.base_model, "embeddings", None)
    table: nn.Module | None = getattr(embeddings, "position_embeddings", None)
    return table


def first_position(table: nn.Module | None) -> int:
    """Return the row of a table that the first token of a text gets.

    RoBERTa and its kin count positions from the padding id on, and leave those up to it unused.
    """
    padding_idx = getattr(table, "padding_idx", None)
    return 0 if padding_idx is None else padding_idx + 1
