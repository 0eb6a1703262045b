"""The schedule against its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pretrain.training.schedule import Schedule


def make_schedule(name: str, *, length: int, **overrides: Any) -> Schedule:
    fields = {"warmup_steps": 10, "decay_share": 0.4, "peak": 2.0, "max_seconds": 0.0}
    return Schedule(max_steps=length, name=name, **(fields | overrides))


def test_the_schedules_reach_their_corners() -> None:
    linear = make_schedule("linear", length=100)
    assert linear.learning_rate(0, 0.0) == pytest.approx(0.2)
    assert linear.learning_rate(9, 0.0) == linear.learning_rate(10, 0.0) == 2.0
    assert linear.learning_rate(55, 0.0) == pytest.approx(1.0)
    stable = make_schedule("stable_decay", length=100)
    assert stable.learning_rate(60, 0.0) == 2.0
    assert stable.learning_rate(80, 0.0) == pytest.approx(1.0)
    assert stable.learning_rate(100, 0.0) == 0.0


def test_a_clock_sets_the_length_where_it_ends_first() -> None:
    # After 20 updates in 10 seconds a budget of 50 seconds holds 100.
    by_clock = make_schedule("linear", length=0, max_seconds=50.0)
    by_number = make_schedule("linear", length=100)
    assert by_clock.learning_rate(20, 10.0) == by_number.learning_rate(20, 10.0)
    assert by_clock.is_over(20, 50.0) and not by_clock.is_over(20, 49.9)
    both = make_schedule("linear", length=60, max_seconds=50.0)
    assert both.learning_rate(20, 10.0) == make_schedule("linear", length=60).learning_rate(20, 0)


def test_the_progress_bar_ends_where_the_clock_will() -> None:
    clocked = make_schedule("linear", length=1800, max_seconds=100.0)
    assert clocked.foretold_length(0, 0.0) == 1800
    assert clocked.foretold_length(10, 5.0) == 200
    assert clocked.foretold_length(10, 0.5) == 1800
    assert clocked.foretold_length(203, 101.0) == 203
    endless = make_schedule("linear", length=0, max_seconds=100.0)
    assert endless.foretold_length(0, 0.0) is None and endless.foretold_length(10, 5.0) == 200
    assert make_schedule("linear", length=30).foretold_length(10, 5.0) == 30


@pytest.mark.parametrize(
    ("name", "shape", "share_of_peak"),
    [
        ("linear", "linear", lambda behind: 1 - behind),
        ("cosine", "linear", lambda behind: 0.5 * (1 + math.cos(math.pi * behind))),
        ("stable_decay", "linear", lambda behind: 1 - behind),
        ("stable_decay", "sqrt", lambda behind: 1 - math.sqrt(behind)),
    ],
)
@pytest.mark.parametrize("by_clock", [False, True])
def test_a_rate_falls_as_its_formula_says(
    name: str, shape: str, share_of_peak: Callable[[float], float], by_clock: bool
) -> None:
    start = 60 if name == "stable_decay" else 10  # of 100 updates
    length = {"length": 0, "max_seconds": 50.0} if by_clock else {"length": 100}
    schedule = make_schedule(name, decay_shape=shape, **length)
    for step in range(1, 101):
        expected = 2.0 * min((step + 1) / 10, 1.0)
        if step >= start:
            expected = 2.0 * share_of_peak((step - start) / (100 - start))
        # Half a second an update: 100 of them fill the 50 seconds.
        found = schedule.learning_rate(step, 0.5 * step)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), step


def test_only_a_loss_at_or_below_the_goal_ends_a_run() -> None:
    schedule = make_schedule("linear", length=100, stop_at_loss=1.5)
    assert [schedule.is_reached(loss) for loss in (1.6, 1.5, 0.1)] == [False, True, True]
    assert not schedule.is_reached(math.nan)
    assert not make_schedule("linear", length=100).is_reached(0.0)


@given(st.floats(0, 1), st.integers(1, 500), st.integers(0, 50), st.floats(0.01, 1))
def test_rates_lie_between_zero_and_the_peak(
    place: float, length: int, warmup: int, share: float
) -> None:
    for name in ("linear", "cosine", "stable_decay"):
        for shape in ("linear", "sqrt"):
            fields = {"warmup_steps": warmup, "decay_share": share, "decay_shape": shape}
            schedule = make_schedule(name, length=length, **fields)
            assert 0 <= schedule.learning_rate(place * length, 0.0) <= 2.0
