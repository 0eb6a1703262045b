"""Select tokens for masked-language modelling and hide them, for a whole batch at once.

A row's mask is a pure function of its key, so it does not depend on the batch that the row is in.

Source: Devlin et al. 2019, section 3.1; whole words: google-research/bert; spans: Joshi et al. 2020
(SpanBERT), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from bert_pretrain.data.random import Purpose, hash_uint64, integers, uniform
from bert_pretrain.text.literal_text import protected_token_ids
from bert_pretrain.text.tokenizers import PLACEHOLDER

MaskingUnit: TypeAlias = Literal["token", "whole_word", "span"]

IGNORED = -100
_SPAN_STOP_PROB, _MAX_SPAN_WORDS = 0.2, 10  # SpanBERT: geometric lengths, mean 3.8 words


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskingRule:
    """How many tokens to select, in which units, and what to show instead.

    Attributes:
        mlm_probability: Share of the ordinary tokens of a row to select, in (0, 1).
        mask_replace_prob: Probability that a selected token is shown as [MASK].
        random_replace_prob: Probability that it is shown as a random ordinary token; else it is
            shown unchanged.
        unit: What is selected together: single tokens, whole words, or spans of whole words.
        ordinary_ids: int64 (V',), sorted ids to draw random tokens from, without special tokens.
        protected_ids: int64 (S,), ids that a text may hold and that are never selected, see
            `literal_text.protected_token_ids`.
        last_mlm_probability: what `mlm_probability` becomes by the end of a run, linearly; None =
            it stays.
    """

    mlm_probability: float
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    unit: MaskingUnit = "token"
    mask_token_id: int
    ordinary_ids: NDArray[np.int64]
    protected_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    last_mlm_probability: float | None = None

    @property
    def highest_rate(self) -> float:
        """The largest share of a row that is ever selected."""
        return max(self.mlm_probability, self.last_mlm_probability or 0.0)

    def at(self, progress: float) -> MaskingRule:
        """Return the rule of a moment, with a single rate.

        Args:
            progress: share of the run that lies behind, in [0, 1].
        """
        if self.last_mlm_probability is None:
            return self
        rate = (1 - progress) * self.mlm_probability + progress * self.last_mlm_probability
        return replace(self, mlm_probability=rate, last_mlm_probability=None)


def ordinary_token_ids(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Return the sorted int64 ids that are neither special tokens nor placeholders ([unused7])."""
    ids = {i for token, i in tokenizer.get_vocab().items() if not PLACEHOLDER.fullmatch(token)}
    special = {*tokenizer.all_special_ids, *protected_token_ids(tokenizer).tolist()}
    return np.array(sorted(ids - special), dtype=np.int64)


def mask_tokens(
    input_ids: NDArray[np.int64],
    maskable: NDArray[np.bool_],
    word_starts: NDArray[np.bool_],
    rule: MaskingRule,
    *,
    row_keys: NDArray[np.uint64],
    max_predictions: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Select tokens and hide them.

    A row with n maskable tokens gets min(max_predictions, max(1, round(n * mlm_probability)))
    predictions (0 if n is 0): exactly with unit `token`; with larger units at most so many, as
    close as whole units come.

    Args:
        input_ids: int64 (B, L), padded; not changed.
        maskable: bool (B, L), True where a token may be selected: not special, not padding.
        word_starts: bool (B, L), True where a token begins a word; not read with unit `token`.
        rule: How to select and hide.
        row_keys: uint64 (B,), random key of each row.
        max_predictions: K, most predictions of a row.

    Returns:
        Hidden ids int64 (B, L); labels int64 (B, L), the original id where selected, -100
        elsewhere; masked positions int64 (B, K), ascending, -1 where unused.
    """
    num_maskable = maskable.sum(axis=1)
    wanted = np.rint(num_maskable * rule.mlm_probability).astype(np.int64)
    count = np.minimum(np.clip(wanted, 1, max_predictions), num_maskable)
    # What to show is decided for each token, also within a word (BERT), but once for a whole span.
    decided_at = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
    if rule.unit == "token":
        selected = _select_tokens(maskable, count, row_keys)
    else:
        starts = (maskable & word_starts) | _segment_starts(maskable)
        if rule.unit == "span":
            starts = _span_starts(starts, maskable, row_keys)
        selected, first_of_unit = _select_units(starts, maskable, count, row_keys)
        if rule.unit == "span":
            decided_at = first_of_unit

    rows, columns = np.nonzero(selected)
    originals = input_ids[rows, columns]
    labels = np.full_like(input_ids, IGNORED)
    labels[rows, columns] = originals
    hidden = input_ids.copy()
    hidden[rows, columns] = _replacements(
        originals, rule, keys=row_keys[rows], columns=columns, decided_at=decided_at[rows, columns]
    )

    # Rows are sorted, so the first place where a row occurs numbers its selected tokens from 0.
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    masked_positions = np.full((len(input_ids), max_predictions), -1, dtype=np.int64)
    masked_positions[rows, rank] = columns
    return hidden, labels, masked_positions


def _replacements(
    originals: NDArray[np.int64],
    rule: MaskingRule,
    *,
    keys: NDArray[np.uint64],
    columns: NDArray[np.int64],
    decided_at: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return what to show, int64 (M,): [MASK], a random ordinary token, or the original."""
    action = uniform(keys, Purpose.MASK_ACTION, decided_at)
    drawn = integers(0, len(rule.ordinary_ids), keys, Purpose.REPLACEMENT, columns)
    is_replaced = action < rule.mask_replace_prob + rule.random_replace_prob
    shown = np.where(is_replaced, rule.ordinary_ids[drawn], originals)
    return np.where(action < rule.mask_replace_prob, rule.mask_token_id, shown)


def _select_tokens(
    maskable: NDArray[np.bool_], count: NDArray[np.int64], row_keys: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Select the `count` (B,) maskable tokens of lowest hash in each row; returns bool (B, L)."""
    order = _random_order(row_keys, maskable)
    # The low bits hold the position, so no two keys of a row are equal and the count is exact.
    last = np.maximum(count, 1)[:, None] - 1
    threshold = np.take_along_axis(np.sort(order, axis=1), last, axis=1)
    return np.asarray((order <= threshold) & maskable)


def _random_order(row_keys: NDArray[np.uint64], exists: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return distinct random sort keys uint64 (B, N); places that do not exist come last."""
    num_places = exists.shape[1]
    place_bits = np.uint64(num_places.bit_length())
    places = np.arange(num_places, dtype=np.uint64)
    keys = hash_uint64(row_keys[:, None], Purpose.MASK_ORDER, places)
    keys = (keys >> place_bits << place_bits) | places
    return np.where(exists, keys, np.uint64(0xFFFFFFFFFFFFFFFF))


def _segment_starts(maskable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the first maskable token of each run, bool (B, L): a word starts there in any case."""
    starts = maskable.copy()
    starts[:, 1:] &= ~maskable[:, :-1]
    return starts


def _span_starts(
    starts: NDArray[np.bool_], maskable: NDArray[np.bool_], row_keys: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Return where spans begin, bool (B, L): runs of words of random length.

    Lengths are geometric (stop probability 0.2), truncated at 10 words and renormalised as in
    SpanBERT. A span ends early where a segment ends. SpanBERT draws spans until enough are masked;
    here the whole row is tiled and tiles are drawn.
    """
    num_words = starts.shape[1]
    weights = (1 - _SPAN_STOP_PROB) ** np.arange(_MAX_SPAN_WORDS)
    cumulative = np.cumsum(weights / weights.sum())[:-1]
    draws = uniform(row_keys[:, None], Purpose.SPAN_LENGTH, np.arange(num_words))
    first_words = np.cumsum(np.searchsorted(cumulative, draws, side="right") + 1, axis=1)  # (B, L)
    rows, spans = np.nonzero(first_words < num_words)
    begins_span = np.zeros_like(starts)  # per word of the row, in order
    begins_span[:, 0] = True
    begins_span[rows, first_words[rows, spans]] = True
    word_of_token = np.maximum(np.cumsum(starts, axis=1) - 1, 0)
    begins_here = starts & np.take_along_axis(begins_span, word_of_token, axis=1)
    return begins_here | _segment_starts(maskable)


def _select_units(
    starts: NDArray[np.bool_],
    maskable: NDArray[np.bool_],
    count: NDArray[np.int64],
    row_keys: NDArray[np.uint64],
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Select units, which begin at `starts`, in random order until `count` tokens are reached.

    A unit that would overshoot is skipped (Google's rule). A row whose units are all too long takes
    the beginning of the first one.

    Returns:
        The selected tokens, bool (B, L), and the position of the first token of each token's unit,
        int64 (B, L).
    """
    num_rows, num_tokens = starts.shape
    unit = np.maximum(np.cumsum(starts, axis=1) - 1, 0)  # (B, L), the unit of each token
    flat_unit = unit + np.arange(num_rows)[:, None] * num_tokens
    lengths = np.bincount(flat_unit[maskable], minlength=starts.size).reshape(starts.shape)
    order = np.argsort(_random_order(row_keys, lengths > 0), axis=1)
    lengths_in_order = np.take_along_axis(lengths, order, axis=1)

    room = count.copy()
    taken = np.zeros_like(lengths)  # tokens taken of each unit, in random order
    for place in range(int((lengths > 0).sum(axis=1).max(initial=0))):
        length = lengths_in_order[:, place]
        taken[:, place] = np.where(length <= room, length, 0)
        room -= taken[:, place]
        if not room.any():
            break
    all_too_long = room == count
    taken[all_too_long, 0] = count[all_too_long]

    taken_of_unit = np.zeros_like(taken)
    np.put_along_axis(taken_of_unit, order, taken, axis=1)
    positions = np.arange(num_tokens)
    first_of_unit = np.maximum.accumulate(np.where(starts, positions, 0), axis=1)
    taken_here = np.take_along_axis(taken_of_unit, unit, axis=1)
    return maskable & (positions - first_of_unit < taken_here), first_of_unit
