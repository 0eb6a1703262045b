"""A corpus in memory, from token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import DTypeLike

from bert_pretrain.text.prepared import Shard, TokenStore

Documents = Sequence[Sequence[Sequence[int]]]  # of sentences of numbers


def store_of(
    documents: Documents,
    *,
    dtype: DTypeLike = np.uint16,
    word_starts: Documents | None = None,
    documents_per_shard: int | None = None,
) -> TokenStore:
    """Return a store of documents.

    Args:
        documents: token ids.
        dtype: of the token ids.
        word_starts: 1 where a token begins a word, nested like `documents`; by default every token
            is a word.
        documents_per_shard: where to cut shards; by default there is one.
    """
    size = documents_per_shard or max(1, len(documents))
    shards: list[Shard] = []
    first_token = 0
    for first in range(0, len(documents), size):
        part = documents[first : first + size]
        lengths = [len(sentence) for document in part for sentence in document]
        tokens = np.fromiter(_flatten(part), dtype=dtype, count=sum(lengths))
        starts = np.ones(len(tokens), dtype=np.uint8)
        if word_starts is not None:
            starts[:] = list(_flatten(word_starts[first : first + size]))
        num_sentences = np.array([len(document) for document in part], dtype=np.int64)
        sentence_lengths = np.array(lengths, dtype=np.uint32)
        shards.append(Shard(first_token, first, tokens, starts, sentence_lengths, num_sentences))
        first_token += len(tokens)
    return TokenStore(shards)


def _flatten(documents: Documents) -> Iterator[int]:
    return chain.from_iterable(chain.from_iterable(documents))
