"""Stop signals: who notes them, who waits, who ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bert_pretrain.data.signals import STOP_SIGNALS, StopRequest

NOTING = """
import signal, sys, time
from bert_pretrain.data.signals import StopRequest
stop = StopRequest(grace_seconds={grace})
with stop.taken():
    print("ready", flush=True)
    while not stop.number:
        time.sleep(0.01)
    print("noted", stop.number, flush=True)
    time.sleep(60)
"""
HELPING = """
import sys, time
import bert_pretrain.data.signals as signals
signals._SECONDS_OF_A_HELPER = 0.5
signals.outlive_stop_signals()
print("ready", flush=True)
time.sleep(60)
"""


def started(program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_is_noted_and_what_was_there_before_comes_back(number: int) -> None:
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    stop = StopRequest()
    with stop.taken():
        os.kill(os.getpid(), number)
        assert stop.number == number
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigint_ends_a_process_at_once_and_a_second_sigterm_does_not(
    first: signal.Signals,
) -> None:
    process = started(NOTING.format(grace=0))
    process.send_signal(first)
    assert process.stdout is not None
    assert process.stdout.readline() == f"noted {first.value}\n"
    process.send_signal(signal.SIGTERM)  # as a launcher passes on what its process knows already
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


def test_after_its_grace_a_process_ends_with_the_status_of_the_signal() -> None:
    process = started(NOTING.format(grace=0.2))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 128 + signal.SIGTERM


def test_a_helper_ignores_the_signals_of_a_terminal_and_ends_some_time_after_sigterm() -> None:
    process = started(HELPING)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert process.poll() is None
    assert process.wait(timeout=10) == -signal.SIGALRM


LAUNCHED = """
import os, signal, sys, time
from bert_pretrain.data.signals import stop_with_launcher

def save(*_):
    open(sys.argv[1], "w").close()
    sys.exit()

signal.signal(signal.SIGTERM, save)
stop_with_launcher()
print(os.getpid(), flush=True)
time.sleep(60)
"""
LAUNCHING = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # whom nobody has waited for
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("is_launched", [True, False])
def test_a_process_saves_and_ends_with_its_launcher_but_not_with_a_shell(
    tmp_path: Path, is_launched: bool
) -> None:
    environment = os.environ | ({"TORCHELASTIC_RUN_ID": "none"} if is_launched else {})
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHING, LAUNCHED, str(tmp_path / "saved")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    process = psutil.Process(int(launcher.stdout.readline()))
    launcher.kill()
    launcher.wait()
    limit = time.monotonic() + (20 if is_launched else 3)
    while is_alive(process) and time.monotonic() < limit:
        time.sleep(0.05)
    assert is_alive(process) != is_launched and (tmp_path / "saved").exists() == is_launched
    if is_alive(process):
        process.kill()


CHILD = """
import signal, sys, time

def save(*_):
    print("saved", flush=True)
    sys.exit(7)

signal.signal(signal.SIGINT, save)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import os, sys
from bert_pretrain.data.programs import run_program
print(run_program([sys.executable, "-c", sys.argv[1]], os.environ), flush=True)
"""


def test_a_program_that_is_run_gets_the_signal_once_and_its_end_is_awaited() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "saved\n7\n"
