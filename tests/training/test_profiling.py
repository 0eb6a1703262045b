"""A profile is a trace of the updates that were asked for, and a table of where they spent time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from trainers import bert_trainer

from bert_pretrain.training import profiling
from bert_pretrain.training.profiling import StepProfiler

SECTIONS = ("copy", "data wait", "forward", "backward", "optimizer", "logging", "other")


def test_a_profile_has_a_trace_and_a_table_of_all_sections(tmp_path: Path) -> None:
    bert_trainer(Accelerator(cpu=True), tmp_path, profile_steps=3, max_steps=10).train()
    table = (tmp_path / "profile/table.txt").read_text()
    total = float(table.split(" updates, ")[1].split(" ms")[0])
    parts = {line[:14].strip(): float(line[14:]) for line in table.splitlines()[2:]}
    assert tuple(parts) == SECTIONS
    assert abs(sum(parts.values()) - total) < 0.1
    events = json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]
    # Two micro-batches an update.
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [names.count(name) for name in SECTIONS[:5]] == [3, 3, 6, 6, 3]


def test_the_time_of_a_section_inside_another_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(profiling, "time", SimpleNamespace(perf_counter=lambda: now))
    profiler = StepProfiler(5, tmp_path, torch.device("cpu"))
    monkeypatch.setattr(profiler, "_profile", "running")
    with profiler.section("data wait"):
        now += 3.0
        with profiler.section("copy"):
            now += 2.0
        now += 1.0
    with profiler.section("forward"):
        now += 5.0
    assert dict(profiler._host) == {"copy": 2.0, "data wait": 4.0, "forward": 5.0}


def test_without_a_profile_nothing_is_written(tmp_path: Path) -> None:
    bert_trainer(Accelerator(cpu=True), tmp_path, max_steps=8).train()
    assert not (tmp_path / "profile").exists()


def test_a_run_that_is_interrupted_has_the_profile_of_what_there_was(tmp_path: Path) -> None:
    trainer = bert_trainer(Accelerator(cpu=True), tmp_path, profile_steps=20, max_steps=20)
    update = trainer._update

    def interrupted(*arguments: Any) -> Any:
        if trainer.step == 9:
            raise KeyboardInterrupt
        return update(*arguments)

    trainer._update = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (tmp_path / "profile/table.txt").read_text().startswith("4 updates, ")


def test_a_run_shorter_than_its_profile_says_what_there_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert_trainer(Accelerator(cpu=True), tmp_path, profile_steps=20, max_steps=8).train()
    assert (tmp_path / "profile/table.txt").read_text().startswith("3 updates, ")
    capsys.readouterr()
    AcceleratorState._reset_state(reset_partial_state=True)
    short = tmp_path / "short"
    short.mkdir()
    bert_trainer(Accelerator(cpu=True), short, profile_steps=20, max_steps=4).train()
    assert "no profile: the first 5 updates warm up" in capsys.readouterr().out
    assert not (short / "profile").exists()
