"""Configurations of text encoders that have a name: a size, perhaps with an architecture before it.

`mini` is a BERT; `modernbert-mini` has as many layers of the same width and about as many
parameters, in another architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

# Devlin et al. 2019 (base, large) and Turc et al. 2019 (the compact models): layers, width. Heads
# are always 64 wide. `micro` is the one of Turc's grid that learns most in a few minutes on a
# processor; it has no name there.
BERT_SIZES = {
    "tiny": (2, 128),
    "micro": (2, 256),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


def _gated_width(width: int) -> int:
    """Return the inner width of a gated layer with as many parameters as one of 4 x `width`."""
    return round(8 * width / 3 / 8) * 8


# What each architecture has beside layers, width, heads and 4 x width inside, by width and padding
# id. The values are those of its published base model where they do not follow from the size.
_ARCHITECTURES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "bert": lambda width, pad: {},
    # Lan et al. 2020: one layer used again and again, a small embedding.
    "albert": lambda width, pad: {"embedding_size": 128},
    # He et al. 2021 (version 3): relative positions only.
    "deberta-v2": lambda width, pad: {
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "distilbert": lambda width, pad: {"hidden_dim": 4 * width},  # its name of the inner width
    "electra": lambda width, pad: {"embedding_size": width},
    # Warner et al. 2024: gated layers, rotary positions, local attention in two layers of three.
    "modernbert": lambda width, pad: {"intermediate_size": _gated_width(width)},
    # Positions are counted from the padding id on; one kind of segment.
    "roberta": lambda width, pad: {
        "max_position_embeddings": 512 + pad + 1,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
}
ARCHITECTURES = tuple(_ARCHITECTURES)
_SPECIAL_IDS = {
    "pad_token_id": "pad_token_id",
    "cls_token_id": "cls_token_id",
    "sep_token_id": "sep_token_id",
    "bos_token_id": "cls_token_id",
    "eos_token_id": "sep_token_id",
}


def is_named(name: str) -> bool:
    """Return whether a configuration has this name: a size, or an architecture and a size."""
    architecture, _, size = name.rpartition("-")
    return size in BERT_SIZES and (architecture or "bert") in _ARCHITECTURES


def named_config(
    name: str, *, vocab_size: int, pad_token_id: int, **overrides: Any
) -> PreTrainedConfig:
    """Return the configuration of a name.

    Args:
        name: see `is_named`.
        vocab_size: rows of the embedding table.
        pad_token_id: id whose embedding stays zero.
        overrides: further fields.

    Returns:
        One for rows of at least 512 tokens.
    """
    architecture, _, size = name.rpartition("-")
    num_layers, width = BERT_SIZES[size]
    fields = {
        "vocab_size": vocab_size,
        "pad_token_id": pad_token_id,
        "num_hidden_layers": num_layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    } | _ARCHITECTURES[architecture or "bert"](width, pad_token_id)
    return AutoConfig.for_model(architecture or "bert", **(fields | overrides))


def fit_special_ids(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a configuration the ids of a tokenizer's special tokens; in place."""
    for name, of_tokenizer in _SPECIAL_IDS.items():
        # BERT has no beginning and no end, and says so by None.
        if name == "pad_token_id" or getattr(config, name, None) is not None:
            setattr(config, name, getattr(tokenizer, of_tokenizer))
