"""Claims about pairs whose order is to be told: what a label means, and that only words tell it."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier
from test_pairs import LENGTHS, Layout, Lengths, draw_lengths, make_store, pairs, plan, rows_of

from bert_pretrain.errors import InputError
from bert_pretrain.text.windows import EpochSettings, cut_pairs, outlines

Row = tuple[int, int, int, int, int]


def windows_of(lengths: Lengths, *, short_seq_prob: float, epoch: int) -> Counter[tuple[int, int]]:
    """Return where A and B of every window start."""
    store, chosen = make_store(lengths), EpochSettings(30, short_seq_prob, 1, epoch)
    found: Counter[tuple[int, int]] = Counter()
    for outline in outlines(store, np.arange(len(lengths))):
        made = cut_pairs(outline, chosen, is_even=True)
        found.update(zip(made.a_start.tolist(), made.b_start.tolist(), strict=True))
    return found


def shape(row: Row, layout: Layout) -> tuple[int, int, bool, bool, bool, bool]:
    """What a row shows without its words: lengths, beginnings and ends of both segments."""
    a, a_length, b, b_length, _ = row
    starts = a in layout.sentence_starts, b in layout.sentence_starts
    ends = a + a_length in layout.boundaries, b + b_length in layout.boundaries
    return (a_length, b_length, *starts, *ends)


@given(LENGTHS, st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 3))
@settings(max_examples=150)
def test_a_row_is_a_window_in_order_or_swapped_and_each_is_used_once(
    lengths: Lengths, short_seq_prob: float, epoch: int
) -> None:
    layout = Layout(lengths)
    windows = windows_of(lengths, short_seq_prob=short_seq_prob, epoch=epoch)
    try:
        made = pairs(lengths, mode="sop", short_seq_prob=short_seq_prob, epoch=epoch)
    except InputError:
        return
    used: Counter[tuple[int, int]] = Counter()
    for first, first_length, second, second_length, label in rows_of(made):
        assert first_length + second_length <= 30
        (document,) = layout.documents(first, first_length)
        assert layout.documents(second, second_length) == {document}
        assert label in (0, 1)
        used[(first, second) if label == 0 else (second, first)] += 1
        # Neither reaches into the other.
        assert first + first_length <= second or second + second_length <= first
    assert used <= windows
    assert used.total() + made.num_unpaired == windows.total()


@given(LENGTHS, st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 3))
@settings(max_examples=150)
def test_every_shape_is_as_frequent_with_either_label(
    lengths: Lengths, short_seq_prob: float, epoch: int
) -> None:
    layout = Layout(lengths)
    try:
        rows = rows_of(pairs(lengths, mode="sop", short_seq_prob=short_seq_prob, epoch=epoch))
    except InputError:
        return
    counts = [Counter(shape(row, layout) for row in rows if row[4] == label) for label in (0, 1)]
    # A window may be its own partner, once in a block of an odd number, and only the last is such.
    surplus = (counts[0] - counts[1]) + (counts[1] - counts[0])
    assert surplus.total() <= 1
    for a_length, b_length, a_starts, b_starts, a_ends, b_ends in surplus:
        assert (a_length, a_starts, a_ends) == (b_length, b_starts, b_ends)
    for row in rows:
        assert shape(row, layout)[2:4] == (True, True)


def tree_accuracy(seen: list[Row], held_out: list[Row], layout: Layout) -> float:
    """Learn the label from the shapes of some rows, and test on others."""
    tree = DecisionTreeClassifier(min_samples_leaf=20, random_state=0)
    tree.fit([shape(row, layout) for row in seen], [row[4] for row in seen])
    guess = tree.predict([shape(row, layout) for row in held_out])
    return float((guess == np.array([row[4] for row in held_out])).mean())


def test_a_tree_that_sees_shapes_alone_guesses() -> None:
    lengths = draw_lengths(2, 400, 15)
    seen, held_out = (rows_of(pairs(lengths, mode="sop", epoch=epoch)) for epoch in (0, 1))
    accuracy = tree_accuracy(seen, held_out, Layout(lengths))
    # Partners have opposite labels: at least half as many independent trials.
    assert abs(accuracy - 0.5) < 4 * 0.5 / sqrt(len(held_out) / 2)


def test_the_same_tree_knows_the_order_of_windows_that_are_merely_swapped() -> None:
    lengths = draw_lengths(2, 400, 15)
    coin = np.random.default_rng(0)
    epochs: list[list[Row]] = []
    for epoch in (0, 1):
        rows: list[Row] = []
        for outline in outlines(make_store(lengths), np.arange(len(lengths))):
            made = cut_pairs(outline, EpochSettings(30, 0.1, 1, epoch))
            columns = (made.a_start, made.a_length, made.b_start, made.b_length)
            for a, a_length, b, b_length in zip(*(c.tolist() for c in columns), strict=True):
                in_order, swapped = (a, a_length, b, b_length, 0), (b, b_length, a, a_length, 1)
                rows.append(in_order if coin.random() < 0.5 else swapped)
        epochs.append(rows)
    assert tree_accuracy(*epochs, Layout(lengths)) > 0.8


def test_labels_are_balanced_and_the_coin_is_new_in_every_epoch() -> None:
    lengths = [[8, 9, 8]] * 1000  # a window each, so that many come again
    orders = []
    for epoch in (0, 1):
        made = pairs(lengths, mode="sop", epoch=epoch)
        assert abs(int((made.next_sentence_label == 0).sum()) * 2 - len(made)) <= 1
        orders.append({(min(a, b), max(a, b)): label for a, _, b, _, label in rows_of(made)})
    again = orders[0].keys() & orders[1].keys()
    same = sum(orders[0][key] == orders[1][key] for key in again)
    assert len(again) > 100
    assert abs(same / len(again) - 0.5) < 4 * 0.5 / sqrt(len(again) / 2)


@pytest.mark.parametrize(("num_documents", "least"), [(100, 0.85), (3000, 0.92)])
def test_the_more_windows_the_fewer_tokens_are_lost_to_matching(
    num_documents: int, least: float
) -> None:
    lengths = draw_lengths(4, num_documents, 15)
    made = pairs(lengths, mode="sop", max_seq_length=131)
    store, chosen = make_store(lengths), EpochSettings(128, 0.1, 1, 0)
    before = sum(
        int((windows.a_length + windows.b_length).sum())
        for windows in (cut_pairs(o, chosen) for o in outlines(store, np.arange(len(lengths))))
    )
    after = int((made.a_length + made.b_length).sum())
    assert least * before < after <= before


def test_one_document_is_enough_and_a_plan_is_a_function_of_seed_and_epoch() -> None:
    lengths = [[7, 5, 9, 4, 8, 6, 12, 3] * 20]
    made = rows_of(plan(lengths, mode="sop"))
    assert len(made) > 30
    assert rows_of(plan(lengths, mode="sop")) == made
    assert rows_of(plan(lengths, mode="sop", documents_per_shard=1)) == made
    assert rows_of(plan(lengths, mode="sop", epoch=1)) != made
    assert rows_of(plan(lengths, mode="sop", seed=2)) != made


@pytest.mark.parametrize(
    ("lengths", "words"),
    [([[5], [6], [7]], "none of 3 given documents"), ([[1, 200]], "none of the 2 text windows")],
)
def test_text_that_has_no_order_is_refused_with_advice(lengths: Lengths, words: str) -> None:
    with pytest.raises(InputError, match=rf"{words}.*`objective` mlm"):
        plan(lengths, mode="sop")
