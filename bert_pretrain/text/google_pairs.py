"""The sentence pairs of the original BERT (pair mode `google`), kept for parity with it.

The algorithm keeps all its properties, also those that `exact` avoids: the short target is drawn
once per document, more than half of the pairs are random where chunks are one sentence, and
"another document" may be the same one.

Source: Devlin et al. 2019, appendix A.2, and google-research/bert, create_pretraining_data.py.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.text.windows import Columns, EpochSettings, Outline

_NUM_DOCUMENT_DRAWS = 10


def google_pairs(outline: Outline, settings: EpochSettings) -> Columns:
    """Make the pairs of every document, in order, each from a random stream of its own.

    Another document is drawn among those of the outline alone: of a large corpus, a block.
    """
    seeds = hash_uint64(settings.seed, settings.epoch, Purpose.GOOGLE_PAIRS, outline.document)
    rows = array("q")  # 40 bytes a row; a list of tuples takes five times as much
    for place, seed in enumerate(seeds.tolist()):
        for row in _document_pairs(outline, place, settings, Random(seed)):
            rows.extend(row)
    return tuple(np.frombuffer(rows, dtype=np.int64).reshape(-1, 5).T)


def _document_pairs(
    outline: Outline, place: int, settings: EpochSettings, stream: Random
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the pairs of one document: a_start, a_length, b_start, b_length, is_random.

    Args:
        outline: of all documents.
        place: of the document in `outline`.
        settings: of the epoch.
        stream: of this document, advanced.
    """
    own: list[int] = outline.bounds(place).tolist()
    num_documents = len(outline.document)
    num_sentences = len(own) - 1
    target = settings.budget
    if stream.random() < settings.short_seq_prob:
        target = stream.randint(2, settings.budget)
    sentence = 0
    while sentence < num_sentences:
        stop = _reach(own, sentence, target)
        chunk_length = stop - sentence
        split = sentence + (stream.randint(1, chunk_length - 1) if chunk_length > 1 else 1)
        a = [own[sentence], own[split]]  # start and end
        is_random = chunk_length == 1 or stream.random() < 0.5
        if is_random:
            for _ in range(_NUM_DOCUMENT_DRAWS):  # the last draw stands, also if it is `place`
                other_place = stream.randint(0, num_documents - 1)
                if other_place != place:
                    break
            other = outline.bounds(other_place)
            b_first = stream.randint(0, len(other) - 2)
            b_stop = _reach(other, b_first, target - (a[1] - a[0]))
            b = [int(other[b_first]), int(other[b_stop])]
            sentence = split  # the sentences that the random B displaced are put back
        else:
            b = [a[1], own[stop]]
            sentence = stop
        _truncate(a, b, settings.budget, stream)
        yield a[0], a[1] - a[0], b[0], b[1] - b[0], int(is_random)


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
