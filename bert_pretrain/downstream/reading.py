"""What the head of a BERT classifier reads: the mean over a row's tokens beside [CLS].

[CLS] is what next-sentence prediction made of it, or nothing; with few labels the mean of the last
layer tells a classifier more, where every word counts, and less, where one place does. Stock
transformers has no BERT classifier that reads both, but a layer of its own can bring them together:
where queries and keys are zero, attention weighs all tokens alike. With such a layer on top the
stock pooler reads LayerNorm([CLS] + mean), and the classifier stays one that transformers loads
without this package.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertConfig, PreTrainedConfig

from bert_pretrain.downstream.tables import Texts


def settle_reading(reading: str, texts: Texts | None) -> str:
    """Return `cls_and_mean` or `own` for `auto` too: pairs are what [CLS] has learnt to compare.

    Args:
        reading: as the recipe has it.
        texts: of the training rows; None for images.
    """
    is_single = texts is not None and texts.second is None
    return reading if reading != "auto" else ("cls_and_mean" if is_single else "own")


def can_average(config: PreTrainedConfig) -> bool:
    """Return whether the classifier of an encoder can be given a layer that averages."""
    return type(config) is BertConfig and not config.is_decoder


def averages(weights: dict[str, Tensor], config: PreTrainedConfig) -> bool:
    """Return whether the last layer of a BERT classifier is one that averages."""
    name = f"bert.encoder.layer.{config.num_hidden_layers - 1}.attention.self.{{}}.weight"
    found = [weights.get(name.format(part)) for part in ("query", "key")]
    return all(weight is not None and not weight.any() for weight in found)


def averaging_layer(config: PreTrainedConfig) -> dict[str, Tensor]:
    """Return the weights of a layer above the last one that averages, and of the pooler.

    The head then reads tanh(LayerNorm([CLS] + mean)), (B, D), of the last layer's outputs; the mean
    is over all tokens that are not padding. Queries and keys have no gradient while both are zero,
    so that training keeps the mean; it may change all else.
    """
    width, inner = config.hidden_size, config.intermediate_size
    layer = f"bert.encoder.layer.{config.num_hidden_layers}"
    square = torch.zeros(width, width)
    weights = {
        f"{layer}.attention.self.query": square,
        f"{layer}.attention.self.key": square,
        f"{layer}.attention.self.value": torch.eye(width),
        f"{layer}.attention.output.dense": torch.eye(width),
        f"{layer}.attention.output.LayerNorm": torch.ones(width),
        f"{layer}.intermediate.dense": torch.zeros(inner, width),
        f"{layer}.output.dense": torch.zeros(width, inner),
        f"{layer}.output.LayerNorm": torch.ones(width),
        "bert.pooler.dense": torch.eye(width),
    }
    found = {}
    for name, weight in weights.items():
        found[f"{name}.weight"] = weight.clone()
        found[f"{name}.bias"] = torch.zeros(len(weight))
    return found
