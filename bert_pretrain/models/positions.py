"""How long the rows of a text model may be."""

from __future__ import annotations

from transformers import PreTrainedModel


def num_positions(model: PreTrainedModel) -> int | None:
    """Return the tokens that a row may have, special ones included; None where no table of positions limits them.

    Args:
        model: of transformers; its weights are not looked at and may be on the device `meta`.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    # RoBERTa and its kin count positions from the padding id on, and leave those up to it unused.
    embeddings = getattr(model.base_model, "embeddings", None)
    padding_idx = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return positions if padding_idx is None else positions - padding_idx - 1
