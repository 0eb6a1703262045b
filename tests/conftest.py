"""Shared by all tests: no network, and nothing left over from the test before."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from accelerate.state import AcceleratorState

from bert_pretrain.models import fast_paths


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Let each test start anew: Accelerate keeps one state, with one precision, per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def stock_attention() -> Iterator[None]:
    """Let all models attend by the same kernel, to be compared to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_paths, "LONGEST_EAGER_ROW", 0)
        yield
