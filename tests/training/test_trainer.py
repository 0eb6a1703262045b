"""Claims about the loop itself, on a task that takes milliseconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_task import Line, line_trainer

from bert_pretrain.data.stream import Place
from bert_pretrain.errors import TrainingError
from bert_pretrain.objectives.interface import LossTerm
from bert_pretrain.training.checkpoint import read_state
from bert_pretrain.training.finite import FiniteGuard
from bert_pretrain.training.metrics import RunningSums
from bert_pretrain.training.trainer import Trainer


def rows_of(run_dir: Path, split: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def without_measured(run_dir: Path) -> list[dict[str, Any]]:
    """Return all rows but for the machine's memory; rates stay, where a test's clock ticks."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "peak_memory_gib"} for row in rows]


def warnings_of_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the warnings that rows are lost; others are of the course of the loss."""
    return [row for row in rows_of(run_dir, "warning") if "metrics.jsonl" in row["message"]]


def naive_run(max_steps: int) -> list[torch.Tensor]:
    """Return the parameters after plain gradient descent on the same rows and rates."""
    model = Line()
    for step in range(max_steps):
        x = torch.arange(8.0)[:, None] + 8 * step
        loss = ((model(x / 40) - x / 20) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rate = 0.1 * min(1.0, (max_steps - step) / (max_steps / 2))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    return [parameter.detach() for parameter in model.parameters()]


def scaled(monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator) -> Accelerator:
    """Let an accelerator work as under float16 on a GPU: a gradient scaler, here a processor's."""
    monkeypatch.setattr(type(accelerator), "mixed_precision", property(lambda self: "fp16"))
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    return accelerator


def test_the_loop_makes_the_updates_of_a_naive_loop(tmp_path: Path) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path)
    trainer.train()
    for found, expected in zip(trainer.model.parameters(), naive_run(4), strict=True):
        torch.testing.assert_close(found.detach(), expected)
    assert [row["step"] for row in rows_of(tmp_path, "train")] == [1, 2, 3, 4]
    assert [row["step"] for row in rows_of(tmp_path, "validation")] == [0, 2, 4]
    shown = [json.loads(line) for line in (tmp_path / "shown.jsonl").read_text().splitlines()]
    assert [row["is_last"] for row in shown] == [False, False, True]


def test_a_pass_on_trial_changes_nothing(tmp_path: Path) -> None:
    """Not even the buffers that count passes, as batch normalisation's do."""
    trainer = line_trainer(Accelerator(cpu=True), tmp_path)
    trainer.model.register_buffer("num_passes", torch.zeros(1))
    passes = []

    def count(model: Any, _: Any) -> None:
        passes.append(model.num_passes.add_(1))

    trainer.model.register_forward_pre_hook(count)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.try_pass(2)
    assert passes
    assert all(torch.equal(before[name], v) for name, v in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_gradients_are_unscaled_once_whatever_the_number_of_optimisers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = line_trainer(scaled(monkeypatch, Accelerator(cpu=True)), tmp_path)
    trainer.train()
    for found, expected in zip(trainer.model.parameters(), naive_run(4), strict=True):
        # Products are float16; an update unscaled twice were a thousandth of what it should be.
        torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=0)
    # It grows after every two updates: had it been updated once an optimiser, it were larger.
    assert trainer.accelerator.scaler.get_scale() == 4096.0


def test_an_overflow_under_float16_skips_its_update_and_is_null_in_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = scaled(monkeypatch, Accelerator(cpu=True))
    trainer = line_trainer(accelerator, tmp_path, max_steps=2, infinite_at=(9,))
    before: list[torch.Tensor] = []
    monkeypatch.setattr(
        trainer,
        "_log",
        lambda *arguments, log=trainer._log: (
            before.append(trainer.model.bias.detach().clone()),
            log(*arguments),
        )[1],
    )
    trainer.train()
    assert torch.equal(before[0], before[1])  # the second update was not made
    assert [row["grad_norm"] is None for row in rows_of(tmp_path, "train")] == [False, True]
    assert accelerator.scaler.get_scale() == 512.0


def test_an_overflow_that_one_optimiser_sees_keeps_all_from_their_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = line_trainer(scaled(monkeypatch, Accelerator(cpu=True)), tmp_path, max_steps=1)
    weight = trainer.distributed.trained.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))  # the bias's stays finite
    trainer.train()
    assert all(map(torch.equal, trainer.distributed.trained.parameters(), Line().parameters()))
    assert trainer.accelerator.scaler.get_scale() == 512.0


def test_float16_that_overflows_for_ever_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = scaled(monkeypatch, Accelerator(cpu=True))
    trainer = line_trainer(accelerator, tmp_path, max_steps=80, infinite_at=tuple(range(40)))
    with pytest.raises(TrainingError, match=r"update 51 is not finite.*50 such updates"):
        trainer.train()


def test_overflows_that_are_not_in_a_row_do_not_end_a_float16_run() -> None:
    guard = FiniteGuard(torch.device("cpu"), num_allowed=0, is_scaled=True)
    for step in range(1, 201):  # every second one overflows, as at a scale that grows too often
        norm = torch.tensor(float("inf") if step % 2 else 1.0)
        found = guard.found_inf(norm, step, Place(), Place(0, 0, 8))
        assert bool(found) is bool(step % 2)
    assert guard.numbers.tolist() == [100, 0]
    guard.see(*guard.numbers.tolist())


def test_rows_that_arrive_together_share_the_time_since_those_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(
        "bert_pretrain.training.metrics.time", SimpleNamespace(perf_counter=lambda: now)
    )
    journal = line_trainer(Accelerator(cpu=True), tmp_path, peak_flops=1000.0).journal
    journal.start(0)
    for step in (1, 2):
        journal.count(8, 48.0)
        sums = RunningSums(torch.device("cpu"))
        sums.add({"line": LossTerm(torch.ones(()))}, {"line": 1})
        journal.begin_row({"split": "train", "step": step}, sums.total(), torch.ones(()))
    now = 4.0
    journal.write_rows()
    rows = rows_of(tmp_path, "train")
    assert [row["numbers_per_second"] for row in rows] == [4.0, 4.0]  # 8 in 2 seconds each
    assert [row["mfu"] for row in rows] == [0.024, 0.024]  # 48 operations in 2 seconds of 1000


def test_an_update_that_ended_a_run_is_not_forgotten(tmp_path: Path) -> None:
    guard = FiniteGuard(torch.device("cpu"), num_allowed=0)
    guard.found_inf(torch.tensor(float("nan")), 1, Place(), Place(0, 0, 8))
    for step in range(2, 10_005):
        guard.found_inf(torch.tensor(1.0), step, Place(), Place(0, 0, 8))
    with pytest.raises(TrainingError, match="update 1 is not finite; it was not made"):
        guard.see(*guard.numbers.tolist())


def test_updates_that_the_host_knows_to_be_finite_are_forgotten() -> None:
    guard = FiniteGuard(torch.device("cpu"), num_allowed=0)
    for step in range(1, 9):
        norm = torch.tensor(float("nan") if step == 7 else 1.0)
        guard.found_inf(norm, step, Place(0, 0, step), Place(0, 0, step + 1))
        if step == 5:
            guard.see(*guard.numbers.tolist(), step=4)
            assert guard.num_unseen == 1
    with pytest.raises(TrainingError, match=r"update 7 .*\(from row 7 "):
        guard.see(*guard.numbers.tolist())


def test_a_run_keeps_no_update_that_a_row_of_metrics_has_told_of(tmp_path: Path) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path)
    trainer.train()
    assert trainer.step > 0
    assert trainer.guard.num_unseen == 0


def test_without_a_scaler_an_infinite_gradient_ends_the_run_before_its_update(
    tmp_path: Path,
) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, infinite_at=(9,))
    with pytest.raises(TrainingError, match=r"update 2 is not finite .*`learning_rate`"):
        trainer.train()
    assert torch.isfinite(trainer.model.weight).all()


def test_the_forward_pass_that_is_not_finite_is_named(tmp_path: Path) -> None:
    # Rows 8 to 15 are the second update, its passes have four each.
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, infinite_at=(13,))
    message = r"from row 8 .* to row 16 .*, nor is the loss of process 0 in forward pass 1 \("
    with pytest.raises(TrainingError, match=message):
        trainer.train()


def test_a_gradient_that_overflows_alone_is_told_from_a_loss(tmp_path: Path) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path)
    trainer.distributed.trained.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="though all losses are: a gradient has overflowed"):
        trainer.train()


def test_updates_that_are_not_finite_are_skipped_up_to_the_number_allowed(tmp_path: Path) -> None:
    allowed = line_trainer(
        Accelerator(cpu=True), tmp_path / "two", infinite_at=(9, 17), skip_nonfinite=2
    )
    allowed.train()
    assert [row["skipped_updates"] for row in rows_of(tmp_path / "two", "train")] == [0, 1, 2, 2]
    model = Line()
    for step in (0, 3):  # what a plain loop makes of the other two
        x = torch.arange(8.0)[:, None] + 8 * step
        loss = ((model(x / 40) - x / 20) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rate = 0.1 * min(1.0, (4 - step) / 2)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    for found, expected in zip(allowed.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    one = line_trainer(
        Accelerator(cpu=True), tmp_path / "one", infinite_at=(9, 17), skip_nonfinite=1
    )
    with pytest.raises(TrainingError, match=r"update 3 is not finite \(from row 16.*to row 24"):
        one.train()


def test_the_number_of_skipped_updates_is_continued(tmp_path: Path) -> None:
    options = {"infinite_at": (9, 25), "skip_nonfinite": 1, "save_steps": 2}
    with pytest.raises(TrainingError, match="update 4"):
        line_trainer(Accelerator(cpu=True), tmp_path, **options).train()
    resumed = line_trainer(Accelerator(cpu=True), tmp_path, **options)
    checkpoint = tmp_path / "checkpoints/step-000002"
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    with pytest.raises(TrainingError, match=r"update 4.*1 such updates were skipped before"):
        resumed.train()


def test_utilisation_is_the_useful_operations_over_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += 0.5
        return now

    monkeypatch.setattr("bert_pretrain.training.metrics.time", SimpleNamespace(perf_counter=tick))
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, peak_flops=1000.0)
    trainer.train()
    for row in rows_of(tmp_path, "train"):
        # 6 operations a number; both rates are over the same seconds.
        expected = 6 * row["numbers_per_second"] / 1000
        assert row["mfu"] == pytest.approx(expected, abs=1e-3)


def test_rates_per_second_leave_out_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def tick(seconds: float = 0.25) -> float:
        nonlocal now
        now += seconds
        return now

    clock = SimpleNamespace(perf_counter=tick)  # whoever looks at it takes a quarter of a second
    monkeypatch.setattr("bert_pretrain.training.metrics.time", clock)
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4)
    monkeypatch.setattr(trainer.monitor, "measures", lambda *_, **__: {"slept": tick(1000.0)})
    trainer.train()
    # The third row follows the evaluation of step 2, the first that of the start.
    rates = [row["numbers_per_second"] for row in rows_of(tmp_path, "train")]
    assert min(rates) > 8 / 2


def test_the_last_evaluation_alone_is_warned_of_worse_neighbours_than_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter((0.8, 0.5, 0.6))
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4)
    monkeypatch.setattr(
        trainer.monitor, "measures", lambda *_, **__: {"knn_accuracy": next(accuracies)}
    )
    trainer.train()
    assert [row["step"] for row in rows_of(tmp_path, "validation")] == [0, 2, 4]
    (warning,) = [row for row in rows_of(tmp_path, "warning") if "k-NN" in row["message"]]
    assert warning["step"] == 4 and "0.600 at the end and 0.800 at the beg" in warning["message"]


def test_a_resumed_run_writes_the_rows_of_a_run_without_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(
        "bert_pretrain.training.metrics.time", SimpleNamespace(perf_counter=lambda: now)
    )

    def trainer() -> Trainer:
        made = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4, save_steps=2)
        loss_terms = made.objective.loss_terms

        def loss_in_a_second(*arguments: Any) -> dict[str, LossTerm]:
            nonlocal now
            now += 1.0
            return loss_terms(*arguments)

        monkeypatch.setattr(made.objective, "loss_terms", loss_in_a_second)
        return made

    trainer().train()
    whole = without_measured(tmp_path)
    # An update has 8 numbers in 2 forward passes.
    assert [row["numbers_per_second"] for row in rows_of(tmp_path, "train")] == [4.0] * 4
    shutil.rmtree(tmp_path / "checkpoints/step-000004")
    resumed = trainer()
    checkpoint = tmp_path / "checkpoints/step-000002"
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    resumed.train()
    assert without_measured(tmp_path) == whole
    assert (tmp_path / "checkpoints/step-000004").is_dir()


@pytest.mark.parametrize("damage", ["lost", "line"])
def test_a_resumed_run_says_which_rows_it_has_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4, save_steps=2).train()
    metrics = tmp_path / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    if damage == "lost":
        metrics.unlink()
    else:
        metrics.write_text("\n".join([lines[0], lines[1][:-5], *lines[2:], '{"split": "tr']))
    checkpoint = tmp_path / "checkpoints/step-000002"
    resumed = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4)
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    resumed.train()
    (warning,) = warnings_of_rows(tmp_path)
    assert warning["step"] == 2
    expected = {
        "lost": "metrics.jsonl is lost, with all rows up to update 2",
        "line": "metrics.jsonl was damaged: what was line 2 is no row and is left out",
    }[damage]
    assert warning["message"] == expected and f"WARNING: {expected}" in capsys.readouterr().out
    kept = {"lost": [3, 4], "line": [2, 3, 4]}[damage]
    assert [row["step"] for row in rows_of(tmp_path, "train")] == kept


def test_a_run_that_goes_on_in_another_folder_has_lost_nothing(tmp_path: Path) -> None:
    line_trainer(Accelerator(cpu=True), tmp_path / "a", max_steps=4, save_steps=2).train()
    checkpoint = tmp_path / "a/checkpoints/step-000002"
    resumed = line_trainer(Accelerator(cpu=True), tmp_path / "b", max_steps=4)
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    resumed.train()
    assert warnings_of_rows(tmp_path / "b") == []


def test_a_resumed_run_takes_the_optimiser_flags_of_now(tmp_path: Path) -> None:
    """They are announced as changed; the state in the checkpoint must not bring back the old."""
    line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4, save_steps=2).train()
    checkpoint = tmp_path / "checkpoints/step-000002"
    resumed = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=4)
    for prepared in resumed.optimizers:
        for group in prepared.optimizer.param_groups:
            group |= {"weight_decay": 0.25, "rate_ratio": 3.0}
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    for prepared in resumed.optimizers:
        for group in prepared.optimizer.param_groups:
            assert (group["weight_decay"], group["rate_ratio"]) == (0.25, 3.0)


def test_an_update_without_a_target_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=2)
    monkeypatch.setattr(trainer.objective, "target_counts", lambda _: {"line": 0})
    monkeypatch.setattr(
        trainer.objective,
        "loss_terms",
        lambda model, batch: {"line": LossTerm(0.0 * model(batch["x"]).sum())},
    )
    trainer.train()
    parameters = trainer.accelerator.unwrap_model(trainer.model).parameters()
    assert all(map(torch.equal, parameters, Line().parameters()))
