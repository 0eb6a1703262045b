"""The sentence pairs of the original BERT (pair mode `google`), kept for parity with it.

The algorithm keeps all its properties, also those that `exact` avoids: the short target is drawn
once per document, more than half of the pairs are random where chunks are one sentence, and
"another document" may be the same one.

Source: Devlin et al. 2019, appendix A.2, and google-research/bert, create_pretraining_data.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.text.windows import Columns, EpochSettings, Outline

_NUM_DOCUMENT_DRAWS = 10


def google_pairs(corpus: Sequence[Outline], settings: EpochSettings) -> Columns:
    """Make the pairs of every document, in order, each from a random stream of its own."""
    numbers = [number for outline in corpus for number in outline.document.tolist()]
    bounds = [
        outline.starts[first : end + 1]
        for outline in corpus
        for first, end in zip(outline.first.tolist(), outline.end.tolist(), strict=True)
    ]
    rows: list[tuple[int, int, int, int, int]] = []
    for place, number in enumerate(numbers):
        stream_seed = int(hash_uint64(settings.seed, settings.epoch, Purpose.GOOGLE_PAIRS, number))
        rows += _document_pairs(bounds, place, settings, Random(stream_seed))
    return tuple(np.array(rows, dtype=np.int64).T)


def _document_pairs(
    bounds: Sequence[NDArray[np.int64]], place: int, settings: EpochSettings, stream: Random
) -> list[tuple[int, int, int, int, int]]:
    """Return the pairs of one document: a_start, a_length, b_start, b_length, is_random.

    Args:
        bounds: of each document, the positions at which its sentences start, and its end.
        place: of the document in `bounds`.
        settings: of the epoch.
        stream: of this document, advanced.
    """
    own: list[int] = bounds[place].tolist()
    num_sentences = len(own) - 1
    target = settings.budget
    if stream.random() < settings.short_seq_prob:
        target = stream.randint(2, settings.budget)
    rows = []
    sentence = 0
    while sentence < num_sentences:
        stop = _reach(own, sentence, target)
        chunk_length = stop - sentence
        split = sentence + (stream.randint(1, chunk_length - 1) if chunk_length > 1 else 1)
        a = [own[sentence], own[split]]  # start and end
        is_random = chunk_length == 1 or stream.random() < 0.5
        if is_random:
            for _ in range(_NUM_DOCUMENT_DRAWS):  # the last draw stands, also if it is `place`
                other_place = stream.randint(0, len(bounds) - 1)
                if other_place != place:
                    break
            other = bounds[other_place]
            b_first = stream.randint(0, len(other) - 2)
            b_stop = _reach(other, b_first, target - (a[1] - a[0]))
            b = [int(other[b_first]), int(other[b_stop])]
            sentence = split  # the sentences that the random B displaced are put back
        else:
            b = [a[1], own[stop]]
            sentence = stop
        _truncate(a, b, settings.budget, stream)
        rows.append((a[0], a[1] - a[0], b[0], b[1] - b[0], int(is_random)))
    return rows


def _reach(bounds: Sequence[int] | NDArray[np.int64], sentence: int, num_tokens: int) -> int:
    """Return where the shortest run of sentences from `sentence` with `num_tokens` ends."""
    last = len(bounds) - 1
    return min(bisect_left(bounds, bounds[sentence] + num_tokens, lo=sentence + 1), last)


def _truncate(a: list[int], b: list[int], budget: int, stream: Random) -> None:
    """Drop tokens one by one from the longer segment (B if equal); a coin says at which end."""
    while a[1] - a[0] + b[1] - b[0] > budget:
        at_front = stream.random() < 0.5
        longer = a if a[1] - a[0] > b[1] - b[0] else b
        longer[0] += at_front
        longer[1] -= not at_front
