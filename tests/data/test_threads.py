"""Threads work ahead, in bounds and in order."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from bert_pretrain.data.threads import map_ahead


def test_results_come_in_order_however_long_each_takes() -> None:
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3 == 0))
        return number * number

    found = list(map_ahead(slow, range(50), num_threads=4, num_ahead=6))
    assert found == [number * number for number in range(50)]


def test_no_more_items_are_asked_for_than_are_under_way() -> None:
    asked = 0

    def items() -> Iterator[int]:
        nonlocal asked
        for number in range(30):
            asked += 1
            yield number

    for done, _ in enumerate(map_ahead(str, items(), num_threads=2, num_ahead=3)):
        assert asked <= done + 4


def test_an_error_is_raised_at_its_place() -> None:
    results = map_ahead(lambda number: 1 // number, [1, 0, 1], num_threads=2, num_ahead=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
