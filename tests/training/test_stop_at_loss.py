"""A run that is to stop at a loss ends as if the update that reached it were its last."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from runs import metrics
from tiny_task import NumberCollator, Numbers, line_trainer

from bert_pretrain.data.run_folder import list_checkpoints
from bert_pretrain.data.stream import HeldOutRows
from bert_pretrain.training.checkpoint import read_state
from bert_pretrain.training.trainer import Trainer


def trainer_to(goal: float, folder: Path, *, logging: int = 1, **options: Any) -> Trainer:
    """Return a trainer of the line over 8 updates at most, with an evaluation every second one."""
    trainer = line_trainer(Accelerator(cpu=True), folder, max_steps=8, **options)
    plan = np.arange(40).view(Numbers)
    trainer.objective.held_out = HeldOutRows(plan, np.arange(36, 40), NumberCollator())
    trainer.schedule = replace(trainer.schedule, stop_at_loss=goal)
    trainer.intervals = replace(trainer.intervals, logging=logging)
    return trainer


def validation(folder: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(folder) if row["split"] == "validation"]


def shown_as_last(folder: Path) -> list[bool]:
    return [json.loads(line)["is_last"] for line in (folder / "shown.jsonl").open()]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return the folder of the run without a goal; its held-out loss falls for six updates."""
    trainer_to(0.0, tmp_path / "whole").train()
    losses = [row["loss"] for row in validation(tmp_path / "whole")]
    assert all(later < earlier for earlier, later in pairwise(losses[:4]))
    return tmp_path / "whole"


@pytest.mark.parametrize("above", [0.0, 1e-4])
def test_the_first_evaluation_at_or_below_the_goal_ends_the_run(
    tmp_path: Path, whole: Path, above: float
) -> None:
    goal = validation(whole)[2]["loss"] + above  # after four updates
    trainer = trainer_to(goal, tmp_path / "run")
    trainer.train()
    assert trainer.step == 4
    assert metrics(tmp_path / "run") == [row for row in metrics(whole) if row["step"] <= 4]
    assert shown_as_last(tmp_path / "run") == [False, False, True]
    (checkpoint,) = list_checkpoints(tmp_path / "run/checkpoints")
    assert read_state(checkpoint)["step"] == 4


def test_the_last_update_is_logged_though_no_row_is_due(tmp_path: Path, whole: Path) -> None:
    goal = validation(whole)[2]["loss"]
    trainer_to(goal, tmp_path / "run", logging=3).train()
    logged = [row["step"] for row in metrics(tmp_path / "run") if row["split"] == "train"]
    assert logged == [3, 4]


def test_the_evaluation_before_the_first_update_ends_nothing(tmp_path: Path, whole: Path) -> None:
    trainer = trainer_to(validation(whole)[0]["loss"] + 1, tmp_path / "run")
    trainer.train()
    assert trainer.step == 2


def test_a_stopped_run_is_complete_until_its_goal_is_changed(tmp_path: Path, whole: Path) -> None:
    goal, folder = validation(whole)[2]["loss"], tmp_path / "run"
    trainer_to(goal, folder).train()
    (checkpoint,) = list_checkpoints(folder / "checkpoints")
    for other, last in ((goal, 4), (validation(whole)[3]["loss"], 6), (0.0, 8)):
        resumed = trainer_to(other, folder)
        resumed.load_checkpoint(checkpoint, read_state(checkpoint))
        resumed.train()
        assert resumed.step == last
        assert metrics(folder) == [row for row in metrics(whole) if row["step"] <= last]


def test_a_checkpoint_between_evaluations_ends_nothing(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    trainer_to(0.0, folder, save_steps=3).train()
    checkpoint = folder / "checkpoints/step-000003"
    # The loss after two updates would do, but it is not the loss of these weights.
    resumed = trainer_to(validation(whole)[1]["loss"], folder)
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    resumed.train()
    assert resumed.step == 4


def test_it_is_the_trained_weights_that_are_judged(tmp_path: Path, whole: Path) -> None:
    goal = validation(whole)[2]["loss"]
    trainer = trainer_to(goal, tmp_path / "run", ema_decay=0.9)
    trainer.train()
    last = validation(tmp_path / "run")[-1]
    assert trainer.step == 4 and last["loss"] <= goal < last["ema_loss"]
