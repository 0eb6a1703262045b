"""Turn rows of an epoch plan into batches of tensors.

Called by the trainer's loader, in worker processes. Rows of an `EpochPlan` enter; a batch of the
package's contract leaves. Every row is a pure function of (seed, epoch, row), so batches may be
drawn in any grouping, on any number of processes, and again after an interruption.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.text.masking import MaskingRule, mask_tokens
from bert_pretrain.text.pairs import NO_PAIR, EpochPlan
from bert_pretrain.text.prepared import TokenStore


class PretrainingCollator:
    """Read, lay out, mask and pad the rows of a plan.

    A row is `[CLS] A [SEP] B [SEP]` with token type 0 up to the first [SEP] and 1 after it, or
    `[CLS] A [SEP]` with token type 0 where the plan has no B.
    """

    def __init__(
        self,
        store: TokenStore,
        rule: MaskingRule,
        *,
        cls_token_id: int,
        sep_token_id: int,
        pad_token_id: int,
        max_seq_length: int,
        seed: int,
        evaluation: bool = False,
    ) -> None:
        """Keep what every batch needs.

        Args:
            store: The prepared corpus that the plans refer to.
            rule: How tokens are selected and hidden.
            cls_token_id: Id of [CLS].
            sep_token_id: Id of [SEP].
            pad_token_id: Id of [PAD].
            max_seq_length: L, tokens of every row after padding.
            seed: Seed of the run.
            evaluation: Whether masks are the same in every epoch, and another stream than in
                training.
        """
        self.store = store
        self.rule = rule
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.pad_token_id = pad_token_id
        self.max_seq_length = max_seq_length
        self.seed = seed
        self.evaluation = evaluation

    def num_units(self, batch: dict[str, Tensor]) -> int:
        """Return the number of real tokens of a batch."""
        return int(batch["attention_mask"].sum())

    @property
    def max_predictions(self) -> int:
        """K, most masked tokens of a row: what a row full of ordinary tokens would get."""
        return max(1, round(self.max_seq_length * self.rule.mlm_probability))

    def __call__(self, plan: EpochPlan, rows: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Make the batch of the given rows, int64 (B,), of a whole epoch's plan; see `collate`."""
        return self.collate(plan.take(rows), rows, epoch)

    def collate(
        self, instances: EpochPlan, rows: NDArray[np.int64], epoch: int
    ) -> dict[str, Tensor]:
        """Make the batch of some instances.

        Args:
            instances: The B >= 1 instances, as rows taken from the plan of `epoch`.
            rows: int64 (B,), their row numbers in that plan, which decide their masks.
            epoch: Number of the epoch; masks of an evaluation collator do not depend on it.

        Returns:
            int64 tensors: `input_ids`, `token_type_ids`, `attention_mask` (1 = real), `labels`
            (-100 = not predicted), all (B, L); `masked_positions` (B, K), ascending, -1 where
            unused; and, where the plan has pairs, `next_sentence_label` (B,), 0 = B follows A, 1 =
            B is random.
        """
        input_ids, word_starts = self._lay_out(instances)
        # (B, 1) ends compared with (L,) positions; a segment is followed by its [SEP].
        position = np.arange(self.max_seq_length)
        first_sep = 1 + instances.a_length.astype(np.int64)[:, None]
        has_pair = instances.next_sentence_label != NO_PAIR
        last_sep = np.where(
            has_pair[:, None], first_sep + 1 + instances.b_length[:, None], first_sep
        )
        real = position <= last_sep
        maskable = (position > 0) & (position < last_sep) & (position != first_sep)
        hidden, labels, masked_positions = mask_tokens(
            input_ids,
            maskable,
            word_starts,
            self.rule,
            row_keys=self._row_keys(rows, epoch),
            max_predictions=self.max_predictions,
        )
        batch = {
            "input_ids": torch.from_numpy(hidden),
            "token_type_ids": torch.from_numpy((real & (position > first_sep)).astype(np.int64)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "labels": torch.from_numpy(labels),
            "masked_positions": torch.from_numpy(masked_positions),
        }
        if has_pair.any():
            batch["next_sentence_label"] = torch.from_numpy(
                instances.next_sentence_label.astype(np.int64)
            )
        return batch

    def _row_keys(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.uint64]:
        if self.evaluation:
            return hash_uint64(self.seed, Purpose.EVALUATION_ROW, rows)
        return hash_uint64(self.seed, Purpose.TRAINING_ROW, epoch, rows)

    def _lay_out(self, plan: EpochPlan) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return unmasked ids int64 (B, L) and word starts bool (B, L), if the rule needs them."""
        shape = (len(plan), self.max_seq_length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        word_starts = np.zeros(shape, dtype=np.bool_)
        input_ids[:, 0] = self.cls_token_id
        needs_words = self.rule.unit != "token"
        segments = (plan.a_start, plan.a_length, plan.b_start, plan.b_length)
        columns = (column.tolist() for column in segments)
        for row, (a_start, a_length, b_start, b_length) in enumerate(zip(*columns, strict=True)):
            begin = 1
            for start, length in ((a_start, a_length), (b_start, b_length)):
                if length == 0:
                    continue
                end = begin + length
                input_ids[row, begin:end] = self.store.read(start, length)
                input_ids[row, end] = self.sep_token_id
                if needs_words:
                    word_starts[row, begin:end] = self.store.read_word_starts(start, length)
                begin = end + 1
        return input_ids, word_starts
