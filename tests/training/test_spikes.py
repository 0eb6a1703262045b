"""A jump of the loss is found and said once; a run that goes back does so always to one place."""

from __future__ import annotations

import json
import signal
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from runs import metrics
from safetensors.torch import load_file
from tiny_task import LineObjective, NumberCollator, Numbers, line_trainer
from torch import nn

from bert_pretrain.data.run_folder import list_checkpoints, step_of
from bert_pretrain.data.stream import Batch, TrainingStream, WholeEpochs
from bert_pretrain.errors import RunStoppedError, TrainingError
from bert_pretrain.objectives.interface import LossTerm
from bert_pretrain.training import resuming
from bert_pretrain.training.checkpoint import find_checkpoint, read_state, set_newer_aside
from bert_pretrain.training.spikes import SpikeWatch, rewind_target
from bert_pretrain.training.trainer import Trainer


def jumps(losses: list[float], *, phases: list[int] | None = None) -> list[int]:
    """Return the numbers of the losses with which a jump begins."""
    watch = SpikeWatch()
    found = []
    for number, loss in enumerate(losses):
        if watch.judge(loss, phase=phases[number] if phases else 0) is not None:
            found.append(number)
    return found


def naive_jumps(losses: list[float]) -> list[int]:
    """Return the same by the definition: 8 deviations above the median of the 16 to 32 before."""
    high = []
    for number, loss in enumerate(losses):
        before = losses[max(0, number - 32) : number]
        is_high = False
        if len(before) >= 16:
            median = statistics.median(before)
            mad = statistics.median([abs(other - median) for other in before])
            is_high = loss > median + 8 * max(1.4826 * mad, 0.01 * abs(median))
        high.append(is_high)
    return [n for n, is_high in enumerate(high) if is_high and not (n and high[n - 1])]


def noisy(num: int, *, seed: int = 0, level: float = 5.0, spread: float = 0.05) -> list[float]:
    return (level + spread * np.random.default_rng(seed).standard_normal(num)).tolist()


@given(
    st.lists(st.floats(0.5, 9.0), min_size=0, max_size=80),
    st.lists(st.tuples(st.integers(0, 79), st.floats(10.0, 1e4)), max_size=4),
)
def test_jumps_are_those_of_the_definition(
    losses: list[float], raised: list[tuple[int, float]]
) -> None:
    for number, loss in raised:
        if number < len(losses):
            losses[number] = loss
    assert jumps(losses) == naive_jumps(losses)


def test_noise_about_a_curve_is_no_jump() -> None:
    steps = np.arange(20_000)
    curve = 3 + 6 * np.exp(-steps / 500)
    noise = np.random.default_rng(0).standard_normal(len(steps))
    for spread in (0.005, 0.05, 0.5):  # of which the last is like a row of a single small update
        assert jumps((curve + spread * noise).tolist()) == []


def test_a_jump_is_found_the_first_time_and_the_second_but_not_said_twice() -> None:
    losses = noisy(120)
    losses[60:64] = [9.0, 8.0, 7.0, 6.5]
    losses[100] = 6.0
    assert jumps(losses) == [60, 100]
    assert jumps(noisy(60) + noisy(60, level=7.0)) == [60]  # a new level is a jump, then the rule
    assert jumps(noisy(60) + noisy(60, level=3.0)) == []
    assert jumps([*noisy(15), 50.0]) == []  # there is nothing yet to compare it with
    assert jumps([0.0] * 40 + [1.0]) == [40]  # no deviation at all
    assert jumps([5.0] * 40 + [5.3, float("nan"), 5.5]) == [42]  # 0.4 is allowed


def test_phases_are_not_compared() -> None:
    losses = noisy(60) + noisy(60, level=7.0)
    assert jumps(losses, phases=[0] * 60 + [1] * 60) == []


@given(st.integers(0, 60))
def test_a_watch_that_is_saved_and_loaded_goes_on(cut: int) -> None:
    losses = [*noisy(40), 9.0, 9.0, *noisy(18)]
    watch = SpikeWatch()
    found = [watch.judge(loss) is not None for loss in losses[:cut]]
    resumed = SpikeWatch()
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    found += [resumed.judge(loss) is not None for loss in losses[cut:]]
    assert [number for number, is_jump in enumerate(found) if is_jump] == jumps(losses) == [40]


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 40))
def test_a_run_goes_back_to_the_last_checkpoint_before_the_row(
    step: int, row_interval: int, save_interval: int
) -> None:
    begin = max(row for row in range(0, step, row_interval))  # updates before the row
    due = [save for save in range(0, begin + 1, save_interval)]
    found = rewind_target(step, row_interval=row_interval, save_interval=save_interval)
    assert found == max(due)


class ManyNumbers(LineObjective):
    """The line on 4,000 numbers, each met once; the loss of some is a thousand times as large.

    Consecutive ones are spread evenly, so that an update is like the next one.
    """

    def __init__(self, spoiled: Callable[[int], bool]) -> None:
        super().__init__()
        self.spoiled = spoiled
        plan = np.arange(4000).view(Numbers)
        self.training = TrainingStream(
            WholeEpochs(lambda _epoch: plan), NumberCollator(), identity={}
        )

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        rows = batch["x"].flatten().long().tolist()
        terms = super().loss_terms(model, {"x": 17 * batch["x"] % 40})
        if model.training and any(map(self.spoiled, rows)):
            terms["line"].sum = terms["line"].sum * 1e3
        return terms


MAX_STEPS, ROWS = 60, 8


def trainer_of(
    folder: Path, spoiled: Callable[[int], bool] = lambda row: row in (321, 330), **options: Any
) -> Trainer:
    """Return a trainer whose updates 41 and 42 meet spoiled rows.

    Having gone back and passed over the first, it meets the second at once, and goes back again.
    """
    options = {"save_steps": 15, "goes_back_on_spike": True} | options
    trainer = line_trainer(
        Accelerator(cpu=True),
        folder,
        max_steps=MAX_STEPS,
        objective=ManyNumbers(spoiled),
        save_total_limit=1,
        **options,
    )
    # Never with a checkpoint, so that none is kept as the best one.
    trainer.intervals = replace(trainer.intervals, evaluation=7)
    return trainer


def resumed(folder: Path, **options: Any) -> Trainer:
    """Return a trainer that goes on from the newest checkpoint, if there is one."""
    trainer = trainer_of(folder, **options)
    checkpoint = find_checkpoint("latest", folder / "checkpoints")
    if checkpoint is not None:
        trainer.load_checkpoint(checkpoint, read_state(checkpoint))
        set_newer_aside(checkpoint)
    return trainer


def warnings(folder: Path) -> list[tuple[int, str]]:
    rows = [row for row in metrics(folder) if row["split"] == "warning"]
    found = [(row["step"], row["message"]) for row in rows]
    return [(step, message) for step, message in found if "getting worse" not in message]


def outcome(folder: Path) -> tuple[Any, ...]:
    """Return all that a run has come to."""
    checkpoint = list_checkpoints(folder / "checkpoints")[-1]
    state = dict(read_state(checkpoint))
    del state["elapsed"]
    weights = load_file(checkpoint / "model.safetensors")
    return metrics(folder), state, {name: value.tolist() for name, value in weights.items()}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return the folder of a run that was not disturbed."""
    trainer_of(tmp_path / "whole").train()
    return tmp_path / "whole"


def test_a_jump_is_a_warning_where_nothing_else_was_asked_for(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, goes_back_on_spike=False)
    trainer.train()
    ((step, message),) = warnings(tmp_path)
    assert step == 41 and message.startswith("the training loss has jumped to")
    assert "--on_spike rewind" in message
    assert [row["step"] for row in metrics(tmp_path) if row["split"] == "train"] == [
        *range(1, MAX_STEPS + 1)
    ]


def test_a_run_goes_back_and_passes_over_the_rows_since(whole: Path) -> None:
    ((step, message),) = warnings(whole)
    assert step == 31
    assert "the run has gone back to update 30 and passes over the rows from row 240" in message
    assert "to row 336 of epoch 0, block 0 (2 of at most 3 times)" in message
    rows = [row for row in metrics(whole) if row["split"] == "train"]
    assert [row["step"] for row in rows] == [*range(1, MAX_STEPS + 1)]
    assert [row["step"] for row in metrics(whole) if row["split"] == "validation"] == [
        *range(0, MAX_STEPS, 7),
        MAX_STEPS,
    ]
    # 42 updates were made, 12 of them for nothing; then 30 more.
    taken = [ROWS * (step if step <= 30 else step + 12) for step in range(1, MAX_STEPS + 1)]
    assert [row["epoch"] for row in rows] == pytest.approx([rows / 4000 for rows in taken])
    assert [row["numbers"] for row in rows] == [ROWS * step for step in range(1, MAX_STEPS + 1)]


def test_the_run_that_went_back_has_the_weights_of_a_naive_loop(whole: Path) -> None:
    weight, bias = (torch.tensor(value) for value in (0.5, 0.1))
    for step in range(MAX_STEPS):
        first = ROWS * (step if step < 30 else step + 12)
        x = (17 * torch.arange(first, first + ROWS) % 40).float()
        error = 2 * (weight * x / 40 + bias - x / 20) / ROWS
        rate = 0.1 * min(1.0, (MAX_STEPS - step) / (MAX_STEPS / 2))
        weight = weight - rate * (error * x / 40).sum()
        bias = bias - rate * error.sum()
    *_, found = outcome(whole)
    assert found["weight"][0][0] == pytest.approx(float(weight), rel=1e-5)  # float32
    assert found["bias"][0] == pytest.approx(float(bias), rel=1e-5)


class Killed(BaseException):
    """What no code of ours expects."""


@pytest.mark.parametrize("step", [3, 15, 29, 31, 38, 41, 42, 45, 52])
def test_a_run_that_is_killed_at_any_update_goes_back_to_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, step: int
) -> None:
    folder = tmp_path / "killed"
    trainer = trainer_of(folder)
    log, num_logged = trainer._log, 0

    def killed(*arguments: Any) -> None:
        nonlocal num_logged
        num_logged += 1  # the 42nd and the 43rd are update 31 once more
        if num_logged == step:
            raise Killed
        log(*arguments)

    monkeypatch.setattr(trainer, "_log", killed)
    with pytest.raises(Killed):
        trainer.train()
    resumed(folder).train()
    assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize("place", ["remove_newer", "_restore"])
def test_a_run_that_is_killed_while_it_goes_back_does_so_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, place: str
) -> None:
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        original = getattr(resuming, place)

        def killed(*arguments: Any) -> None:
            original(*arguments)
            raise Killed

        patch.setattr(resuming, place, killed)
        trainer_of(folder).train()
    resumed(folder).train()
    assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize("number", [7, 36, 40, 43, 50])
def test_a_run_that_a_signal_stops_goes_back_to_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, number: int
) -> None:
    folder = tmp_path / "stopped"
    trainer = trainer_of(folder)
    log, num_logged = trainer._log, 0

    def asked(*arguments: Any) -> None:
        nonlocal num_logged
        num_logged += 1
        if num_logged == number:
            trainer.stop.number = signal.SIGTERM
        log(*arguments)

    monkeypatch.setattr(trainer, "_log", asked)
    with pytest.raises(RunStoppedError):
        trainer.train()
    # What a signal asked for is saved too, though only one is to be kept.
    steps = [step_of(path) for path in list_checkpoints(folder / "checkpoints")]
    assert any(step % 15 for step in steps)
    resumed(folder).train()
    assert outcome(folder) == outcome(whole)


def test_checkpoints_within_the_row_of_the_jump_are_not_gone_back_to(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, lambda row: 8 * 163 <= row < 8 * 164, save_steps=2)
    trainer.schedule = replace(trainer.schedule, max_steps=200)
    trainer.intervals = replace(trainer.intervals, logging=9)
    trainer.train()
    # The row of updates 163 to 171 has jumped; there were checkpoints after 164, 166, 168 and 170.
    ((step, message),) = warnings(tmp_path)
    assert step == 163 and "has gone back to update 162" in message
    steps = [row["step"] for row in metrics(tmp_path) if row["split"] == "train"]
    assert steps == [*range(9, 200, 9), 200]


def test_a_run_does_not_go_back_for_ever(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, lambda row: row > 320)
    with pytest.raises(TrainingError, match=r"as it has 3 times before, always after update 30"):
        trainer.train()
    assert "(3 of at most 3 times)" in warnings(tmp_path)[-2][1]
    # Started again with the same flags it comes to the same end.
    with pytest.raises(TrainingError, match=r"always after update 30"):
        resumed(tmp_path, spoiled=lambda row: row > 320).train()


def test_where_there_is_no_checkpoint_yet_the_run_goes_on(tmp_path: Path) -> None:
    trainer_of(tmp_path, save_steps=50).train()
    found = warnings(tmp_path)
    assert [step for step, _ in found] == [41, 41]
    assert "there is no checkpoint from before it" in found[1][1]
    assert metrics(tmp_path)[-1]["step"] == MAX_STEPS
