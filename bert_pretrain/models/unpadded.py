"""Encoder layers over the real tokens of a padded batch alone.

The states of N tokens, (1, N, D), go through whole layers of transformers as if they were one row.
Only attention keeps the rows of the batch apart: by a kernel that is told where each begins, or by
giving the states their places in rows of equal length, (B, L). `attend_in_rows`, registered with
transformers under `ATTENTION`, does that for layers that are called with a `layout`. What is left
out is padding, and in the last layer the tokens that no loss reads: nothing is approximated. Whole
layers are called as modules, so that the hooks of distributed training, recomputation and compilers
meet them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, BertConfig
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import BertLayer

from bert_pretrain.models.attention_kernels import KERNELS, ROWS, ROWS_WRITTEN_OUT

ATTENTION = "unpadded_rows"  # the name by which transformers knows `attend_in_rows`


@dataclass(frozen=True)
class RowLayout:
    """Where the states of N tokens stand in rows of equal length.

    Attributes:
        num_rows: B.
        row_length: L, places of a row.
        index: int64 (N,), row * L + column of each state, no two alike; None = all places in
            order, N = B * L.
        key_mask: bool (B, 1, 1, L), True = may be attended to; None = all of a row.
        bounds: int32 (S + 1,), where the states of each row begin, for kernels that need no rows of
            equal length; states of padding are rows of their own.
        attention: a name of `attention_kernels`. Attention that is written out in matrix products
            is faster than the fused kernel on a CPU, except for long rows.
    """

    num_rows: int
    row_length: int
    index: Tensor | None
    key_mask: Tensor | None = None
    bounds: Tensor | None = None
    attention: str = ROWS

    def spread(self, states: Tensor) -> Tensor:
        """Put states (N, D) at their places: (B, L, D), 0 elsewhere."""
        if self.index is not None:
            rows = states.new_zeros(self.num_rows * self.row_length, states.shape[-1])
            states = rows.index_copy(0, self.index, states)
        return states.view(self.num_rows, self.row_length, -1)

    def collect(self, rows: Tensor) -> Tensor:
        """Take what stands at the places from rows (B, L, ...): (N, ...)."""
        everything = rows.flatten(0, 1)
        return everything if self.index is None else everything.index_select(0, self.index)


def attend_in_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    layout: RowLayout | None = None,
    query_layout: RowLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend among the tokens of each row, in the form of transformers' attention functions.

    Args:
        module: the attention module.
        query: float (1, H, R, D / H), the states that ask; without `layout` (B, H, L, D / H).
        key: float (1, H, N, D / H), the states that may be attended to.
        value: as `key`.
        attention_mask: of rows, as transformers makes it for its fused kernel; not used with a
            `layout`, which has a mask of its own.
        scaling: factor of the inner products.
        dropout: probability that a weight is dropped.
        layout: where the N states stand; None = the states are rows already.
        query_layout: where the R states that ask stand; None = they are all N.
        kwargs: what transformers passes to other attention functions.

    Returns:
        float (1, R, H, D / H), and None in place of the weights.
    """
    if layout is None:
        context = F.scaled_dot_product_attention(
            query, key, value, attention_mask, dropout, scale=scaling
        )
        return context.transpose(1, 2).contiguous(), None
    query_layout = query_layout or layout
    if layout.attention in KERNELS and dropout == 0:
        assert layout.bounds is not None and query_layout.bounds is not None
        query, key, value = (state[0].transpose(0, 1) for state in (query, key, value))
        context = KERNELS[layout.attention](
            query,  # (R, H, D / H)
            key,
            value,
            query_layout.bounds,
            layout.bounds,
            query_layout.row_length,
            layout.row_length,
        )
        return context[None], None
    query_rows = _heads_in_rows(query, query_layout)
    key_rows, value_rows = _heads_in_rows(key, layout), _heads_in_rows(value, layout)
    mask = layout.key_mask
    if layout.attention == ROWS_WRITTEN_OUT:
        scores = query_rows @ key_rows.transpose(2, 3) * scaling
        if mask is not None:
            lowest = torch.finfo(scores.dtype).min
            scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, lowest)
        context = F.dropout(scores.softmax(dim=-1), dropout) @ value_rows
    else:
        context = F.scaled_dot_product_attention(
            query_rows, key_rows, value_rows, mask, dropout, scale=scaling
        )
    return query_layout.collect(context.transpose(1, 2))[None], None


def _heads_in_rows(states: Tensor, layout: RowLayout) -> Tensor:
    """Put states (1, H, N, D / H) at their places: (B, H, L, D / H)."""
    num_heads = states.shape[1]
    rows = layout.spread(states[0].transpose(0, 1).flatten(1))
    return rows.view(*rows.shape[:2], num_heads, -1).transpose(1, 2)


AttentionInterface.register(ATTENTION, attend_in_rows)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class ReadingLayer(BertLayer):  # type: ignore[misc]  # transformers is untyped here
    """transformers' layer, which can compute its output for some of the tokens only.

    Queries, attention's output and the feed-forward part are computed for the tokens that are read;
    keys and values are still those of every token. Called without `read_index` it is the parent.
    """

    @classmethod
    def taking_over(cls, layer: BertLayer, config: BertConfig) -> ReadingLayer:
        """Return a layer that has the modules of another one, hence its parameters and keys."""
        with torch.device("meta"):  # its own modules are never used
            reading = cls(config)
        for name, module in layer.named_children():
            setattr(reading, name, module)
        return reading

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        read_index: Tensor | None = None,
        query_layout: RowLayout | None = None,
        layout: RowLayout | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the layer's output, for all tokens or for those that are read.

        Args:
            hidden_states: float (1, N, D); without `layout` (B, L, D).
            attention_mask: see `attend_in_rows`.
            args: as the parent's.
            read_index: int64 (R,), which of the N tokens are read; None = all.
            query_layout: where these stand in rows of queries.
            layout: where the N tokens stand in their rows.
            kwargs: as the parent's.

        Returns:
            float (1, R, D).
        """
        if read_index is None:
            output: Tensor = super().forward(
                hidden_states, attention_mask, *args, layout=layout, **kwargs
            )
            return output
        attention = self.attention.self
        asking = hidden_states.index_select(1, read_index)

        def heads_of(states: Tensor) -> Tensor:
            heads = states.view(1, states.shape[1], attention.num_attention_heads, -1)
            return heads.transpose(1, 2)

        context, _ = attend_in_rows(
            attention,
            heads_of(attention.query(asking)),
            heads_of(attention.key(hidden_states)),
            heads_of(attention.value(hidden_states)),
            None,
            scaling=attention.scaling,
            dropout=attention.dropout.p if self.training else 0.0,
            layout=layout,
            query_layout=query_layout,
        )
        output = self.feed_forward_chunk(self.attention.output(context.flatten(2), asking))
        return output
