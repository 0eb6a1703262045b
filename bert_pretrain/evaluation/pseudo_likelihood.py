"""Pseudo-log-likelihood of sentences under a masked language model, computed fast.

Sentences enter. Two sums over the tokens of each sentence leave: of the log-probability of a token
that alone is masked (Salazar et al. 2020, "Masked Language Model Scoring", equation 3), and of one
that is masked with the later tokens of its word, so that the rest of a word cannot give it away
(Kauf & Ivanova 2023, "A Better Way to Do Masked Language Model Scoring", PLL-word-l2r).

A sentence of n tokens needs n forward passes. Five savings make them cheap; all are exact:
- Rows of equal length go together, so that nothing is padded.
- Each different masked row is computed once. The two sentences of a minimal pair share the row in
  which the word that they differ in is masked.
- The vocabulary is scored at the masked position alone.
- BERT's last layer computes queries and feed-forward at that position alone.
- It computes no keys and values either, since one query per row reads them: q (W h) = (q W) h.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from transformers import (
    BertForMaskedLM,
    BertModel,
    BertPreTrainedModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.modeling_bert import BertLayer

from bert_pretrain.models.positions import num_positions
from bert_pretrain.text.literal_text import literal_backend, protected_token_ids
from bert_pretrain.text.words import WordFinder

# int64 (N, L), one position per row (N,) -> vocabulary scores there, (N, V)
ReadScores: TypeAlias = Callable[[Tensor, Tensor], Tensor]

VARIANTS = ("token", "within_word")
TOKENS_PER_BATCH = 2048  # so that the activations of a layer stay near a processor's cache
_TOKENS_PER_CHUNK = 1 << 22  # of masked rows held at a time
_SCORES_PER_CHUNK = 1 << 19  # 2 MiB in float32: what a processor's cache holds


class EncodedSentence(NamedTuple):
    """The ids and word numbers of a sentence, int64 (L,); -1 = special token, never scored."""

    input_ids: NDArray[np.int64]
    words: NDArray[np.int64]


class _Targets(NamedTuple):
    """M tokens to score: rows with masks, int64 (M, L); all else int64 (M,), variants 0 or 1."""

    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    sentences: NDArray[np.int64]
    variants: NDArray[np.int64]


def longest_row(model: PreTrainedModel) -> int:
    """Return the most tokens of a row, special ones included; 512 if the model sets no limit."""
    return num_positions(model) or 512


def encode_sentences(
    tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> list[EncodedSentence]:
    """Tokenise sentences, each with its special tokens; words are those of the text.

    Tokens that the user added as special are no part of a word.
    """
    protected = protected_token_ids(tokenizer)
    encodings = literal_backend(tokenizer).encode_batch(list(sentences))
    is_special = [
        np.array(e.special_tokens_mask, dtype=np.bool_) | np.isin(e.ids, protected)
        for e in encodings
    ]
    offsets = [
        list(itertools.compress(encoding.offsets, ~mask))
        for encoding, mask in zip(encodings, is_special, strict=True)
    ]
    begins = WordFinder().word_starts(sentences, offsets)
    encoded = []
    for encoding, mask, starts in zip(encodings, is_special, begins, strict=True):
        words = np.full(len(encoding), -1, dtype=np.int64)
        words[~mask] = np.cumsum(starts)
        encoded.append(EncodedSentence(np.array(encoding.ids, dtype=np.int64), words))
    return encoded


@torch.inference_mode()
def pseudo_log_likelihoods(
    model: PreTrainedModel,
    sentences: Sequence[EncodedSentence],
    *,
    mask_token_id: int,
    bf16: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> NDArray[np.float64]:
    """Return both sums of each sentence in nats, float64 (2, N), a row for each of `VARIANTS`.

    Args:
        model: a masked language model of transformers in evaluation mode. All five savings are for
            a BERT; the last two are not for other models.
        sentences: none longer than the model takes.
        mask_token_id: id of [MASK].
        bf16: whether to compute in bfloat16; log-probabilities are always of float32.
        tokens_per_batch: of one forward pass.
    """
    read_scores = score_reader(copy.deepcopy(model).to(torch.bfloat16) if bf16 else model)
    identities = [(len(s.words), s.input_ids.tobytes(), s.words.tobytes()) for s in sentences]
    distinct = dict(zip(identities, sentences, strict=True))
    keys = sorted(distinct)  # by length first
    totals = np.zeros((2, len(keys)))
    for targets in _targets([distinct[key] for key in keys], mask_token_id):
        log_probabilities = _score_targets(read_scores, targets, model.device, tokens_per_batch)
        np.add.at(totals, (targets.variants, targets.sentences), log_probabilities)
    number = {key: row for row, key in enumerate(keys)}
    return totals[:, [number[identity] for identity in identities]]


def _targets(sentences: list[EncodedSentence], mask_token_id: int) -> Iterator[_Targets]:
    """Yield what to score, a run of sentences of one length at a time."""
    first = 0
    while first < len(sentences):
        length = len(sentences[first].input_ids)
        most = max(1, _TOKENS_PER_CHUNK // (length * length))
        run = [s for s in sentences[first : first + most] if len(s.input_ids) == length]
        input_ids, words = np.stack([s.input_ids for s in run]), np.stack([s.words for s in run])
        sentence, position = np.nonzero(words >= 0)
        place = np.arange(length)
        is_target = place == position[:, None]  # (M, L)
        same_word = words[sentence] == words[sentence, position][:, None]
        is_masked = np.concatenate([is_target, same_word & (place >= position[:, None])])
        both = np.tile(sentence, 2)
        yield _Targets(
            rows=np.where(is_masked, mask_token_id, input_ids[both]),
            positions=np.tile(position, 2),
            token_ids=np.tile(input_ids[sentence, position], 2),
            sentences=first + both,
            variants=np.repeat([0, 1], len(sentence)),
        )
        first += len(run)


def _score_targets(
    read_scores: ReadScores, targets: _Targets, device: torch.device, tokens_per_batch: int
) -> NDArray[np.float64]:
    """Return the log-probability of every target; each different row is computed once."""
    keyed = np.concatenate([targets.rows, targets.positions[:, None]], axis=1)
    distinct, row_of = np.unique(keyed, axis=0, return_inverse=True)
    row_of = row_of.reshape(-1)  # numpy 2.0 returns (M, 1)
    order = np.argsort(row_of, kind="stable")
    found = np.zeros(len(order))
    size = max(1, tokens_per_batch // targets.rows.shape[1])
    for start in range(0, len(distinct), size):
        batch = torch.from_numpy(distinct[start : start + size]).to(device)
        low, high = np.searchsorted(row_of[order], [start, start + size])
        wanted = order[low:high]
        scores = read_scores(batch[:, :-1], batch[:, -1])
        rows, token_ids = row_of[wanted] - start, targets.token_ids[wanted]
        found[wanted] = _log_probabilities(scores, rows, token_ids)
    return found


def _log_probabilities(
    scores: Tensor, rows: NDArray[np.int64], token_ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the log-probability of `token_ids` under the scores (N, V) of `rows` (ascending)."""
    num_rows, vocabulary = scores.shape
    chunk = max(1, _SCORES_PER_CHUNK // vocabulary) if scores.device.type == "cpu" else num_rows
    found = []
    for start in range(0, num_rows, chunk):
        low, high = np.searchsorted(rows, [start, start + chunk])
        log_probabilities = scores[start : start + chunk].float().log_softmax(-1)
        found.append(log_probabilities[rows[low:high] - start, token_ids[low:high]])
    return torch.cat(found).double().cpu().numpy()


def score_reader(model: PreTrainedModel) -> ReadScores:
    """Return the cheapest function from rows to vocabulary scores at one position of each."""
    if isinstance(model, BertPreTrainedModel) and isinstance(model.base_model, BertModel):
        return _bert_reader(model)
    return _head_reader(model)


def _bert_reader(model: BertForMaskedLM) -> ReadScores:
    bert = model.bert

    def read(input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = bert.embeddings(input_ids=input_ids)
        for layer in bert.encoder.layer[:-1]:
            hidden = layer(hidden, None)
        hidden = _last_layer(bert.encoder.layer[-1], hidden, positions)
        scores: Tensor = model.cls.predictions(hidden)
        return scores

    return read


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """Return the state of each row at its position, (N, L, D) -> (N, D)."""
    return states[torch.arange(len(states), device=states.device), positions]


def _last_layer(layer: BertLayer, hidden: Tensor, positions: Tensor) -> Tensor:
    """Run an encoder layer for one query per row without computing keys and values.

    Args:
        layer: transformers' `BertLayer`, whose modules are used as they are.
        hidden: float (N, L, D), the layer's input, nothing of it padding.
        positions: int64 (N,), each in [0, L).

    Returns:
        The layer's output there, (N, D).
    """
    attention = layer.attention.self
    num_heads, width = attention.num_attention_heads, hidden.shape[-1]

    def by_head(states: Tensor) -> Tensor:  # (N, D) -> (heads, N, D / heads)
        return states.view(len(states), num_heads, -1).transpose(0, 1)

    queried = _at(hidden, positions)  # (N, D)
    key_weight = attention.key.weight.view(num_heads, -1, width)  # (heads, D / heads, D)
    value_weight = attention.value.weight.view(num_heads, -1, width)
    # The key's bias adds the same to all scores of a query, which the softmax cancels.
    queries = (by_head(attention.query(queried)) @ key_weight).transpose(0, 1)  # (N, heads, D)
    scores = queries @ hidden.transpose(1, 2) * attention.scaling  # (N, heads, L)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(hidden.dtype)
    mixed = (weights @ hidden).transpose(0, 1)  # (heads, N, D)
    context = (mixed @ value_weight.transpose(1, 2)).transpose(0, 1).flatten(1)  # (N, D)
    # The weights add up to one, so the value's bias is added once.
    output: Tensor = layer.feed_forward_chunk(
        layer.attention.output(context + attention.value.bias, queried)
    )
    return output


def _head_reader(model: PreTrainedModel) -> ReadScores:
    """Return a reader for any architecture: the head gets the states of the wanted position alone.

    A head that does not work position by position, which is found by trying, gets all positions.
    """

    def read_all(input_ids: Tensor, positions: Tensor) -> Tensor:
        return _at(model(input_ids=input_ids).logits, positions)

    def read_cut(input_ids: Tensor, positions: Tensor) -> Tensor:
        def cut(
            _module: Module, _arguments: object, output: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            output["last_hidden_state"] = _at(output["last_hidden_state"], positions)[:, None]
            return output

        handle = model.base_model.register_forward_hook(cut)
        try:
            scores: Tensor = model(input_ids=input_ids).logits
        finally:
            handle.remove()
        return scores[:, 0]

    trial = torch.arange(3, 11, device=model.device)[None] % model.config.vocab_size
    place = torch.tensor([4], device=model.device)
    try:
        if torch.allclose(read_cut(trial, place), read_all(trial, place), rtol=1e-3, atol=1e-3):
            return read_cut
    except (KeyError, TypeError, RuntimeError, ValueError):  # a head that needs all positions
        pass
    return read_all
