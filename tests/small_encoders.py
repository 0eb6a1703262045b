"""Small configurations of every architecture that can be divided into encoder and head."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

VOCAB = 67

# What tells these architectures from the smallest BERT.
SMALL: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "camembert": {},
    "convbert": {"embedding_size": 32, "head_ratio": 2},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "distilbert": {"hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "megatron-bert": {},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mpnet": {},
    "roberta": {"type_vocab_size": 1},
    "roformer": {"embedding_size": 32},
    "xlm-roberta": {"type_vocab_size": 1},
}


def small_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return AutoConfig.for_model(model_type, **(fields | SMALL[model_type] | overrides))
