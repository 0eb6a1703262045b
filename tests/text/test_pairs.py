"""Claims about epoch plans: what a label means, that nothing else tells it, and what is covered."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from math import sqrt
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier
from stores import store_of

from bert_pretrain.errors import InputError
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.windows import EpochSettings, Windows, cut_pairs, outlines

Lengths = list[list[int]]  # documents of sentence lengths

LENGTHS = st.lists(
    st.lists(
        st.one_of(st.integers(1, 12), st.sampled_from([29, 30, 31, 200])), min_size=1, max_size=9
    ),
    min_size=1,
    max_size=12,
)


def make_store(lengths: Lengths, *, documents_per_shard: int | None = None) -> TokenStore:
    documents = [[[7] * length for length in document] for document in lengths]
    return store_of(documents, documents_per_shard=documents_per_shard)


def draw_lengths(seed: int, num_documents: int, mean_sentences: float) -> Lengths:
    generator = np.random.default_rng(seed)
    counts = 1 + generator.poisson(mean_sentences, num_documents)
    return [np.clip(generator.lognormal(2.3, 0.6, n), 1, 90).astype(int).tolist() for n in counts]


def plan(
    lengths: Lengths, *, mode: PairMode = "exact", epoch: int = 0, **options: float
) -> EpochPlan:
    return plan_epoch(
        make_store(lengths, documents_per_shard=int(options.get("documents_per_shard", 0)) or None),
        np.arange(len(lengths)),
        max_seq_length=int(options.get("max_seq_length", 33)),
        short_seq_prob=options.get("short_seq_prob", 0.1),
        pair_mode=mode,
        seed=int(options.get("seed", 1)),
        epoch=epoch,
    )


def pairs(lengths: Lengths, **options: Any) -> EpochPlan:
    """Return the pairs of a plan, without its single segments."""
    made = plan(lengths, **options)
    return made.take(np.flatnonzero(made.next_sentence_label != -100))


def cut(lengths: Lengths, *, budget: int, short_seq_prob: float, epoch: int = 0) -> Windows:
    store, documents = make_store(lengths), np.arange(len(lengths))
    epoch_settings = EpochSettings(
        budget=budget, short_seq_prob=short_seq_prob, seed=1, epoch=epoch
    )
    return Windows.chain(
        [cut_pairs(outline, epoch_settings) for outline in outlines(store, documents)]
    )


class Layout:
    """Document of every token, and the positions where sentences start, made by plain loops."""

    def __init__(self, lengths: Lengths) -> None:
        self.document_of: list[int] = []
        self.sentence_starts: set[int] = set()
        for number, document in enumerate(lengths):
            for length in document:
                self.sentence_starts.add(len(self.document_of))
                self.document_of += [number] * length
        self.boundaries = self.sentence_starts | {len(self.document_of)}

    def documents(self, start: int, length: int) -> set[int]:
        assert length > 0
        return set(self.document_of[start : start + length])


def rows_of(plan: EpochPlan) -> list[tuple[int, int, int, int, int]]:
    columns = (plan.a_start, plan.a_length, plan.b_start, plan.b_length, plan.next_sentence_label)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def features(plan: EpochPlan, layout: Layout) -> np.ndarray:
    """What a row shows without its words: lengths, and whether B ends with a sentence."""
    ends = [start + length in layout.boundaries for _, _, start, length, _ in rows_of(plan)]
    return np.column_stack([plan.a_length, plan.b_length, plan.a_length + plan.b_length, ends])


@given(LENGTHS, st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 3))
@settings(max_examples=150)
def test_label_says_whether_b_follows_a_or_is_from_another_document(
    lengths: Lengths, short_seq_prob: float, epoch: int
) -> None:
    layout = Layout(lengths)
    try:
        rows = rows_of(pairs(lengths, short_seq_prob=short_seq_prob, epoch=epoch))
    except InputError:
        return
    for a_start, a_length, b_start, b_length, label in rows:
        assert a_length + b_length <= 30
        (a_document,) = layout.documents(a_start, a_length)
        (b_document,) = layout.documents(b_start, b_length)
        assert b_start in layout.sentence_starts
        assert a_start + a_length in layout.boundaries
        if label == 0:
            assert b_start == a_start + a_length
            assert a_document == b_document
        else:
            assert label == 1
            assert a_document != b_document


@given(LENGTHS, st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 3))
@settings(max_examples=150)
def test_windows_cover_every_sentence_shorter_than_the_budget(
    lengths: Lengths, short_seq_prob: float, epoch: int
) -> None:
    budget = 30
    windows = cut(lengths, budget=budget, short_seq_prob=short_seq_prob, epoch=epoch)
    assert (windows.a_length >= 1).all()
    assert (windows.b_length >= 1).all()
    assert (windows.a_length + windows.b_length <= budget).all()
    stops = windows.b_start + windows.b_length
    covered = {
        position
        for start, stop in zip(windows.a_start.tolist(), stops.tolist(), strict=True)
        for position in range(start, stop)
    }
    position = 0
    for document in lengths:
        for length in document:
            if len(document) >= 2 and length < budget:
                assert covered.issuperset(range(position, position + length))
            position += length


def test_every_document_of_two_sentences_gives_a_window() -> None:
    lengths = [[1, 1], [500, 1], [1, 500], [500, 500], [9]]
    assert sorted(set(cut(lengths, budget=30, short_seq_prob=0.5).document.tolist())) == [
        0,
        1,
        2,
        3,
    ]


def test_every_a_and_every_b_of_a_window_is_used_once_and_only_b_is_cut() -> None:
    lengths = draw_lengths(0, 300, 8)
    windows, made = cut(lengths, budget=30, short_seq_prob=0.1), pairs(lengths)
    whole_a = Counter(zip(windows.a_start.tolist(), windows.a_length.tolist(), strict=True))
    used_a = Counter(zip(made.a_start.tolist(), made.a_length.tolist(), strict=True))
    assert used_a <= whole_a
    assert used_a.total() + made.num_unpaired == len(windows.document)

    starts_of_b = Counter(windows.b_start.tolist())
    longest_b = dict(sorted(zip(windows.b_start.tolist(), windows.b_length.tolist(), strict=True)))
    assert Counter(made.b_start.tolist()) <= starts_of_b
    assert all(length <= longest_b[start] for _, _, start, length, _ in rows_of(made))


def test_half_of_the_labels_are_random() -> None:
    labels = pairs(draw_lengths(1, 2000, 8)).next_sentence_label
    num_coins = len(labels) / 2  # partners share a coin
    assert abs(labels.mean() - 0.5) < 4 * 0.5 / sqrt(num_coins)


def tree_accuracy(lengths: Lengths, mode: PairMode) -> tuple[float, int]:
    """Learn the label from a row's visible shape in one epoch, and test on another one."""
    layout = Layout(lengths)
    seen, held_out = (pairs(lengths, mode=mode, epoch=epoch) for epoch in (0, 1))
    tree = DecisionTreeClassifier(min_samples_leaf=20, random_state=0)
    tree.fit(features(seen, layout), seen.next_sentence_label)
    guess = tree.predict(features(held_out, layout))
    return float((guess == held_out.next_sentence_label).mean()), len(held_out)


@pytest.mark.parametrize("mean_sentences", [2, 30])
def test_shape_of_a_row_does_not_tell_its_label(mean_sentences: int) -> None:
    accuracy, num_rows = tree_accuracy(
        draw_lengths(2, 6000 // mean_sentences, mean_sentences), "exact"
    )
    # Partners share a coin: at least num_rows / 2 independent trials.
    assert abs(accuracy - 0.5) < 4 * 0.5 / sqrt(num_rows / 2)


def test_the_same_detector_finds_the_leak_of_the_original_algorithm() -> None:
    accuracy, num_rows = tree_accuracy(draw_lengths(2, 3000, 2), "google")
    assert accuracy > 0.5 + 10 * 0.5 / sqrt(num_rows / 2)


def test_both_classes_have_the_same_lengths() -> None:
    made = pairs(draw_lengths(3, 2000, 8))
    is_random = made.next_sentence_label == 1
    for column in (made.a_length, made.b_length):
        next_part, random_part = column[~is_random], column[is_random]
        # Rows come in pairs that share their label, hence half as many independent ones.
        variance = next_part.var() / (len(next_part) / 2) + random_part.var() / (
            len(random_part) / 2
        )
        assert abs(next_part.mean() - random_part.mean()) < 4 * sqrt(variance)


def test_few_tokens_are_lost_to_matching() -> None:
    lengths = draw_lengths(4, 2000, 8)
    windows, made = cut(lengths, budget=30, short_seq_prob=0.1), pairs(lengths)
    before = int((windows.a_length + windows.b_length).sum())
    after = int(made.a_length.sum() + made.b_length.sum())
    assert 0.97 * before < after <= before


def test_short_targets_are_drawn_per_window() -> None:
    windows = cut([[1] * 30_000], budget=30, short_seq_prob=0.2)
    totals = (windows.a_length + windows.b_length)[
        1:-1
    ]  # the first slides, the last is what is left
    share = 0.2 * 28 / 29  # one of the 29 short targets 2..30 is the budget itself
    assert abs((totals < 30).mean() - share) < 4 * sqrt(share * (1 - share) / len(totals))
    assert set(totals.tolist()) == set(range(2, 31))


def test_split_points_are_uniform() -> None:
    windows = cut([[1] * 60_000], budget=30, short_seq_prob=0)
    a_length = windows.a_length[1:-1]
    counts = np.bincount(a_length, minlength=30)[1:]
    expected = len(a_length) / 29
    assert ((counts - expected) ** 2 / expected).sum() < 28 + 4 * sqrt(2 * 28)


def test_plan_is_a_function_of_seed_and_epoch_and_not_of_shards() -> None:
    lengths = draw_lengths(5, 60, 8)
    same = rows_of(plan(lengths))
    assert rows_of(plan(lengths)) == same
    assert rows_of(plan(lengths, documents_per_shard=7)) == same
    assert rows_of(plan(lengths, epoch=1)) != same
    assert rows_of(plan(lengths, seed=2)) != same


@pytest.mark.parametrize("mean_sentences", [8, 400])
def test_epochs_cut_documents_into_mostly_other_pairs(mean_sentences: int) -> None:
    lengths = draw_lengths(6, 800 // mean_sentences, mean_sentences)
    first, second = (
        set(zip(windows.a_start.tolist(), windows.b_start.tolist(), strict=True))
        for windows in (
            cut(lengths, budget=60, short_seq_prob=0.1, epoch=epoch) for epoch in (0, 1)
        )
    )
    assert len(first & second) < 0.5 * len(first)


def test_documents_outside_the_split_are_never_used() -> None:
    lengths = draw_lengths(7, 50, 8)
    layout, chosen = Layout(lengths), np.arange(3, 50, 4)
    made = plan_epoch(
        make_store(lengths, documents_per_shard=8),
        chosen,
        max_seq_length=33,
        short_seq_prob=0.1,
        pair_mode="exact",
        seed=1,
        epoch=0,
    )
    used = set()
    for a_start, a_length, b_start, b_length, _ in rows_of(made):
        used |= layout.documents(a_start, a_length)
        used |= layout.documents(b_start, b_length) if b_length else set()
    assert used == set(chosen.tolist())


def test_both_bs_of_a_swapped_pair_are_cut_alike() -> None:
    lengths = draw_lengths(9, 400, 4)
    layout = Layout(lengths)
    rows = rows_of(pairs(lengths))
    num_starts = Counter(a_start + a_length for a_start, a_length, *_ in rows)
    partner_of_b = {a_start + a_length: (b, size) for a_start, a_length, b, size, _ in rows}
    num_checked = 0
    for _, _, b_start, b_length, label in rows:
        # A swapped B stands behind the A of the partner, which is known where only one row has it.
        if label == 1 and num_starts[b_start] == 1:
            other_start, other_length = partner_of_b[b_start]
            ends = b_start + b_length in layout.boundaries
            assert other_length == b_length
            assert (other_start + other_length in layout.boundaries) == ends
            num_checked += 1
    assert num_checked > 300


def test_windows_of_two_documents_are_left_out_only_where_one_has_more() -> None:
    lengths = [[10] * 900, [10] * 700]
    counts = np.bincount(cut(lengths, budget=30, short_seq_prob=0.1).document)
    assert plan(lengths).num_unpaired == counts[0] - counts[1]


def test_what_a_dominating_document_holds_too_much_of_is_left_out_and_counted() -> None:
    lengths = [[10] * 1000, *[[10] * 10] * 20]
    windows, made = cut(lengths, budget=30, short_seq_prob=0.1), pairs(lengths)
    num_others = int((windows.document != 0).sum())
    assert len(made) + made.num_unpaired == len(windows.document)
    # At best each takes a partner from the large document, but a few meet each other first.
    assert num_others <= len(made) <= 2 * num_others


@pytest.mark.parametrize("lengths", [[[5, 5, 5]], [[5], [6], [7]], [[5, 5], [6], [7]]])
def test_corpora_without_two_usable_documents_are_refused_with_advice(lengths: Lengths) -> None:
    with pytest.raises(InputError, match=r"`document_boundary`.*`objective` mlm"):
        plan(lengths)


@given(LENGTHS, st.sampled_from([0.0, 0.5]))
def test_single_segments_partition_every_document(lengths: Lengths, short_seq_prob: float) -> None:
    made = plan(lengths, mode="none", short_seq_prob=short_seq_prob)
    layout = Layout(lengths)
    seen: list[int] = []
    for a_start, a_length, _, b_length, label in rows_of(made):
        assert (b_length, label) == (0, -100)
        assert a_length <= 31
        assert len(layout.documents(a_start, a_length)) == 1
        seen += range(a_start, a_start + a_length)
    assert sorted(seen) == list(range(len(layout.document_of)))


def original_pairs(
    documents: Lengths, *, budget: int, short_seq_prob: float, random: Random
) -> list:
    """Follow the published description on lists of tokens; return (A, B, is random) per pair."""
    corpus = [
        [[(d, s, t) for t in range(n)] for s, n in enumerate(doc)]
        for d, doc in enumerate(documents)
    ]
    pairs = []
    for own_index, document in enumerate(corpus):
        aim = random.randint(2, budget) if random.random() < short_seq_prob else budget
        waiting = list(document)
        chunk: list = []
        while waiting:
            chunk.append(waiting.pop(0))
            if waiting and sum(map(len, chunk)) < aim:
                continue
            cut_at = random.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            a = list(chain.from_iterable(chunk[:cut_at]))
            is_random = len(chunk) == 1 or random.random() < 0.5
            if is_random:
                for _ in range(10):
                    other_index = random.randint(0, len(corpus) - 1)
                    if other_index != own_index:
                        break
                b: list = []
                other = corpus[other_index]
                for sentence in other[random.randint(0, len(other) - 1) :]:
                    b += sentence
                    if len(b) >= aim - len(a):
                        break
                waiting = chunk[cut_at:] + waiting
            else:
                b = list(chain.from_iterable(chunk[cut_at:]))
            while len(a) + len(b) > budget:
                longer = a if len(a) > len(b) else b
                longer.pop(0 if random.random() < 0.5 else -1)
            pairs.append((a, b, is_random))
            chunk = []
    return pairs


@pytest.mark.parametrize("mean_sentences", [1.5, 15])
def test_google_mode_agrees_with_a_slow_rederivation_in_distribution(mean_sentences: float) -> None:
    lengths = draw_lengths(8, 60, mean_sentences)
    ours, theirs = [], []
    for epoch in range(25):
        made = plan(lengths, mode="google", epoch=epoch, short_seq_prob=0.3)
        a, b, label = made.a_length, made.b_length, made.next_sentence_label
        ours.append(summary(a, b, label))
        pairs = original_pairs(lengths, budget=30, short_seq_prob=0.3, random=Random(epoch))
        a, b = (np.array([len(pair[i]) for pair in pairs]) for i in (0, 1))
        theirs.append(summary(a, b, np.array([pair[2] for pair in pairs])))
    difference = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    error = np.sqrt((np.var(ours, axis=0, ddof=1) + np.var(theirs, axis=0, ddof=1)) / 25)
    # 4 sigma of the difference of two means of 25 runs each.
    assert (np.abs(difference) < 4 * error).all(), (difference, error)


def summary(a: np.ndarray, b: np.ndarray, label: np.ndarray) -> list[float]:
    total = a + b
    random_b = b[label.astype(bool)]
    return [
        len(a),
        label.mean(),
        a.mean(),
        b.mean(),
        total.mean(),
        (total == 30).mean(),
        random_b.mean(),
    ]


def test_google_mode_draws_the_short_target_once_per_document() -> None:
    lengths = [[1] * 400, [1] * 400]
    made = plan(lengths, mode="google", short_seq_prob=1.0)
    for first in (0, 400):
        of_document = (made.a_start >= first) & (made.a_start < first + 370)
        is_next = of_document & (made.next_sentence_label == 0)
        assert len(np.unique((made.a_length + made.b_length)[is_next])) == 1


def test_google_mode_draws_again_when_it_meets_the_same_document() -> None:
    lengths = [[5] * 200] * 3
    layout = Layout(lengths)
    rows = rows_of(plan(lengths, mode="google"))
    random_rows = [row for row in rows if row[4] == 1]
    assert len(random_rows) > 20
    for a_start, a_length, b_start, b_length, _ in random_rows:
        # Ten draws all meet it with probability 3 ** -10.
        assert layout.documents(a_start, a_length) != layout.documents(b_start, b_length)


def test_google_mode_falls_back_to_the_same_document() -> None:
    made = plan([[5] * 40], mode="google")
    assert (made.next_sentence_label == 1).any()
