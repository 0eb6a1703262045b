"""Hard sentence pairs, for evaluation: the random B is a neighbouring passage of the same document.

Two passages of different documents can be told apart by their topic alone. Here both partners of
`sentence_pairs` come from one document, next to each other, so that a pair is right or wrong by
what follows what.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.sentence_pairs import EpochPlan, keep_or_swap
from bert_pretrain.text.windows import Draws, Windows, cut_pairs, outlines


def plan_neighbours(
    store: TokenStore, documents: NDArray[np.int64], *, max_seq_length: int, seed: int
) -> tuple[EpochPlan, int]:
    """Plan pairs of neighbouring windows that keep or swap their Bs; all else is as in `exact` pairs.

    Args:
        store: the prepared corpus.
        documents: int64 (D,), sorted global indices.
        max_seq_length: tokens of an instance including its three special ones, at least 8.
        seed: of windows and coins.

    Returns:
        The plan, in the order of the text, perhaps empty; and how many documents have no pair in
        it, because they are too short for two windows.
    """
    draws = Draws(budget=max_seq_length - 3, short_seq_prob=0.0, seed=seed, epoch=0)
    windows = Windows.chain([cut_pairs(outline, draws) for outline in outlines(store, documents)])
    # A window begins with the sentence that the end of the one before cuts; without that piece they
    # do not overlap.
    room = windows.a_start[1:] - windows.b_start[:-1]
    first = _every_second((windows.document[1:] == windows.document[:-1]) & (room > 0))
    windows.b_length[first] = np.minimum(windows.b_length[first], room[first])
    columns = keep_or_swap(store, windows, first, first + 1, draws)
    order = np.argsort(columns[0], kind="stable")
    a_start, a_length, b_start, b_length, label = (column[order] for column in columns)
    used = np.unique(windows.document[np.searchsorted(windows.a_start, a_start)])
    plan = EpochPlan(
        a_start=a_start,
        a_length=a_length.astype(np.int32),
        b_start=b_start,
        b_length=b_length.astype(np.int32),
        next_sentence_label=label.astype(np.int8),
        num_unpaired=len(windows.document) - len(a_start),
    )
    return plan, len(documents) - len(used)


def _every_second(is_followed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return rows that are followed by a neighbour, int64 (P,), so that no row is used twice, as first or second."""
    chosen: list[int] = []
    for row in np.flatnonzero(is_followed).tolist():
        if not chosen or row > chosen[-1] + 1:
            chosen.append(row)
    return np.array(chosen, dtype=np.int64)
