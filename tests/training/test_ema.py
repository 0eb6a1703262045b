"""The average of the weights against a loop over numbers, and what a run does with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from runs import metrics
from safetensors.torch import load_file
from tiny_task import line_trainer
from trainers import bert_trainer

from bert_pretrain.errors import InputError
from bert_pretrain.training.checkpoint import AVERAGE_FILE, load_average, load_tensors, read_state
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.trainer import Trainer


def recorded_weights(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Return a list that gets the line's two weights now and after every update."""
    history: list[list[float]] = []

    def record() -> None:
        history.append([float(p.detach()) for p in trainer.distributed.trained.parameters()])

    update = trainer._update

    def update_and_record(*arguments: Any) -> torch.Tensor:
        norm = update(*arguments)
        record()
        return norm

    record()
    monkeypatch.setattr(trainer, "_update", update_and_record)
    return history


def naive_average(history: list[list[float]], decay: float) -> list[float]:
    """Return the weighted means of the weights after each update, the latest weighing most."""
    if len(history) == 1:
        return history[0]
    factors = [decay**age for age in reversed(range(len(history) - 1))]
    return [
        sum(f * w for f, w in zip(factors, column, strict=True)) / sum(factors)
        for column in zip(*history[1:], strict=True)
    ]


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_is_that_of_a_naive_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, ema_decay=decay, save_steps=2)
    history = recorded_weights(trainer, monkeypatch)
    trainer.train()
    for step in (2, 4):
        saved = load_file(tmp_path / f"checkpoints/step-{step:06d}" / AVERAGE_FILE)
        found = [float(saved["weight"]), float(saved["bias"])]
        assert found == pytest.approx(naive_average(history[: step + 1], decay), rel=1e-6)
    # The model of the checkpoint has the weights as trained.
    model = load_file(tmp_path / "checkpoints/step-000004/model.safetensors")
    assert [float(model["weight"]), float(model["bias"])] == history[-1]


def test_evaluations_have_the_losses_of_both_and_training_the_numbers_of_a_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = line_trainer(Accelerator(cpu=True), tmp_path / "plain")
    plain.train()
    trainer = line_trainer(Accelerator(cpu=True), tmp_path / "ema", ema_decay=0.5)
    history = recorded_weights(trainer, monkeypatch)
    trainer.train()
    found = metrics(tmp_path / "ema")
    own = [{k: v for k, v in row.items() if not k.startswith("ema_")} for row in found]
    assert own == metrics(tmp_path / "plain")
    for row in found:
        if row["split"] != "validation":
            assert "ema_loss" not in row
            continue
        weight, bias = naive_average(history[: row["step"] + 1], 0.5)
        errors = [(x / 40 * weight + bias - x / 20) ** 2 for x in range(4)]  # the held-out rows
        assert row["ema_loss"] == pytest.approx(sum(errors) / 4, rel=1e-5)
        assert row["ema_line_loss"] == row["ema_loss"]
        assert (row["ema_loss"] == row["loss"]) is (row["step"] == 0)


def test_an_exception_while_the_average_is_lent_leaves_the_weights_in_training(
    tmp_path: Path,
) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, ema_decay=0.9)
    trainer.train()
    assert trainer.average is not None
    before = [p.detach().clone() for p in trainer.distributed.trained.parameters()]
    with pytest.raises(RuntimeError, match="meant"), trainer.average.applied() as lent:
        assert not any(map(torch.equal, lent.parameters(), before))
        raise RuntimeError("meant")
    assert all(map(torch.equal, trainer.distributed.trained.parameters(), before))


def test_a_frozen_parameter_is_not_averaged(tmp_path: Path) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path)
    trainer.distributed.trained.bias.requires_grad = False
    assert list(WeightAverage(trainer.distributed, 0.9).values) == ["weight"]


def test_an_average_begins_with_the_weights_of_a_checkpoint_without_one(tmp_path: Path) -> None:
    line_trainer(Accelerator(cpu=True), tmp_path / "one", save_steps=2).train()
    checkpoint = tmp_path / "one/checkpoints/step-000002"
    resumed = line_trainer(Accelerator(cpu=True), tmp_path / "two", ema_decay=0.9)
    load_tensors(checkpoint, resumed.distributed, resumed.average)
    assert resumed.average is not None
    saved = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(resumed.average.values[name], saved[name]) for name in saved)
    with pytest.raises(InputError, match="`ema_decay`"):
        load_average(checkpoint, resumed.distributed.plain())


def averaged_trainer(folder: Path) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    options: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "ema_decay": 0.9}
    return bert_trainer(accelerator, folder, optimizer="lamb", **options)


def test_a_resumed_run_has_the_average_of_an_uninterrupted_one_to_the_last_bit(
    tmp_path: Path,
) -> None:
    # With other optimisers and in other modes: test_modes.py.
    averaged_trainer(tmp_path).train()
    rows, last = metrics(tmp_path), tmp_path / "checkpoints/step-000004"
    whole = load_file(last / AVERAGE_FILE)
    assert {"ema_loss", "ema_mlm_loss", "ema_mlm_accuracy", "ema_nsp_loss"} <= rows[-1].keys()
    shutil.rmtree(last)
    resumed = averaged_trainer(tmp_path)
    checkpoint = tmp_path / "checkpoints/step-000002"
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    resumed.train()
    assert metrics(tmp_path) == rows
    again = load_file(last / AVERAGE_FILE)
    assert all(torch.equal(again[name], value) for name, value in whole.items())
