"""Write a pretrained model so that stock transformers loads it.

A model of this package enters; a folder with config.json, model.safetensors and tokenizer files leaves, and what the
model card says of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_pretrain.whole_files import folder_written_aside


def export_bert(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the export folder; it appears whole or not at all.

    Args:
        model: a `BertForPreTraining`.
        tokenizer: the model's.
        directory: target; replaced if it exists.
    """
    with folder_written_aside(directory) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def write_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write everything of an export but the weights into an existing folder."""
    config = model.config.__class__(**model.config.to_dict())
    config.architectures = ["BertForPreTraining"]
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def card_fields(model: PreTrainedModel, *, with_nsp: bool, language: str | None) -> dict[str, Any]:
    """Return what the model card says of a BERT; see `bert_pretrain.publishing.model_card`.

    Args:
        model: a `BertForPreTraining`.
        with_nsp: whether the next-sentence head was trained.
        language: code of the text's; None = nobody stated it.
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
        "summary": f"A BERT encoder ({config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.vocab_size:,} word pieces, {model.num_parameters() / 1e6:.1f} M parameters) pretrained by {learnt}.",
        "limits": [
            "It knows the language and the topics of its training text, with whatever that text gets wrong or leaves "
            "out; other text, and people and groups of people in particular, it may represent badly.",
            f"It reads at most {config.max_position_embeddings} tokens and writes none: it is for classifying, tagging "
            "and comparing text after fine-tuning, not for generating it.",
            "The numbers above are of held-out text of the same source. What it is worth for a task, only that task's "
            "own data can tell.",
        ],
    }
