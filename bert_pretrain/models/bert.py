"""BERT with joint heads that computes only what a pretraining loss reads.

Enters: a batch by the names of transformers (`labels`: -100 ignored; `next_sentence_label`: 0 =
next, 1 = random). Leaves: losses as sums with their counts, or, without labels, exactly what
transformers' class returns. The class adds no parameter: its `state_dict` and configuration are
those of `transformers.BertForPreTraining`, so that what is saved loads with stock transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import BertConfig
from transformers.modeling_outputs import ModelOutput

from bert_pretrain.losses.cross_entropy import summed_cross_entropy
from bert_pretrain.models.real_tokens import (
    Places,
    ReadTokens,
    computed_tokens,
    read_tokens,
    run_layer,
)

# Devlin et al. 2019 (base, large) and Turc et al. 2019 (the compact models): layers, width. Heads
# are always 64 wide. `micro` is the one of Turc's grid that learns most in a few minutes on a
# processor; it has no name there.
SIZES = {
    "tiny": (2, 128),
    "micro": (2, 256),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


def bert_config(size: str, *, vocab_size: int, pad_token_id: int, **overrides: Any) -> BertConfig:
    """Return the configuration of a published BERT size.

    Args:
        size: a key of `SIZES`.
        vocab_size: rows of the embedding table.
        pad_token_id: id whose embedding stays zero.
        overrides: further `BertConfig` fields.

    Returns:
        A `BertConfig` with 512 positions and two token types.
    """
    num_hidden_layers, hidden_size = SIZES[size]
    fields = {
        "vocab_size": vocab_size,
        "pad_token_id": pad_token_id,
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": hidden_size // 64,
        "intermediate_size": 4 * hidden_size,
    }
    return BertConfig(**(fields | overrides))


@dataclass
class BertPretrainingOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """Losses as sums with the counts that turn them into means; every field is a 0-dim tensor unless stated.

    Attributes:
        loss: what to minimise in a plain loop: mean MLM loss + mean NSP loss, float32, 0 where
            nothing is labelled.
        mlm_loss: cross entropy summed over the labelled positions, nats, float32.
        mlm_count: number of labelled positions, int64.
        mlm_correct: how many of them the most probable token gets right, int64.
        nsp_loss: cross entropy summed over the labelled pairs, nats, float32.
        nsp_count: number of labelled pairs, int64.
        nsp_correct: how many of them are classified right, int64.
        seq_relationship_logits: float (B, 2), [is next, is random].
    """

    # A ModelOutput's fields need defaults; `forward` sets them all.
    loss: Tensor = None  # type: ignore[assignment]
    mlm_loss: Tensor = None  # type: ignore[assignment]
    mlm_count: Tensor = None  # type: ignore[assignment]
    mlm_correct: Tensor = None  # type: ignore[assignment]
    nsp_loss: Tensor = None  # type: ignore[assignment]
    nsp_count: Tensor = None  # type: ignore[assignment]
    nsp_correct: Tensor = None  # type: ignore[assignment]
    seq_relationship_logits: Tensor = None  # type: ignore[assignment]


class BertForPreTraining(transformers.BertForPreTraining):  # type: ignore[misc]
    """transformers' `BertForPreTraining`, many times faster when there are labels.

    Three exact savings, none an approximation: the vocabulary is scored at the labelled positions
    only; the last layer computes queries, attention and feed-forward only for the positions that a
    loss reads (the labelled ones and [CLS]), while keys and values are still those of every token;
    and on a processor padding is left out of everything but attention's inner products.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        masked_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> BertPretrainingOutput | transformers.modeling_outputs.ModelOutput | tuple[Tensor, ...]:
        """Compute the losses, or with neither kind of label all logits, as the parent class does.

        Args:
            input_ids: int64 (B, L), after masking.
            attention_mask: int64 or bool (B, L), 1 = real; or a 4-D mask as transformers takes
                them.
            token_type_ids: int64 (B, L), 0 = first segment, 1 = second.
            position_ids: int64 (B, L) or (1, L); default 0 .. L-1.
            inputs_embeds: float (B, L, D) in place of `input_ids`.
            labels: int64 (B, L), the original id where a token is to be predicted, -100 elsewhere.
            next_sentence_label: int64 (B,), 0 = B follows A, 1 = random, -100 = not judged.
            masked_positions: int64 (B, K), the columns where `labels` is not -100, filled up with
                -1. Optional: it spares the search for them, which on a GPU waits for the device.
            num_items_in_batch: number of labelled positions of the whole accumulation window, as
                transformers' `Trainer` passes it. The losses of the micro-batches of a window then
                add up to the loss of one large batch: MLM exactly, NSP weighted by each
                micro-batch's share of the labelled positions (the Trainer does not say how many
                pairs there are; equal shares make it exact too). Stock BERT ignores it, which
                multiplies loss and gradient by the number of micro-batches.
            kwargs: passed to the parent class when there are no labels; else `return_dict`.

        Returns:
            `BertPretrainingOutput` when at least one kind of label is given (the other loss is then
            0 over 0), else transformers' `BertForPreTrainingOutput` with full logits.
        """
        if labels is None and next_sentence_label is None:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
        if labels is None:
            embedded = inputs_embeds if input_ids is None else input_ids
            assert embedded is not None
            labels = embedded.new_full(embedded.shape[:2], -100, dtype=torch.int64)
        if masked_positions is None:
            masked_positions = find_masked_positions(labels)
        tokens = computed_tokens(attention_mask, labels)
        read = read_tokens(masked_positions, labels)
        hidden = self._encode(
            tokens, read, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        first, masked = hidden.tensor_split([len(labels)])  # (B, D) and (M, D)
        output = BertPretrainingOutput()
        output.mlm_loss, output.mlm_correct = summed_cross_entropy(
            self.cls.predictions(masked), read.targets
        )
        output.mlm_count = (read.targets != -100).sum()
        output.seq_relationship_logits = self.cls.seq_relationship(self.bert.pooler(first[:, None]))
        self._add_nsp_loss(output, next_sentence_label)
        output.loss = _total_loss(output, num_items_in_batch)
        return output if kwargs.get("return_dict", True) else output.to_tuple()

    def _encode(
        self,
        tokens: Places,
        read: ReadTokens,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """Return the last layer's states of the tokens that are read, (B + M, D)."""
        if position_ids is None:
            position_ids = self.bert.embeddings.position_ids[:, : tokens.width]
        inputs = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids.expand(tokens.num_rows, -1),
            "inputs_embeds": inputs_embeds,
        }
        collected = {
            key: tokens.collect(value)[None] for key, value in inputs.items() if value is not None
        }
        hidden = self.bert.embeddings(**collected)[0]  # (N, D)
        mask = attention_mask
        if mask is not None and mask.dim() == 2:
            mask = mask.bool()[:, None, None, :]
            if mask.device.type == "cpu" and mask.all():
                mask = None  # the fused kernel is faster without
        run = partial(
            run_layer, places=tokens, written_out=self.config._attn_implementation == "eager"
        )
        *layers, last = self.bert.encoder.layer
        for layer in layers:
            whole = partial(run, layer, mask=mask)
            if layer.gradient_checkpointing and layer.training:
                hidden = layer._gradient_checkpointing_func(whole, hidden)
            else:
                hidden = whole(hidden)
        if mask is not None and mask.shape[2] > 1:  # one row per query
            every_query = read.columns[:, None, :, None].expand(
                -1, mask.shape[1], -1, mask.shape[3]
            )
            mask = mask.expand(tokens.num_rows, -1, -1, -1).gather(2, every_query)
        return run(
            last, hidden, queried=tokens.find(read.positions), query_places=read.places, mask=mask
        )

    @staticmethod
    def _add_nsp_loss(output: BertPretrainingOutput, next_sentence_label: Tensor | None) -> None:
        logits = output.seq_relationship_logits.float()
        if next_sentence_label is None:
            next_sentence_label = torch.full(logits.shape[:1], -100, device=logits.device)
        next_sentence_label = next_sentence_label.view(-1)
        output.nsp_loss = F.cross_entropy(
            logits, next_sentence_label, ignore_index=-100, reduction="sum"
        )
        output.nsp_count = (next_sentence_label != -100).sum()
        output.nsp_correct = (logits.detach().argmax(-1) == next_sentence_label).sum()


def find_masked_positions(labels: Tensor) -> Tensor:
    """Return the columns of `labels` (int64, (B, L)) that are not -100 as int64 (B, K), filled up with -1.

    K is the largest number of labelled columns in a row; at least 0.
    """
    is_masked = labels != -100
    num_masked = is_masked.sum(1)
    max_masked = int(num_masked.max()) if len(labels) else 0
    # Stable: labelled columns first, in order.
    order = is_masked.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :max_masked]
    unused = torch.arange(max_masked, device=labels.device) >= num_masked[:, None]
    return order.masked_fill(unused, -1)


def _total_loss(output: BertPretrainingOutput, num_items_in_batch: Tensor | int | None) -> Tensor:
    mlm_mean = output.mlm_loss / output.mlm_count.clamp(min=1)
    nsp_mean = output.nsp_loss / output.nsp_count.clamp(min=1)
    if num_items_in_batch is None:
        return mlm_mean + nsp_mean
    share = output.mlm_count / num_items_in_batch
    return share * (mlm_mean + nsp_mean)
