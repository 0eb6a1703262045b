"""How long the rows of a text model may be."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def num_positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens of a row, special ones included; None where nothing limits them.

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


def describe_excess(max_seq_length: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Say that rows are longer than a model was trained on; None if its tokenizer allows them.

    Args:
        max_seq_length: tokens of the longest row.
        tokenizer: the model's; our exports and many others say by `model_max_length` how long rows
            were in training.
    """
    if max_seq_length <= tokenizer.model_max_length:
        return None
    return (
        f"`max_seq_length` is {max_seq_length} but the tokenizer's model_max_length is "
        f"{tokenizer.model_max_length}; positions from there on may be untrained; a lower "
        "`max_seq_length` avoids them"
    )
