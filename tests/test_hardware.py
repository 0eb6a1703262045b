"""What is said of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from bert_pretrain.hardware import default_device, known_peak_flops, loader_workers, peak_flops


def test_a_torch_built_for_gpus_computes_on_the_processor_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda")
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert default_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert default_device() == torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),  # another card than the A10
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("A card of tomorrow", None),
    ],
)
def test_the_peak_of_a_card_is_its_data_sheets_or_unknown(
    name: str, expected: float | None
) -> None:
    assert known_peak_flops(name) == expected


def test_a_processor_is_measured_and_gets_no_loading_processes() -> None:
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
    assert loader_workers(torch.device("cpu")) == 0
    assert 1 <= loader_workers(torch.device("cuda")) <= 4


def test_images_are_decoded_on_all_cores_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert_pretrain.hardware.cpu_threads", lambda _: 16)
    assert loader_workers(torch.device("cuda"), decodes_images=True) == 15
    assert loader_workers(torch.device("cuda")) == 4
    assert loader_workers(torch.device("cpu"), decodes_images=True) == 0


# Minor page faults, each of which clears a page, of updates that need and free pieces of 64 MiB.
COUNT_FAULTS = """
import resource, sys
import torch
from bert_pretrain.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
def update():
    states = [torch.zeros(2**24) for _ in range(2)]
    states.append(states[0] + states[1])
for _ in range(4):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    update()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_that_is_kept_is_not_cleared_anew_for_each_update() -> None:
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, way]))
        for way in ("keep", "return")
    )
    assert kept < returned / 4  # a piece may still be new
