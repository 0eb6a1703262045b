"""LAMB against the paper's algorithm, a parameter and a number at a time."""

from __future__ import annotations

import math

import pytest
import torch

from bert_pretrain.training.lamb import Lamb

SHAPES = [(3, 5), (4,), (2, 3, 2), (6, 1), (1,)]


def length(numbers: list[float]) -> float:
    return math.sqrt(math.fsum(number * number for number in numbers))


def naive(
    start: list[float],
    gradients: list[list[float]],
    *,
    rates: list[float],
    betas: tuple[float, float],
    epsilon: float,
    decay: float,
    is_adapted: bool,
) -> list[float]:
    """Return a parameter after algorithm 2 of You et al. 2020, in Python's floats."""
    weights, first, second = list(start), [0.0] * len(start), [0.0] * len(start)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        update = []
        for i, g in enumerate(gradient):
            first[i] = betas[0] * first[i] + (1 - betas[0]) * g
            second[i] = betas[1] * second[i] + (1 - betas[1]) * g * g
            corrected = first[i] / (1 - betas[0] ** t)
            root = math.sqrt(second[i] / (1 - betas[1] ** t))
            update.append(corrected / (root + epsilon) + decay * weights[i])
        ratio = 1.0
        if is_adapted and length(weights) > 0 and length(update) > 0:
            ratio = length(weights) / length(update)
        weights = [w - rate * ratio * u for w, u in zip(weights, update, strict=True)]
    return weights


def make(decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.999)) -> Lamb:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Lamb(groups, lr=0.0, betas=betas, eps=1e-3)


def parameters_of(optimizer: Lamb) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def make_updates(optimizer: Lamb, steps: list[int], *, skipped: tuple[int, ...] = ()) -> None:
    """Make updates, each with gradients and a rate of its own."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters_of(optimizer):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient * float("nan") if step in skipped else gradient
        optimizer.found_inf = torch.tensor(float(step in skipped))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + step)
        optimizer.step()


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_updates_are_those_of_the_paper(decay: float, betas: tuple[float, float]) -> None:
    optimizer = make(decay, betas)
    starts = [p.detach().clone() for p in parameters_of(optimizer)]
    make_updates(optimizer, list(range(5)))
    generators = [torch.Generator().manual_seed(step) for step in range(5)]
    for parameter, start in zip(parameters_of(optimizer), starts, strict=True):
        is_matrix = parameter.ndim >= 2
        expected = naive(
            start.flatten().tolist(),
            [torch.randn(start.shape, generator=g).flatten().tolist() for g in generators],
            rates=[0.01 * (1 + step) for step in range(5)],
            betas=betas,
            epsilon=1e-3,
            decay=decay if is_matrix else 0.0,
            is_adapted=is_matrix,
        )
        found = parameter.detach().flatten()
        # float32 over five updates
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("start", "gradient"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_ratio_is_one_where_a_norm_is_zero(start: float, gradient: float) -> None:
    parameter = torch.nn.Parameter(torch.full((2, 2), start))
    parameter.grad = torch.full((2, 2), gradient)
    Lamb([parameter], lr=0.25, eps=1e-12).step()
    # The first update of Adam is the sign of the gradient.
    expected = torch.full((2, 2), start - 0.25 * gradient)
    torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("skipped", [0, 2])
def test_a_flagged_update_leaves_no_trace(skipped: int) -> None:
    with_one, without = make(), make()
    make_updates(with_one, [0, 1, 2, 3], skipped=(skipped,))
    make_updates(without, [step for step in range(4) if step != skipped])
    assert all(map(torch.equal, parameters_of(with_one), parameters_of(without)))
    states = [
        [value for p in parameters_of(optimizer) for value in optimizer.state[p].values()]
        for optimizer in (with_one, without)
    ]
    assert all(map(torch.equal, *states))


def test_a_flagged_update_changes_no_parameter() -> None:
    optimizer = make()
    before = [p.detach().clone() for p in parameters_of(optimizer)]
    make_updates(optimizer, [0], skipped=(0,))
    assert all(map(torch.equal, parameters_of(optimizer), before))


def test_a_loaded_state_continues_to_the_last_bit() -> None:
    whole, first, second = make(), make(), make()
    make_updates(whole, [0, 1, 2, 3])
    make_updates(first, [0, 1])
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for target, source in zip(parameters_of(second), parameters_of(first), strict=True):
            target.copy_(source)
    make_updates(second, [2, 3])
    assert all(map(torch.equal, parameters_of(whole), parameters_of(second)))


def test_the_norm_of_a_long_table_is_right() -> None:
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(8192, 512))
    table.grad = torch.randn(8192, 512)
    start = table.detach().clone()
    Lamb([table], lr=1.0, betas=(0.0, 0.0), eps=1e-12).step()
    moved = (start - table.detach()).double()
    # The first update is the sign of the gradient, of norm sqrt(8192 * 512): |w| / |u| of each.
    expected = float(start.double().square().sum().sqrt()) / math.sqrt(8192 * 512)
    naive_norm = float(torch.linalg.vector_norm(start)) / math.sqrt(8192 * 512)
    assert abs(naive_norm / expected - 1) > 1e-5  # what torch comes to on a processor
    # A step of float32 at weights up to 6 is 4.8e-7; the mean of four million is closer.
    assert float(moved.abs().mean()) == pytest.approx(expected, rel=1e-7)
