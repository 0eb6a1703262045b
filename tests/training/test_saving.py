"""Checkpoints are written while training goes on, and are those of the moment they were begun."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from runs import metrics
from safetensors.torch import load_file
from tiny_task import Silence, line_trainer, loop_state
from trainers import bert_trainer

from bert_pretrain.data.run_folder import checkpoint_path, list_checkpoints, step_of
from bert_pretrain.errors import MachineError, RunStoppedError, TrainingError
from bert_pretrain.training import checkpoint_writing, saving
from bert_pretrain.training.checkpoint import find_checkpoint, read_state
from bert_pretrain.training.checkpoint_state import STATE_FILE, read_state_file, write_state
from bert_pretrain.training.checkpoint_writing import Retention
from bert_pretrain.training.trainer import Trainer

SECONDS = 30.0  # that a test waits for a thread at most


def names(run_dir: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run_dir / "checkpoints")]


def digests(run_dir: Path, step: int) -> dict[str, str]:
    checkpoint = checkpoint_path(run_dir / "checkpoints", step)
    read_state(checkpoint)  # it is whole
    return read_state_file(checkpoint / STATE_FILE)[1]


def slowed(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], Any]) -> None:
    """Let the writing of each checkpoint begin with `before(step)`, in its thread."""
    write = saving.write_checkpoint

    def write_later(*arguments: Any, **options: Any) -> Path:
        before(options["state"]["step"])
        return write(*arguments, **options)

    monkeypatch.setattr(saving, "write_checkpoint", write_later)


def after_each_update(
    monkeypatch: pytest.MonkeyPatch, trainer: Trainer, then: Callable[[int], Any]
) -> None:
    """Call `then(step)` when an update was made, before anything is saved."""
    log = trainer._log

    def logged(*arguments: Any) -> None:
        log(*arguments)
        then(trainer.step)

    monkeypatch.setattr(trainer, "_log", logged)


@pytest.mark.parametrize("make", [line_trainer, bert_trainer], ids=["line", "bert"])
def test_what_is_written_is_the_state_when_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Trainer]
) -> None:
    (tmp_path / "whole").mkdir()
    make(Accelerator(cpu=True), tmp_path / "whole", max_steps=6, save_steps=3).train()
    (tmp_path / "late").mkdir()
    trainer = make(Accelerator(cpu=True), tmp_path / "late", max_steps=6, save_steps=3)
    is_five = threading.Event()
    after_each_update(monkeypatch, trainer, lambda step: step == 5 and is_five.set())
    begun: list[int] = []

    def wait(step: int) -> None:
        assert is_five.wait(SECONDS)  # two updates later
        begun.append(step)

    slowed(monkeypatch, wait)
    trainer.train()
    assert begun == [3, 6]
    for step in (3, 6):
        assert digests(tmp_path / "late", step) == digests(tmp_path / "whole", step)


def test_updates_go_on_while_one_is_written_and_no_two_are_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=8, save_steps=2)
    at_once, most, steps = 0, 0, []
    write = saving.write_checkpoint

    def counted(*arguments: Any, **options: Any) -> Path:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        steps.append((options["state"]["step"], trainer.step))
        path = write(*arguments, **options)
        at_once -= 1
        return path

    monkeypatch.setattr(saving, "write_checkpoint", counted)
    trainer.train()
    assert most == 1
    assert [step for step, _ in steps] == [2, 4, 6, 8]
    assert any(now > step for step, now in steps)
    assert names(tmp_path) == [f"step-{step:06d}" for step in (2, 4, 6, 8)]


def full_disk(monkeypatch: pytest.MonkeyPatch, *, from_step: int) -> None:
    """Let the last file of a checkpoint find no room, when everything else is written."""
    write = checkpoint_writing.write_state

    def refused(path: Path, state: Any, files: dict[str, str], **options: Any) -> None:
        if state["step"] >= from_step:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, state, files, **options)

    monkeypatch.setattr(checkpoint_writing, "write_state", refused)


def test_a_full_disk_stops_the_run_after_an_update_and_costs_no_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = line_trainer(
        Accelerator(cpu=True), tmp_path, max_steps=40, save_steps=2, save_total_limit=1
    )
    full_disk(monkeypatch, from_step=6)
    message = rf"what belongs into {tmp_path} cannot be written \(No space left on device; .* free"
    with pytest.raises(MachineError, match=message):
        trainer.train()
    assert 6 <= trainer.step <= 8  # the next one is not begun
    assert "step-000004" in names(tmp_path) and "step-000006" not in names(tmp_path)
    read_state(tmp_path / "checkpoints/step-000004")


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_in_the_file_of_an_optimizer_is_an_error_of_the_system(
    tmp_path: Path, size: int
) -> None:
    snapshot = checkpoint_writing.Snapshot(states={"optimizer.bin": {"a": torch.zeros(size)}})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # it fails as a full disk does
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint_writing.write_checkpoint(
                snapshot,
                tmp_path,
                state=loop_state(1),
                config_files={},
                retention=Retention(0),
                needed=None,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_the_last_checkpoint_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, from_step=4)
    with pytest.raises(MachineError, match="No space left on device"):
        line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4, save_steps=2).train()
    assert names(tmp_path) == ["step-000002"]


def test_a_full_disk_before_the_thread_begins_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4, save_steps=2)
    monkeypatch.setattr(saving, "read_config_files", refused)
    with pytest.raises(MachineError, match="No space left on device"):
        trainer.train()
    assert trainer.step == 2


def test_a_run_that_fails_leaves_the_checkpoint_that_was_in_the_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = line_trainer(
        Accelerator(cpu=True), tmp_path, max_steps=6, save_steps=2, infinite_at=(17,)
    )
    slowed(monkeypatch, lambda _: time.sleep(0.1))
    with pytest.raises(TrainingError, match="update 3 is not finite"):
        trainer.train()
    assert names(tmp_path) == ["step-000002"]
    read_state(tmp_path / "checkpoints/step-000002")


def test_a_run_that_was_asked_to_stop_has_saved_when_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=6)
    after_each_update(
        monkeypatch, trainer, lambda _: setattr(trainer.stop, "number", signal.SIGTERM)
    )
    slowed(monkeypatch, lambda _: time.sleep(0.1))
    raised_at: list[list[str]] = []
    interruption = trainer._interruption

    def looked() -> RunStoppedError:
        raised_at.append(names(tmp_path))
        return interruption()

    monkeypatch.setattr(trainer, "_interruption", looked)
    with pytest.raises(RunStoppedError, match="after update 2, which is saved"):
        trainer.train()
    assert raised_at == [["step-000002"]]


def test_who_is_told_of_checkpoints_finds_them_whole_and_in_the_thread_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def look(checkpoint: Path) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(read_state(checkpoint)["step"])

    trainer = line_trainer(
        Accelerator(cpu=True), tmp_path, max_steps=7, save_steps=2, save_total_limit=1
    )
    slowed(monkeypatch, lambda _: time.sleep(0.01))
    trainer.train(on_save=look)
    assert told == [2, 4, 6, 7]


def test_freed_memory_is_given_back_after_each_checkpoint_was_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(saving, "return_freed_memory", lambda: told.append("given back"))
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=7, save_steps=2)
    trainer.train(on_save=lambda _: told.append("told"))
    assert told == ["told", "given back"] * 4


def test_a_checkpoint_has_what_the_exporter_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def write_config(model: Any, folder: Path) -> None:
        calls.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "more").mkdir()
        (folder / "more/words.txt").write_text("the")

    monkeypatch.setattr(Silence, "write_config", lambda _, *arguments: write_config(*arguments))
    line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4, save_steps=2).train()
    assert len(calls) == 1  # it is the same in each
    for step in (2, 4):
        checkpoint = checkpoint_path(tmp_path / "checkpoints", step)
        assert (checkpoint / "more/words.txt").read_text() == "the"
        assert {"config.json", "more/words.txt"} <= digests(tmp_path, step).keys()
    assert not list(tmp_path.rglob("*.tmp"))


@given(
    steps=st.lists(st.integers(1, 60), unique=True, max_size=12).map(sorted),
    limit=st.integers(0, 4),
    keep_every=st.sampled_from([0, 5, 10]),
    best=st.integers(0, 11),
    needed=st.none() | st.integers(1, 60),
)
def test_what_stays_is_the_newest_the_best_the_kept_and_the_needed(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[int],
    limit: int,
    keep_every: int,
    best: int,
    needed: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    for number, step in enumerate(steps):
        path = checkpoint_path(folder, step)
        path.mkdir()
        loss = 1.0 if number == best else 2.0 + number
        write_state(path / STATE_FILE, loop_state(step) | {"held_out_loss": loss}, {})
    checkpoints = list_checkpoints(folder)
    stale = Retention(limit, keep_every).stale(checkpoints, needed=needed)
    stay = set(steps if limit == 0 else steps[-limit:])
    stay |= {step for step in steps if keep_every and step % keep_every == 0}
    stay |= {step for number, step in enumerate(steps) if number == min(best, len(steps))}
    stay |= {needed} & set(steps)
    if best >= len(steps):
        stay |= set(steps[:1])  # of the losses 2, 3, ... the first is the lowest
    assert [path for path in checkpoints if path not in stale] == [
        checkpoint_path(folder, step) for step in sorted(stay)
    ]
    shutil.rmtree(folder)


def test_a_checkpoint_has_its_name_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[int] = set()
    sync, replace = os.fsync, checkpoint_writing.replace_folder

    def noted(descriptor: int) -> None:
        sync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def renamed(aside: Path, final: Path) -> None:
        files = [path for path in aside.rglob("*") if path.is_file()]
        assert files and {path.stat().st_ino for path in files} <= flushed
        replace(aside, final)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(checkpoint_writing, "replace_folder", renamed)
    line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4, save_steps=2).train()
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 2


def test_the_best_is_of_the_phase_of_the_newest(tmp_path: Path) -> None:
    """Rows of another length have losses of their own."""
    found = ((1, 0, 1.0), (2, 1, 3.0), (3, 1, 2.0), (4, 1, 4.0), (5, 2, None))
    for step, phase, loss in found:
        path = checkpoint_path(tmp_path, step)
        path.mkdir()
        state = loop_state(step) | {"held_out_loss": loss, "held_out_phase": phase}
        write_state(path / STATE_FILE, state, {})  # type: ignore[arg-type]
    stale = Retention(1).stale(list_checkpoints(tmp_path), needed=None)
    assert [checkpoint.name for checkpoint in stale] == [f"step-00000{step}" for step in (1, 2, 4)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_what_is_written_is_the_state_when_it_was_begun(tmp_path: Path) -> None:
    trainer = bert_trainer(Accelerator(), tmp_path, max_steps=20, save_steps=5)
    expected: dict[int, dict[str, torch.Tensor]] = {}
    begin = trainer.saver.begin

    def begin_and_copy(state: Any, **options: Any) -> None:
        torch.cuda.synchronize()
        named = trainer.distributed.trained.state_dict().items()
        expected[state["step"]] = {name: value.cpu().clone() for name, value in named}
        begin(state, **options)

    trainer.saver.begin = begin_and_copy  # type: ignore[method-assign]
    trainer.train()

    for step, weights in expected.items():
        saved = load_file(checkpoint_path(tmp_path / "checkpoints", step) / "model.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in saved.items())


KILLED = """
import os, signal, sys
from pathlib import Path
from accelerate import Accelerator
from tiny_task import line_trainer
from bert_pretrain.training import checkpoint_writing

place, is_after, fatal = sys.argv[2], sys.argv[3] == "after", int(sys.argv[4])
original, num_calls = getattr(checkpoint_writing, place), 0

def killed(*arguments, **options):
    global num_calls
    num_calls += 1
    result = original(*arguments, **options) if is_after or num_calls < fatal else None
    if num_calls == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(checkpoint_writing, place, killed)
line_trainer(
    Accelerator(cpu=True), Path(sys.argv[1]), max_steps=8, save_steps=2, save_total_limit=1
).train()
"""


@pytest.mark.parametrize(
    ("place", "when"),
    [
        ("write_state", "before"),
        pytest.param("save_file", "after", marks=pytest.mark.slow),
        pytest.param("write_state", "after", marks=pytest.mark.slow),
        pytest.param("replace_folder", "before", marks=pytest.mark.slow),
        pytest.param("replace_folder", "after", marks=pytest.mark.slow),
        pytest.param("remove_checkpoint", "before", marks=pytest.mark.slow),
        pytest.param("remove_checkpoint", "after", marks=pytest.mark.slow),
    ],
)
def test_a_kill_while_a_checkpoint_is_written_costs_no_other_one(
    tmp_path: Path, place: str, when: str
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    options: dict[str, Any] = {"max_steps": 8, "save_steps": 2, "save_total_limit": 1}
    line_trainer(Accelerator(cpu=True), whole, **options).train()
    # The first removal is at the third checkpoint: the first one has the lowest held-out loss.
    fatal = 1 if place == "remove_checkpoint" else 2
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, str(Path(tests).parent)])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), place, when, str(fatal)],
        env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = line_trainer(Accelerator(cpu=True), folder, **options)
    checkpoint = find_checkpoint("latest", folder / "checkpoints")
    assert checkpoint is not None and step_of(checkpoint) in (2, 4, 6)
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    resumed.train()
    assert digests(folder, 8) == digests(whole, 8)
    assert metrics(folder) == metrics(whole)
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".old")]
