"""Write a pretrained model so that stock transformers loads it.

A model of this package enters; a folder with config.json, model.safetensors and tokenizer files
leaves, and what the model card says of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_pretrain.data.atomic import atomic_folder


def export_bert(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write the export folder; it appears whole or not at all.

    Args:
        model: a `BertForPreTraining`.
        tokenizer: the model's.
        directory: target; replaced if it exists.
    """
    with atomic_folder(directory) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def write_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write everything of an export but the weights into an existing folder."""
    config = model.config.__class__(**model.config.to_dict())
    config.architectures = ["BertForPreTraining"]
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def card_fields(
    model: PreTrainedModel,
    *,
    with_nsp: bool,
    language: str | None,
    max_seq_length: int,
    is_from_scratch: bool,
) -> dict[str, Any]:
    """Return what the model card says of a BERT; see `bert_pretrain.publishing.model_card`.

    Args:
        model: a `BertForPreTraining`.
        with_nsp: whether the next-sentence head was trained.
        language: code of the text's; None = nobody stated it.
        max_seq_length: tokens of the longest row that it was trained on.
        is_from_scratch: whether it began with random weights, not those of an existing model.
    """
    config = model.config
    learnt = "masked-language modelling" + (
        " and next-sentence prediction" if with_nsp else " (its next-sentence head is untrained)"
    )
    return {
        "is_text": True,
        "with_nsp": with_nsp,
        "language": language,
        "is_english": (language or "").lower().split("-")[0] in ("en", "eng"),
        "pipeline_tag": "fill-mask",
        "tags": ["bert", "masked-lm", *(["next-sentence-prediction"] if with_nsp else [])],
        "summary": f"A BERT encoder ({config.num_hidden_layers} layers, width "
        f"{config.hidden_size}, "
        f"{config.vocab_size:,} word pieces, {model.num_parameters() / 1e6:.1f} M parameters) "
        f"pretrained by {learnt}.",
        "limits": [
            "It knows the language and the topics of its training text, with whatever that text "
            "gets wrong or leaves "
            "out; other text, and people and groups of people in particular, it may represent "
            "badly.",
            _length(
                config.max_position_embeddings, max_seq_length, is_from_scratch=is_from_scratch
            ),
            "It writes no text: it is for classifying, tagging and comparing text after "
            "fine-tuning.",
            "The numbers above are of held-out text of the same source. What it is worth for a "
            "task, only that task's "
            "own data can tell.",
        ],
    }


def trained_length(
    tokenizer: PreTrainedTokenizerBase, max_seq_length: int, *, is_from_scratch: bool
) -> int:
    """Return the tokens of a row at which users of a model had better truncate: its tokenizer's `model_max_length`.

    Args:
        tokenizer: as loaded.
        max_seq_length: tokens of the longest row that the model is trained on.
        is_from_scratch: whether it begins with random weights, so that further positions stay
            untrained.
    """
    return (
        max_seq_length if is_from_scratch else max(max_seq_length, int(tokenizer.model_max_length))
    )


def _length(num_positions: int, max_seq_length: int, *, is_from_scratch: bool) -> str:
    """Say how long a text it may be given, and how much of its position table was trained."""
    table = f"its position table has {num_positions} places"
    if not is_from_scratch:
        return f"It was trained further on rows of up to {max_seq_length} tokens; {table} and it reads no longer row."
    if max_seq_length == num_positions:
        return f"It was trained on rows of up to {max_seq_length} tokens and reads no longer row."
    return (
        f"It was trained on rows of up to {max_seq_length} tokens; {table}, those from "
        f"{max_seq_length} on (counted "
        "from 0) are untrained. Cut longer text there: `model_max_length` of the tokenizer does, "
        "wherever it truncates."
    )
