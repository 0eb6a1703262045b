"""The fastest way of attending is taken, of those that work, and a processor measures nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from trainers import attend_by_bounds

from bert_pretrain.models import attention_choice
from bert_pretrain.models.attention_choice import fastest_attention, usable_attentions

SIZES: dict[str, Any] = {"num_rows": 2, "row_length": 16, "num_heads": 2, "head_width": 8}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    fastest_attention.cache_clear()
    yield
    fastest_attention.cache_clear()


def test_a_processor_decides_by_the_length_alone() -> None:
    assert fastest_attention(CPU, torch.bfloat16, **SIZES) == ("rows_written_out", {})
    long = SIZES | {"row_length": 512}
    assert fastest_attention(CPU, torch.bfloat16, **long) == ("rows", {})


def test_kernels_are_for_a_gpu_low_precision_and_no_dropout() -> None:
    assert usable_attentions(GPU, torch.float32, dropout=0.0) == ["rows"]
    assert usable_attentions(GPU, torch.bfloat16, dropout=0.1) == ["rows"]
    assert usable_attentions(CPU, torch.bfloat16, dropout=0.0) == ["rows"]
    found = usable_attentions(GPU, torch.bfloat16, dropout=0.0)
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None  # since 2.10
    assert found[: 1 + has_varlen] == ["rows", "torch_varlen"][: 1 + has_varlen]


class Clock:
    """Stands still but for those who take their time."""

    now = 0.0


def slow(*arguments: Any) -> torch.Tensor:
    Clock.now += 1.0
    return attend_by_bounds(*arguments)


def broken(*_: Any) -> torch.Tensor:
    raise RuntimeError("built for another card")


@pytest.mark.parametrize(
    ("kernels", "expected", "measured"),
    [
        ({"slow": slow}, "rows", {"rows", "slow"}),
        ({"slow": slow, "broken": broken}, "rows", {"rows", "slow"}),
        ({"broken": broken}, "rows", {"rows"}),
    ],
)
def test_what_is_slower_or_does_not_work_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
    kernels: dict[str, Callable[..., torch.Tensor]],
    expected: str,
    measured: set[str],
) -> None:
    def seconds(step: Callable[[], None]) -> float:
        begun = Clock.now
        step()
        return Clock.now - begun

    monkeypatch.setattr(attention_choice, "_median_milliseconds", seconds)
    monkeypatch.setattr(attention_choice, "usable_attentions", lambda *_, **__: ["rows", *kernels])
    for name, kernel in kernels.items():
        monkeypatch.setitem(attention_choice.KERNELS, name, kernel)
    fastest, milliseconds = fastest_attention(CPU, torch.float32, **SIZES)
    assert set(milliseconds) == measured
    assert fastest == expected
