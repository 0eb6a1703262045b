"""Turn rows of an epoch plan into batches of tensors, in worker processes if wanted.

A batch also says which of its tokens are real and which a loss reads: here this costs nothing,
while a device would have to search for it. Every row is a pure function of (seed, epoch, row), so
batches may be made in any grouping, on any number of processes, and again after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.data.stream import Part
from bert_pretrain.text.layout import RowLayout, RowLayouts
from bert_pretrain.text.masking import MaskingRule, mask_tokens
from bert_pretrain.text.pairs import EpochPlan
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.windows import NO_PAIR

# Numbers of computed and of read tokens are rounded up to multiples, so that few shapes occur: a
# kernel is made for each and kept. Without this nothing was gained at a fill of 85 %.
MIN_TOKENS_MULTIPLE = 64
MAX_TOKEN_SHAPES = 64  # of full batches
READ_MULTIPLE = 32
WIDTH_MULTIPLE = 8  # of cut batches


class _Rows(NamedTuple):
    """Rows before masking, all (B, L): int64, then bool; `is_text` is True in a segment."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    word_starts: NDArray[np.bool_]
    is_text: NDArray[np.bool_]


@dataclass(eq=False)
class PretrainingCollator:
    """Read, lay out, mask and pad the rows of a plan.

    A row is laid out as the tokenizer does it, such as BERT's `[CLS] A [SEP] B [SEP]`, and `[CLS] A
    [SEP]` where the plan has no B.

    Attributes:
        store: The prepared corpus that the plans refer to.
        layouts: Of rows with one segment and with two.
        evaluation: Whether masks are the same in every epoch, and another stream than in training;
            they have the rate of the end of a run.
        few_shapes: Whether few shapes matter more than a few per cent of padding that is computed,
            as to a compiler, which takes up to a minute for each.
        cuts_padding: Whether a batch ends with its longest row, for models that compute padding.
    """

    unit = "tokens"

    store: TokenStore
    rule: MaskingRule
    _: KW_ONLY
    layouts: RowLayouts
    pad_token_id: int
    seed: int
    evaluation: bool = False
    few_shapes: bool = False
    cuts_padding: bool = False

    def num_units(self, batch: dict[str, Tensor]) -> int:
        """Return the number of real tokens of a batch."""
        return int(batch["attention_mask"].sum())

    def collate(self, parts: Sequence[Part], progress: float = 0.0) -> dict[str, Tensor]:
        """Make the batch of some rows.

        Args:
            parts: rows of one epoch or of several: (epoch, int64 row numbers, these rows of the
                epoch's plan); plans of one row length L.
            progress: share of the run that lies behind, in [0, 1], which the rate of masking may
                follow.

        Returns:
            int64 tensors: `input_ids`, `token_type_ids`, `attention_mask` (1 = real), `labels`
            (-100 = not predicted), all (B, L) or cut; `masked_positions` (B, K), ascending, -1
            where unused; `next_sentence_label` (B,), 0 = B follows A, 1 = B is random, -100 = no
            pair, where rows are pairs; and what spares `BertForPreTraining` a search on the device,
            see `computed_tokens`.
        """
        rule = self.rule.at(1.0 if self.evaluation else progress)
        made = [self._rows(epoch, rows, plan, rule) for epoch, rows, plan in parts]
        batch = made[0]
        if len(made) > 1:
            batch = {name: np.concatenate([part[name] for part in made]) for name in batch}
        # A batch without any pair keeps its labels where others have pairs: every process calls the
        # model alike, and its head for pairs has a gradient, which is then zero.
        if not parts[0][2].with_pairs:
            del batch["next_sentence_label"]
        if self.cuts_padding and not self.few_shapes:
            longest = _round_up(int(batch["attention_mask"].sum(axis=1).max()), WIDTH_MULTIPLE)
            for name in ("input_ids", "token_type_ids", "attention_mask", "labels"):
                batch[name] = np.ascontiguousarray(batch[name][:, :longest])
        indices = computed_tokens(
            batch["attention_mask"],
            batch["masked_positions"],
            # Fewer rows vary more in their number of tokens.
            num_shapes=min(16, max(8, len(batch["input_ids"]) // 8))
            if self.few_shapes
            else MAX_TOKEN_SHAPES,
            has_static_reads=self.few_shapes,
        )
        arrays = (*batch.items(), *indices.items())
        return {name: torch.from_numpy(array) for name, array in arrays}

    def _rows(
        self, epoch: int, rows: NDArray[np.int64], plan: EpochPlan, rule: MaskingRule
    ) -> dict[str, NDArray[np.int64]]:
        """Return the columns of a batch for rows of one epoch."""
        made = self._lay_out(plan)
        maskable = made.is_text & ~np.isin(made.input_ids, rule.protected_ids)
        if self.evaluation:
            row_keys = hash_uint64(self.seed, Purpose.EVALUATION_ROW, rows)
        else:
            row_keys = hash_uint64(self.seed, Purpose.TRAINING_ROW, epoch, rows)
        hidden, labels, masked_positions = mask_tokens(
            made.input_ids,
            maskable,
            made.word_starts,
            rule,
            row_keys=row_keys,
            # What a row full of ordinary tokens would get where the rate is highest.
            max_predictions=max(1, round(plan.row_length * self.rule.highest_rate)),
        )
        return {
            "input_ids": hidden,
            "token_type_ids": made.token_type_ids,
            "attention_mask": made.attention_mask,
            "labels": labels,
            "masked_positions": masked_positions,
            "next_sentence_label": plan.next_sentence_label.astype(np.int64),
        }

    def _lay_out(self, plan: EpochPlan) -> _Rows:
        """Return the rows of a plan before masking; word starts only if the rule needs them."""
        shape = (len(plan), plan.row_length)
        made = _Rows(
            input_ids=np.full(shape, self.pad_token_id, dtype=np.int64),
            token_type_ids=np.zeros(shape, dtype=np.int64),
            attention_mask=np.zeros(shape, dtype=np.int64),
            word_starts=np.zeros(shape, dtype=np.bool_),
            is_text=np.zeros(shape, dtype=np.bool_),
        )
        has_pair = plan.next_sentence_label != NO_PAIR
        segments = [(plan.a_start, plan.a_length), (plan.b_start, plan.b_length)]
        for layout, is_so in ((self.layouts.single, ~has_pair), (self.layouts.pair, has_pair)):
            if len(rows := np.flatnonzero(is_so)):
                of_rows = [(start[rows], length[rows]) for start, length in segments]
                self._fill(made, rows, layout, of_rows[: len(layout.segment_types)])
        return made

    def _fill(
        self,
        made: _Rows,
        rows: NDArray[np.int64],
        layout: RowLayout,
        segments: list[tuple[NDArray[np.int64], NDArray[np.int32]]],
    ) -> None:
        """Lay out rows of one layout, given the starts and lengths of their segments, each (R,)."""
        position = np.arange(made.input_ids.shape[1])
        place = np.zeros((len(rows), 1), dtype=np.int64)  # where the next part begins
        specials = zip(layout.special_ids, layout.special_types, strict=True)
        for number, (ids, types) in enumerate(specials):
            columns = place + np.arange(len(ids))
            made.input_ids[rows[:, None], columns] = ids
            made.token_type_ids[rows[:, None], columns] = types
            place = place + len(ids)
            if number == len(segments):
                break
            starts, lengths = segments[number]
            is_here = (position >= place) & (position < place + lengths[:, None])
            made.is_text[rows] |= is_here
            made.token_type_ids[rows] += layout.segment_types[number] * is_here
            self._read(made, rows, place[:, 0], starts, lengths)
            place = place + lengths[:, None]
        made.attention_mask[rows] = position < place

    def _read(self, made: _Rows, rows: NDArray[np.int64], *segments: NDArray[Any]) -> None:
        """Read segments, given where each begins in its row, its start and length, each (R,)."""
        needs_words = self.rule.unit != "token"
        columns = (column.tolist() for column in (rows, *segments))
        for row, begin, start, length in zip(*columns, strict=True):
            end = begin + length
            made.input_ids[row, begin:end] = self.store.read(start, length)
            if needs_words:
                made.word_starts[row, begin:end] = self.store.read_word_starts(start, length)


def computed_tokens(
    attention_mask: NDArray[np.int64],
    masked_positions: NDArray[np.int64],
    *,
    num_shapes: int = MAX_TOKEN_SHAPES,
    has_static_reads: bool = False,
) -> dict[str, NDArray[np.integer[Any]]]:
    """Return which tokens of a batch are to be computed, and which of them a loss reads.

    Args:
        attention_mask: (B, L), 1 = real, padding last; [CLS] is real.
        masked_positions: (B, K), columns, -1 where unused.
        num_shapes: most values of N among batches of B rows.
        has_static_reads: whether R follows from N and the sizes, for compiled models.

    Returns:
        `token_index` (N,): row * L + column of the real tokens in order, then of as much padding
        as makes a multiple; left out if all tokens are real. `row_bounds` int32 (B + P + 1,): where
        among the N each row begins, then each of P pieces of at most L that the padding is cut
        into, and the end. `read_index` (R,): which of the N are read, row after row: [CLS], then
        the masked ones, then perhaps unused slots, which read [CLS]. `read_slot` (R,): row * (1 +
        K) + slot of each. `read_bounds` int32 (B + P + 1,): where among the R each row begins.
        `masked_reads` (R - B,): those of the R that are not a row's [CLS].
    """
    num_rows, row_length = attention_mask.shape
    lengths = attention_mask.sum(axis=1)
    num_places, num_real = attention_mask.size, int(lengths.sum())
    multiple = num_places // num_shapes // MIN_TOKENS_MULTIPLE * MIN_TOKENS_MULTIPLE
    multiple = max(MIN_TOKENS_MULTIPLE, multiple)
    num_tokens = min(_round_up(num_real, multiple), num_places)
    index = _first(attention_mask.ravel() != 0, num_tokens)
    found: dict[str, NDArray[np.integer[Any]]] = {}
    if num_real < num_places:
        found["token_index"] = index
    num_pieces = -(-multiple // row_length)
    ends_of_pieces = num_real + row_length * np.arange(1, num_pieces + 1)
    ends = np.concatenate([[0], np.cumsum(lengths), np.minimum(ends_of_pieces, num_tokens)])
    found["row_bounds"] = ends.astype(np.int32)

    num_slots = 1 + masked_positions.shape[1]
    num_read = num_rows + _round_up(int((masked_positions >= 0).sum()), READ_MULTIPLE)
    if has_static_reads:
        # No row has more masked tokens than its share of K, half a token and one.
        per_token = (num_slots - 0.5) / row_length
        num_read = num_rows + _round_up(int(num_tokens * per_token) + num_rows, READ_MULTIPLE)
    read_slot = _slots_to_read(masked_positions, num_read)
    row, slot = np.divmod(read_slot, num_slots)
    column = np.where(slot > 0, masked_positions[row, slot - 1], 0).clip(min=0)
    place_of_token = np.empty(num_places, dtype=np.int64)
    place_of_token[index] = np.arange(num_tokens)
    bounds = np.full(len(ends), len(read_slot))
    bounds[:num_rows] = np.flatnonzero(slot == 0)
    return found | {
        "read_index": place_of_token[row * row_length + column],
        "read_slot": read_slot,
        "read_bounds": bounds.astype(np.int32),
        "masked_reads": np.flatnonzero(slot > 0),
    }


def _slots_to_read(masked_positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return which slots, row * (1 + K) + slot, a loss reads, ascending and `count` at most.

    Slot 0 of a row is its [CLS]; the others are those of `masked_positions` (B, K). Unused ones
    fill up.
    """
    is_read = np.pad(masked_positions >= 0, ((0, 0), (1, 0)), constant_values=True)
    return np.sort(_first(is_read.ravel(), count))


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _first(is_wanted: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Return where bool (N,) is true, and of the other places the first, `count` in all or N."""
    return np.argsort(~is_wanted, kind="stable")[:count]
