"""Shared by all tests: no network, and nothing left over from the test before."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have that of the process that starts them
    # What an earlier version of the code has left in the user's cache must not pass for this one's.
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-of-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # Each worker, with the programs it starts, keeps to cores of its own: threads that wait for
    # each other at every operation take many times as long where another worker has one's core.
    cores = sorted(os.sched_getaffinity(0))
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    share = cores[number :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, share or {cores[number % len(cores)]})

import pytest
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, settings

from bert_pretrain.models import fast_paths

# The same cases in every run, however slow the machine is: what chance finds, or a load, must not
# decide whether a change passes. The long part draws others.
settings.register_profile(
    "seeded",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("seeded")


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
