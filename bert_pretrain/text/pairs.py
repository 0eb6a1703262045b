"""Plan the rows of an epoch: the tokens of A and B of every row, and its label.

A plan is a pure function of the documents, the settings, the seed and the epoch: every process
computes the same one, and every epoch has new pairs. Of a large corpus the documents are one block
after the other (see `blocks`), and partners are of the same block. No token is read here; the
collator reads them when it makes a batch.

`exact_pairs`, `order_pairs` and `google_pairs` say how each kind of pairs is drawn. What the first
two leave unread becomes rows of single segments, see `unread`; the third is as it was published.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.errors import InputError
from bert_pretrain.text.exact_pairs import MIN_DISTANCE, exact_pairs, keep_or_swap
from bert_pretrain.text.google_pairs import google_pairs
from bert_pretrain.text.layout import BERT_COUNTS, SpecialCounts
from bert_pretrain.text.order_pairs import order_pairs
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.unread import document_runs, single_rows, single_segments, unread_runs
from bert_pretrain.text.windows import (
    Columns,
    EpochSettings,
    Outline,
    Windows,
    cut_pairs,
    cut_single,
    outlines,
    shards_of,
)

PairMode: TypeAlias = Literal["exact", "google", "sop", "none"]


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
        num_unpaired: windows that found no partner.
        row_length: tokens of every row after padding.
        with_pairs: whether rows are pairs, though perhaps not these.
        num_same_document: rows whose partner is of the same document, far away (`exact`).
        num_tokens: tokens of the documents.
        num_read: those of them that at least one row reads.
        num_special_tokens: of them, in a row.
    """

    a_start: NDArray[np.int64]
    a_length: NDArray[np.int32]
    b_start: NDArray[np.int64]
    b_length: NDArray[np.int32]
    next_sentence_label: NDArray[np.int8]
    num_unpaired: int
    row_length: int
    with_pairs: bool = True
    num_same_document: int = 0
    num_tokens: int = 0
    num_read: int = 0
    num_special_tokens: SpecialCounts = BERT_COUNTS

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
        **facts: Any,
    ) -> EpochPlan:
        """Return the plan of some columns in an order, int64 (N,); `facts` are further fields."""
        a_start, a_length, b_start, b_length, label = (column[order] for column in columns)
        lengths = a_length.astype(np.int32), b_length.astype(np.int32)
        label = label.astype(np.int8)
        return cls(
            a_start, lengths[0], b_start, lengths[1], label, num_unpaired, row_length, **facts
        )

    def take(self, rows: NDArray[np.int64]) -> EpochPlan:
        """Return the given rows, in that order, as a small plan to send to a worker process."""
        return replace(
            self,
            a_start=self.a_start[rows],
            a_length=self.a_length[rows],
            b_start=self.b_start[rows],
            b_length=self.b_length[rows],
            next_sentence_label=self.next_sentence_label[rows],
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
    same_document_partners: bool = False,
    needs_pairs: bool = True,
    which: str = "given",
    num_special_tokens: SpecialCounts = BERT_COUNTS,
) -> EpochPlan:
    """Plan all rows that documents give in one epoch, in a random order.

    Args:
        store: the prepared corpus.
        documents: int64 (D,), sorted global indices of the documents of one split.
        max_seq_length: tokens of a row with its special tokens, at least 8.
        short_seq_prob: probability of a shorter target, uniform from 2 tokens, in [0, 1]; drawn per
            window (`google`: per document, as published).
        pair_mode: `exact`: matched pairs, see `exact_pairs`. `google`: the published algorithm.
            `sop`: neighbours in order or swapped, see `order_pairs`. `none`: single segments for
            masked-language modelling alone.
        seed: of the run.
        epoch: its number.
        first_row: number within the epoch of the plan's first row, where the documents are a block
            of those trained on (see `blocks`): blocks are not to be shuffled alike.
        same_document_partners: whether `exact` pairs may be of distant places of one document where
            there is no partner in another one.
        needs_pairs: whether documents that allow no pair are refused. A block of many may have
            none, whose rows are then single segments.
        which: what to call the documents in a message: `training` or `held-out`.
        num_special_tokens: that the tokenizer adds to a row.

    Returns:
        The plan, never empty.

    Raises:
        InputError: there are no documents, or they allow no pairs.
    """
    if needs_pairs:
        refuse_unpairable(
            store, documents, pair_mode, same_document_partners=same_document_partners, which=which
        )
    is_single = pair_mode == "none"
    num_added = num_special_tokens.single if is_single else num_special_tokens.pair
    settings = EpochSettings(max_seq_length - num_added, short_seq_prob, seed, epoch)
    num_unpaired = num_same_document = 0
    columns: Columns
    if pair_mode == "google":
        columns = google_pairs(Outline.join(list(outlines(store, documents))), settings)
    elif pair_mode == "none":
        parts = [cut_single(part, settings) for part in outlines(store, documents)]
        columns = single_segments(Windows.chain(parts))
    else:
        columns, num_unpaired, num_same_document = _pair_windows(
            store,
            documents,
            settings,
            is_of_order=pair_mode == "sop",
            same_document=same_document_partners,
        )
        if needs_pairs and len(columns[0]) == 0:
            raise _no_pair(num_unpaired, pair_mode, which, same_document_partners)
    runs = document_runs(store, documents)
    unread = unread_runs(runs, columns)
    num_read = int(runs.lengths.sum() - unread.lengths.sum())
    if pair_mode in ("exact", "sop"):
        single_budget = max_seq_length - num_special_tokens.single
        single = single_rows(unread, runs, settings, budget=single_budget)
        num_read += int(single[1].sum())
        columns = tuple(map(np.concatenate, zip(columns, single, strict=True)))
    row = first_row + np.arange(len(columns[0]))
    order = np.argsort(hash_uint64(seed, epoch, Purpose.TRAINING_ORDER, row), kind="stable")
    return EpochPlan.of(
        columns,
        order,
        num_unpaired=num_unpaired,
        row_length=max_seq_length,
        with_pairs=pair_mode != "none",
        num_same_document=num_same_document,
        num_tokens=int(runs.lengths.sum()),
        num_read=num_read,
        num_special_tokens=num_special_tokens,
    )


def _pair_windows(
    store: TokenStore,
    documents: NDArray[np.int64],
    settings: EpochSettings,
    *,
    is_of_order: bool,
    same_document: bool,
) -> tuple[Columns, int, int]:
    """Return the pairs, the number of windows without a partner, and `num_same_document`."""
    parts = outlines(store, documents)
    windows = Windows.chain([cut_pairs(part, settings, is_even=is_of_order) for part in parts])
    num_same_document = 0
    if is_of_order:
        columns = order_pairs(store, windows, settings)
    else:
        columns, num_same_document = exact_pairs(
            store, windows, settings, same_document=same_document
        )
    return columns, len(windows.document) - len(columns[0]), num_same_document


def refuse_unpairable(
    store: TokenStore,
    documents: NDArray[np.int64],
    pair_mode: PairMode,
    *,
    same_document_partners: bool,
    which: str,
) -> None:
    """Raise `InputError` if there are no documents, or none that pairs could be made of.

    For the arguments see `plan_epoch`.
    """
    if len(documents) == 0:
        raise InputError(
            f"there are no {which} documents",
            advice="give more text with `data_files` or change `validation_share`",
        )
    num_usable = sum(
        int((store.shards[shard].sentences_per_document[wanted] >= 2).sum())
        for shard, wanted in shards_of(store, documents)
    )
    least = {"exact": 1 if same_document_partners else 2, "sop": 1}.get(pair_mode, 0)
    if num_usable >= least:
        return
    what = "sentence order needs" if pair_mode == "sop" else "sentence pairs need"
    needed = "documents" if least == 1 else f"at least {least} documents"
    found = f"{num_usable or 'none'} of {len(documents)} {which} documents is such"
    raise InputError(
        f"{what} {needed} of 2 or more sentences, but {found}",
        advice=_way_to_pairs(pair_mode, which, same_document_partners),
    )


def _no_pair(
    num_windows: int, pair_mode: PairMode, which: str, same_document_partners: bool
) -> InputError:
    where = " in another document" if pair_mode == "exact" else ""
    if same_document_partners:
        where += f" or {MIN_DISTANCE} rows of text away"
    return InputError(
        f"no sentence pair could be formed of the {which} documents: none of the {num_windows} "
        f"text windows has a partner{where} whose segments are alike",
        advice=_way_to_pairs(pair_mode, which, same_document_partners),
    )


def _way_to_pairs(pair_mode: PairMode, which: str, same_document_partners: bool) -> str:
    """Return what to do where documents allow no pairs."""
    ways = ["put a blank line between the documents of a text file (`document_boundary`)"]
    if which == "held-out":
        ways = ["hold out more (`validation_share`) or files of your own (`validation_files`)"]
    if pair_mode == "exact" and not same_document_partners:
        ways.append("let partners be of one long document (`same_document_partners`)")
    return ", ".join([*ways, "or train without pairs: `objective` mlm"])


def plan_neighbours(
    store: TokenStore,
    documents: NDArray[np.int64],
    *,
    max_seq_length: int,
    seed: int,
    num_special_tokens: SpecialCounts = BERT_COUNTS,
) -> tuple[EpochPlan, int]:
    """Plan hard pairs, for evaluation: the random B is a neighbouring passage of the same document.

    The topic alone tells passages of different documents apart. Here the partners of `exact` pairs
    are neighbouring windows. For the arguments see `plan_epoch`.

    Returns:
        The plan, in the order of the text, perhaps empty; and the number of documents without a
        pair, because they are too short for two windows.
    """
    budget = max_seq_length - num_special_tokens.pair
    settings = EpochSettings(budget, short_seq_prob=0.0, seed=seed, epoch=0)
    windows = Windows.chain([cut_pairs(part, settings) for part in outlines(store, documents)])
    # A window begins with the sentence that the end of the one before cuts: that piece is dropped.
    room = windows.a_start[1:] - windows.b_start[:-1]
    first = _every_second((windows.document[1:] == windows.document[:-1]) & (room > 0))
    windows.b_length[first] = np.minimum(windows.b_length[first], room[first])
    columns = keep_or_swap(store, windows, first, first + 1, settings)
    order = np.argsort(columns[0], kind="stable")
    plan = EpochPlan.of(
        columns,
        order,
        num_unpaired=len(windows.document) - len(order),
        row_length=max_seq_length,
        num_special_tokens=num_special_tokens,
    )
    used = np.unique(windows.document[np.searchsorted(windows.a_start, plan.a_start)])
    return plan, len(documents) - len(used)


def _every_second(is_followed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return rows that a neighbour follows, int64 (P,), such that no two pairs share a row."""
    chosen: list[int] = []
    for row in np.flatnonzero(is_followed).tolist():
        if not chosen or row > chosen[-1] + 1:
            chosen.append(row)
    return np.array(chosen, dtype=np.int64)
