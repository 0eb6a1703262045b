"""Measures of collapse: whether embeddings still tell images apart.

Embeddings of held-out images enter, and those of second views where there are any. A few numbers
leave, and warnings that name a cause and what to change. The loss alone hardly shows a collapse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

_MAX_PAIRS = 2_000_000
_STUCK_TOLERANCE = 0.02
_SMALL_DISTANCE = 0.25  # of that of unrelated embeddings, where it is not squared
_LUCKY = 3.0  # times as often as by chance
_MIN_STD_RATIO = 0.1
_MIN_EFFECTIVE_RANK = 2.0
_MIN_ACTIVE_SHARE = 0.01
_EASIER_NEGATIVES = {
    None: "use `negatives` semi_hard or random",
    "hard": "use `negatives` semi_hard or random",
    "semi_hard": "use `negatives` random",
}


@dataclass(frozen=True)
class CollapseMeasures:
    """How embeddings of D dimensions are spread; see the functions of the same names.

    Attributes:
        encoder_dim: D.
        alignment: None without second views.
        active_triplets: share of triplets with a loss above zero, in [0, 1]; None without triplets.
    """

    encoder_dim: int
    embedding_std: float
    effective_rank: float
    uniformity: float
    alignment: float | None = None
    active_triplets: float | None = None


@torch.no_grad()
def collapse_measures(
    embeddings: Tensor, *, second_views: Tensor | None = None
) -> CollapseMeasures:
    """Measure how embeddings are spread.

    Args:
        embeddings: floating point (N, D), N at least 2, not normalised.
        second_views: (N, D), embeddings of another view of the same images.
    """
    return CollapseMeasures(
        encoder_dim=embeddings.shape[1],
        embedding_std=embedding_std(embeddings),
        effective_rank=effective_rank(embeddings),
        uniformity=uniformity(embeddings),
        alignment=None if second_views is None else alignment(embeddings, second_views),
    )


def embedding_std(embeddings: Tensor) -> float:
    """Return the standard deviation of a dimension of normalised embeddings (N, D), on average.

    It is 0 when all embeddings point the same way. Its largest value, 1 / sqrt(D), means that
    directions are spread evenly. The deviation is that of the population (divided by N).

    Source: Chen and He 2021, SimSiam, section 4.1.
    """
    return float(_normalized(embeddings).std(dim=0, correction=0).mean())


def effective_rank(embeddings: Tensor) -> float:
    """Return over how many directions embeddings (N, D) are spread.

    It is exp of the entropy of their singular values, divided by their sum. Equal embeddings have
    rank 1, embeddings that are all zero have rank 0.

    Source: Roy and Vetterli 2007; neither centred nor normalised, as in RankMe (Garrido et al.
    2023).
    """
    matrix = _in_float64(embeddings)
    gram = matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T
    # Rounding leaves relative 1e-8 of noise on singular values of zero, too little to count.
    singular_values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular_values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(singular_values / total).sum().exp())


def alignment(embeddings: Tensor, second_views: Tensor) -> float:
    """Return the mean squared distance of two views, (N, D) each, normalised.

    It is 0 when they are equal and 2 when they are unrelated.

    Source: Wang and Isola 2020, section 4.1, with exponent 2.
    """
    return float((_normalized(embeddings) - _normalized(second_views)).square().sum(dim=1).mean())


def uniformity(embeddings: Tensor, *, max_pairs: int = _MAX_PAIRS) -> float:
    """Return the log of the mean of exp(-2 d^2) over pairs of images.

    d is the distance of their normalised embeddings (N, D). The result is 0 when all are equal and
    falls towards -4 as they spread over a sphere of many dimensions.

    Source: Wang and Isola 2020, section 4.1, with t = 2.
    """
    # The first n rows make n (n - 1) / 2 pairs.
    num_rows = min(len(embeddings), (1 + math.isqrt(1 + 8 * max_pairs)) // 2)
    exponents = -2 * torch.pdist(_normalized(embeddings[:num_rows])).square()
    return float(exponents.logsumexp(dim=0)) - math.log(len(exponents))


def _in_float64(embeddings: Tensor) -> Tensor:
    return embeddings.detach().cpu().double()  # on the CPU, because not every device has float64


def _normalized(embeddings: Tensor) -> Tensor:
    return F.normalize(_in_float64(embeddings), dim=1)


def collapse_warnings(
    measures: CollapseMeasures,
    *,
    triplet_loss: float | None = None,
    negative_distance: float | None = None,
    unrelated_distance: float | None = None,
    margin: float | None = None,
    contrastive_loss: float | None = None,
    chance_loss: float | None = None,
    accuracy: float | None = None,
    chance_accuracy: float | None = None,
    loss: Literal["triplet", "nt_xent", "reconstruction"] | None = None,
    negatives: str | None = None,
    distance: str | None = None,
    normalize: bool | None = None,
) -> list[str]:
    """Return a message for each sign of collapse, with its cause and the parameters to change.

    An untrained encoder may show the same signs, so ask only after some updates.

    Args:
        measures: of held-out images.
        triplet_loss: mean over all triplets, if that loss is trained.
        negative_distance: mean distance of anchors from their negatives; None means small. A
            semi-hard negative lies just behind the positive, so a loss near the margin is a sign of
            collapse only if this distance is small too.
        unrelated_distance: that of embeddings that have nothing in common; None = not known.
            Against a large margin, as of 50 on the unit sphere, all distances are small.
        margin: of the triplet loss; needed with it.
        contrastive_loss: NT-Xent, if that is trained; needed with it are the next three.
        chance_loss: NT-Xent where all embeddings are equal.
        accuracy: how often the other view is found.
        chance_accuracy: how often a random choice finds it.
        loss: what is trained, so that the advice fits it; None = unknown.
        negatives: of the triplet loss, as they are chosen; None = unknown.
        distance: of the triplet loss; None = unknown.
        normalize: whether the triplet loss compares normalised embeddings; None = unknown.
    """
    if triplet_loss is not None:
        loss = "triplet"
    # Advice is empty where it does not apply, or where it is followed already.
    slower = "lower `learning_rate`"
    has_scale = not normalize and distance != "cosine"  # which normalises by itself
    normalized = "pass `normalize`" if loss in (None, "triplet") and has_scale else ""
    easier = _EASIER_NEGATIVES.get(negatives, "") if loss == "triplet" else ""
    escaping = "use `distance` l2, which drives equal embeddings apart" * (
        distance in ("l2_squared", "cosine")
    )
    nt_xent = "use `loss` nt_xent"
    other_loss = {None: f"for a contrastive loss {nt_xent}", "triplet": nt_xent}.get(loss, "")
    harder = "use `negatives` semi_hard" if negatives in (None, "random", "all") else ""
    messages = []
    if triplet_loss is not None:
        assert margin is not None
        # Cosine distances grow with the square of an angle.
        smallness = _SMALL_DISTANCE if distance in (None, "l2") else _SMALL_DISTANCE**2
        scale = margin if unrelated_distance is None else min(margin, unrelated_distance)
        is_small = negative_distance is None or negative_distance < smallness * scale
        if is_small and abs(triplet_loss - margin) <= _STUCK_TOLERANCE * scale:
            messages.append(
                f"the triplet loss is {triplet_loss:.4g}, stuck at its margin {margin:g}: "
                "positives and negatives are equally far away, so all embeddings are nearly equal; "
                + _any_of(easier, slower, escaping, normalized)
            )
    if contrastive_loss is not None:
        assert chance_loss is not None and accuracy is not None and chance_accuracy is not None
        is_by_chance = accuracy < _LUCKY * chance_accuracy
        if is_by_chance and abs(contrastive_loss - chance_loss) <= _STUCK_TOLERANCE:
            messages.append(
                f"the NT-Xent loss is {contrastive_loss:.4g}, stuck at that of equal embeddings, "
                f"{chance_loss:.4g}, where it has no gradient (the other view is found as often as "
                f"by chance, {accuracy:.2%}); begin anew and {slower}"
            )
    std, evenly_spread = measures.embedding_std, 1 / math.sqrt(measures.encoder_dim)
    if std < _MIN_STD_RATIO * evenly_spread:
        messages.append(
            f"the standard deviation of the normalised embeddings is {std:.2g} (evenly spread: "
            f"{evenly_spread:.2g}): all images have nearly the same embedding; "
            + _any_of(slower, easier, other_loss)
        )
    elif measures.effective_rank < min(_MIN_EFFECTIVE_RANK, measures.encoder_dim / 4):
        messages.append(
            f"the effective rank of the embeddings is {measures.effective_rank:.2f} of "
            f"{measures.encoder_dim}: they lie along one line (dimensional collapse); "
            + _any_of(slower, other_loss, normalized)
        )
    active = measures.active_triplets
    if active is not None and active < _MIN_ACTIVE_SHARE:
        messages.append(
            f"{active:.1%} of the triplets have a loss above zero, so hardly anything is learnt "
            "any more; " + _any_of("raise `margin`", harder)
        )
    return messages


def _any_of(*advice: str) -> str:
    *others, last = filter(None, advice)
    return f"{', '.join(others)} or {last}" if others else last
