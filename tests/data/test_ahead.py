"""Claims about work made ahead: its results, its errors, and that nothing of it outlives a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
import pytest

from bert_pretrain.data.ahead import begin_ahead
from bert_pretrain.errors import InputError, MachineError

ROOT = Path(__file__).parents[2]
PARENT = """
import sys, time
from functools import partial
from bert_pretrain.data.ahead import begin_ahead
future = begin_ahead(partial(time.sleep, 600))
time.sleep(float(sys.argv[1]))
"""


def refuse(value: int) -> None:
    """Refuse a value as a planner does."""
    sys.stdout.write("this is no answer")
    raise InputError.out_of_range("seed", value, "positive", advice="choose another")


def start_parent(seconds: float) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """Start a program that lets another process work for minutes, and find that one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(seconds)], env=environment)
    for _ in range(600):
        children = psutil.Process(parent.pid).children()
        if children:
            return parent, children[0]
        time.sleep(0.05)
    raise AssertionError("no process was started")


def test_a_result_of_many_bytes_comes_back_whole() -> None:
    numbers = begin_ahead(partial(np.arange, 1_000_000)).result(timeout=60)
    assert np.array_equal(numbers, np.arange(1_000_000))


def test_another_process_does_the_work_and_is_gone_afterwards() -> None:
    pid = begin_ahead(os.getpid).result(timeout=60)
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


def test_an_error_arrives_as_it_was_raised() -> None:
    with pytest.raises(InputError) as caught:
        begin_ahead(partial(refuse, -1)).result(timeout=60)
    error = caught.value
    assert (error.parameter, error.value, error.advice) == ("seed", -1, "choose another")
    assert "in refuse" in str(error.__cause__)  # where it was raised, for whoever debugs


def test_a_process_that_is_ended_is_an_error_that_says_so() -> None:
    with pytest.raises(MachineError, match=r"ended with status -9"):
        begin_ahead(partial(signal.raise_signal, signal.SIGKILL)).result(timeout=60)


def test_the_work_ends_with_a_run_that_is_killed() -> None:
    parent, child = start_parent(600)
    parent.kill()
    parent.wait()
    child.wait(timeout=20)


def test_a_run_that_is_over_does_not_wait_for_it() -> None:
    parent, child = start_parent(3)
    assert parent.wait(timeout=20) == 0
    child.wait(timeout=20)


def test_a_process_that_plans_imports_no_torch() -> None:
    """It would take half a gigabyte and seconds on every rank."""
    assert not begin_ahead(torch_after_planner).result(timeout=60)


def torch_after_planner() -> bool:
    """Return whether this process has imported torch once it can plan."""
    import_module("bert_pretrain.text.pairs")
    return "torch" in sys.modules
