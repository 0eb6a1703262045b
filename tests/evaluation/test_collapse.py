"""The measures of collapse: closed forms, independent formulas, and when there is a warning."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bert_pretrain.data.random import hash_uint64
from bert_pretrain.evaluation.collapse import (
    CollapseMeasures,
    alignment,
    collapse_measures,
    collapse_warnings,
    effective_rank,
    embedding_std,
    uniformity,
)
from bert_pretrain.losses.contrastive import Negatives, triplet_loss

HEALTHY = CollapseMeasures(
    encoder_dim=64,
    embedding_std=0.11,
    effective_rank=40.0,
    uniformity=-3.5,
    alignment=0.3,
    active_triplets=0.4,
)


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unit(array: Tensor) -> np.ndarray:
    values = array.double().numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_measures_are_those_of_numpys_formulas(shape: tuple[int, int]) -> None:
    first, second = rows(*shape, seed=0), rows(*shape, seed=1)
    singular_values = np.linalg.svd(first.double().numpy(), compute_uv=False)
    shares = singular_values / singular_values.sum()
    pairs = [float(((a - b) ** 2).sum()) for a, b in itertools.combinations(unit(first), 2)]
    measures = collapse_measures(first, second_views=second)
    assert measures.effective_rank == pytest.approx(
        math.exp(-(shares * np.log(shares)).sum()), rel=1e-6
    )
    assert measures.embedding_std == pytest.approx(unit(first).std(axis=0).mean(), rel=1e-9)
    assert measures.uniformity == pytest.approx(
        math.log(np.mean(np.exp(-2 * np.array(pairs)))), rel=1e-9
    )
    assert measures.alignment == pytest.approx(
        ((unit(first) - unit(second)) ** 2).sum(axis=1).mean(), rel=1e-9
    )
    assert measures.encoder_dim == shape[1]
    assert collapse_measures(first).alignment is None


@pytest.mark.parametrize("value", [1e-3, 1.0, 100.0])
def test_equal_embeddings_have_no_deviation_rank_1_and_uniformity_0(value: float) -> None:
    equal = torch.full((20, 16), value)
    assert embedding_std(equal) == pytest.approx(0, abs=1e-12)
    assert effective_rank(equal) == pytest.approx(
        1, abs=1e-5
    )  # noise of 1e-8 in each of 15 directions
    assert uniformity(equal) == pytest.approx(0, abs=1e-12)
    assert alignment(equal, equal) == 0


def test_zero_embeddings_are_measured_too() -> None:
    zero = torch.zeros(5, 4)
    assert (embedding_std(zero), effective_rank(zero), uniformity(zero)) == (0, 0, 0)


def test_even_directions_reach_the_isotropic_reference() -> None:
    """Both ends of every axis: mean 0, and every coordinate has variance 1 / D."""
    axes = torch.cat([torch.eye(16), -torch.eye(16)])
    measures = collapse_measures(3 * axes)
    assert measures.embedding_std == pytest.approx(0.25)
    assert measures.effective_rank == pytest.approx(16)
    # Each of 32 points has one at distance 2 and thirty at distance sqrt(2).
    assert measures.uniformity == pytest.approx(math.log((math.exp(-8) + 30 * math.exp(-4)) / 31))
    assert alignment(axes, -axes) == pytest.approx(4)
    assert alignment(torch.eye(16), torch.eye(16).roll(1, 0)) == pytest.approx(2)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_effective_rank_counts_orthogonal_directions_of_equal_strength(rank: int) -> None:
    directions = torch.linalg.qr(rows(12, 12, seed=0)).Q[:rank]
    assert effective_rank(directions.repeat(5, 1)) == pytest.approx(rank, abs=1e-4)


def test_scale_and_order_do_not_matter() -> None:
    first, second = rows(30, 8, seed=0), rows(30, 8, seed=1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    expected = collapse_measures(first, second_views=second)
    found = collapse_measures(7 * first[order], second_views=7 * second[order])
    for name in ("embedding_std", "effective_rank", "uniformity", "alignment"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5), (
            name
        )  # float32 products


@pytest.mark.parametrize(
    ("max_pairs", "num_rows"), [(1, 2), (2, 2), (3, 3), (44, 9), (45, 10), (46, 10), (1000, 40)]
)
def test_uniformity_takes_the_first_rows_that_make_at_most_so_many_pairs(
    max_pairs: int, num_rows: int
) -> None:
    embeddings = rows(40, 5, seed=0)
    assert uniformity(embeddings, max_pairs=max_pairs) == uniformity(embeddings[:num_rows])


def test_embeddings_that_are_spread_cause_no_warning() -> None:
    assert collapse_warnings(HEALTHY) == []
    assert (
        collapse_warnings(replace(HEALTHY, embedding_std=0.02)) == []
    )  # a sixth of the isotropic 0.125
    assert collapse_warnings(HEALTHY, triplet_loss=0.2, margin=0.5) == []
    assert collapse_warnings(HEALTHY, triplet_loss=0.9, margin=0.5) == []
    # Semi-hard negatives of embeddings that are spread: just behind the positives, but both far
    # away.
    assert collapse_warnings(HEALTHY, triplet_loss=0.495, negative_distance=1.2, margin=0.5) == []
    assert collapse_warnings(collapse_measures(rows(100, 64, seed=0))) == []
    assert collapse_warnings(collapse_measures(rows(100, 2, seed=0))) == []


@pytest.mark.parametrize(
    ("measures", "options", "words"),
    [
        (
            HEALTHY,
            {"triplet_loss": 0.4995, "margin": 0.5},
            ["margin 0.5", "`negatives` semi_hard", "`normalize`"],
        ),
        (
            HEALTHY,
            {"triplet_loss": 0.505, "negative_distance": 0.1, "margin": 0.5},
            ["margin 0.5", "`learning_rate`"],
        ),
        (
            replace(HEALTHY, embedding_std=0.001),
            {},
            ["same embedding", "`learning_rate`", "nt_xent"],
        ),
        (replace(HEALTHY, effective_rank=1.2), {}, ["effective rank", "`normalize`"]),
        (
            replace(HEALTHY, active_triplets=0.001),
            {},
            ["0.1%", "`margin`", "`negatives` semi_hard"],
        ),
    ],
)
def test_each_sign_has_its_own_message_with_flags(
    measures: CollapseMeasures, options: dict[str, Any], words: list[str]
) -> None:
    (message,) = collapse_warnings(measures, **options)
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("setting", "said", "unsaid"),
    [
        ({"loss": "reconstruction"}, "`learning_rate`", ["`loss`", "`negatives`", "`normalize`"]),
        ({"loss": "nt_xent"}, "`learning_rate`", ["`loss`", "`negatives`", "`normalize`"]),
        ({"loss": "triplet", "negatives": "semi_hard"}, "`negatives` random", ["semi_hard"]),
        ({"loss": "triplet", "negatives": "random"}, "`loss` nt_xent", ["`negatives`"]),
        ({"loss": "triplet", "normalize": True}, "`loss` nt_xent", ["`normalize`"]),
        ({}, "for a contrastive loss use `loss` nt_xent", ["`negatives`"]),
    ],
)
def test_what_is_so_already_is_not_advised(
    setting: dict[str, Any], said: str, unsaid: list[str]
) -> None:
    equal, flat = replace(HEALTHY, embedding_std=0.001), replace(HEALTHY, effective_rank=1.2)
    messages = [collapse_warnings(measures, **setting)[0] for measures in (equal, flat)]
    assert any(said in message for message in messages)
    assert not any(word in message for message in messages for word in unsaid)


@pytest.mark.parametrize(
    ("distance", "setting", "unsaid"),
    [
        ("l2_squared", {"normalize": True}, "`normalize`"),
        ("cosine", {"normalize": False}, "`normalize`"),
        ("l2", {"normalize": False}, "`distance`"),
    ],
)
def test_the_way_out_of_a_stuck_triplet_loss_fits_its_distance(
    distance: str, setting: dict[str, bool], unsaid: str
) -> None:
    stuck = {"triplet_loss": 0.4999, "negative_distance": 0.001, "margin": 0.5}
    (message,) = collapse_warnings(HEALTHY, **stuck, distance=distance, **setting)
    assert "stuck at its margin 0.5" in message
    assert ("`distance` l2" in message) is (distance != "l2")
    assert ("pass `normalize`" in message) is (distance == "l2")
    assert unsaid not in message


@pytest.mark.parametrize(
    ("negative_distance", "unrelated_distance", "is_stuck"),
    [
        (1.3, 1.41, False),  # on the unit sphere, spread
        (1e-4, 1.41, True),
        (13.0, 14.1, False),  # embeddings of length 10
        (1e-3, 14.1, True),
    ],
)
def test_a_margin_of_50_is_no_collapse(
    negative_distance: float, unrelated_distance: float, is_stuck: bool
) -> None:
    """Of positives at two thirds of the distance of negatives."""
    gap = negative_distance / 3
    found = collapse_warnings(
        HEALTHY,
        triplet_loss=50 - gap,
        negative_distance=negative_distance,
        unrelated_distance=unrelated_distance,
        margin=50.0,
    )
    assert [("stuck at its margin 50" in message) for message in found] == [True] * is_stuck


@pytest.mark.parametrize("distance", ["l2_squared", "cosine"])
def test_semi_hard_negatives_just_behind_their_positives_are_no_collapse(distance: str) -> None:
    """Of images at 40 degrees from each other; at 4 degrees they are."""
    for degrees, is_stuck in ((40, False), (4, True)):
        gap = 1 - math.cos(math.radians(degrees))
        found = collapse_warnings(
            HEALTHY,
            triplet_loss=0.985,
            negative_distance=gap * (2 if distance == "l2_squared" else 1),
            unrelated_distance=2.0 if distance == "l2_squared" else 1.0,
            margin=1.0,
            distance=distance,
            negatives="semi_hard",
        )
        assert ["stuck" in message for message in found] == [True] * is_stuck


@pytest.mark.parametrize(
    ("loss", "accuracy", "is_stuck"),
    [(6.236, 0.002, True), (6.236, 0.2, False), (5.9, 0.004, False), (6.6, 0.002, False)],
)
def test_nt_xent_that_has_not_left_chance_is_reported(
    loss: float, accuracy: float, is_stuck: bool
) -> None:
    """At chance for the loss alone a run passes by on its way down."""
    context = {"chance_loss": math.log(511), "chance_accuracy": 1 / 511, "loss": "nt_xent"}
    found = collapse_warnings(HEALTHY, contrastive_loss=loss, accuracy=accuracy, **context)
    assert [("no gradient" in m and "`learning_rate`" in m) for m in found] == [True] * is_stuck
    assert not any("`negatives`" in m or "`normalize`" in m or "`loss`" in m for m in found)


def test_harder_negatives_are_advised_unless_they_are_hard_already() -> None:
    idle = replace(HEALTHY, active_triplets=0.001)
    for negatives, is_advised in (("random", True), ("all", True), ("semi_hard", False)):
        (message,) = collapse_warnings(idle, negatives=negatives)
        assert "raise `margin`" in message and ("`negatives`" in message) is is_advised


def test_equal_embeddings_are_reported_once_not_as_a_low_rank_too() -> None:
    (message,) = collapse_warnings(collapse_measures(torch.ones(20, 64)))
    assert "same embedding" in message


def train(negatives: Negatives) -> list[str]:
    """Train a small encoder on noisy vectors with a large rate; return the last warnings."""
    torch.manual_seed(0)
    images, ids, margin = rows(64, 20, seed=0), torch.arange(64), 0.5
    encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.05)
    for step in range(150):
        first, second = (
            encoder(images + 2 * rows(64, 20, seed=1 + 2 * step + view)) for view in range(2)
        )
        terms = triplet_loss(
            first,
            second,
            first,
            anchor_ids=ids,
            candidate_ids=ids,
            margin=margin,
            distance="l2",
            negatives=negatives,
            offsets=torch.from_numpy(
                (hash_uint64(step, np.arange(64)) >> np.uint64(2)).astype(np.int64)
            ),
        )
        loss = terms.sum / terms.num_terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return collapse_warnings(
        collapse_measures(encoder(images)),
        triplet_loss=loss.item(),
        negative_distance=(terms.negative_distance / terms.num_terms).item(),
        margin=margin,
    )


def test_a_provoked_collapse_is_noticed_and_the_advice_helps() -> None:
    """The hardest negatives and a large rate drive all embeddings to one point."""
    stuck, equal = train("hard")
    assert "stuck at its margin" in stuck and "`negatives` semi_hard or random" in stuck
    assert "same embedding" in equal
    assert train("random") == []
