"""The triplet loss of contrastive learning, as a sum.

It compares the rows of this process (anchors) with those of all processes (candidates, see
`bert_pretrain.data.processes.gather_rows`); summed over processes it is the loss of the joint
batch. The contrastive objective calls it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from bert_pretrain.errors import InputError
from bert_pretrain.losses.distances import Distance, distance_matrix, pairwise_distance
from bert_pretrain.losses.precision import in_float32

Negatives: TypeAlias = Literal["random", "semi_hard", "hard", "all"]
Reduction: TypeAlias = Literal["mean", "mean_positive"]


@dataclass(frozen=True)
class TripletTerms:
    """The triplet loss of this process's anchors, and what is worth watching; all tensors are 0-dim.

    Attributes:
        sum: float32 with gradient, the sum of all terms.
        num_terms: int64, how many there are: anchors, or with negatives `all` pairs of an anchor
            and a negative.
        num_active: int64, those with a loss above zero.
        positive_distance: float32 without gradient, the sum over terms of the distance from the
            positive.
        negative_distance: likewise from the negative.
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
      the farthest negative (as TensorFlow's addon; others drop the anchor). Dropped anchors would
      be those that err most; when all embeddings are equal it would be all of them, and the
      collapse would show as a perfect loss of 0 instead of the margin; and the number of terms
      would be unknown before the forward pass.
    - `hard`: the closest negative. Known to collapse in self-supervised training.
    - `all`: every negative, a term each.

    An anchor without any negative contributes nothing and is not counted. Embeddings are taken as
    they are, see `normalize_rows`. For the formula as it stands, pass the gathered anchors as
    candidates: with the gathered positives instead, every embedding is a positive and a negative
    equally often with `all`, and the gradient of `l2` vanishes, too, where all embeddings are
    equal.

    Args:
        anchors: (b, D), e1 of this process's images.
        positives: (b, D), e1', their other views.
        candidates: (N, D), embeddings of the images of all processes, to draw e2 from.
        anchor_ids: int64 (b,), which image a row shows; an image is never its own negative, however
            often it occurs.
        candidate_ids: int64 (N,).
        margin: above 0, in units of the distance.
        distance: see `pairwise_distance`.
        negatives: which negatives make terms.
        offsets: int64 (b,), for `random`: uniform in [0, 2^62), decide which negative is taken,
            counted in the order of the candidates.

    Raises:
        InputError: the margin is not above 0.

    Source:
        Schroff et al. 2015 (FaceNet), equation 1 and section 3.2, where d is `l2_squared` of
        normalised rows.
    """
    if margin <= 0:
        raise InputError(
            f"margin is {margin} but must be above 0, or equal embeddings are a perfect solution",
            advice="raise `margin`",
        )
    is_negative = anchor_ids[:, None] != candidate_ids  # (b, N)
    positive = pairwise_distance(anchors, positives, distance)
    if negatives == "all":
        is_term = is_negative
        positive = positive[:, None]
        negative = distance_matrix(anchors, candidates, distance)
    else:
        is_term = is_negative.any(dim=1)
        chosen = _choose_negatives(
            anchors, positive, candidates, is_negative, distance, negatives, offsets
        )
        negative = pairwise_distance(anchors, candidates[chosen], distance)
    # Left out by a factor, not by indexing: it neither waits for the device nor cuts the graph when
    # nothing is left.
    losses = torch.where(is_term, torch.relu(positive - negative + margin), 0.0)
    return TripletTerms(
        sum=losses.sum(),
        num_terms=is_term.sum(),
        num_active=(losses > 0).sum(),
        positive_distance=torch.where(is_term, positive, 0.0).sum().detach(),
        negative_distance=torch.where(is_term, negative, 0.0).sum().detach(),
    )


@torch.no_grad()
def _choose_negatives(
    anchors: Tensor,
    positive_distance: Tensor,
    candidates: Tensor,
    is_negative: Tensor,
    distance: Distance,
    negatives: Negatives,
    offsets: Tensor | None,
) -> Tensor:
    """Return the index of one candidate for each anchor, int64 (b,); any index where none is a negative."""
    if negatives == "random":
        assert offsets is not None, "random negatives need offsets"
        number = offsets % is_negative.sum(dim=1).clamp(min=1)
        is_before = (
            is_negative.cumsum(dim=1) <= number[:, None]
        )  # (b, N), ahead of the negative of that number
        return is_before.sum(dim=1).clamp(max=len(candidates) - 1)
    distances = distance_matrix(anchors, candidates, distance)
    if negatives == "hard":
        return distances.masked_fill(~is_negative, torch.inf).argmin(dim=1)
    is_semi_hard = is_negative & (distances > positive_distance[:, None])
    closest = distances.masked_fill(~is_semi_hard, torch.inf).argmin(dim=1)
    farthest = distances.masked_fill(~is_negative, -torch.inf).argmax(dim=1)
    return torch.where(is_semi_hard.any(dim=1), closest, farthest)


def reduction_factor(reduction: Reduction, *, num_terms: Tensor, num_active: Tensor) -> Tensor:
    """Return what to multiply a sum of terms with, so that dividing it by `num_terms` gives the wanted mean.

    `mean` is over all terms, `mean_positive` over those above zero: then the gradient does not fade
    as more and more triplets are satisfied. It is 0 when none is left.

    Args:
        reduction: which mean.
        num_terms: 0-dim, over all processes.
        num_active: 0-dim, over all processes.

    Returns:
        float32 0-dim.
    """
    if reduction == "mean":
        return torch.ones((), device=num_terms.device)
    return num_terms.float() / num_active.clamp(min=1)
