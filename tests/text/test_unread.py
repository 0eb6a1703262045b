"""Claims about text that no pair reads: it becomes single segments, and the share read is told."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import store_of
from test_pairs import LENGTHS, Layout, Lengths, draw_lengths, make_store, rows_of

from bert_pretrain.errors import InputError
from bert_pretrain.text.blocks import TextBlocks
from bert_pretrain.text.exact_pairs import MIN_DISTANCE
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch
from bert_pretrain.text.row_card import describe_rows

BUDGET = 30  # of a pair; a single segment has one more


def plan(lengths: Lengths, mode: PairMode = "exact", **options: Any) -> EpochPlan:
    defaults: dict[str, Any] = {"max_seq_length": BUDGET + 3, "short_seq_prob": 0.1, "seed": 1}
    return plan_epoch(
        make_store(lengths),
        np.arange(len(lengths)),
        pair_mode=mode,
        **defaults | {"epoch": 0} | options,
    )


def times_read(lengths: Lengths, rows: list[tuple[int, int, int, int, int]]) -> list[int]:
    """Count how often each token is read, one token after the other."""
    counts = [0] * sum(map(sum, lengths))
    for a_start, a_length, b_start, b_length, _ in rows:
        for position in [*range(a_start, a_start + a_length), *range(b_start, b_start + b_length)]:
            counts[position] += 1
    return counts


def is_pair(made: EpochPlan) -> np.ndarray:
    return made.next_sentence_label != -100


def long_sentences(counts: list[int]) -> Lengths:
    generator = np.random.default_rng(0)
    return [generator.integers(5, 25, count).tolist() for count in counts]


SKEWED = {
    "many documents of one sentence": [5] * 20 + [1] * 400,
    "one long document beside two short ones": [4000, 6, 6],
}


@pytest.mark.parametrize("name", SKEWED)
@pytest.mark.parametrize("mode", ["exact", "sop"])
def test_a_skewed_corpus_is_read(name: str, mode: PairMode) -> None:
    """Pairs alone read 17 % of the one corpus and 0.3 % of the other."""
    lengths = long_sentences(SKEWED[name])
    made = plan(lengths, mode, max_seq_length=128)
    read = np.mean([count > 0 for count in times_read(lengths, rows_of(made))])
    # What is cut to a common length is most where the order is to be told.
    assert read >= (0.95 if mode == "exact" else 0.9)
    of_pairs = times_read(lengths, rows_of(made.take(np.flatnonzero(is_pair(made)))))
    assert mode == "sop" or np.mean([count > 0 for count in of_pairs]) < 0.2


@given(
    LENGTHS,
    st.sampled_from(["exact", "google", "sop", "none"]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 3),
    st.booleans(),
)
@settings(max_examples=200)
def test_single_segments_read_what_nothing_else_reads_and_the_share_is_that_of_a_plain_count(
    lengths: Lengths, mode: PairMode, short_seq_prob: float, epoch: int, same_document: bool
) -> None:
    options = {"short_seq_prob": short_seq_prob, "epoch": epoch}
    try:
        made = plan(lengths, mode, same_document_partners=same_document, **options)
    except InputError:
        return
    layout, counts = Layout(lengths), times_read(lengths, rows_of(made))
    assert made.num_tokens == len(counts)
    assert made.num_read == sum(count > 0 for count in counts)
    for start, length, _, b_length, label in rows_of(made):
        if label == -100:
            assert b_length == 0 and 1 <= length <= BUDGET + 1
            assert len(layout.documents(start, length)) == 1
            assert set(counts[start : start + length]) == {1}
    if mode in ("exact", "sop"):
        assert_what_is_left_is_short(lengths, counts)


def assert_what_is_left_is_short(lengths: Lengths, counts: list[int]) -> None:
    """No run of unread tokens is a whole document or a quarter of a row."""
    position = 0
    for document in lengths:
        of_document = counts[position : position + sum(document)]
        position += len(of_document)
        assert any(of_document)
        unread = "".join("-" if count else "u" for count in of_document).split("-")
        assert max(map(len, unread)) < BUDGET // 4


@given(LENGTHS, st.integers(0, 3))
@settings(max_examples=100)
def test_a_pair_reads_a_token_twice_only_in_a_sentence_that_the_end_of_a_window_cuts(
    lengths: Lengths, epoch: int
) -> None:
    try:
        made = plan(lengths, epoch=epoch)
    except InputError:
        return
    starts = sorted(Layout(lengths).sentence_starts)
    for row in rows_of(made):
        assert max(times_read(lengths, [row])) == 1
    counts = times_read(lengths, rows_of(made))
    ends = {start + size for a, n, b, m, _ in rows_of(made) for start, size in ((a, n), (b, m))}
    for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True):
        if max(counts[start:stop]) > 1:
            # Its head was the end of a window; a document's last window begins a sentence earlier.
            assert any(start < end <= stop for end in ends)


def test_neighbouring_windows_without_a_partner_are_full_rows() -> None:
    lengths = [[10] * 3000, [9] * 2]
    made = plan(lengths, short_seq_prob=0.0)
    single = made.a_length[~is_pair(made)]
    assert len(single) > 900
    assert (single == BUDGET + 1).mean() > 0.98


def test_single_segments_are_mixed_among_the_pairs() -> None:
    made = plan(long_sentences([20] * 100 + [1] * 800), max_seq_length=128)
    where = np.flatnonzero(~is_pair(made)) / len(made)
    # The mean of n uniform numbers: deviation sqrt(1 / 12 / n).
    assert abs(where.mean() - 0.5) < 4 / sqrt(12 * len(where))
    assert is_pair(made).sum() > 100 and len(where) >= 800


def test_partners_within_a_document_are_far_apart_and_half_are_random() -> None:
    lengths = [[10, 7, 12] * 1500, [10] * 6]
    layout = Layout(lengths)
    made = plan(lengths, same_document_partners=True)
    paired = made.take(np.flatnonzero(is_pair(made)))
    assert len(paired) > 0.95 * len(made) and made.num_same_document > 0.95 * len(paired)
    num_within = 0
    for a_start, a_length, b_start, b_length, label in rows_of(paired):
        if label == 1 and layout.documents(a_start, a_length) == layout.documents(
            b_start, b_length
        ):
            # Windows begin so far apart, and a B within the window of a budget.
            assert abs(b_start - a_start) >= (MIN_DISTANCE - 1) * BUDGET
            num_within += 1
        elif label == 0:
            assert b_start == a_start + a_length
    num_coins = len(paired) / 2
    assert abs((paired.next_sentence_label == 1).mean() - 0.5) < 4 * 0.5 / sqrt(num_coins)
    assert num_within > 0.4 * len(paired)
    # Each B is used once, as ever.
    assert len(set(paired.b_start.tolist())) > 0.99 * len(paired)
    assert plan(lengths).num_same_document == 0


def test_one_document_forms_pairs_where_they_may_be_of_one_document() -> None:
    lengths = [[10] * 400]
    with pytest.raises(InputError, match="`same_document_partners`"):
        plan(lengths)
    assert is_pair(plan(lengths, same_document_partners=True)).mean() > 0.9
    # Of eight or nine windows none has another one that is eight rows of text away.
    with pytest.raises(
        InputError, match=r"none of the [89] text windows .* or 8 rows of text away"
    ):
        plan([[10] * 25], same_document_partners=True)
    with pytest.raises(InputError, match="need documents of 2 or more sentences, but none of 2"):
        plan([[10], [20]], same_document_partners=True)


def test_partners_of_other_documents_stay_the_same_where_all_find_one() -> None:
    lengths = draw_lengths(3, 300, 9)
    for column in ("a_start", "b_start", "b_length", "next_sentence_label"):
        one, other = (
            getattr(plan(lengths, same_document_partners=flag), column) for flag in (False, True)
        )
        assert np.array_equal(one, other)


def blocks_of(counts: list[int], rows: int) -> TextBlocks:
    store = store_of([[[7] * 10] * count for count in counts], documents_per_shard=50)
    return TextBlocks(
        store, np.arange(len(counts)), 33, 0.1, "exact", 3, rows_per_block=rows, which="training"
    )


def test_a_block_without_any_pair_does_not_end_a_run() -> None:
    """The documents of several sentences lie together, so that most blocks lack them."""
    blocks = blocks_of([1] * 600 + [4] * 4, 60)
    assert blocks.num_blocks > 4
    plans = [blocks.planner(0, block)() for block in range(blocks.num_blocks)]
    assert any(not is_pair(made).any() for made in plans) and all(made.with_pairs for made in plans)
    assert sum(made.num_read for made in plans) == blocks.store.num_tokens == 6160
    with pytest.raises(InputError, match="none of 600 training documents"):
        blocks_of([1] * 600, 60).planner(0, 0)


def test_the_card_warns_of_text_left_unread_and_of_few_pairs() -> None:
    made = plan(long_sentences([5] * 20 + [1] * 400), max_seq_length=128)
    *_, read, warning = describe_rows(made, 1, "exact")
    assert read == f"tokens read      {100 * made.num_read / made.num_tokens:.1f} % an epoch"
    assert warning.startswith("WARNING: 5.")
    assert "--same_document_partners" in warning and "--objective mlm" in warning
    little = replace(made, num_read=made.num_tokens // 2)
    assert any("reads 50.0 % of the tokens" in line for line in describe_rows(little, 1, "exact"))
    of_google = describe_rows(little, 1, "google")
    assert any("50.0 %" in line and "--pair_mode exact" in line for line in of_google)
    whole = describe_rows(plan(draw_lengths(3, 300, 9), "none"), 3, "none")
    assert whole[1:] == ["tokens read      about 100.0 % an epoch"]


def test_the_card_says_how_many_partners_are_of_the_same_document() -> None:
    made = plan([[10] * 400], same_document_partners=True)
    rows, partners, _ = describe_rows(made, 1, "exact")
    assert "100.0 % of the pairs have both segments from one document" in partners
    assert f"at least {8 * BUDGET} tokens apart" in partners and "single segments" in rows
