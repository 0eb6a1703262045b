"""Losses of contrastive learning and of autoencoders, as sums.

Embeddings, or images and their reconstructions, enter; sums in float32 leave, together with what they are divided by.
The objectives call them. Contrastive losses compare the rows of this process (anchors) with those of all processes
(candidates, see `bert_pretrain.distributed.gather_rows`); summed over processes they are the loss of the joint batch.

Everything is computed in float32, also inside a mixed-precision region: a difference of near distances, or the
exponential of a similarity over a small temperature, has no correct digit left in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bert_pretrain.errors import InputError

Distance: TypeAlias = Literal["l2", "l2_squared", "cosine"]
Negatives: TypeAlias = Literal["random", "semi_hard", "hard", "all"]
Reduction: TypeAlias = Literal["mean", "mean_positive"]
ReconstructionKind: TypeAlias = Literal["mse", "l1"]

L2_EPS = 1e-6  # the default of torch.nn.TripletMarginLoss
_NORM_EPS = 1e-8  # that of torch.nn.CosineSimilarity
_VARIANCE_EPS = 1e-6  # masked autoencoders
# Scores of `summed_cross_entropy` taken at once: 2 MB in float32 on a processor, which its cache holds; more elsewhere.
_CHUNK_ELEMENTS = (2**19, 2**27)

P = ParamSpec("P")
R = TypeVar("R")


def _in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function` see its floating-point tensors in float32, and no autocast."""

    def float32(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device_type = next(value.device.type for value in args if isinstance(value, Tensor))
        with torch.autocast(device_type, enabled=False):
            return function(*map(float32, args), **{key: float32(value) for key, value in kwargs.items()})

    return run


@_in_float32
def normalize_rows(rows: Tensor) -> Tensor:
    """Scale rows to Euclidean length 1 in float32; rows shorter than 1e-8 are divided by 1e-8.

    Args:
        rows: (..., D), floating point.

    Returns:
        float32 (..., D).
    """
    return F.normalize(rows, dim=-1, eps=_NORM_EPS)


@_in_float32
def pairwise_distance(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """Return the distance of each row of `a` from the same row of `b`.

    - `l2`: ||a - b + 1e-6||, not squared: the distance of torch.nn.TripletMarginLoss. The small constant makes the
      gradient finite, and other than zero, where a equals b.
    - `l2_squared`: ||a - b||^2 (FaceNet). Its gradient is zero where a equals b, so nothing drives embeddings that
      have all become equal apart again.
    - `cosine`: 1 - cos(a, b), in [0, 2]; half of `l2_squared` for rows of length 1. The same holds for its gradient.

    Rows are not normalised here: with `l2` and `l2_squared` a margin means something else for `normalize_rows(a)`.

    Args:
        a: (n, D), floating point.
        b: (n, D).
        distance: which of the three.

    Returns:
        float32 (n,), at least 0 (`cosine`: up to rounding).
    """
    if distance == "l2":
        norm: Tensor = torch.linalg.vector_norm(a - b + L2_EPS, dim=-1)
        return norm
    if distance == "l2_squared":
        return (a - b).square().sum(dim=-1)
    return 1 - (normalize_rows(a) * normalize_rows(b)).sum(dim=-1)


@_in_float32
def distance_matrix(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """Return the distance of each row of `a` from each row of `b`; see `pairwise_distance`.

    Euclidean distances are summed up term by term instead of through a matrix product, which has errors as large as
    the distance of near neighbours and makes them depend on the batch. On CUDA the gradient needs 4 n N D bytes.

    Args:
        a: (n, D), floating point.
        b: (N, D).
        distance: which of the three.

    Returns:
        float32 (n, N).
    """
    if distance == "cosine":
        return 1 - normalize_rows(a) @ normalize_rows(b).T
    # Distances do not change when the origin moves. Near its centre a collapsed batch keeps the digits of the constant.
    center = b.detach().mean(dim=0)
    a, b = a - center, b - center
    if distance == "l2":
        return torch.cdist(a + L2_EPS, b, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


@dataclass(frozen=True)
class TripletTerms:
    """The triplet loss of this process's anchors, and what is worth watching; all tensors are 0-dim.

    Attributes:
        sum: float32 with gradient, the sum of all terms.
        num_terms: int64, how many there are: anchors, or with negatives `all` pairs of an anchor and a negative.
        num_active: int64, those with a loss above zero.
        positive_distance: float32 without gradient, the sum over terms of the distance from the positive.
        negative_distance: likewise from the negative.
    """

    sum: Tensor
    num_terms: Tensor
    num_active: Tensor
    positive_distance: Tensor
    negative_distance: Tensor


@_in_float32
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

    A term is max(d(e1, e1') - d(e1, e2) + margin, 0) with the anchor e1, the other view e1' of the same image, and e2
    of another image. Which e2:

    - `random`: one of the negatives, each with the same probability (the classic formula).
    - `semi_hard`: the closest negative that is farther away than the positive; where there is none the farthest
      negative (as TensorFlow's addon; others drop the anchor). Dropped anchors would be those that err most; when all
      embeddings are equal it would be all of them, and the collapse would show as a perfect loss of 0 instead of the
      margin; and the number of terms would be unknown before the forward pass.
    - `hard`: the closest negative. Known to collapse in self-supervised training.
    - `all`: every negative, a term each.

    An anchor without any negative contributes nothing and is not counted. Embeddings are taken as they are, see
    `normalize_rows`. For the formula as it stands, pass the gathered anchors as candidates: with the gathered positives
    instead, every embedding is a positive and a negative equally often with `all`, and the gradient of `l2` vanishes,
    too, where all embeddings are equal.

    Args:
        anchors: (b, D), e1 of this process's images.
        positives: (b, D), e1', their other views.
        candidates: (N, D), embeddings of the images of all processes, to draw e2 from.
        anchor_ids: int64 (b,), which image a row shows; an image is never its own negative, however often it occurs.
        candidate_ids: int64 (N,).
        margin: above 0, in units of the distance.
        distance: see `pairwise_distance`.
        negatives: which negatives make terms.
        offsets: int64 (b,), for `random`: uniform in [0, 2^62), decide which negative is taken, counted in the order
            of the candidates.

    Raises:
        InputError: the margin is not above 0.

    Source:
        Schroff et al. 2015 (FaceNet), equation 1 and section 3.2, where d is `l2_squared` of normalised rows.
    """
    if margin <= 0:
        raise InputError(
            f"margin is {margin} but must be above 0, or equal embeddings are a perfect solution; raise --margin"
        )
    is_negative = anchor_ids[:, None] != candidate_ids  # (b, N)
    positive = pairwise_distance(anchors, positives, distance)
    if negatives == "all":
        is_term = is_negative
        positive = positive[:, None]
        negative = distance_matrix(anchors, candidates, distance)
    else:
        is_term = is_negative.any(dim=1)
        chosen = _choose_negatives(anchors, positive, candidates, is_negative, distance, negatives, offsets)
        negative = pairwise_distance(anchors, candidates[chosen], distance)
    # Left out by a factor, not by indexing: it neither waits for the device nor cuts the graph when nothing is left.
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
        is_before = is_negative.cumsum(dim=1) <= number[:, None]  # (b, N), ahead of the negative of that number
        return is_before.sum(dim=1).clamp(max=len(candidates) - 1)
    distances = distance_matrix(anchors, candidates, distance)
    if negatives == "hard":
        return distances.masked_fill(~is_negative, torch.inf).argmin(dim=1)
    is_semi_hard = is_negative & (distances > positive_distance[:, None])
    closest = distances.masked_fill(~is_semi_hard, torch.inf).argmin(dim=1)
    farthest = distances.masked_fill(~is_negative, -torch.inf).argmax(dim=1)
    return torch.where(is_semi_hard.any(dim=1), closest, farthest)


def num_triplets(anchor_ids: Tensor, candidate_ids: Tensor, negatives: Negatives) -> Tensor:
    """Return `TripletTerms.num_terms` before any embedding is known, int64 0-dim; arguments as in `triplet_loss`."""
    is_negative = anchor_ids[:, None] != candidate_ids
    return is_negative.sum() if negatives == "all" else is_negative.any(dim=1).sum()


def reduction_factor(reduction: Reduction, *, num_terms: Tensor, num_active: Tensor) -> Tensor:
    """Return what to multiply a sum of terms with, so that dividing it by `num_terms` gives the wanted mean.

    `mean` is over all terms, `mean_positive` over those above zero: then the gradient does not fade as more and more
    triplets are satisfied. It is 0 when none is left.

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


@_in_float32
def nt_xent_loss(
    views: Tensor, candidates: Tensor, *, view_ids: Tensor, candidate_ids: Tensor, temperature: float
) -> NTXentTerms:
    """Find the other view of an image among the views of other images (normalised temperature-scaled cross entropy).

    Each of the 2b views is an anchor. Its term is -log(exp(s+ / T) / (exp(s+ / T) + sum over negatives exp(s- / T)))
    with cosine similarities s; the negatives are both views of every other image. All copies of the anchor's own image
    are left out, however often it occurs. The loss is the sum divided by the number of views, 2 per image (the original
    code adds the two halves up instead, twice as much). The positive comes from `views`, not from a place among the
    candidates, so no rank offset can be wrong. Without any negative a term is 0.

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
        raise InputError(f"temperature is {temperature} but must be above 0; SimCLR takes --temperature 0.1 to 0.5")
    normalized = normalize_rows(views)
    anchors, partners = normalized.flatten(0, 1), normalized.flip(1).flatten(0, 1)  # (b, 2, D) -> (2b, D)
    others = normalize_rows(candidates).flatten(0, 1)  # (N, 2, D) -> (2N, D)
    is_own = view_ids.repeat_interleave(2)[:, None] == candidate_ids.repeat_interleave(2)  # (2b, 2N)
    positive_logits = (anchors * partners).sum(dim=1) / temperature
    negative_logits = (anchors @ others.T / temperature).masked_fill(is_own, -torch.inf)
    logits = torch.cat([positive_logits[:, None], negative_logits], dim=1)  # (2b, 1 + 2N)
    return NTXentTerms(
        sum=(logits.logsumexp(dim=1) - positive_logits).sum(),
        num_terms=2 * len(views),
        num_correct=(positive_logits > negative_logits.amax(dim=1)).sum(),
    )


@_in_float32
def reconstruction_errors(prediction: Tensor, target: Tensor, kind: ReconstructionKind) -> Tensor:
    """Return how far each reconstruction is from its image: the mean over all its values.

    Args:
        prediction: (B, ...), floating point.
        target: of the same shape.
        kind: `mse`, the mean of squares, or `l1`, the mean of absolute values.

    Returns:
        float32 (B,).
    """
    assert prediction.shape == target.shape
    difference = (prediction - target).flatten(1)
    return (difference.square() if kind == "mse" else difference.abs()).mean(dim=1)


def reconstruction_loss(prediction: Tensor, target: Tensor, kind: ReconstructionKind) -> Tensor:
    """Return the sum of `reconstruction_errors` over images, float32 0-dim; divide it by the number of images."""
    return reconstruction_errors(prediction, target, kind).sum()


@_in_float32
def masked_patch_loss(
    prediction: Tensor, target: Tensor, is_hidden: Tensor, *, normalize_target: bool
) -> tuple[Tensor, Tensor]:
    """Return the error on the patches that the encoder did not see (He et al. 2022, section 3).

    Args:
        prediction: (B, P, V), V values of each of P patches.
        target: (B, P, V), the patches of the image.
        is_hidden: bool or 0/1 (B, P), True where a patch was masked out and is to be predicted.
        normalize_target: predict each patch minus its mean, divided by the root of its unbiased variance + 1e-6.

    Returns:
        The sum over hidden patches of their mean squared error, float32 0-dim, and the number of hidden patches, int64.

    Raises:
        InputError: a patch of one value is to be normalised.
    """
    assert prediction.shape == target.shape and is_hidden.shape == target.shape[:2]
    if normalize_target:
        if target.shape[-1] == 1:
            raise InputError(
                "patches of one value have no variance to be normalised by; use a larger --patch_size, or targets "
                "that are not normalised"
            )
        variance, mean = torch.var_mean(target, dim=-1, correction=1, keepdim=True)
        target = (target - mean) / (variance + _VARIANCE_EPS).sqrt()
    errors = (prediction - target).square().mean(dim=-1)  # (B, P)
    hidden = is_hidden.bool()
    return torch.where(hidden, errors, 0.0).sum(), hidden.sum()


class _SummedCrossEntropy(torch.autograd.Function):
    """Cross entropy that makes its gradient in the pass that makes the loss, a few rows at a time.

    With a large vocabulary the scores are the largest tensor of a step. torch's own function reads and writes them in
    float32 seven times; here each row stays in the cache from its scores to its gradient.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        num_rows, vocab_size = scores.shape
        chunk = max(1, _CHUNK_ELEMENTS[scores.device.type != "cpu"] // vocab_size)
        gradient = torch.empty_like(scores) if ctx.needs_input_grad[0] else None
        losses = torch.zeros(num_rows, dtype=torch.float32, device=scores.device)
        best = torch.zeros_like(targets)
        columns, is_counted = targets.clamp(min=0)[:, None], (targets >= 0)[:, None]
        for first in range(0, num_rows, chunk):
            rows = slice(first, first + chunk)
            values = scores[rows].float()
            largest, best[rows] = values.max(dim=-1)
            at_target = values.gather(1, columns[rows]).squeeze(1)
            exponentials = (values - largest[:, None]).exp_()
            total = exponentials.sum(dim=-1)
            losses[rows] = total.log() + largest - at_target
            if gradient is not None:
                # The softmax, less 1 at the target; nothing in rows that are not counted.
                part = exponentials.mul_(is_counted[rows] / total[:, None])
                part.scatter_add_(1, columns[rows], -is_counted[rows].float())
                gradient[rows] = part
        ctx.save_for_backward(gradient)
        is_correct = (best == targets).sum()
        ctx.mark_non_differentiable(is_correct)
        return (losses * is_counted.squeeze(1)).sum(), is_correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None


def summed_cross_entropy(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of a vocabulary's scores, a sum, and how often the highest score is the target's.

    Args:
        scores: (N, V), floating point; the arithmetic is in float32.
        targets: int64 (N,), in [0, V), or negative for rows that do not count.

    Returns:
        float32 0-dim, nats, with a gradient in the dtype of `scores`; int64 0-dim.
    """
    loss, num_correct = _SummedCrossEntropy.apply(scores, targets)  # type: ignore[no-untyped-call]
    return loss, num_correct
