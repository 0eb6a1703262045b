"""BERT with joint heads that computes only what a pretraining loss reads.

Enters: a batch by the names of transformers (`labels`: -100 ignored; `next_sentence_label`: 0 =
next, 1 = random). Leaves: losses as sums with their counts, or, without labels, exactly what
transformers' class returns. The class adds no parameter: its `state_dict` and configuration are
those of `transformers.BertForPreTraining`, so that what is saved loads with stock transformers.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import BertConfig

from bert_pretrain.models.attention_kernels import ROWS
from bert_pretrain.models.text_losses import PretrainingOutput, pretraining_output
from bert_pretrain.models.unpadded import ATTENTION, ReadingLayer, RowLayout


class BertForPreTraining(transformers.BertForPreTraining):  # type: ignore[misc]
    """transformers' `BertForPreTraining`, many times faster when the batch says what is read.

    Three exact savings, none an approximation: the vocabulary is scored at the labelled positions
    only; the last layer computes queries, attention and feed-forward only for the positions that a
    loss reads (the labelled ones and [CLS]), while keys and values are still those of every token;
    and padding is left out of everything, but for attention's inner products where no kernel can
    do without (see `attention_kernels`).

    Attributes:
        attention: how rows are kept apart, a name of `attention_kernels`.
    """

    def __init__(self, config: BertConfig) -> None:
        """Build the parent's modules; the last layer is one that can read few positions."""
        super().__init__(config)
        self.attention = ROWS
        self.set_attn_implementation(ATTENTION)
        layers = self.bert.encoder.layer
        layers[-1] = ReadingLayer.taking_over(layers[-1], config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        *,
        token_index: Tensor | None = None,
        row_bounds: Tensor | None = None,
        read_index: Tensor | None = None,
        read_slot: Tensor | None = None,
        read_bounds: Tensor | None = None,
        masked_reads: Tensor | None = None,
        masked_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> PretrainingOutput | transformers.modeling_outputs.ModelOutput | tuple[Tensor, ...]:
        """Compute the losses, or with neither kind of label all logits, as the parent class does.

        Args:
            input_ids: int64 (B, L), after masking.
            attention_mask: int64 or bool (B, L), 1 = real.
            token_type_ids: int64 (B, L), 0 = first segment, 1 = second.
            position_ids: int64 (B, L) or (1, L); default 0 .. L-1.
            labels: int64 (B, L), the original id where a token is to be predicted, -100 elsewhere.
            next_sentence_label: int64 (B,), 0 = B follows A, 1 = random, -100 = not judged.
            token_index: int64 (N,), row * L + column of each token to compute: all real ones and
                perhaps some padding; None, together with `read_index`, = every token is real, and
                `attention_mask` is not looked at.
            row_bounds: int32 (S + 1,), where among the N tokens each row begins, and pieces of
                padding after them, S >= B; this and all that follows, but for `masked_positions`,
                as the collator's `computed_tokens` makes it.
            read_index: int64 (R,), which of these tokens a loss reads, row after row: [CLS], then
                the labelled ones, perhaps filled up with [CLS]. None = every position is scored,
                which is many times slower.
            read_slot: int64 (R,), row * (1 + K) + slot of each in rows of queries, no two alike.
            read_bounds: int32 (S + 1,), where among the R each row begins.
            masked_reads: int64 (R - B,), those of the R that are not their row's first.
            masked_positions: int64 (B, K); only K counts, the most labelled tokens of a row.
            kwargs: passed to the parent class when there are no labels; else `return_dict`.

        Returns:
            `PretrainingOutput` when at least one kind of label is given (the other loss is then
            0 over 0), else transformers' `BertForPreTrainingOutput` with full logits.
        """
        inputs = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        if labels is None and next_sentence_label is None:
            return super().forward(attention_mask=attention_mask, **inputs, **kwargs)
        assert input_ids is not None
        if labels is None:
            labels = torch.full_like(input_ids, -100)
        if read_index is None:
            states = self.bert(attention_mask=attention_mask, **inputs).last_hidden_state
            first, masked, targets = states[:, 0], states.flatten(0, 1), labels.flatten()
        else:
            assert read_slot is not None and masked_positions is not None
            assert read_bounds is not None and masked_reads is not None
            num_rows, row_length = input_ids.shape
            key_mask = None
            if token_index is not None and attention_mask is not None:
                key_mask = attention_mask.bool()[:, None, None]
            layout = RowLayout(
                num_rows, row_length, token_index, key_mask, row_bounds, self.attention
            )
            num_slots = 1 + masked_positions.shape[1]
            queries = RowLayout(num_rows, num_slots, read_slot, bounds=read_bounds)
            states = self._encode(inputs, layout, read_index, queries)  # (R, D)
            first = states.index_select(0, read_bounds[:num_rows])
            masked = states.index_select(0, masked_reads)
            places = read_index if token_index is None else token_index[read_index]
            targets = labels.flatten()[places[masked_reads]]
        output = pretraining_output(
            self.cls.predictions(masked),
            targets,
            self.cls.seq_relationship(self.bert.pooler(first[:, None])),
            next_sentence_label,
        )
        return output if kwargs.get("return_dict", True) else output.to_tuple()

    def _encode(
        self,
        inputs: dict[str, Tensor | None],
        layout: RowLayout,
        read_index: Tensor,
        queries: RowLayout,
    ) -> Tensor:
        """Return the last layer's states of the tokens that are read, (R, D)."""
        positions = inputs["position_ids"]
        if positions is None:
            positions = self.bert.embeddings.position_ids[:, : layout.row_length]
        inputs["position_ids"] = positions.expand(layout.num_rows, -1)
        collected = {
            name: layout.collect(value)[None] for name, value in inputs.items() if value is not None
        }
        hidden = self.bert.embeddings(**collected)  # (1, N, D)
        *layers, last = self.bert.encoder.layer
        for layer in layers:
            hidden = layer(hidden, layout=layout)
        read: Tensor = last(hidden, layout=layout, read_index=read_index, query_layout=queries)
        return read[0]
