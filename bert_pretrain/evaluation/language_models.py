"""Language models with a trained head, loaded to be judged, and their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import default_device
from bert_pretrain.models.loading import num_positions
from bert_pretrain.text.tokenizers import load_tokenizer


def load_masked_language_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a folder or Hub id in float32, in evaluation mode, on the accelerator if there is one.

    Raises:
        InputError: it is no masked language model of transformers with trained weights and a fast
            tokenizer.
    """
    model = _load(AutoModelForMaskedLM, name, "masked-LM head", "pass another `model`")
    return model, load_word_tokenizer(name)


def load_next_sentence_model(name: str) -> PreTrainedModel:
    """Load a folder or Hub id in float32, in evaluation mode, on the accelerator if there is one.

    Raises:
        InputError: it has no trained next-sentence head.
    """
    advice = "pass another `model`, or leave nsp out of `suite`"
    return _load(AutoModelForNextSentencePrediction, name, "next-sentence head", advice)


def _load(auto_class: Any, name: str, head: str, advice: str) -> PreTrainedModel:
    try:
        model, loading = auto_class.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        refuse_misnamed_model(name)
        where = "holds no" if Path(name).is_dir() else "is neither a folder nor, on the Hub, a"
        raise InputError(
            f"{name!r} {where} model of transformers with a {head}", advice=advice
        ) from error
    if loading["missing_keys"]:
        lacking = min(loading["missing_keys"])
        raise InputError(f"{name!r} has no trained {head} (it lacks {lacking})", advice=advice)
    loaded: PreTrainedModel = model.eval().to(default_device())
    return loaded


def load_word_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model; see `load_tokenizer`.

    Raises:
        InputError: there is none, or it has no words.
    """
    tokenizer = load_tokenizer(name)
    # For a model without tokenizer files, transformers 5 makes one of its special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(
            f"{name!r} holds no tokenizer with words",
            advice="pass `model` a folder or Hub id with tokenizer.json",
        )
    return tokenizer


def longest_row(model: PreTrainedModel) -> int:
    """Return the most tokens of a row, special ones included; 512 if the model sets no limit."""
    return num_positions(model) or 512
