"""Claims about masks: how many, of what, shown as what, and that a row depends on its key alone."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from bert_pretrain.data.random import hash_uint64
from bert_pretrain.text.masking import (
    MaskingRule,
    MaskingUnit,
    _span_starts,
    mask_tokens,
    ordinary_token_ids,
)

PAD, CLS, SEP, MASK = 0, 2, 3, 4
FIRST_TEXT_ID, FIRST_RANDOM_ID, VOCAB_SIZE = 10, 500, 1000
UNITS: tuple[MaskingUnit, ...] = ("token", "whole_word", "span")


def make_rule(**options: Any) -> MaskingRule:
    """Random tokens come from the upper half of the vocabulary, so they differ from text."""
    defaults = {"mlm_probability": 0.15, "mask_token_id": MASK}
    return MaskingRule(
        **(defaults | options), ordinary_ids=np.arange(FIRST_RANDOM_ID, VOCAB_SIZE, dtype=np.int64)
    )


def make_batch(
    row_lengths: list[int], *, num_tokens: int = 64, seed: int = 0, word_start_prob: float = 0.6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [CLS] text [SEP] text [SEP] [PAD]... with `row_lengths` tokens of text."""
    generator = np.random.default_rng(seed)
    input_ids = np.full((len(row_lengths), num_tokens), PAD, dtype=np.int64)
    for row, length in enumerate(row_lengths):
        assert length <= num_tokens - 3
        text = generator.integers(FIRST_TEXT_ID, FIRST_RANDOM_ID, length)
        half = length // 2
        input_ids[row, : length + 3] = [CLS, *text[:half], SEP, *text[half:], SEP]
    maskable = input_ids >= FIRST_TEXT_ID
    word_starts = maskable & (generator.random(input_ids.shape) < word_start_prob)
    return input_ids, maskable, word_starts


def mask(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray],
    rule: MaskingRule,
    *,
    seed: int = 0,
    k: int = 10,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys = hash_uint64(seed, np.arange(len(batch[0])))
    return mask_tokens(*batch, rule, row_keys=keys, max_predictions=k)


def words_of(row_maskable: np.ndarray, row_starts: np.ndarray) -> list[list[int]]:
    """Words of one row as lists of positions; no word reaches over a special token."""
    words: list[list[int]] = []
    for position, is_text in enumerate(row_maskable):
        if not is_text:
            continue
        if row_starts[position] or not row_maskable[position - 1]:
            words.append([])
        words[-1].append(position)
    return words


ROW_LENGTHS = st.lists(st.integers(0, 61), min_size=1, max_size=6)


@given(ROW_LENGTHS, st.sampled_from([0.01, 0.15, 0.4, 0.9]), st.integers(1, 30), st.integers(0, 9))
def test_token_count_is_exact(lengths: list[int], share: float, k: int, seed: int) -> None:
    _, labels, _ = mask(make_batch(lengths), make_rule(mlm_probability=share), seed=seed, k=k)
    wanted = [min(k, max(1, round(n * share))) if n else 0 for n in lengths]
    assert (labels != -100).sum(axis=1).tolist() == wanted


@given(ROW_LENGTHS, st.sampled_from(UNITS), st.floats(0.05, 0.95), st.integers(0, 9))
def test_outputs_agree_and_specials_are_never_selected(
    lengths: list[int], unit: MaskingUnit, share: float, seed: int
) -> None:
    batch = make_batch(lengths, seed=seed)
    input_ids, maskable, _ = batch
    untouched = input_ids.copy()
    hidden, labels, positions = mask(
        batch, make_rule(mlm_probability=share, unit=unit), seed=seed, k=20
    )
    selected = labels != -100
    assert not (selected & ~maskable).any()
    assert (labels[selected] == input_ids[selected]).all()
    assert (hidden[~selected] == input_ids[~selected]).all()
    assert not np.isin(hidden[selected], [PAD, CLS, SEP]).any()
    assert (input_ids == untouched).all()
    for row in range(len(lengths)):
        expected = np.flatnonzero(selected[row]).tolist()
        assert positions[row].tolist() == expected + [-1] * (20 - len(expected))
        assert bool(expected) == (lengths[row] > 0)


@pytest.mark.parametrize("unit", UNITS)
def test_a_row_of_one_word_has_its_prediction(unit: MaskingUnit) -> None:
    """Documents of one word, and a share that rounds to none of a row's tokens."""
    batch = make_batch([1, 2, 0, 1])
    _, labels, positions = mask(batch, make_rule(mlm_probability=0.01, unit=unit), k=1)
    assert (labels != -100).sum(axis=1).tolist() == [1, 1, 0, 1]
    assert ((positions >= 0).sum(axis=1)).tolist() == [1, 1, 0, 1]


def test_every_text_position_is_selected_equally_often() -> None:
    num_rows = 20_000
    _, labels, _ = mask(make_batch([40] * num_rows, num_tokens=43), make_rule(), seed=3)
    counts = (labels != -100).sum(axis=0)
    text = np.r_[1:21, 22:42]
    share = 6 / 40
    # Chi-square of a draw without replacement: 39 degrees once variances are scaled by 40/39.
    statistic = ((counts[text] - num_rows * share) ** 2).sum() / (num_rows * share * (1 - share))
    assert statistic * 39 / 40 < 39 + 4 * sqrt(2 * 39)


@pytest.mark.parametrize("unit", UNITS)
def test_selected_tokens_are_shown_80_10_10(unit: MaskingUnit) -> None:
    hidden, labels, _ = mask(make_batch([61] * 5000), make_rule(unit=unit), seed=4)
    selected = labels != -100
    shown, original = hidden[selected], labels[selected]
    # A span is decided as a whole, so at least num_selected / 10 decisions are independent.
    num_decisions = selected.sum() / (10 if unit == "span" else 1)
    shares = {0.8: shown == MASK, 0.1: shown == original}
    for expected, observed in shares.items():
        bound = 4 * sqrt(expected * (1 - expected) / num_decisions)
        assert abs(observed.mean() - expected) < bound
    rest = shown[(shown != MASK) & (shown != original)]
    assert rest.min() >= FIRST_RANDOM_ID
    assert len(np.unique(rest)) > 400


@pytest.mark.parametrize("unit", UNITS)
def test_mask_of_a_row_does_not_depend_on_its_batch(unit: MaskingUnit) -> None:
    batch = make_batch([61, 3, 30, 0, 17])
    rule, keys = make_rule(unit=unit), hash_uint64(7, np.arange(5))
    together = mask_tokens(*batch, rule, row_keys=keys, max_predictions=10)
    for row in range(5):
        alone_batch = tuple(array[row : row + 1] for array in batch)
        alone = mask_tokens(*alone_batch, rule, row_keys=keys[row : row + 1], max_predictions=10)
        for expected, found in zip(together, alone, strict=True):
            np.testing.assert_array_equal(found[0], expected[row])


def test_other_keys_give_other_masks() -> None:
    batch = make_batch([61] * 50)
    first, second = (mask(batch, make_rule(), seed=seed)[1] != -100 for seed in (0, 1))
    assert (first != second).any(axis=1).all()


@given(ROW_LENGTHS, st.sampled_from([0.2, 0.6, 0.95]), st.integers(0, 30))
def test_whole_words_are_selected_until_no_further_word_fits(
    lengths: list[int], word_start_prob: float, seed: int
) -> None:
    batch = make_batch(lengths, seed=seed, word_start_prob=word_start_prob)
    _, labels, _ = mask(batch, make_rule(unit="whole_word"), seed=seed)
    for row, length in enumerate(lengths):
        selected = set(np.flatnonzero(labels[row] != -100).tolist())
        count = min(10, max(1, round(length * 0.15))) if length else 0
        words = words_of(batch[1][row], batch[2][row])
        if words and min(map(len, words)) > count:
            (cut_word,) = [word for word in words if selected & set(word)]
            assert sorted(selected) == cut_word[:count]
            continue
        left_out = [word for word in words if not selected & set(word)]
        assert all(selected.issuperset(word) for word in words if word not in left_out)
        room = count - len(selected)
        assert room >= 0
        assert all(len(word) > room for word in left_out)


def test_pieces_of_a_word_are_shown_independently() -> None:
    hidden, labels, _ = mask(
        make_batch([61] * 2000, word_start_prob=0.3), make_rule(unit="whole_word"), seed=5
    )
    is_masked = hidden == MASK
    both_selected = (labels[:, 1:] != -100) & (labels[:, :-1] != -100)
    mixed = both_selected & (is_masked[:, 1:] != is_masked[:, :-1])
    expected = 2 * 0.8 * 0.2  # one of two neighbours is [MASK], the other is not
    num_pairs = both_selected.sum()
    assert abs(mixed.sum() / num_pairs - expected) < 8 * sqrt(expected / num_pairs)


def test_spans_are_shown_in_one_way() -> None:
    """Words of one token, and so few predictions that one span often fills them."""
    batch = make_batch([61] * 3000, word_start_prob=1.0)
    hidden, labels, _ = mask(batch, make_rule(unit="span", mlm_probability=0.05), seed=6, k=3)
    num_long = 0
    for label in labels:
        places = np.flatnonzero(label != -100)
        if len(places) == 3 and places[2] - places[0] == 2:
            num_long += 1
    assert num_long > 500
    keys = hash_uint64(6, np.arange(len(hidden)))
    starts = _span_starts(batch[2], batch[1], keys)
    for row in range(len(hidden)):
        for span in words_of(batch[1][row], starts[row]):
            places = [p for p in span if labels[row, p] != -100]
            ways = {way(hidden[row, p], labels[row, p]) for p in places}
            assert len(ways) <= 1


def way(shown: int, original: int) -> str:
    if shown == MASK:
        return "mask"
    return "keep" if shown == original else "random"


def test_span_lengths_follow_the_truncated_geometric_distribution() -> None:
    num_rows, num_words = 200, 1000
    ones = np.ones((num_rows, num_words), dtype=bool)
    starts = _span_starts(ones, ones, hash_uint64(8, np.arange(num_rows)))
    lengths = np.concatenate([np.diff(np.flatnonzero(row)) for row in starts])
    weights = np.array([0.2 * 0.8 ** (length - 1) for length in range(1, 11)])
    expected = weights / weights.sum() * len(lengths)
    counts = np.bincount(lengths, minlength=11)[1:]
    assert len(counts) == 10
    assert ((counts - expected) ** 2 / expected).sum() < 9 + 4 * sqrt(2 * 9)


def test_spans_begin_with_words_and_end_with_segments() -> None:
    _, maskable, word_starts = make_batch([61, 20, 5], seed=9)
    starts = _span_starts(word_starts, maskable, hash_uint64(9, np.arange(3)))
    for row in range(3):
        word_firsts = {word[0] for word in words_of(maskable[row], word_starts[row])}
        assert word_firsts.issuperset(np.flatnonzero(starts[row]).tolist())
        segment_firsts = [p for p in np.flatnonzero(maskable[row]) if not maskable[row, p - 1]]
        assert starts[row, segment_firsts].all()


def test_ordinary_ids_leave_out_specials_and_placeholders() -> None:
    vocabulary = ["[PAD]", "[UNK]", "[unused0]", "[MASK]", "the", "unused1", "##s", "[x]"]
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(vocabulary)}, "[UNK]"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )
    assert ordinary_token_ids(tokenizer).tolist() == [4, 5, 6, 7]
