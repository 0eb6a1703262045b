"""Plan the sentence pairs of an epoch: the tokens of A and B of every instance, and its label.

A `TokenStore` enters; an `EpochPlan` leaves, arrays of token positions in training order, without a
single token read. The collators read the tokens when a batch is drawn. A plan is a pure function of
the corpus, the settings, the seed and the epoch, so every process computes the same one, and every
epoch has new pairs.

Why `exact` pairs are exact
---------------------------
The original algorithm draws a random B as soon as a chunk consists of one sentence, stops at the
end of whichever document B comes from, and gives up finding another document after ten draws. On
real corpora the share of random pairs is then 50 to 63 %, and the lengths of A and B tell part of
the answer before a word is read. Here every window (A followed by its true B, see `windows`) meets
a partner window of another document instead:

1. Partners i and j are matched by the length of B and by whether B ends with a sentence, before
   there is any label.
2. Both Bs are cut at the end to a common length: the shorter of the two, or as much less as it
   takes for both to end with a sentence or both not to. This happens whatever the coin will say.
3. One fair coin per pair: both windows keep their B (labels 0, 0), or they swap Bs (labels 1, 1).

Whatever the coin says, row i has the same A, a B of the same length and the same kind of end, and
each B is used once. So the label is independent of A alone, of B alone, and of the lengths and
sentence ends of both together; it can be told only from whether A and B belong together. Half of
the pairs are random, in expectation over the fair coins. The price is the tokens cut in step 2, few
because partners have similar lengths, and the windows that find no partner, which are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, hash_uint64, permutation, uniform
from bert_pretrain.errors import InputError
from bert_pretrain.text.google_pairs import google_pairs
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.windows import (
    Draws,
    Windows,
    cut_pairs,
    cut_single,
    outlines,
    sentence_ends,
)

PairMode: TypeAlias = Literal["exact", "google", "none"]

IS_NEXT, IS_RANDOM, NO_PAIR = 0, 1, -100
_MIN_SEQ_LENGTH = 8


@dataclass(frozen=True)
class EpochPlan:
    """The instances of one epoch as columns of length N, in training order.

    Attributes:
        a_start: int64 (N,), global token position of segment A.
        a_length: int32 (N,), tokens of A, at least 1.
        b_start: int64 (N,), global token position of segment B.
        b_length: int32 (N,), tokens of B, 0 for a row of a single segment.
        next_sentence_label: int8 (N,), 0 = B follows A, 1 = B is random, -100 for a row of a single
            segment.
        num_unpaired: Windows left out because no partner in another document was found.
    """

    a_start: NDArray[np.int64]
    a_length: NDArray[np.int32]
    b_start: NDArray[np.int64]
    b_length: NDArray[np.int32]
    next_sentence_label: NDArray[np.int8]
    num_unpaired: int

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.a_start)

    def take(self, rows: NDArray[np.int64]) -> EpochPlan:
        """Return the given rows, in that order, as a small plan to send to a worker process."""
        return EpochPlan(
            self.a_start[rows],
            self.a_length[rows],
            self.b_start[rows],
            self.b_length[rows],
            self.next_sentence_label[rows],
            self.num_unpaired,
        )


def plan_epoch(
    store: TokenStore,
    documents: NDArray[np.int64],
    *,
    max_seq_length: int,
    short_seq_prob: float,
    pair_mode: PairMode,
    seed: int,
    epoch: int,
) -> EpochPlan:
    """Plan all instances of one epoch.

    Args:
        store: The prepared corpus.
        documents: int64 (D,), sorted global indices of the documents to use, those of one split.
        max_seq_length: Tokens of an instance including its special tokens, at least 8.
        short_seq_prob: Probability of a shorter target, uniform from 2 tokens, in [0, 1]; drawn per
            window (`google`: per document, as published).
        pair_mode: `exact`: matched pairs, see the module. `google`: the published algorithm.
            `none`: single segments for masked-language modelling alone.
        seed: Seed of the run.
        epoch: Number of the epoch; another epoch has other windows, splits and pairs.

    Returns:
        The plan, never empty.

    Raises:
        InputError: A setting is out of range, or the documents allow no pairs.
    """
    _check_settings(max_seq_length, short_seq_prob, num_documents=len(documents))
    num_special_tokens = 2 if pair_mode == "none" else 3  # [CLS] A [SEP] or [CLS] A [SEP] B [SEP]
    draws = Draws(
        budget=max_seq_length - num_special_tokens,
        short_seq_prob=short_seq_prob,
        seed=seed,
        epoch=epoch,
    )
    parts = outlines(store, documents)
    num_unpaired = 0
    if pair_mode == "google":
        columns = google_pairs(list(parts), draws)
    elif pair_mode == "exact":
        windows = Windows.chain([cut_pairs(outline, draws) for outline in parts])
        _check_pairable(windows, num_documents=len(documents))
        columns = _exact_pairs(store, windows, draws)
        num_unpaired = len(windows.document) - len(columns[0])
    else:
        windows = Windows.chain([cut_single(outline, draws) for outline in parts])
        no_pair = np.full(len(windows.document), NO_PAIR)
        columns = (windows.a_start, windows.a_length, windows.b_start, windows.b_length, no_pair)
    order = permutation(len(columns[0]), seed, epoch, Purpose.TRAINING_ORDER)
    a_start, a_length, b_start, b_length, label = (column[order] for column in columns)
    return EpochPlan(
        a_start=a_start,
        a_length=a_length.astype(np.int32),
        b_start=b_start,
        b_length=b_length.astype(np.int32),
        next_sentence_label=label.astype(np.int8),
        num_unpaired=num_unpaired,
    )


def _exact_pairs(
    store: TokenStore, windows: Windows, draws: Draws
) -> tuple[NDArray[np.int64], ...]:
    """Return the columns of a plan in which partners come from different documents.

    Raises:
        InputError: No window has a partner.
    """
    first, second = match_partners(windows, seed=draws.seed, epoch=draws.epoch)
    columns = keep_or_swap(store, windows, first, second, draws)
    if len(columns[0]) == 0:
        raise InputError(
            f"no sentence pair could be formed: none of the {len(windows.document)} text windows "
            "has a partner in another document whose second segment is alike",
            advice="more documents of several sentences are needed; add `data_files`, or train "
            "without pairs: `objective` mlm",
        )
    return columns


def keep_or_swap(
    store: TokenStore,
    windows: Windows,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    draws: Draws,
) -> tuple[NDArray[np.int64], ...]:
    """Let partners, int64 rows (P,) of windows, cut to a common length, keep or swap their Bs.

    Returns:
        The columns `a_start`, `a_length`, `b_start`, `b_length` and `next_sentence_label` of a
        plan: the first partners, then the second; those whose Bs have no common length are left
        out.
    """
    length = _common_length(store, windows, first, second)
    kept = length > 0
    first, second, length = first[kept], second[kept], length[kept]
    coin = uniform(
        draws.seed, draws.epoch, Purpose.SWAP, windows.document[first], windows.index[first]
    )
    label = np.where(coin < 0.5, IS_RANDOM, IS_NEXT)
    a_rows = np.concatenate([first, second])
    b_rows = np.where(np.tile(label, 2) == IS_RANDOM, np.concatenate([second, first]), a_rows)
    return (
        windows.a_start[a_rows],
        windows.a_length[a_rows],
        windows.b_start[b_rows],
        np.tile(length, 2),
        np.tile(label, 2),
    )


def match_partners(
    windows: Windows, *, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match windows of different documents whose Bs are alike in length and in how they end.

    Windows are sorted by the kind of end and the length of B and cut into small blocks. In a block,
    sorted by document in a random order of documents, window i is matched with the window half a
    block further. Matches within a document are undone and tried again among themselves in larger
    blocks, at last in one block, where this fails only for what one document holds beyond half of
    the rest.

    Returns:
        int64 rows of the first and of the second partner of each pair; no row occurs twice.
    """
    keys = (seed, epoch)
    tie = hash_uint64(*keys, Purpose.MATCH_TIE, windows.document, windows.index)
    rank = hash_uint64(*keys, Purpose.DOCUMENT_RANK, windows.document)
    rest = np.lexsort((tie, windows.b_length, windows.ends_sentence))
    block_size = int(np.clip(len(rest) // 64, 8, 256))
    firsts: list[NDArray[np.int64]] = []
    seconds: list[NDArray[np.int64]] = []
    while len(rest) > 1:
        block = np.arange(len(rest)) // block_size
        ordered = rest[np.lexsort((tie[rest], rank[rest], block))]
        place = np.arange(len(rest)) - block * block_size
        half = np.minimum(block_size, len(rest) - block * block_size) // 2
        lower = np.flatnonzero(place < half)
        first, second = ordered[lower], ordered[lower + half[lower]]
        different = windows.document[first] != windows.document[second]
        firsts.append(first[different])
        seconds.append(second[different])
        is_matched = np.zeros(len(windows.document), dtype=np.bool_)
        is_matched[first[different]] = is_matched[second[different]] = True
        was_one_block = block_size >= len(rest)
        rest = rest[~is_matched[rest]]
        if was_one_block:
            break
        block_size *= 4
    none = np.zeros(0, dtype=np.int64)
    return np.concatenate([none, *firsts]), np.concatenate([none, *seconds])


def _common_length(
    store: TokenStore, windows: Windows, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the largest length (P,) at which both Bs of a pair end alike, or 0.

    Alike means both with a sentence or both not. A B that was cut ends in mid-sentence. Were the
    partner left to end with a sentence, the end of B together with the lengths would tell which row
    kept its B.
    """
    length = np.minimum(windows.b_length[first], windows.b_length[second])
    unlike = np.arange(len(length))
    while len(unlike):
        ends_first = sentence_ends(store, windows.b_start[first[unlike]] + length[unlike])
        ends_second = sentence_ends(store, windows.b_start[second[unlike]] + length[unlike])
        unlike = unlike[ends_first != ends_second]
        length[unlike] -= 1
        unlike = unlike[length[unlike] > 0]
    return length


def _check_settings(max_seq_length: int, short_seq_prob: float, *, num_documents: int) -> None:
    if max_seq_length < _MIN_SEQ_LENGTH:
        raise InputError(
            f"max_seq_length is {max_seq_length}, too short for two segments and their special "
            "tokens",
            advice=f"it must be at least {_MIN_SEQ_LENGTH}; raise `max_seq_length`",
        )
    if not 0 <= short_seq_prob <= 1:
        raise InputError(
            f"short_seq_prob is {short_seq_prob} but must lie in [0, 1]",
            advice="for 10 % pass `short_seq_prob` 0.1",
        )
    if num_documents == 0:
        raise InputError(
            "the split has no documents: 0 given, at least 1 is needed",
            advice="give more text with `data_files` or change `validation_share`",
        )


def _check_pairable(windows: Windows, *, num_documents: int) -> None:
    num_usable = len(np.unique(windows.document))
    if num_usable < 2:
        raise InputError(
            f"sentence pairs need at least 2 documents of 2 or more sentences, but {num_usable} of "
            f"{num_documents} given documents are such",
            advice="put a blank line between the documents of a text file (`document_boundary`), "
            "or train without pairs: `objective` mlm",
        )
