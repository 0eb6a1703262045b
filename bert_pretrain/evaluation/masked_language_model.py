"""Load a masked language model and its tokenizer for judging, and refuse what only looks like one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import default_device
from bert_pretrain.models.positions import num_positions
from bert_pretrain.text.tokenizers import load_tokenizer


def load_masked_language_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a folder or Hub id in float32, ready to judge: in evaluation mode, on the accelerator if there is one.

    Raises:
        InputError: it is no masked language model of transformers with trained weights and a fast
            tokenizer.
    """
    try:
        model, loading = AutoModelForMaskedLM.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        refuse_misnamed_model(name)
        is_folder = Path(name).is_dir()
        kind = (
            "holds no masked language model"
            if is_folder
            else "is neither a folder nor, on the Hub, a model"
        )
        raise InputError(
            f"{name!r} {kind} of transformers", advice="pass `model` one that this suite can read"
        ) from error
    if loading["missing_keys"]:
        raise InputError(
            f"{name!r} has no trained masked-LM head (it lacks {min(loading['missing_keys'])})",
            advice="pass `model` one that has",
        )
    return model.eval().to(default_device()), load_word_tokenizer(name)


def load_word_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model; see `load_tokenizer`.

    Raises:
        InputError: there is none, or it has no words.
    """
    tokenizer = load_tokenizer(name)
    # Where there is no tokenizer, transformers 5 makes one of its special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(
            f"{name!r} holds no tokenizer with words",
            advice="pass `model` a folder or Hub id with tokenizer.json",
        )
    return tokenizer


def longest_row(model: PreTrainedModel) -> int:
    """Return the tokens that a row may have, special ones included; 512 where the model sets no limit."""
    return num_positions(model) or 512
