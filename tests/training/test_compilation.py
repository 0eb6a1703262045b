"""A compiled model is one graph for few shapes, and its run is that of the model as written."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from trainers import bert_objective, bert_trainer, trainer_of

from bert_pretrain.errors import InputError
from bert_pretrain.training.compilation import wants_compilation

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()
    torch.compiler.set_stance("default")


@pytest.mark.parametrize(
    ("choice", "max_steps", "max_hours", "device", "expected"),
    [
        ("auto", 100_000, 0.0, GPU, True),
        ("auto", 0, 24.0, GPU, True),
        ("auto", 1800, 0.0, GPU, False),
        ("auto", 0, 0.1, GPU, False),
        ("auto", 100_000, 0.0, CPU, False),
        ("on", 10, 0.0, CPU, True),
        ("off", 100_000, 0.0, GPU, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(
    choice: str, max_steps: int, max_hours: float, device: torch.device, expected: bool
) -> None:
    found = wants_compilation(choice, max_steps=max_steps, max_hours=max_hours, device=device)
    assert found is expected


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_has_the_losses_of_an_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    found = []
    for choice in ("off", "on"):
        folder = tmp_path / choice
        folder.mkdir()
        torch._dynamo.utils.counters.clear()
        trainer = bert_trainer(Accelerator(cpu=True), folder, is_compiled=choice == "on")
        if trainer.is_compiled:
            trainer.check_compiled("on")
        trainer.train()
        found.append(losses(folder))
        AcceleratorState._reset_state(reset_partial_state=True)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] >= 1
    # float32; kernels of a compiler add in another order.
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_evaluations_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    trainer = bert_trainer(Accelerator(cpu=True), tmp_path, is_compiled=True)
    trainer.check_compiled("on")
    assert len(compiled) == 1
    trainer.evaluate(is_last=False)
    assert len(compiled) == 1


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("no compiler\nof any kind")


def test_what_cannot_be_compiled_runs_as_it_is_only_where_nobody_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: torch._dynamo.optimize(broken)(function)
    )
    trainer = bert_trainer(Accelerator(cpu=True), tmp_path, is_compiled=True)
    with pytest.raises(InputError, match=r"`torch_compile` is 'on'.*no compiler"):
        trainer.check_compiled("on")
    trainer.check_compiled("auto")
    assert "WARNING: the model cannot be compiled here" in capsys.readouterr().out
    assert not trainer.is_compiled
    trainer.train()
    assert len(losses(tmp_path)) == 6


def test_gradient_checkpointing_is_compiled_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    objective = bert_objective()
    make_model = objective._make_model

    def with_checkpointing() -> torch.nn.Module:
        model = make_model()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    objective._make_model = with_checkpointing
    trainer = trainer_of(Accelerator(cpu=True), objective, tmp_path, is_compiled=True)
    trainer.check_compiled("on")
    assert trainer.is_compiled
