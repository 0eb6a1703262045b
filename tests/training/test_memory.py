"""Out of memory says what to change, rows are halved until they fit, and no garbage piles up."""

from __future__ import annotations

import gc
import platform
import weakref
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from bert_pretrain.errors import TrainingError
from bert_pretrain.training import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_flags_with_numbers(error: Exception) -> None:
    with (
        pytest.raises(
            TrainingError,
            match=r"64 rows.*train_batch_size` 32 with `global_batch_size` 192.*6 forw",
        ),
        memory.explaining_out_of_memory(
            CPU, rows_at_once=64, num_micro_batches=3, global_batch_size=192
        ),
    ):
        raise error


def test_a_single_row_that_does_not_fit_is_not_to_be_halved() -> None:
    with (
        pytest.raises(TrainingError, match=r"single row does not fit.*gradient_checkpointing"),
        memory.explaining_out_of_memory(CPU, rows_at_once=1, num_micro_batches=3),
    ):
        raise MemoryError


def test_an_evaluation_that_runs_out_names_its_own_flag() -> None:
    explaining = memory.explaining_out_of_memory(
        CPU, rows_at_once=64, parameter="per_device_eval_batch_size"
    )
    outer = memory.explaining_out_of_memory(CPU, rows_at_once=32)
    with (
        pytest.raises(TrainingError, match=r"64 rows.*pass `per_device_eval_batch_size` 32"),
        outer,
        explaining,
    ):
        raise RuntimeError("CUDA error: out of memory")


def test_other_errors_pass() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        memory.explaining_out_of_memory(CPU, rows_at_once=1, num_micro_batches=1),
    ):
        raise RuntimeError("shapes do not match")


def test_the_peak_of_a_process_is_at_least_what_it_holds() -> None:
    before = memory.peak_gib(CPU)
    held = torch.ones(2**26)  # 256 MiB
    assert memory.peak_gib(CPU) >= before > 0
    assert memory.peak_gib(CPU) > held.nbytes / 2**30


@pytest.mark.parametrize(
    ("bytes_per_row", "expected"), [(1, 96), (10, 48), (16, 24), (60, 6), (2000, 1)]
)
def test_rows_are_halved_until_they_fit_beside_what_is_reserved(
    monkeypatch: pytest.MonkeyPatch, bytes_per_row: int, expected: int
) -> None:
    peak = 0

    def compute(rows: int) -> None:
        nonlocal peak
        peak = rows * bytes_per_row
        if peak > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory")

    device = SimpleNamespace(
        get_device_properties=lambda _: SimpleNamespace(total_memory=1000),
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda _: None,
        max_memory_reserved=lambda _: peak,
    )
    monkeypatch.setattr(torch, "cuda", device)
    # 900 of 1000 bytes may be used, 400 of them by the optimiser.
    found = memory.largest_that_fits(compute, most=96, device=CPU, reserved=400)
    assert found == expected
    assert found == 1 or found * bytes_per_row + 400 <= 900


class Figure:
    """An object that only a full collection frees: it knows itself."""

    def __init__(self) -> None:
        self.parts: list[Any] = [[self] for _ in range(20)]


def most_alive(num: int) -> int:
    """Return how many of so many dead figures there are at most at once."""
    alive: weakref.WeakSet[Figure] = weakref.WeakSet()
    most = 0
    for _ in range(num):
        survivors = [Figure() for _ in range(60)]  # live long enough to be left to full collections
        gc.collect(1)
        alive.update(survivors)
        del survivors
        most = max(most, len(alive))
    return most


def test_dead_figures_do_not_pile_up_beside_many_objects_that_stay() -> None:
    staying = [[number] for number in range(600_000)]  # as after an import of transformers
    gc.collect()
    piled_up = most_alive(120)
    with memory.collecting_new_garbage():
        kept_low = most_alive(120)
    assert gc.get_freeze_count() == 0
    assert len(staying) == 600_000
    assert kept_low < piled_up / 4


def resident_mebibytes() -> float:
    """Return the memory that this process has from the system."""
    return psutil.Process().memory_info().rss / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_below_what_stays_is_given_back() -> None:
    pieces = [torch.ones(16_000) for _ in range(3000)]  # 64 kB each: of the heap, not of their own
    staying = pieces[::300]
    full = resident_mebibytes()
    pieces.clear()
    gc.collect()
    memory.return_freed_memory()
    assert full - resident_mebibytes() > 150
    assert all(piece.sum() == 16_000 for piece in staying)
