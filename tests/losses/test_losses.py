"""Claims about the losses: formulas, which rows are negatives, gradients, and float32."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from bert_pretrain.errors import InputError
from bert_pretrain.losses import cross_entropy
from bert_pretrain.losses.contrastive import (
    Negatives,
    TripletTerms,
    nt_xent_loss,
    reduction_factor,
    triplet_loss,
)
from bert_pretrain.losses.cross_entropy import summed_cross_entropy
from bert_pretrain.losses.distances import (
    Distance,
    distance_matrix,
    largest_distance,
    masked_patch_loss,
    normalize_rows,
    pairwise_distance,
    reconstruction_loss,
    unrelated_distance,
)

DISTANCES: tuple[Distance, ...] = get_args(Distance)
NEGATIVES: tuple[Negatives, ...] = get_args(Negatives)
TOLERANCE = 2e-5  # float32, sums of a few dozen terms of size 1


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def offsets_for(num_anchors: int, *, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**62, (num_anchors,), generator=torch.Generator().manual_seed(seed))


def triplet(anchors: Tensor, positives: Tensor, candidates: Tensor, **options: Any) -> TripletTerms:
    """All images differ and candidates begin with the anchors' images, unless told otherwise."""
    defaults: dict[str, Any] = {
        "anchor_ids": torch.arange(len(anchors)),
        "candidate_ids": torch.arange(len(candidates)),
        "margin": 0.5,
        "distance": "l2",
        "negatives": "random",
        "offsets": offsets_for(len(anchors)),
    }
    return triplet_loss(anchors, positives, candidates, **(defaults | options))


def naive_distance(a: list[float], b: list[float], distance: Distance) -> float:
    if distance == "l2":
        return math.sqrt(sum((x - y + 1e-6) ** 2 for x, y in zip(a, b, strict=True)))
    if distance == "l2_squared":
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.hypot(*a) / math.hypot(*b)


def naive_triplets(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    anchor_ids: list[int],
    candidate_ids: list[int],
    offsets: list[int],
    *,
    margin: float,
    distance: Distance,
    negatives: Negatives,
) -> list[tuple[float, float, float]]:
    """Loss, positive distance and negative distance of every term, one anchor after the other."""
    terms = []
    for i, anchor in enumerate(anchors.tolist()):
        positive = naive_distance(anchor, positives[i].tolist(), distance)
        others = [
            naive_distance(anchor, other.tolist(), distance)
            for other, image in zip(candidates, candidate_ids, strict=True)
            if image != anchor_ids[i]
        ]
        if not others:
            continue
        farther = [d for d in others if d > positive]
        chosen = {
            "random": [others[offsets[i] % len(others)]],
            "semi_hard": [min(farther) if farther else max(others)],
            "hard": [min(others)],
            "all": others,
        }[negatives]
        terms += [(max(positive - d + margin, 0.0), positive, d) for d in chosen]
    return terms


@pytest.mark.parametrize(
    ("distance", "oracle"),
    [
        ("l2", nn.PairwiseDistance()),
        ("l2_squared", lambda a, b: (a - b).pow(2).sum(1)),
        ("cosine", lambda a, b: 1 - F.cosine_similarity(a, b)),
    ],
)
def test_distances_are_those_of_torch_in_rows_and_in_a_matrix(
    distance: Distance, oracle: Any
) -> None:
    a, b = rows(5, 7, seed=0), rows(9, 7, seed=1)
    torch.testing.assert_close(pairwise_distance(a, b[:5], distance), oracle(a, b[:5]))
    expected = torch.stack([oracle(row.expand_as(b), b) for row in a])
    torch.testing.assert_close(distance_matrix(a, b, distance), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_rows_and_matrix_have_the_same_gradient(distance: Distance) -> None:
    a, b = rows(4, 6, seed=0).requires_grad_(), rows(5, 6, seed=1).requires_grad_()
    weights = rows(4, 5, seed=2)
    by_rows = sum(
        weights[i, j] * pairwise_distance(a[i : i + 1], b[j : j + 1], distance).sum()
        for i in range(4)
        for j in range(5)
    )
    expected = torch.autograd.grad(by_rows, (a, b))
    found = torch.autograd.grad((weights * distance_matrix(a, b, distance)).sum(), (a, b))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_l2_has_torchs_gradient_where_rows_are_equal_in_a_matrix_too(value: float) -> None:
    """Also where 1e-6 is less than the rounding of a coordinate."""
    a, b = (torch.full((3, 16), value, requires_grad=True) for _ in range(2))
    distances = distance_matrix(a, b, "l2")
    torch.testing.assert_close(distances, torch.full((3, 3), 4e-6), rtol=1e-5, atol=0)
    torch.testing.assert_close(distances[:, 0], pairwise_distance(a, b, "l2"), rtol=1e-5, atol=0)
    grad_a, grad_b = torch.autograd.grad(distances.sum(), (a, b))
    torch.testing.assert_close(grad_a, torch.full((3, 16), 0.75))  # three times 1 / sqrt(16)
    torch.testing.assert_close(grad_b, torch.full((3, 16), -0.75))


@pytest.mark.parametrize(
    ("distance", "expected"), [("l2", 2**0.5 - 2), ("l2_squared", 2 - 4), ("cosine", 1 - 2)]
)
def test_a_triplet_at_right_angles_has_the_closed_form(distance: Distance, expected: float) -> None:
    """The positive is 90 degrees from the anchor, the negative 180: a loss of expected + margin."""
    anchor, positive, negative = (
        torch.tensor([row]) for row in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0])
    )
    for negatives in NEGATIVES:
        terms = triplet(
            anchor,
            positive,
            torch.cat([anchor, negative]),
            margin=3.0,
            distance=distance,
            negatives=negatives,
        )
        assert terms.sum.item() == pytest.approx(expected + 3, abs=1e-5)
        assert (terms.num_terms.item(), terms.num_active.item()) == (1, 1)
        assert (terms.positive_distance - terms.negative_distance).item() == pytest.approx(
            expected, abs=1e-5
        )


def test_random_negatives_give_torchs_triplet_margin_loss() -> None:
    anchors, positives = rows(8, 5, seed=0), rows(8, 5, seed=1)
    # Offset k takes the negative of number k; counted without the own image it is candidate k or k
    # + 1.
    offsets = torch.tensor([0, 3, 6, 2, 5, 1, 4, 0])
    chosen = offsets + (offsets >= torch.arange(8)).long()
    terms = triplet(anchors, positives, anchors, offsets=offsets, margin=1.0)
    expected = nn.TripletMarginLoss(margin=1.0)(anchors, positives, anchors[chosen])
    torch.testing.assert_close(terms.sum / terms.num_terms, expected)

    for distance in DISTANCES:
        terms = triplet(anchors, positives, anchors, offsets=offsets, margin=0.7, distance=distance)
        oracle = nn.TripletMarginWithDistanceLoss(
            distance_function=lambda a, b, name=distance: torch.stack(
                [
                    torch.tensor(naive_distance(x, y, name))
                    for x, y in zip(a.tolist(), b.tolist(), strict=True)
                ]
            ),
            margin=0.7,
        )
        torch.testing.assert_close(
            terms.sum / terms.num_terms, oracle(anchors, positives, anchors[chosen])
        )


@given(
    ids=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    num_anchors=st.integers(1, 9),
    negatives=st.sampled_from(NEGATIVES),
    distance=st.sampled_from(DISTANCES),
    margin=st.sampled_from([0.2, 1.0]),
    seed=st.integers(0, 50),
)
@settings(max_examples=150)
def test_triplets_follow_the_formula_when_images_repeat(
    ids: list[int],
    num_anchors: int,
    negatives: Negatives,
    distance: Distance,
    margin: float,
    seed: int,
) -> None:
    num_anchors = min(num_anchors, len(ids))
    candidates, positives = rows(len(ids), 4, seed=seed), rows(num_anchors, 4, seed=seed + 1000)
    anchors, offsets = candidates[:num_anchors], offsets_for(num_anchors, seed=seed)
    rule: dict[str, Any] = {"margin": margin, "distance": distance, "negatives": negatives}
    expected = naive_triplets(
        anchors, positives, candidates, ids[:num_anchors], ids, offsets.tolist(), **rule
    )
    id_tensors = {"anchor_ids": torch.tensor(ids[:num_anchors]), "candidate_ids": torch.tensor(ids)}
    terms = triplet(anchors, positives, candidates, **id_tensors, **rule, offsets=offsets)
    assert terms.num_terms.item() == len(expected)
    assert terms.num_active.item() == sum(loss > 0 for loss, _, _ in expected)
    found = (terms.sum.item(), terms.positive_distance.item(), terms.negative_distance.item())
    for value, column in zip(found, range(3), strict=True):
        assert value == pytest.approx(
            sum(term[column] for term in expected), rel=TOLERANCE, abs=TOLERANCE
        )


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_an_image_that_is_twice_in_the_batch_is_never_its_own_negative(
    negatives: Negatives,
) -> None:
    """The copy lies nearest: every rule would take it, but no gradient may reach it."""
    anchors = rows(3, 6, seed=0)
    copy = anchors[:1] + 1e-3
    candidates = torch.cat([anchors, copy]).requires_grad_()
    ids = torch.tensor([7, 8, 9, 7])
    for first_offset in range(4):
        terms = triplet(
            anchors[:1],
            anchors[:1] + 0.1,
            candidates,
            anchor_ids=ids[:1],
            candidate_ids=ids,
            negatives=negatives,
            margin=50.0,
            offsets=torch.tensor([first_offset]),
        )
        (gradient,) = torch.autograd.grad(terms.sum, candidates)
        assert gradient[[0, 3]].abs().max() == 0
        assert gradient[[1, 2]].abs().max() > 0


def test_random_offsets_reach_every_negative_equally_often() -> None:
    candidates = rows(6, 3, seed=0).requires_grad_()
    ids = torch.tensor([0, 1, 0, 2, 3, 4])
    reached = []
    for offset in [*range(8), 2**62 - 1]:
        terms = triplet(
            candidates[:1].detach(),
            candidates[:1].detach(),
            candidates,
            anchor_ids=ids[:1],
            candidate_ids=ids,
            margin=50.0,
            offsets=torch.tensor([offset]),
        )
        (gradient,) = torch.autograd.grad(terms.sum, candidates)
        reached += gradient.abs().sum(dim=1).nonzero().flatten().tolist()
    assert reached == [1, 3, 4, 5] * 2 + [[1, 3, 4, 5][(2**62 - 1) % 4]]


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("num_anchors", [0, 1])
def test_without_negatives_nothing_is_counted_and_the_graph_stays_whole(
    negatives: Negatives, num_anchors: int
) -> None:
    """A process without rows, or with one image, must still take part in the exchange."""
    candidates = rows(2, 4, seed=0).requires_grad_()
    positives = rows(num_anchors, 4, seed=1).requires_grad_()
    ids = torch.zeros(2, dtype=torch.int64)
    terms = triplet(
        candidates[:num_anchors],
        positives,
        candidates,
        anchor_ids=ids[:num_anchors],
        candidate_ids=ids,
        negatives=negatives,
    )
    assert (terms.sum.item(), terms.num_terms.item(), terms.num_active.item()) == (0, 0, 0)
    for gradient in torch.autograd.grad(terms.sum, (candidates, positives)):
        assert (gradient == 0).all()


@pytest.mark.parametrize("negatives", ["semi_hard", "hard", "all"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_order_of_the_batch_does_not_matter_to_triplets(
    negatives: Negatives, distance: Distance
) -> None:
    anchors, positives = rows(7, 5, seed=0), rows(7, 5, seed=1)
    rule: dict[str, Any] = {"negatives": negatives, "distance": distance}
    expected = triplet(anchors, positives, anchors, **rule)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    found = triplet(anchors[order], positives[order], anchors, anchor_ids=order, **rule)
    torch.testing.assert_close(found.sum, expected.sum)
    found = triplet(anchors, positives, anchors[order], candidate_ids=order, **rule)
    torch.testing.assert_close(found.sum, expected.sum)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_scale_matters_to_l2_but_not_after_normalisation(negatives: Negatives) -> None:
    anchors, positives = rows(6, 5, seed=0), rows(6, 5, seed=1)
    plain = triplet(anchors, positives, anchors, negatives=negatives, margin=0.5)
    doubled = triplet(2 * anchors, 2 * positives, 2 * anchors, negatives=negatives, margin=1.0)
    torch.testing.assert_close(doubled.sum, 2 * plain.sum)
    first, second = (
        triplet(
            *(normalize_rows(scale * x) for x in (anchors, positives, anchors)), negatives=negatives
        )
        for scale in (0.01, 300.0)
    )
    torch.testing.assert_close(first.sum, second.sum)
    cosine = (
        triplet(scale * anchors, positives, anchors, negatives=negatives, distance="cosine")
        for scale in (1.0, 9.0)
    )
    torch.testing.assert_close(next(cosine).sum, next(cosine).sum)


def test_a_farther_negative_and_a_closer_positive_lower_the_loss() -> None:
    anchor, positive, negative = rows(3, 1, 6, seed=0)
    for distance in DISTANCES:
        first, second, third = (x.clone().requires_grad_() for x in (anchor, positive, negative))
        ids = {"candidate_ids": torch.tensor([1])}
        loss = triplet(first, second, third, **ids, distance=distance, margin=50.0).sum
        _, grad_positive, grad_negative = torch.autograd.grad(loss, (first, second, third))
        closer = positive - 1e-2 * grad_positive
        farther = negative - 1e-2 * grad_negative
        assert pairwise_distance(anchor, closer, distance) < pairwise_distance(
            anchor, positive, distance
        )
        assert pairwise_distance(anchor, farther, distance) > pairwise_distance(
            anchor, negative, distance
        )


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("value", [0.0, 0.1, 30.0])
def test_when_all_embeddings_are_equal_the_loss_is_the_margin_and_gradients_are_finite(
    negatives: Negatives, distance: Distance, value: float
) -> None:
    anchors = torch.full((5, 16), value, requires_grad=True)
    positives = torch.full((5, 16), value, requires_grad=True)
    terms = triplet(anchors, positives, anchors, negatives=negatives, distance=distance, margin=0.3)
    # Around the value 30 a coordinate of an embedding is rounded by 2e-6.
    assert (terms.sum / terms.num_terms).item() == pytest.approx(0.3, abs=1e-5)
    gradients = torch.autograd.grad(terms.sum, (anchors, positives))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    if (
        distance == "l2"
    ):  # along the diagonal, where each term pulls every coordinate by 1 / sqrt(16)
        terms_per_anchor = 4 if negatives == "all" else 1
        torch.testing.assert_close(gradients[1], torch.full((5, 16), -0.25 * terms_per_anchor))
    else:  # a saddle
        assert all(gradient.abs().max() < 1e-5 for gradient in gradients)


@pytest.mark.parametrize(
    ("reduction", "chosen"), [("mean", slice(None)), ("mean_positive", slice(3))]
)
def test_reductions_divide_by_all_terms_or_by_those_above_zero(
    reduction: Any, chosen: slice
) -> None:
    losses = torch.tensor([0.5, 2.0, 0.1, 0.0, 0.0])
    counts = {"num_terms": torch.tensor(5), "num_active": torch.tensor(3)}
    factor = reduction_factor(reduction, **counts)
    torch.testing.assert_close(factor * losses.sum() / 5, losses[chosen].mean())
    nothing = reduction_factor(reduction, num_terms=torch.tensor(5), num_active=torch.tensor(0))
    assert (nothing * torch.tensor(0.0)).item() == 0


def nt_xent(views: Tensor, **options: Any) -> Any:
    ids = torch.arange(len(views))
    defaults: dict[str, Any] = {"view_ids": ids, "candidate_ids": ids, "temperature": 0.5}
    return nt_xent_loss(views, options.pop("candidates", views), **(defaults | options))


def test_nt_xent_is_the_cross_entropy_over_the_whole_similarity_matrix() -> None:
    views = rows(6, 2, 5, seed=0)
    total, num_correct = nt_xent(views, temperature=0.2)
    flat = F.normalize(
        torch.cat([views[:, 0], views[:, 1]]), dim=1
    )  # all first views, then all second ones
    similarity = (flat @ flat.T / 0.2).fill_diagonal_(-math.inf)
    partner = torch.arange(12).roll(6)
    torch.testing.assert_close(total / 12, F.cross_entropy(similarity, partner))
    assert num_correct.item() == (similarity.argmax(dim=1) == partner).sum().item()


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_nt_xent_has_closed_forms_for_equal_and_for_orthogonal_images(temperature: float) -> None:
    total, num_correct = nt_xent(torch.ones(5, 2, 3), temperature=temperature)
    assert (total / 10).item() == pytest.approx(math.log(9), rel=1e-6)
    assert num_correct.item() == 0
    total, num_correct = nt_xent(torch.eye(5)[:, None].repeat(1, 2, 1), temperature=temperature)
    expected = math.log(1 + 8 * math.exp(-1 / temperature))
    assert (total / 10).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert num_correct.item() == 10


@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    num_own=st.integers(1, 8),
    seed=st.integers(0, 50),
)
@settings(max_examples=60)
def test_nt_xent_leaves_every_copy_of_the_own_image_out(
    ids: list[int], num_own: int, seed: int
) -> None:
    num_own = min(num_own, len(ids))
    candidates, temperature = rows(len(ids), 2, 4, seed=seed), 0.3
    unit = [
        [[x / math.hypot(*view) for x in view] for view in image] for image in candidates.tolist()
    ]

    def score(a: list[float], b: list[float]) -> float:
        return math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / temperature)

    expected = 0.0
    for i in range(num_own):
        for k in range(2):
            positive = score(unit[i][k], unit[i][1 - k])
            others = [j for j in range(len(ids)) if ids[j] != ids[i]]
            negative = sum(score(unit[i][k], unit[j][m]) for j in others for m in range(2))
            expected -= math.log(positive / (positive + negative))
    total, _ = nt_xent(
        candidates[:num_own],
        candidates=candidates,
        view_ids=torch.tensor(ids[:num_own]),
        candidate_ids=torch.tensor(ids),
        temperature=temperature,
    )
    assert total.item() == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def test_nt_xent_knows_no_order_of_images_nor_of_views_and_no_scale() -> None:
    views = rows(6, 2, 5, seed=0)
    expected, _ = nt_xent(views)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for other in (
        nt_xent(views[order]),
        nt_xent(views.flip(1)),
        nt_xent(views * torch.linspace(0.01, 50, 12).view(6, 2, 1)),
        nt_xent(views, candidates=views[order], candidate_ids=order),
    ):
        torch.testing.assert_close(other[0], expected)


@pytest.mark.parametrize("copies", [1, 3])
def test_negatives_may_weigh_as_several_that_are_like_them(copies: int) -> None:
    """As if each other image were there so many times, under another name."""
    views, ids = rows(6, 2, 5, seed=0), torch.arange(6)
    found, num_correct = nt_xent(views, num_negatives=10 * copies)
    expected = torch.zeros(())
    for i in range(6):
        others = torch.cat([views[ids != i]] * copies)
        candidates = torch.cat([views[i : i + 1], others])
        names = {"view_ids": ids[:1], "candidate_ids": torch.arange(len(candidates))}
        expected += nt_xent(views[i : i + 1], candidates=candidates, **names)[0]
    torch.testing.assert_close(found, expected)
    assert num_correct == nt_xent(views)[1]
    if copies == 1:  # there are as many
        assert torch.equal(found, nt_xent(views)[0])
    for num_images in (1, 2, 5):  # whatever the batch, equal embeddings have one loss
        total, _ = nt_xent(torch.ones(num_images, 2, 3), num_negatives=510)
        expected_loss = 0 if num_images == 1 else math.log(511)
        assert (total / (2 * num_images)).item() == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_distance_is_above_the_largest_and_right_angles_are_unrelated(
    distance: Distance,
) -> None:
    largest = largest_distance(distance, is_normalized=True)
    first = normalize_rows(rows(200, 3, seed=0))
    opposite = pairwise_distance(first, -first, distance)
    torch.testing.assert_close(opposite, torch.full((200,), largest), rtol=1e-4, atol=0)
    assert distance_matrix(first, first, distance).max() <= largest * 1.0001
    assert largest_distance(distance, is_normalized=False) == (
        2 if distance == "cosine" else math.inf
    )
    for length in (1.0, 7.0):
        a, b = length * torch.eye(2)[:1], length * torch.eye(2)[1:]
        expected = unrelated_distance(distance, length)
        assert pairwise_distance(a, b, distance).item() == pytest.approx(expected, rel=1e-5)


def test_parts_of_the_anchors_add_up_to_the_joint_loss() -> None:
    anchors, positives = rows(7, 5, seed=0), rows(7, 5, seed=1)
    views = torch.stack([anchors, positives], dim=1)
    ids, offsets = torch.tensor([4, 1, 0, 1, 3, 2, 6]), offsets_for(7)
    parts = [slice(0, 3), slice(3, 7)]
    for negatives in NEGATIVES:
        rule: dict[str, Any] = {"candidate_ids": ids, "negatives": negatives}
        whole = triplet(anchors, positives, anchors, anchor_ids=ids, offsets=offsets, **rule)
        shares = [
            triplet(
                anchors[p], positives[p], anchors, anchor_ids=ids[p], offsets=offsets[p], **rule
            )
            for p in parts
        ]
        torch.testing.assert_close(shares[0].sum + shares[1].sum, whole.sum)
        assert shares[0].num_terms + shares[1].num_terms == whole.num_terms
    halves = [
        nt_xent(views[p], candidates=views, view_ids=ids[p], candidate_ids=ids) for p in parts
    ]
    torch.testing.assert_close(
        halves[0][0] + halves[1][0], nt_xent(views, view_ids=ids, candidate_ids=ids)[0]
    )


def test_nt_xent_is_finite_at_tiny_temperatures_and_for_equal_and_zero_rows() -> None:
    for views in (rows(4, 2, 3, seed=0), torch.ones(4, 2, 3), torch.zeros(4, 2, 3)):
        views.requires_grad_()
        loss, _ = nt_xent(views, temperature=1e-3)
        (gradient,) = torch.autograd.grad(loss, views)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    alone = torch.ones(1, 2, 3, requires_grad=True)
    loss, _ = nt_xent(alone)
    (gradient,) = torch.autograd.grad(loss, alone)
    assert loss.item() == 0 and (gradient == 0).all()


@pytest.mark.parametrize("low_precision_input", [False, True])
def test_losses_are_float32_under_bfloat16_autocast(low_precision_input: bool) -> None:
    dtype = torch.bfloat16 if low_precision_input else torch.float32
    anchors, positives = (rows(6, 33, seed=seed).to(dtype) for seed in (0, 1))

    def losses(first: Tensor, second: Tensor) -> dict[str, Tensor]:
        triplets = {
            f"{negatives} {distance}": triplet(
                first, second, first, negatives=negatives, distance=distance
            ).sum
            for negatives in NEGATIVES
            for distance in DISTANCES
        }
        images = first[None]
        hidden = torch.ones(1, 6)
        return triplets | {
            "nt_xent": nt_xent(torch.stack([first, second], dim=1), temperature=0.1)[0],
            "mse": reconstruction_loss(first, second, "mse"),
            "patches": masked_patch_loss(second[None], images, hidden, normalize_target=True)[0],
            "normalised": normalize_rows(first).sum(),
        }

    expected = losses(anchors.float(), positives.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert (anchors @ positives.T).dtype is torch.bfloat16
        found = losses(anchors, positives)
    for name, value in expected.items():
        assert found[name].dtype is torch.float32, name
        assert torch.equal(found[name], value), name


def test_reconstruction_losses_are_torchs_means_summed_over_images() -> None:
    prediction, target = rows(4, 3, 5, 5, seed=0), rows(4, 3, 5, 5, seed=1)
    for kind, oracle in (("mse", nn.MSELoss()), ("l1", nn.L1Loss())):
        torch.testing.assert_close(
            reconstruction_loss(prediction, target, kind) / 4, oracle(prediction, target)
        )
    shifted = [reconstruction_loss(target - 0.5, target, kind) for kind in ("mse", "l1")]
    torch.testing.assert_close(shifted, [torch.tensor(4 * 0.25), torch.tensor(4 * 0.5)])


@pytest.mark.parametrize("normalize_target", [False, True])
def test_masked_patch_loss_is_that_of_transformers_and_of_a_loop(normalize_target: bool) -> None:
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    decoder = {f"decoder_{name}": value for name, value in size.items()}
    torch.manual_seed(0)
    config = ViTMAEConfig(
        image_size=8,
        patch_size=2,
        num_channels=3,
        norm_pix_loss=normalize_target,
        **size,
        **decoder,
    )
    model = ViTMAEForPreTraining(config).eval()
    images = rows(3, 3, 8, 8, seed=1)
    with torch.no_grad():
        out = model(images, noise=torch.rand(3, 16, generator=torch.Generator().manual_seed(2)))
    patches = model.patchify(images)
    total, count = masked_patch_loss(
        out.logits, patches, out.mask, normalize_target=normalize_target
    )
    assert count.item() == 3 * 12  # three quarters of 16 patches are hidden
    torch.testing.assert_close(total / count, out.loss)

    expected = 0.0
    for image, patch in out.mask.nonzero().tolist():
        values = patches[image, patch].tolist()
        if normalize_target:
            mean = sum(values) / 12
            variance = sum((value - mean) ** 2 for value in values) / 11
            values = [(value - mean) / math.sqrt(variance + 1e-6) for value in values]
        guesses = out.logits[image, patch].tolist()
        expected += (
            sum((guess - value) ** 2 for guess, value in zip(guesses, values, strict=True)) / 12
        )
    assert total.item() == pytest.approx(expected, rel=TOLERANCE)


def test_visible_patches_and_the_brightness_of_normalised_ones_do_not_matter() -> None:
    prediction, target = rows(2, 6, 12, seed=0), rows(2, 6, 12, seed=1)
    hidden = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0]])
    expected, _ = masked_patch_loss(prediction, target, hidden, normalize_target=True)
    changed = torch.where(hidden[..., None] == 1, prediction, 1e6)
    torch.testing.assert_close(
        masked_patch_loss(changed, target, hidden, normalize_target=True)[0], expected
    )
    brighter = 3 * target + 5
    torch.testing.assert_close(
        masked_patch_loss(prediction, brighter, hidden, normalize_target=True)[0], expected
    )
    torch.testing.assert_close(
        masked_patch_loss(changed, target, hidden.bool(), normalize_target=True)[0], expected
    )


def test_patches_of_one_value_cannot_be_normalised() -> None:
    ones = torch.ones(1, 4, 1)
    with pytest.raises(InputError, match="`norm_pix_loss` False"):
        masked_patch_loss(ones, ones, torch.ones(1, 4), normalize_target=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_the_vocabulary_loss_is_torchs_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int
) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS", (chunk, chunk))
    generator = torch.Generator().manual_seed(0)
    scores = (8 * torch.randn(7, 19, generator=generator)).to(dtype).requires_grad_()
    targets = torch.tensor([3, 18, -100, 0, 5, -100, 5])
    loss, num_correct = summed_cross_entropy(scores, targets)
    (gradient,) = torch.autograd.grad(2.5 * loss, scores)
    plain = scores.detach().float().requires_grad_()
    expected = F.cross_entropy(plain, targets, ignore_index=-100, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(2.5 * expected, plain)
    assert gradient.dtype is dtype and loss.dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    # bfloat16 has 8 bits; the gradient is rounded to it twice.
    tolerance = 1e-6 if dtype is torch.float32 else 2**-7
    torch.testing.assert_close(gradient.float(), expected_gradient, rtol=tolerance, atol=1e-6)
    assert num_correct == int((plain.argmax(-1) == targets).sum())


def test_in_float16_the_loss_scale_comes_before_the_gradient_is_rounded() -> None:
    """Of 30,522 equal scores the softmax is 3e-5, below the least normal number of float16."""
    scores = torch.zeros(2, 30_522, dtype=torch.float16, requires_grad=True)
    lower = 4 * torch.eye(2, 30_522, dtype=torch.float16)
    loss, _ = summed_cross_entropy(scores - lower, torch.tensor([0, 1]))
    scale = 2.0**12
    (gradient,) = torch.autograd.grad(scale * loss, scores)
    probability = 1 / (30_521 + math.exp(-4))
    expected = torch.full((2, 1000), scale * probability)
    torch.testing.assert_close(gradient[:, 2:1002].float(), expected, rtol=2**-10, atol=0.0)


def test_the_vocabulary_loss_of_huge_scores_and_of_no_row_is_finite() -> None:
    scores = torch.tensor([[1e4, -1e4], [0.0, 3e38]], requires_grad=True)
    loss, _ = summed_cross_entropy(scores, torch.tensor([0, 1]))
    assert loss == 0 and torch.isfinite(torch.autograd.grad(loss, scores)[0]).all()
    for targets in (torch.tensor([-100, -100]), torch.zeros(0, dtype=torch.int64)):
        rows = scores[: len(targets)]
        loss, num_correct = summed_cross_entropy(rows, targets)
        assert loss == 0 and num_correct == 0
        assert (torch.autograd.grad(loss, scores)[0] == 0).all()
