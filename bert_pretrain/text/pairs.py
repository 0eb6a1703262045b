"""Plan the sentence pairs of an epoch: the tokens of A and B of every row, and its label.

A plan is a pure function of the documents, the settings, the seed and the epoch: every process
computes the same one, and every epoch has new pairs. Of a large corpus the documents are one block
after the other (see `blocks`), and partners are of the same block. No token is read here; the
collator reads them when it makes a batch.

Why `exact` pairs are exact
---------------------------
In the original algorithm 50 to 63 % of the pairs are random on real corpora, and the lengths of A
and B tell part of the answer before a word is read. Here every window (A followed by its true B,
see `windows`) gets a partner window of another document instead:

1. Partners are matched by the length of B and by whether B ends with a sentence, before there is
   any label.
2. Both Bs are cut at the end to a common length at which both end with a sentence or both do not.
   This happens whatever the coin will say.
3. One fair coin per pair: both windows keep their B (labels 0, 0), or they swap Bs (labels 1, 1).

Whatever the coin says, a row has the same A, a B of the same length with the same kind of end, and
each B is used once: only whether A and B belong together tells the label. The price is the tokens
cut in step 2, few because partners have similar lengths, and the windows without a partner, which
are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, hash_uint64, uniform
from bert_pretrain.errors import InputError
from bert_pretrain.text.google_pairs import google_pairs
from bert_pretrain.text.order_pairs import order_pairs
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.windows import (
    Columns,
    EpochSettings,
    Outline,
    Windows,
    common_length,
    cut_pairs,
    cut_single,
    outlines,
)

PairMode: TypeAlias = Literal["exact", "google", "sop", "none"]

IS_NEXT, IS_RANDOM, NO_PAIR = 0, 1, -100


@dataclass(frozen=True)
class EpochPlan:
    """The rows of one epoch, or of a block of it, as columns of length N.

    Attributes:
        a_start: int64 (N,), global token position of segment A.
        a_length: int32 (N,), tokens of A, at least 1.
        b_start: int64 (N,), global token position of segment B.
        b_length: int32 (N,), tokens of B, 0 for a row of a single segment.
        next_sentence_label: int8 (N,), 0 = B follows A, 1 = B is random (`sop`: B stands before A
            in the text), -100 for a row of a single segment.
        num_unpaired: windows left out because they found no partner.
        row_length: tokens of every row after padding.
    """

    a_start: NDArray[np.int64]
    a_length: NDArray[np.int32]
    b_start: NDArray[np.int64]
    b_length: NDArray[np.int32]
    next_sentence_label: NDArray[np.int8]
    num_unpaired: int
    row_length: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.a_start)

    @classmethod
    def of(
        cls,
        columns: tuple[NDArray[Any], ...],
        order: NDArray[np.int64],
        *,
        num_unpaired: int,
        row_length: int,
    ) -> EpochPlan:
        """Return the plan of some columns in an order, int64 (N,)."""
        a_start, a_length, b_start, b_length, label = (column[order] for column in columns)
        lengths = a_length.astype(np.int32), b_length.astype(np.int32)
        label = label.astype(np.int8)
        return cls(a_start, lengths[0], b_start, lengths[1], label, num_unpaired, row_length)

    def take(self, rows: NDArray[np.int64]) -> EpochPlan:
        """Return the given rows, in that order, as a small plan to send to a worker process."""
        columns = (self.a_start, self.a_length, self.b_start, self.b_length)
        return EpochPlan.of(
            (*columns, self.next_sentence_label),
            rows,
            num_unpaired=self.num_unpaired,
            row_length=self.row_length,
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
    first_row: int = 0,
) -> EpochPlan:
    """Plan all rows that documents give in one epoch, in a random order.

    Args:
        store: the prepared corpus.
        documents: int64 (D,), sorted global indices of the documents of one split.
        max_seq_length: tokens of a row with its special tokens, at least 8.
        short_seq_prob: probability of a shorter target, uniform from 2 tokens, in [0, 1]; drawn per
            window (`google`: per document, as published).
        pair_mode: `exact`: matched pairs, see the module. `google`: the published algorithm.
            `sop`: neighbours in order or swapped, see `order_pairs`. `none`: single segments for
            masked-language modelling alone.
        seed: of the run.
        epoch: its number.
        first_row: number within the epoch of the plan's first row, where the documents are a block
            of those trained on (see `blocks`): blocks are not to be shuffled alike.

    Returns:
        The plan, never empty.

    Raises:
        InputError: there are no documents, or they allow no pairs.
    """
    if len(documents) == 0:
        raise InputError(
            "the split has no documents",
            advice="give more text with `data_files` or change `validation_share`",
        )
    num_special_tokens = 2 if pair_mode == "none" else 3  # [CLS] A [SEP] or [CLS] A [SEP] B [SEP]
    settings = EpochSettings(max_seq_length - num_special_tokens, short_seq_prob, seed, epoch)
    parts = outlines(store, documents)
    num_unpaired = 0
    if pair_mode == "google":
        columns: Columns = google_pairs(Outline.join(list(parts)), settings)
    elif pair_mode == "exact":
        windows = Windows.chain([cut_pairs(outline, settings) for outline in parts])
        columns = _exact_pairs(store, windows, settings, num_documents=len(documents))
        num_unpaired = len(windows.document) - len(columns[0])
    elif pair_mode == "sop":
        windows = Windows.chain([cut_pairs(part, settings, is_even=True) for part in parts])
        columns = _order_pairs(store, windows, settings, num_documents=len(documents))
        num_unpaired = len(windows.document) - len(columns[0])
    else:
        windows = Windows.chain([cut_single(outline, settings) for outline in parts])
        no_pair = np.full(len(windows.document), NO_PAIR)
        columns = (windows.a_start, windows.a_length, windows.b_start, windows.b_length, no_pair)
    row = first_row + np.arange(len(columns[0]))
    order = np.argsort(hash_uint64(seed, epoch, Purpose.TRAINING_ORDER, row), kind="stable")
    return EpochPlan.of(columns, order, num_unpaired=num_unpaired, row_length=max_seq_length)


def plan_neighbours(
    store: TokenStore, documents: NDArray[np.int64], *, max_seq_length: int, seed: int
) -> tuple[EpochPlan, int]:
    """Plan hard pairs, for evaluation: the random B is a neighbouring passage of the same document.

    The topic alone tells passages of different documents apart. Here the partners of `exact` pairs
    are neighbouring windows. For the arguments see `plan_epoch`.

    Returns:
        The plan, in the order of the text, perhaps empty; and the number of documents without a
        pair, because they are too short for two windows.
    """
    settings = EpochSettings(max_seq_length - 3, short_seq_prob=0.0, seed=seed, epoch=0)
    windows = Windows.chain([cut_pairs(part, settings) for part in outlines(store, documents)])
    # A window begins with the sentence that the end of the one before cuts: that piece is dropped.
    room = windows.a_start[1:] - windows.b_start[:-1]
    first = _every_second((windows.document[1:] == windows.document[:-1]) & (room > 0))
    windows.b_length[first] = np.minimum(windows.b_length[first], room[first])
    columns = _keep_or_swap(store, windows, first, first + 1, settings)
    order = np.argsort(columns[0], kind="stable")
    num_unpaired = len(windows.document) - len(order)
    plan = EpochPlan.of(columns, order, num_unpaired=num_unpaired, row_length=max_seq_length)
    used = np.unique(windows.document[np.searchsorted(windows.a_start, plan.a_start)])
    return plan, len(documents) - len(used)


def _every_second(is_followed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return rows that a neighbour follows, int64 (P,), such that no two pairs share a row."""
    chosen: list[int] = []
    for row in np.flatnonzero(is_followed).tolist():
        if not chosen or row > chosen[-1] + 1:
            chosen.append(row)
    return np.array(chosen, dtype=np.int64)


def _exact_pairs(
    store: TokenStore, windows: Windows, settings: EpochSettings, *, num_documents: int
) -> Columns:
    """Return the columns of a plan in which partners come from different documents."""
    num_usable = len(np.unique(windows.document))
    if num_usable < 2:
        raise InputError(
            f"sentence pairs need at least 2 documents of 2 or more sentences, but {num_usable} of "
            f"{num_documents} given documents are such",
            advice="put a blank line between the documents of a text file (`document_boundary`), "
            "or train without pairs: `objective` mlm",
        )
    first, second = _match_partners(windows, settings)
    columns = _keep_or_swap(store, windows, first, second, settings)
    if len(columns[0]) == 0:
        raise InputError(
            f"no sentence pair could be formed: none of the {len(windows.document)} text windows "
            "has a partner in another document whose second segment is alike",
            advice="more documents of several sentences are needed; add `data_files`, or train "
            "without pairs: `objective` mlm",
        )
    return columns


def _order_pairs(
    store: TokenStore, windows: Windows, settings: EpochSettings, *, num_documents: int
) -> Columns:
    """Return the columns of a plan whose labels say whether the segments are in order."""
    if len(windows.document) == 0:
        raise InputError(
            f"sentence order needs documents of 2 or more sentences, but none of {num_documents} "
            "given documents is such",
            advice="let documents be longer (`document_boundary` says what ends one in a text "
            "file), or train without pairs: `objective` mlm",
        )
    columns = order_pairs(store, windows, settings)
    if len(columns[0]) == 0:
        raise InputError(
            f"no pair could be formed: none of the {len(windows.document)} text windows has a "
            "partner whose segments are alike",
            advice="add text with `data_files`, or train without pairs: `objective` mlm",
        )
    return columns


def _keep_or_swap(
    store: TokenStore,
    windows: Windows,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    settings: EpochSettings,
) -> Columns:
    """Let partners, int64 rows (P,) of windows, keep or swap their Bs, cut to a common length.

    Pairs whose Bs have no common length are left out.
    """
    b_start = windows.b_start
    # The end of B would otherwise tell which row kept its B.
    length = np.minimum(windows.b_length[first], windows.b_length[second])
    length = common_length(store, b_start[first], b_start[second], length)
    kept = length > 0
    first, second, length = first[kept], second[kept], length[kept]
    keys = (settings.seed, settings.epoch, Purpose.SWAP)
    coin = uniform(*keys, windows.document[first], windows.index[first])
    label = np.where(coin < 0.5, IS_RANDOM, IS_NEXT)
    a_rows = np.concatenate([first, second])
    b_rows = np.where(np.tile(label, 2) == IS_RANDOM, np.concatenate([second, first]), a_rows)
    return (
        windows.a_start[a_rows],
        windows.a_length[a_rows],
        b_start[b_rows],
        np.tile(length, 2),
        np.tile(label, 2),
    )


def _match_partners(
    windows: Windows, settings: EpochSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match windows of different documents whose Bs are alike in length and in how they end.

    Windows are sorted by the kind of end and the length of B and cut into small blocks. A block is
    sorted by document, in a random order of documents, and window i is matched with the window half
    a block further. Windows whose match would be of their own document try again among themselves
    in larger blocks, at last in a single one. After that, windows are left over only if one
    document holds more than half of them. Returns int64 rows of the first and of the second partner
    of each pair.
    """
    keys = (settings.seed, settings.epoch)
    tie = hash_uint64(*keys, Purpose.MATCH_TIE, windows.document, windows.index)
    rank = hash_uint64(*keys, Purpose.DOCUMENT_RANK, windows.document)
    rest = np.lexsort((tie, windows.b_length, windows.ends_sentence))
    block_size = int(np.clip(len(rest) // 64, 8, 256))
    matches = [np.zeros((2, 0), dtype=np.int64)]
    while len(rest) > 1:
        block = np.arange(len(rest)) // block_size
        ordered = rest[np.lexsort((tie[rest], rank[rest], block))]
        place = np.arange(len(rest)) - block * block_size
        half = np.minimum(block_size, len(rest) - block * block_size) // 2
        lower = np.flatnonzero(place < half)
        first, second = ordered[lower], ordered[lower + half[lower]]
        different = windows.document[first] != windows.document[second]
        matches.append(np.stack([first[different], second[different]]))
        is_matched = np.zeros(len(windows.document), dtype=np.bool_)
        is_matched[matches[-1]] = True
        was_one_block = block_size >= len(rest)
        rest = rest[~is_matched[rest]]
        if was_one_block:
            break
        block_size *= 4
    first, second = np.concatenate(matches, axis=1)
    return first, second
