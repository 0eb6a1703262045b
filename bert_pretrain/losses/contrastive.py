"""The losses of contrastive learning, triplet and NT-Xent, as sums.

They compare the rows of this process (anchors) with those of all processes (candidates). Summed
over processes they are the loss of the joint batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from bert_pretrain.losses.distances import (
    Distance,
    distance_matrix,
    in_float32,
    normalize_rows,
    pairwise_distance,
)

Negatives: TypeAlias = Literal["random", "semi_hard", "hard", "all"]
Reduction: TypeAlias = Literal["mean", "mean_positive"]


@dataclass(frozen=True)
class TripletTerms:
    """The triplet loss of this process's anchors, and its parts; all tensors are 0-dim.

    Attributes:
        sum: float32 with gradient, the sum of all terms.
        num_terms: int64, how many there are: anchors, or with negatives `all` pairs of an anchor
            and a negative.
        num_active: int64, those above zero.
        positive_distance, negative_distance: float32 without gradient, the sums over terms of the
            distance from the positive and from the negative.
    """

    sum: Tensor
    num_terms: Tensor
    num_active: Tensor
    positive_distance: Tensor
    negative_distance: Tensor


@in_float32
def triplet_loss(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    *,
    anchor_ids: Tensor,
    candidate_ids: Tensor,
    margin: float,
    distance: Distance,
    negatives: Negatives,
    offsets: Tensor | None = None,
) -> TripletTerms:
    """Pull the two views of an image together until other images are farther away by a margin.

    A term is max(d(e1, e1') - d(e1, e2) + margin, 0) with the anchor e1, the other view e1' of the
    same image, and e2 of another image. Which e2:

    - `random`: one of the negatives, each with the same probability (the classic formula).
    - `semi_hard`: the closest negative that is farther away than the positive; where there is none
      the farthest negative (as TensorFlow's addon). To drop such anchors, as others do, would drop
      those that err most, and show a collapse as a perfect loss of 0 instead of the margin.
    - `hard`: the closest negative. Known to collapse in self-supervised training.
    - `all`: every negative, a term each.

    An anchor without any negative contributes nothing and is not counted.

    Args:
        anchors: (b, D), e1 of this process's images, taken as they are (see `normalize_rows`).
        positives: (b, D), e1', their other views.
        candidates: (N, D), the gathered anchors, to draw e2 from. If they were the positives, `all`
            would make every embedding a positive and a negative equally often, and the gradient of
            `l2`, too, would vanish where all embeddings are equal.
        anchor_ids: int64 (b,), which image a row shows; an image is never its own negative, however
            often it occurs.
        candidate_ids: int64 (N,).
        margin: above 0, in units of the distance.
        distance: see `pairwise_distance`.
        negatives: which negatives make terms.
        offsets: int64 (b,), for `random`: uniform in [0, 2^62), decide which negative is taken,
            counted in the order of the candidates.

    Source:
        Schroff et al. 2015 (FaceNet), equation 1 and section 3.2, where d is `l2_squared` of
        normalised rows.
    """
    assert margin > 0, "equal embeddings would be a perfect solution"
    is_negative = anchor_ids[:, None] != candidate_ids  # (b, N)
    positive = pairwise_distance(anchors, positives, distance)
    if negatives == "all":
        is_term = is_negative
        positive = positive[:, None]
        negative = distance_matrix(anchors, candidates, distance)
    else:
        is_term = is_negative.any(dim=1)
        chosen = choose_negatives(
            anchors, positive, candidates, is_negative, distance, negatives, offsets
        )
        negative = pairwise_distance(anchors, candidates[chosen], distance)
    # Set to zero: an index of what counts would wait for the device, and cut the graph when nothing
    # is left.
    losses = torch.where(is_term, torch.relu(positive - negative + margin), 0.0)
    return TripletTerms(
        sum=losses.sum(),
        num_terms=is_term.sum(),
        num_active=(losses > 0).sum(),
        positive_distance=torch.where(is_term, positive, 0.0).sum().detach(),
        negative_distance=torch.where(is_term, negative, 0.0).sum().detach(),
    )


@torch.no_grad()
def choose_negatives(
    anchors: Tensor,
    positive_distance: Tensor,
    candidates: Tensor,
    is_negative: Tensor,
    distance: Distance,
    negatives: Negatives,
    offsets: Tensor | None,
) -> Tensor:
    """Return a candidate's index for each anchor, int64 (b,); any where it has no negative.

    `positive_distance` is float (b,), `is_negative` bool (b, N), `negatives` not `all`; for the
    rest see `triplet_loss`.
    """
    if negatives == "random":
        assert offsets is not None, "random negatives need offsets"
        number = offsets % is_negative.sum(dim=1).clamp(min=1)
        is_before = is_negative.cumsum(dim=1) <= number[:, None]  # before that negative, (b, N)
        return is_before.sum(dim=1).clamp(max=len(candidates) - 1)
    distances = distance_matrix(anchors, candidates, distance)
    if negatives == "hard":
        return distances.masked_fill(~is_negative, torch.inf).argmin(dim=1)
    is_semi_hard = is_negative & (distances > positive_distance[:, None])
    closest = distances.masked_fill(~is_semi_hard, torch.inf).argmin(dim=1)
    farthest = distances.masked_fill(~is_negative, -torch.inf).argmax(dim=1)
    return torch.where(is_semi_hard.any(dim=1), closest, farthest)


def reduction_factor(reduction: Reduction, *, num_terms: Tensor, num_active: Tensor) -> Tensor:
    """Return the factor (float32 0-dim) by which a sum / `num_terms` becomes the wanted mean.

    `mean` is over all terms, `mean_positive` over those above zero: then the gradient does not fade
    as more and more triplets are satisfied. The counts, 0-dim, are over all processes.
    """
    if reduction == "mean":
        return torch.ones((), device=num_terms.device)
    return num_terms.float() / num_active.clamp(min=1)


@in_float32
def nt_xent_loss(
    views: Tensor,
    candidates: Tensor,
    *,
    view_ids: Tensor,
    candidate_ids: Tensor,
    temperature: float,
    num_negatives: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the other view of an image among the views of other images.

    Each of the 2b views is an anchor. Its term is -log(exp(s+ / T) / (exp(s+ / T) + sum over
    negatives exp(s- / T))) with cosine similarities s; the negatives are both views of every other
    image. All copies of the anchor's own image are left out, however often it occurs. Without any
    negative a term is 0.

    Args:
        views: (b, 2, D), embeddings of the two views of this process's images; normalised here.
        candidates: (N, 2, D), those of all processes, this one's among them.
        view_ids: int64 (b,), which image a row shows.
        candidate_ids: int64 (N,).
        temperature: T, above 0; SimCLR takes 0.1 to 0.5.
        num_negatives: let the negatives of an anchor weigh as so many that are like them, so that
            losses over batches of different sizes are of one scale: where all embeddings are equal
            a term is log(1 + num_negatives). None = as many as there are.

    Returns:
        The sum of the 2b terms, float32 0-dim, and how many views are more similar to their partner
        than to any negative, int64 0-dim.

    Source:
        Chen et al. 2020 (SimCLR), equation 1 and algorithm 1.
    """
    normalized = normalize_rows(views)
    anchors = normalized.flatten(0, 1)  # (b, 2, D) -> (2b, D)
    partners = normalized.flip(1).flatten(0, 1)
    others = normalize_rows(candidates).flatten(0, 1)  # (N, 2, D) -> (2N, D)
    view_ids, candidate_ids = (ids.repeat_interleave(2) for ids in (view_ids, candidate_ids))
    is_own = view_ids[:, None] == candidate_ids  # (2b, 2N)
    return _classify(anchors, partners, others, is_own, temperature, num_negatives)


@in_float32
def local_nt_xent_loss(
    local_views: Tensor,
    views: Tensor,
    candidates: Tensor,
    *,
    view_ids: Tensor,
    candidate_ids: Tensor,
    temperature: float,
    num_negatives: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Find each view of full size of an image among those of other images, by its local views.

    A pair is a local view l and a view g of full size of the same image. Its term is that of
    `nt_xent_loss` with the anchor l, the positive g and the same negatives: both views of full size
    of every other image. Local views are nobody's negatives, so that all anchors have as many.

    Args:
        local_views: (b, N, D), embeddings of the local views of this process's images.
        views: (b, 2, D), those of their views of full size.
        candidates: see `nt_xent_loss`, as for the others.
        view_ids: int64 (b,).
        candidate_ids: int64 (all images,).
        temperature: above 0.
        num_negatives: see there.

    Returns:
        The sum of the 2bN terms, float32 0-dim, and how many pairs are more similar than the local
        view is to any negative, int64 0-dim.

    Source:
        Caron et al. 2020 (SwAV), section 3.2 and appendix on SimCLR with multi-crop.
    """
    num_local = local_views.shape[1]
    anchors = normalize_rows(local_views).flatten(0, 1)  # (b, N, D) -> (bN, D)
    partners = normalize_rows(views).repeat_interleave(num_local, dim=0)  # (bN, 2, D)
    others = normalize_rows(candidates).flatten(0, 1)
    view_ids = view_ids.repeat_interleave(num_local)
    is_own = view_ids[:, None] == candidate_ids.repeat_interleave(2)  # (bN, 2 * all images)
    parts = [
        _classify(anchors, partner, others, is_own, temperature, num_negatives)
        for partner in partners.unbind(dim=1)
    ]
    totals, found = zip(*parts, strict=True)
    return sum(totals[1:], totals[0]), sum(found[1:], found[0])


def _classify(
    anchors: Tensor,
    partners: Tensor,
    others: Tensor,
    is_left_out: Tensor,
    temperature: float,
    num_negatives: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of finding each anchor's partner, a sum, and how many are found.

    Rows (b, D), (b, D) and (N, D) are of length 1; `is_left_out` is bool (b, N).
    """
    assert temperature > 0
    positive_logits = (anchors * partners).sum(dim=1) / temperature
    negative_logits = (anchors @ others.T / temperature).masked_fill(is_left_out, -torch.inf)
    num_correct = (positive_logits > negative_logits.amax(dim=1)).sum()
    if num_negatives is not None:
        weight = num_negatives / (~is_left_out).sum(dim=1, keepdim=True).clamp(min=1)
        negative_logits = negative_logits + weight.log()
    logits = torch.cat([positive_logits[:, None], negative_logits], dim=1)  # (b, 1 + N)
    return (logits.logsumexp(dim=1) - positive_logits).sum(), num_correct
