"""Pairs of which half have a B of another place, and nothing but words tells which (mode `exact`).

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
cut in step 2, few because partners have similar lengths, and the windows without a partner; single
segments read them where they are worth a row (see `unread`).

Where one document holds more than half of all windows, some find no partner. If that is asked for,
those get one of the same document, whose window begins at least `MIN_DISTANCE` rows of text away.
Its topic is more alike, so that such pairs are harder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, hash_uint64, uniform
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.windows import (
    IS_NEXT,
    IS_RANDOM,
    Columns,
    EpochSettings,
    Windows,
    common_length,
)

MIN_DISTANCE = 8  # rows, each of the budget of tokens, between partners of the same document

Rows: TypeAlias = NDArray[np.int64]  # of windows


def exact_pairs(
    store: TokenStore, windows: Windows, settings: EpochSettings, *, same_document: bool
) -> tuple[Columns, int]:
    """Return the columns of a plan, and how many of its rows are of partners of one document.

    Args:
        store: the prepared corpus.
        windows: as `cut_pairs` cuts them.
        settings: of the epoch.
        same_document: whether windows that find no partner in another document may have one of
            their own.
    """
    keys = (settings.seed, settings.epoch)
    tie = hash_uint64(*keys, Purpose.MATCH_TIE, windows.document, windows.index)
    by_length = np.lexsort((tie, windows.b_length, windows.ends_sentence))

    def is_of_another(first: Rows, second: Rows) -> NDArray[np.bool_]:
        return np.asarray(windows.document[first] != windows.document[second])

    def is_far_away(first: Rows, second: Rows) -> NDArray[np.bool_]:
        distance = np.abs(windows.a_start[first] - windows.a_start[second])
        is_far = distance >= MIN_DISTANCE * settings.budget
        return np.asarray(is_far & ~is_of_another(first, second))

    rank = hash_uint64(*keys, Purpose.DOCUMENT_RANK, windows.document)
    first, second, rest = _match_partners(by_length, (tie, rank), is_of_another)
    columns = keep_or_swap(store, windows, first, second, settings)
    if not same_document:
        return columns, 0
    first, second, _ = _match_partners(rest, (tie, windows.a_start), is_far_away)
    within = keep_or_swap(store, windows, first, second, settings)
    return tuple(map(np.concatenate, zip(columns, within, strict=True))), len(within[0])


def keep_or_swap(
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
    rest: Rows,
    keys: tuple[NDArray[np.uint64], NDArray[np.generic]],
    is_allowed: Callable[[Rows, Rows], NDArray[np.bool_]],
) -> tuple[Rows, Rows, Rows]:
    """Match windows whose Bs are alike in length and in how they end.

    Windows are cut into small blocks of such. A block is sorted by document, in a random order of
    documents, or by place, and window i is matched with the window half a block further. Windows
    whose match is not allowed try again among themselves in larger blocks, at last in a single one.
    After that, windows of different documents are left over only if one document holds more than
    half of them.

    Args:
        rest: the windows to match, sorted by what is to be alike.
        keys: of all windows (N,): what a block is sorted by, the last one first.
        is_allowed: says of rows (P,) and rows (P,) which may be partners.

    Returns:
        The first partner of each pair, the second one, and the windows left over in their order.
    """
    block_size = int(np.clip(len(rest) // 64, 8, 256))
    matches = [np.zeros((2, 0), dtype=np.int64)]
    while len(rest) > 1:
        block = np.arange(len(rest)) // block_size
        ordered = rest[np.lexsort((*(key[rest] for key in keys), block))]
        place = np.arange(len(rest)) - block * block_size
        half = np.minimum(block_size, len(rest) - block * block_size) // 2
        lower = np.flatnonzero(place < half)
        first, second = ordered[lower], ordered[lower + half[lower]]
        allowed = is_allowed(first, second)
        matches.append(np.stack([first[allowed], second[allowed]]))
        was_one_block = block_size >= len(rest)
        is_matched = np.zeros(len(keys[0]), dtype=np.bool_)
        is_matched[matches[-1]] = True
        rest = rest[~is_matched[rest]]
        if was_one_block:
            break
        block_size *= 4
    partners = np.concatenate(matches, axis=1)
    return partners[0], partners[1], rest
