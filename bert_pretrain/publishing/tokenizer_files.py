"""Tokenizers in folders that transformers 4.57 and 5 load alike."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bert_pretrain.data.atomic import write_json

_CONFIG = "tokenizer_config.json"


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a tokenizer so that transformers 4.57 and 5 give the same ids with it.

    What transformers 5 writes by itself, 4.57 cannot load where the tokenizer has no class of a
    model's own, or has special tokens beside the named ones. Both read what is written here.
    """
    tokenizer.save_pretrained(directory)
    written = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    config = dict(written)
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name before, known to both
        # Unsaid, 4.57 takes it that there are token types, and 5 that there are none.
        config["model_input_names"] = list(tokenizer.model_input_names)
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config != written:
        write_json(directory / _CONFIG, config)
