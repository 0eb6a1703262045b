"""What a new text encoder begins with beside random weights.

Otherwise training needs hundreds of updates to learn how frequent words are, and many more until
attention can tell which positions are neighbours. Both are known before it begins.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertModel

_PEAK = 8.0  # of a score where its head looks, when training begins; elsewhere most are below 2


@torch.no_grad()
def begin_with_frequencies(model: PreTrainedModel, log_frequencies: Tensor) -> None:
    """Let a new model's output bias begin as the logarithm of the tokens' frequencies, (V,).

    A model without such a bias is left as it is.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)
    # Some classes name another layer so, whose bias is no score of tokens.
    if bias is not None and len(bias) == model.config.vocab_size:
        bias[: len(log_frequencies)] = log_frequencies.to(bias.dtype)


@torch.no_grad()
def begin_with_neighbours(encoder: BertModel) -> None:
    """Let half of a new BERT's attention heads begin by looking at one neighbour of a token each.

    The table of positions begins as sines and cosines (Vaswani et al. 2017, section 3.5), in which
    one rotation leads from any position to the one k tokens on. The keys of a head are its random
    queries turned back by it, so that a token's score is highest k tokens on. Heads look one token
    back, one on, two back and so on; the other half of a layer's are as they were, since sentences
    that follow each other are told by words far apart. That queries and keys begin alike is from
    Trockman and Kolter (2023, "Mimetic initialization of self-attention layers"); theirs look at
    the token itself. What is trained is BERT as ever, and every weight is learnt.
    """
    table = encoder.embeddings.position_embeddings.weight
    frequencies = wave_frequencies(table.shape[1]).to(table)
    angles = torch.arange(len(table)).to(table)[:, None] * frequencies
    num_waves = len(frequencies)
    # As large as what it is added to: the mean square of a sine is one half.
    amplitude = math.sqrt(2) * encoder.config.initializer_range
    table[:, 0 : 2 * num_waves : 2] = amplitude * angles.sin()
    table[:, 1 : 2 * num_waves : 2] = amplitude * angles.cos()
    for layer in encoder.encoder.layer:
        attention = layer.attention.self
        size = attention.attention_head_size
        # Of the normalised sum that a layer reads, positions are one half.
        scale = math.sqrt(2 * _PEAK / math.sqrt(size) / table.shape[1])
        heads = zip(
            attention.query.weight.split(size), attention.key.weight.split(size), strict=True
        )
        offsets = itertools.islice(neighbours(), -(-attention.num_attention_heads // 2))
        for offset, (query, key) in zip(offsets, heads, strict=False):
            query.normal_(std=scale)
            key.copy_(turned_back(query, frequencies * offset))


def neighbours() -> itertools.chain[int]:
    """Yield -1, 1, -2, 2 and so on."""
    return itertools.chain.from_iterable((-distance, distance) for distance in itertools.count(1))


def wave_frequencies(width: int) -> Tensor:
    """Return radians a token of each pair of columns, (width // 2,), ascending, below pi.

    They are denser where waves are long. With many long waves, as of Vaswani et al., hardly
    anything turns within a few tokens, and a turned head looks at its own token still, whose word
    it shares; with equally many of all, position p would be p + width.
    """
    num_waves = width // 2
    return math.pi * ((torch.arange(num_waves) + 0.5) / max(1, num_waves)) ** 1.5


def turned_back(rows: Tensor, angles: Tensor) -> Tensor:
    """Return weights that read a position as `rows` read the one that lies `angles` before it.

    Args:
        rows: (n, D), which are multiplied with positions whose columns are sine and cosine in turn.
        angles: (D // 2,) of each such pair.
    """
    sines, cosines = angles.sin(), angles.cos()
    turned = rows.clone()
    pairs = slice(0, 2 * len(angles), 2), slice(1, 2 * len(angles), 2)
    of_sine, of_cosine = (rows[:, columns] for columns in pairs)
    turned[:, pairs[0]] = of_sine * cosines + of_cosine * sines
    turned[:, pairs[1]] = of_cosine * cosines - of_sine * sines
    return turned
