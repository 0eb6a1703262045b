"""The NT-Xent loss of contrastive learning, as a sum.

It compares the rows of this process (anchors) with those of all processes (candidates, see
`bert_pretrain.data.processes.gather_rows`); summed over processes it is the loss of the joint
batch. The contrastive objective calls it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bert_pretrain.errors import InputError
from bert_pretrain.losses.distances import normalize_rows
from bert_pretrain.losses.precision import in_float32


@dataclass(frozen=True)
class NTXentTerms:
    """The NT-Xent loss of this process's views; all tensors are 0-dim.

    Attributes:
        sum: float32 with gradient, the sum of all terms.
        num_terms: how many there are: two for each image.
        num_correct: int64, views that are more similar to their partner than to any negative.
    """

    sum: Tensor
    num_terms: int
    num_correct: Tensor


@in_float32
def nt_xent_loss(
    views: Tensor,
    candidates: Tensor,
    *,
    view_ids: Tensor,
    candidate_ids: Tensor,
    temperature: float,
) -> NTXentTerms:
    """Find the other view of an image among the views of other images (normalised temperature-scaled cross entropy).

    Each of the 2b views is an anchor. Its term is -log(exp(s+ / T) / (exp(s+ / T) + sum over
    negatives exp(s- / T))) with cosine similarities s; the negatives are both views of every other
    image. All copies of the anchor's own image are left out, however often it occurs. The loss is
    the sum divided by the number of views, 2 per image (the original code adds the two halves up
    instead, twice as much). The positive comes from `views`, not from a place among the candidates,
    so no rank offset can be wrong. Without any negative a term is 0.

    Args:
        views: (b, 2, D), embeddings of the two views of this process's images; normalised here.
        candidates: (N, 2, D), those of all processes, this one's among them.
        view_ids: int64 (b,), which image a row shows.
        candidate_ids: int64 (N,).
        temperature: T, above 0.

    Raises:
        InputError: the temperature is not above 0.

    Source:
        Chen et al. 2020 (SimCLR), equation 1 and algorithm 1.
    """
    if temperature <= 0:
        raise InputError(
            f"temperature is {temperature} but must be above 0",
            advice="SimCLR takes `temperature` 0.1 to 0.5",
        )
    normalized = normalize_rows(views)
    anchors, partners = (
        normalized.flatten(0, 1),
        normalized.flip(1).flatten(0, 1),
    )  # (b, 2, D) -> (2b, D)
    others = normalize_rows(candidates).flatten(0, 1)  # (N, 2, D) -> (2N, D)
    is_own = view_ids.repeat_interleave(2)[:, None] == candidate_ids.repeat_interleave(
        2
    )  # (2b, 2N)
    positive_logits = (anchors * partners).sum(dim=1) / temperature
    negative_logits = (anchors @ others.T / temperature).masked_fill(is_own, -torch.inf)
    logits = torch.cat([positive_logits[:, None], negative_logits], dim=1)  # (2b, 1 + 2N)
    return NTXentTerms(
        sum=(logits.logsumexp(dim=1) - positive_logits).sum(),
        num_terms=2 * len(views),
        num_correct=(positive_logits > negative_logits.amax(dim=1)).sum(),
    )
