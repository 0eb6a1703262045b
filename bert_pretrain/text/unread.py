"""What the rows of an epoch leave unread, and rows of single segments that read it.

Pairs leave text unread: a document of one sentence has no B, a window may find no partner, and the
partners' Bs are cut to a common length. Masked words are learnt from that text as well, so each run
of unread tokens becomes rows of one segment, for whose label nobody asks. Neighbouring windows
without a partner are one run, whose rows are as long as rows can be. A run shorter than a quarter
of a row is left out, unless it is a whole document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.windows import (
    NO_PAIR,
    Columns,
    EpochSettings,
    Outline,
    Windows,
    cut_single,
    outlines,
)

_ROWS_WORTH_IT = 4  # a run is left out if so many of its length would fit in a row


@dataclass(frozen=True)
class Runs:
    """Runs of tokens as columns, int64 (N,): ascending global positions, [start, stop)."""

    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each, int64 (N,)."""
        return self.stop - self.start


def document_runs(store: TokenStore, documents: NDArray[np.int64]) -> Runs:
    """Return where each of `documents` (sorted global indices) lies."""
    parts = [
        (part.starts[part.first], part.starts[part.end]) for part in outlines(store, documents)
    ]
    starts, stops = zip(*parts, strict=True)
    return Runs(np.concatenate(starts), np.concatenate(stops))


def unread_runs(documents: Runs, rows: Columns) -> Runs:
    """Return the runs of tokens of `documents` that no row reads; none reaches over two of them."""
    a_start, a_length, b_start, b_length, _ = rows
    # What lies between two documents is taken as read, also where that is nothing.
    start = np.concatenate([documents.stop[:-1], a_start, b_start])
    stop = np.concatenate([documents.start[1:], a_start + a_length, b_start + b_length])
    order = np.argsort(start)  # of equal ones any comes first: only the farthest stop counts
    read_until = np.maximum.accumulate(np.concatenate([documents.start[:1], stop[order]]))
    read_from = np.concatenate([start[order], documents.stop[-1:]])
    is_gap = read_until < read_from
    return Runs(read_until[is_gap], read_from[is_gap])


def single_rows(unread: Runs, documents: Runs, settings: EpochSettings, *, budget: int) -> Columns:
    """Return rows of one segment over the runs that are worth a row.

    Args:
        unread: of `unread_runs`.
        documents: those they are of.
        settings: of the pairs.
        budget: most tokens of a row of one segment, which has fewer special ones.
    """
    own_document = np.searchsorted(documents.stop, unread.start, side="right")
    least = np.minimum(documents.lengths[own_document], settings.budget // _ROWS_WORTH_IT)
    is_worth_it = unread.lengths >= least
    start, stop = unread.start[is_worth_it], unread.stop[is_worth_it]
    place = 2 * np.arange(len(start))
    # Draws are keyed by the run's first token, in place of a document's number.
    outline = Outline(np.stack([start, stop], axis=1).ravel(), start, place, place + 1)
    return single_segments(cut_single(outline, replace(settings, budget=budget)))


def single_segments(windows: Windows) -> Columns:
    """Return windows of one segment as the columns of a plan."""
    no_pair = np.full(len(windows.document), NO_PAIR)
    return windows.a_start, windows.a_length, windows.b_start, windows.b_length, no_pair
