"""NT-Xent of local views: each finds both views of full size among those of other images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bert_pretrain.losses.contrastive import local_nt_xent_loss

TEMPERATURE = 0.3


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(local_views: Tensor, views: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    ids = torch.arange(len(views))
    defaults = {"view_ids": ids, "candidate_ids": ids, "temperature": TEMPERATURE}
    return local_nt_xent_loss(
        local_views, views, options.pop("candidates", views), **(defaults | options)
    )


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize("num_negatives", [None, 20])
def test_the_loss_is_that_of_a_loop_over_pairs(num_negatives: int | None) -> None:
    # The first and the last row show the same image.
    local_views, views, ids = rows(4, 3, 5), rows(4, 2, 5, seed=1), [7, 8, 9, 7]
    total, num_found = 0.0, 0
    for i in range(4):
        negatives = [views[j, k] for j in range(4) for k in range(2) if ids[j] != ids[i]]
        weight = 1 if num_negatives is None else num_negatives / len(negatives)
        for local in local_views[i]:
            logits = [cosine(local, other) / TEMPERATURE for other in negatives]
            others = weight * sum(map(math.exp, logits))
            for partner in views[i]:
                positive = cosine(local, partner) / TEMPERATURE
                total -= math.log(math.exp(positive) / (math.exp(positive) + others))
                num_found += positive > max(logits)
    found = loss_of(
        local_views,
        views,
        view_ids=torch.tensor(ids),
        candidate_ids=torch.tensor(ids),
        num_negatives=num_negatives,
    )
    assert float(found[0]) == pytest.approx(total, rel=1e-5)  # float32
    assert int(found[1]) == num_found


def test_equal_embeddings_cost_what_chance_does() -> None:
    total, num_found = loss_of(torch.ones(5, 3, 4), torch.ones(5, 2, 4))
    assert float(total) == pytest.approx(2 * 5 * 3 * math.log(1 + 2 * 4), rel=1e-5)
    assert num_found == 0


def test_without_another_image_a_term_and_its_gradient_are_zero() -> None:
    local_views = rows(1, 2, 4).float().requires_grad_()
    total, _ = loss_of(local_views, rows(1, 2, 4, seed=1).float())
    total.backward()
    assert total == 0 and torch.equal(local_views.grad, torch.zeros(1, 2, 4))


def test_the_order_of_local_views_means_nothing_nor_their_length() -> None:
    local_views, views = rows(4, 3, 5), rows(4, 2, 5, seed=1)
    expected = loss_of(local_views, views)[0]
    torch.testing.assert_close(loss_of(local_views.flip(1), views.flip(1))[0], expected)
    torch.testing.assert_close(loss_of(3 * local_views, 0.2 * views)[0], expected)
