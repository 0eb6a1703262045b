"""Encoder layers that compute for chosen tokens of a padded batch alone.

States of R tokens, (R, D), enter and leave; only inside attention do they take their places in
rows, (B, S, D). What is left out is padding, nearly all of it, and in the last layer the tokens
that no loss reads: nothing is approximated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.bert.modeling_bert import BertLayer

# A processor's kernels are made for each number of states and kept: numbers are rounded up to
# multiples, so that few occur. Without this nothing was gained at a fill of 85 %.
TOKENS_MULTIPLE = 64
READ_MULTIPLE = 32


@dataclass(frozen=True)
class Places:
    """Where R states belong in rows of equal width.

    Attributes:
        num_rows: B.
        width: S, places of a row.
        index: int64 (R,), row * S + column of each state, no two alike; None = all places in order,
            R = B * S.
    """

    num_rows: int
    width: int
    index: Tensor | None

    def spread(self, states: Tensor) -> Tensor:
        """Put states (R, D) at their places: (B, S, D), 0 elsewhere."""
        if self.index is not None:
            states = states.new_zeros(self.num_rows * self.width, states.shape[-1]).index_copy(
                0, self.index, states
            )
        return states.view(self.num_rows, self.width, -1)

    def collect(self, rows: Tensor) -> Tensor:
        """Take what stands at the places from rows (B, S, ...): (R, ...)."""
        everything = rows.flatten(0, 1)
        return everything if self.index is None else everything.index_select(0, self.index)

    def find(self, positions: Tensor) -> Tensor:
        """Return which of the R states stand at `positions`, int64 (Q,): row * S + column of places that are taken."""
        if self.index is None:
            return positions
        order = positions.new_empty(self.num_rows * self.width)
        order[self.index] = torch.arange(len(self.index), device=self.index.device)
        return order[positions]


def computed_tokens(attention_mask: Tensor | None, labels: Tensor) -> Places:
    """Return the tokens of a batch to compute: the real ones, [CLS], labelled ones, and padding up to a multiple.

    Elsewhere than on a processor all are, since to count them would wait for the device.

    Args:
        attention_mask: (B, L), non-zero = real; None or of more dimensions = all are.
        labels: int64 (B, L), -100 = not labelled.
    """
    num_rows, width = labels.shape
    if attention_mask is None or attention_mask.dim() != 2 or labels.device.type != "cpu":
        return Places(num_rows, width, None)
    is_needed = (attention_mask != 0) | (labels != -100)
    is_needed[:, 0] = True
    index = _first(is_needed.flatten(), TOKENS_MULTIPLE)
    return Places(num_rows, width, index if len(index) < labels.numel() else None)


def _first(is_needed: Tensor, multiple: int) -> Tensor:
    """Return the places where bool (N,) is true, and as many others as make a multiple if there are enough, int64."""
    count = -(-int(is_needed.sum()) // multiple) * multiple
    return is_needed.to(torch.uint8).argsort(descending=True, stable=True)[:count]


@dataclass(frozen=True)
class ReadTokens:
    """The tokens of a batch whose last states a loss reads: [CLS] of all rows, then M masked tokens.

    Attributes:
        columns: int64 (B, 1 + K), where a row's slots read: 0, then its masked columns, 0 where
            unused.
        places: of the B + M tokens among the slots. Unused slots are among the M up to a multiple;
            elsewhere than on a processor all are, since to count them would wait for the device.
        positions: int64 (B + M,), row * L + column of each.
        targets: int64 (M,), the masked tokens' original ids; -100 of an unused slot.
    """

    columns: Tensor
    places: Places
    positions: Tensor
    targets: Tensor


def read_tokens(masked_positions: Tensor, labels: Tensor) -> ReadTokens:
    """Return the tokens that a loss reads.

    Args:
        masked_positions: int64 (B, K), columns, -1 where unused; K may be 0.
        labels: int64 (B, L), original ids.
    """
    columns = F.pad(masked_positions.clamp(min=0), (1, 0))
    num_rows, num_slots = columns.shape
    rows = torch.arange(num_rows, device=labels.device)[:, None]
    index = rows * num_slots + torch.arange(num_slots, device=labels.device)
    is_used = masked_positions >= 0
    targets = labels.gather(1, columns[:, 1:]).masked_fill(~is_used, -100)
    masked_index, targets = index[:, 1:].flatten(), targets.flatten()
    if labels.device.type == "cpu":
        chosen = _first(is_used.flatten(), READ_MULTIPLE)
        masked_index, targets = masked_index[chosen], targets[chosen]
    index = torch.cat([index[:, 0], masked_index])
    positions = (rows * labels.shape[1] + columns).flatten()[index]
    return ReadTokens(columns, Places(num_rows, num_slots, index), positions, targets)


def run_layer(
    layer: BertLayer,
    hidden: Tensor,
    places: Places,
    *,
    queried: Tensor | None = None,
    query_places: Places | None = None,
    mask: Tensor | None,
    written_out: bool,
) -> Tensor:
    """Run an encoder layer over tokens of a batch, for all of them or for some.

    Args:
        layer: transformers' `BertLayer`, whose modules are used as they are.
        hidden: float (N, D), the layer's input: every token that may be attended to.
        places: of these tokens in their rows, (B, L).
        queried: int64 (R,), which of the N tokens to compute the layer for; None = all.
        query_places: of these in rows of queries, (B, S), in any order; to be given with `queried`.
        mask: what may be attended to, as (B, 1 or heads, 1 or S, L): bool, or float to be added to
            the scores; None = all of a row.
        written_out: whether to write attention out rather than to call the fused kernel.

    Returns:
        The layer's output for the tokens asked for, float (R, D): what the whole layer gives there.
    """
    attention = layer.attention.self
    asking = hidden if queried is None else hidden.index_select(0, queried)
    query_places = query_places or places

    def heads_of(states: Tensor, places: Places) -> Tensor:  # (R, D) -> (B, heads, S, D / heads)
        rows = places.spread(states)
        return rows.view(*rows.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)

    query = heads_of(attention.query(asking), query_places)
    key, value = heads_of(attention.key(hidden), places), heads_of(attention.value(hidden), places)
    dropout = attention.dropout.p if attention.training else 0.0
    if written_out:
        scores = query @ key.transpose(2, 3) * attention.scaling
        if (
            mask is not None and mask.dtype is torch.bool
        ):  # small, unlike the scores: cheaper than to fill those
            lowest = torch.finfo(scores.dtype).min
            mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, lowest)
        if mask is not None:
            scores = scores + mask
        context = F.dropout(scores.softmax(dim=-1), dropout) @ value
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, mask, dropout, scale=attention.scaling
        )
    context = query_places.collect(context.transpose(1, 2).flatten(2))
    output: Tensor = layer.feed_forward_chunk(layer.attention.output(context, asking))
    return output
