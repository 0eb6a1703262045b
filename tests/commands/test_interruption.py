"""A run that is asked to stop saves, says how to go on, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from runs import command, environment, metrics, run, run_here, small_flags
from safetensors.torch import load_file

FLAGS = "--max_steps 60 --global_batch_size 16 --dropout 0.1 --save_steps 0 --logging_steps 3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interruption")
    run_here(folder, [*small_flags(folder), *FLAGS.split(), "--output_dir", "whole"])
    return folder


def started(folder: Path, name: str, *more: str, num_processes: int = 1) -> subprocess.Popen[str]:
    """Start a run and wait until it has written rows of training."""
    flags = [*small_flags(folder), *FLAGS.split(), "--output_dir", name, *more]
    process = subprocess.Popen(
        command(flags, num_processes=num_processes),
        env=environment(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    path = folder / name / "metrics.jsonl"
    while not (path.is_file() and '"train"' in path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return process


def is_the_whole_run(folder: Path, name: str) -> bool:
    expected = load_file(folder / "whole/final/model.safetensors")
    found = load_file(folder / name / "final/model.safetensors")
    same_weights = all(torch.equal(found[key], value) for key, value in expected.items())
    return same_weights and metrics(folder / name) == metrics(folder / "whole")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
    ids=lambda number: number.name,
)
def test_a_signal_saves_and_the_same_command_goes_on(folder: Path, number: signal.Signals) -> None:
    workers = ["--dataloader_num_workers", "1", "--resume_from_checkpoint", "auto"]
    process = started(folder, number.name, *workers)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, printed
    assert "Traceback" not in printed
    (checkpoint,) = (folder / number.name / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert 3 <= step < 60
    assert f"stopped by {number.name} after update {step}, which is saved" in printed
    assert "--resume_from_checkpoint auto" in printed
    flags = [*small_flags(folder), *FLAGS.split(), "--output_dir", number.name, *workers]
    assert f"after {step} updates" in run_here(folder, flags)
    assert is_the_whole_run(folder, number.name)


def test_a_signal_before_training_ends_without_a_traceback(folder: Path) -> None:
    flags = [*small_flags(folder), *FLAGS.split(), "--output_dir", "early"]
    process = subprocess.Popen(
        command(flags),
        env=environment(folder) | {"PYTHONUNBUFFERED": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Whoever runs the tests in parallel may ignore it, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    first = process.stdout.readline()  # all is imported
    process.send_signal(signal.SIGINT)
    printed = first + process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGINT, printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_update(folder: Path) -> None:
    run(folder, [*small_flags(folder), *FLAGS.split(), "--output_dir", "pair"], num_processes=2)
    process = started(folder, "one-of-two", num_processes=2)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    second = max(map(int, children.stdout.split()))
    os.kill(second, signal.SIGTERM)
    printed, _ = process.communicate(timeout=600)
    (checkpoint,) = (folder / "one-of-two/checkpoints").iterdir()
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert 3 <= state["step"] < 60
    assert f"stopped by SIGTERM after update {state['step']}" in printed
    flags = [*small_flags(folder), *FLAGS.split(), "--output_dir", "one-of-two"]
    run(folder, [*flags, "--resume_from_checkpoint", "auto"], num_processes=2)
    assert metrics(folder / "one-of-two") == metrics(folder / "pair")


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_one_undisturbed(folder: Path) -> None:
    first = started(folder, "busy")
    first.send_signal(signal.SIGSTOP)  # so that it is still at work when the other comes
    flags = [*small_flags(folder), *FLAGS.split(), "--output_dir", "busy"]
    words = command([*flags, "--resume_from_checkpoint", "auto"])
    second = subprocess.run(
        words, env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=600
    )
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2, second.stderr
    assert "error: another process is at work in busy" in second.stderr
    assert first.wait(timeout=600) == 0
    assert is_the_whole_run(folder, "busy")


def end(launcher: subprocess.Popen[str], rank: int, number: signal.Signals) -> None:
    """Send a signal to one of a launcher's processes."""
    for child in psutil.Process(launcher.pid).children():
        if child.environ().get("RANK") == str(rank):
            child.send_signal(number)


@pytest.mark.slow
def test_when_one_of_two_processes_hangs_the_other_ends_and_both_go_on(folder: Path) -> None:
    process = started(folder, "hangs", "--stuck_timeout", "5", num_processes=2)
    end(process, 1, signal.SIGSTOP)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    (message,) = [line for line in printed.splitlines() if line.startswith("error: process 0")]
    assert re.search(r"has not moved for 5 seconds since .* of update \d+; others do", message)
    assert "Ranks 1 failed to pass" in message
    flags = [*small_flags(folder), *FLAGS.split(), "--output_dir", "hangs"]
    run(folder, [*flags, "--resume_from_checkpoint", "auto"], num_processes=2)


@pytest.mark.slow
def test_a_launcher_that_starts_again_goes_on_after_one_of_two_is_killed(folder: Path) -> None:
    run(folder, [*small_flags(folder), *FLAGS.split(), "--output_dir", "two"], num_processes=2)
    flags = [*small_flags(folder), *FLAGS.split(), "--save_steps", "5", "--output_dir", "again"]
    words = command([*flags, "--resume_from_checkpoint", "auto"], num_processes=2)
    words.insert(words.index("--standalone"), "--max-restarts=1")
    process = subprocess.Popen(
        words,
        env=environment(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (folder / "again/checkpoints/step-000005").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    end(process, 1, signal.SIGKILL)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert "error: another process of the run has ended or cannot be reached since" in printed
    assert "Traceback" not in printed
    assert metrics(folder / "again") == metrics(folder / "two")
