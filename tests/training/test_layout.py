"""Claims about how rows are divided up and what launchers say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pretrain.errors import InputError
from bert_pretrain.training import layout
from bert_pretrain.training.layout import divide_rows, launched_accumulation, launched_precision


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 8))
def test_no_forward_pass_has_more_rows_than_a_device_takes(
    global_batch_size: int, per_device: int, num_processes: int
) -> None:
    if global_batch_size < num_processes:
        return
    try:
        rows, passes = divide_rows(
            global_batch_size=global_batch_size,
            per_device=per_device,
            accumulation=0,
            num_processes=num_processes,
        )
    except InputError as error:
        # The last rows do not reach every pass of every process.
        assert error.parameter == "global_batch_size"
        return
    assert rows == global_batch_size
    assert -(-rows // (passes * num_processes)) <= per_device


def test_an_accumulation_that_would_exceed_the_device_is_refused_with_the_one_that_does_not() -> (
    None
):
    with pytest.raises(InputError, match=r"4096 rows.*allows 32; pass `\w+` 128"):
        divide_rows(global_batch_size=4096, per_device=32, accumulation=1, num_processes=1)


def test_without_a_global_size_the_parts_are_multiplied() -> None:
    numbers = {"global_batch_size": 0, "per_device": 8, "num_processes": 3}
    assert divide_rows(**numbers, accumulation=0) == (24, 1)
    assert divide_rows(**numbers, accumulation=2) == (48, 2)


@pytest.mark.parametrize(
    ("variable", "command", "expected"),
    [
        ("bf16", [], "bf16"),
        ("no", ["accelerate", "launch", "--mixed_precision", "no", "x.py"], "no"),
        ("no", ["accelerate", "launch", "--mixed-precision=no", "x.py"], "no"),
        ("no", ["accelerate", "launch", "x.py"], None),
        ("no", ["accelerate", "launch", "x.py", "--mixed_precision", "auto"], None),
        (None, [], None),
    ],
)
def test_no_precision_is_told_from_none_asked_for(
    variable: str | None, command: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if variable:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", variable)
    monkeypatch.setattr(layout, "_parent_command_line", lambda: command)
    monkeypatch.setattr("sys.argv", ["/somewhere/x.py"])
    assert launched_precision() == expected


@pytest.mark.parametrize(("value", "expected"), [(None, 0), ("1", 0), ("4", 4)])
def test_the_launchers_accumulation_is_taken(
    value: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", raising=False)
    if value:
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", value)
    assert launched_accumulation() == expected
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    with pytest.raises(InputError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS is 'auto'"):
        launched_accumulation()
