"""Pairs whose order is to be told (pair mode `sop`): A and B as written, or B before A.

Both segments are of one document, B begins with the sentence after A's last one. So the topic does
not tell the label, as it does where B is of another document, and one document is enough.

Source: Lan et al. 2020 (ALBERT), section 3.1. Their segments are cut as the original BERT's, which
gives the order away: here nothing is told by where a segment begins or ends, nor by its length.

Why the shape of a row does not tell its label
----------------------------------------------
As windows are cut, A ends with a sentence and B most often does not, and A is longer on average: to
see which segment ends in the middle of a sentence would be enough. So, before there is any label,

1. A is cut at its end, never at its beginning: both segments begin with a sentence.
2. Every window u gets a partner v whose lengths are about the other way round: A of u is about as
   long as B of v, and B of u as A of v.
3. A of u and B of v are cut at the end to a common length p at which both end with a sentence or
   both do not; B of u and A of v likewise to a length q.
4. A fair coin per pair: u stays in order and v is swapped, or u is swapped and v stays. Either way
   both rows show the same lengths and the same kinds of ends, (p, q) or (q, p), one with label 0
   and one with label 1.

So every shape is exactly as frequent with either label. Where the number of windows is odd, some
window is its own partner: p = q, and its one row has a coin of its own.

The price is what is cut in step 3, 7 % of the tokens of 6,500 windows and 11 % of 1,100 (two random
samples lie that far apart), and that tokens may be missing between A and B, in either order. What
remains are the words: how texts begin and go on is what is to be learnt, but a title
or "Introduction" is an easy case of it, and a window that a document begins with shows it more.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, hash_uint64, uniform
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.windows import Columns, EpochSettings, Windows, common_length

IN_ORDER, SWAPPED = 0, 1
_LEAST_BLOCK = 8  # an even number


def order_pairs(store: TokenStore, windows: Windows, settings: EpochSettings) -> Columns:
    """Return the columns of a plan; pairs without a common length are left out.

    Args:
        store: the prepared corpus.
        windows: as `cut_pairs` cuts them with `is_even`.
        settings: of the epoch.
    """
    a_start, b_start, b_length = windows.a_start, windows.b_start, windows.b_length
    a_length = np.minimum(windows.a_length, settings.budget - b_length)
    keys = (settings.seed, settings.epoch)
    tie = hash_uint64(*keys, Purpose.MATCH_TIE, windows.document, windows.index)
    u, v = _match_partners(a_length, b_length, tie)
    p = common_length(store, a_start[u], b_start[v], np.minimum(a_length[u], b_length[v]))
    q = common_length(store, b_start[u], a_start[v], np.minimum(b_length[u], a_length[v]))
    kept = (p > 0) & (q > 0)
    u, v, p, q = u[kept], v[kept], p[kept], q[kept]

    coin = uniform(*keys, Purpose.SWAP, windows.document[u], windows.index[u])
    label = np.where(coin < 0.5, SWAPPED, IN_ORDER)
    others = u != v
    rows = np.concatenate([u, v[others]])
    labels = np.concatenate([label, 1 - label[others]])
    of_a, of_b = np.concatenate([p, q[others]]), np.concatenate([q, p[others]])
    in_order = labels == IN_ORDER
    return (
        np.where(in_order, a_start[rows], b_start[rows]),
        np.where(in_order, of_a, of_b),
        np.where(in_order, b_start[rows], a_start[rows]),
        np.where(in_order, of_b, of_a),
        labels,
    )


def _match_partners(
    a_length: NDArray[np.int64], b_length: NDArray[np.int64], tie: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match windows whose lengths are about the other way round, each with one.

    Windows are sorted by their tokens and cut into about as many blocks as a block has windows. In
    a block the one whose A is longest beside its B is matched with the one whose B is, and so on
    inwards. Returns int64 rows of both partners, which are the same window in the middle of a block
    of an odd number.
    """
    num_windows = len(tie)
    block_size = max(_LEAST_BLOCK, math.isqrt(num_windows) // 2 * 2)
    by_total = np.lexsort((tie, a_length + b_length))
    block = np.arange(num_windows) // block_size
    ordered = by_total[np.lexsort((tie[by_total], (a_length - b_length)[by_total], block))]
    place = np.arange(num_windows) - block * block_size
    last = np.minimum(block_size, num_windows - block * block_size) - 1
    lower = np.flatnonzero(2 * place <= last)
    return ordered[lower], ordered[lower + last[lower] - 2 * place[lower]]
