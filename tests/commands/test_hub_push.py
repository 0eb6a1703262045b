"""`hub push` of a run that goes on: one step is published, never an older one, and it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub, running_hub

from bert_pretrain.__main__ import main
from bert_pretrain.data import run_folder
from bert_pretrain.data.run_folder import held

NAME = "tester/words"
STATE = "training_state/optimizer.bin"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that upload processes started from here find."""
    monkeypatch.chdir(tmp_path)
    with running_hub() as hub:
        for name, value in hub.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield hub


def write_export(folder: Path, *, step: int, started: str) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"\0weights %d" % step)
    (folder / "run.json").write_text(json.dumps({"config": {}, "started": started, "step": step}))


def write_run(folder: Path, *, final_step: int, checkpoints: list[int], **config: Any) -> Path:
    """Write a run that ended after `final_step` updates; later checkpoints continue it."""
    started = "later" if checkpoints[-1] > final_step else "noon"
    write_export(folder / "final", step=final_step, started="noon")
    for step in checkpoints:
        checkpoint = folder / f"checkpoints/step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "optimizer.bin").write_bytes(b"\0state %d" % step)
        if step > final_step and config.get("hub_strategy") == "every_save":
            (checkpoint / "submitted_to").write_text(NAME)
    record = {"config": {"hub_model_id": NAME} | config, "started": started}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def published(hub: LoopbackHub) -> dict[str, bytes]:
    files = hub.model("words").files()
    return {
        name: content for name, content in files.items() if name in ("model.safetensors", STATE)
    }


def test_state_goes_up_with_the_weights_of_its_own_step(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out", final_step=4, checkpoints=[4, 8])
    assert main(["hub", "push", "out", "--hub_push_state"]) == 0
    assert published(hub) == {"model.safetensors": b"\0weights 4", STATE: b"\0state 4"}
    printed = capsys.readouterr().out
    assert "main: the model after 4 updates, from out/final" in printed
    assert "was continued and has not ended" in printed


def test_without_its_state_on_disk_weights_go_up_alone(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out", final_step=4, checkpoints=[6, 8], hub_push_state=True)
    assert main(["hub", "push", "out"]) == 0
    assert published(hub) == {"model.safetensors": b"\0weights 4"}
    assert "without training state" in capsys.readouterr().out


@pytest.mark.slow
def test_state_stays_with_its_weights_and_goes_with_them(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "out", final_step=8, checkpoints=[8])
    both = {"model.safetensors": b"\0weights 8", STATE: b"\0state 8"}
    assert main(["hub", "push", "out", "--hub_push_state"]) == 0
    assert published(hub) == both
    assert main(["hub", "push", "out"]) == 0
    assert published(hub) == both, "the same weights"
    shutil.rmtree(run / "checkpoints")
    assert main(["hub", "push", "out", "--hub_push_state"]) == 0
    assert published(hub) == both
    shutil.rmtree(run)
    write_run(run, final_step=9, checkpoints=[9])
    assert main(["hub", "push", "out"]) == 0
    assert published(hub) == {"model.safetensors": b"\0weights 9"}, "the state was of other weights"


@pytest.mark.parametrize("leftover", ["hub", "hub/filling.tmp/step-000004"])
def test_an_outbox_that_a_kill_left_empty_is_nothing_to_publish(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], leftover: str
) -> None:
    run = write_run(tmp_path / "out", final_step=4, checkpoints=[4])
    shutil.rmtree(run / "final")
    (run / leftover).mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        main(["hub", "push", "out"])
    assert stopped.value.code == 2 and "nothing to publish yet" in capsys.readouterr().err
    assert not hub.requests


@pytest.mark.slow
def test_checkpoints_that_never_got_into_the_outbox_are_named_and_are_no_success(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(
        tmp_path / "out",
        final_step=8,
        checkpoints=[4, 6, 8],
        hub_strategy="all_checkpoints",
        push_to_hub=True,
    )
    for step in (4, 8):
        (run / f"checkpoints/step-{step:06d}/submitted_to").write_text(NAME)
    assert main(["hub", "push", "out"]) == 1
    printed = capsys.readouterr().out
    assert (
        "NOT pushed: step-000006: not in" in printed
        and "--resume_from_checkpoint latest" in printed
    )
    assert main(["hub", "push", "out", "--hub_model_id", "tester/copy"]) == 0, (
        "a copy is of the end alone"
    )
    (run / "checkpoints/step-000006/submitted_to").write_text(NAME)
    assert main(["hub", "push", "out"]) == 0


def test_a_finished_run_is_published_without_a_note(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out", final_step=8, checkpoints=[4, 8], hub_push_state=True)
    assert main(["hub", "push", "out"]) == 0
    assert published(hub) == {"model.safetensors": b"\0weights 8", STATE: b"\0state 8"}
    printed = capsys.readouterr().out
    assert (
        "the model after 8 updates" in printed
        and "continued" not in printed
        and "WARNING" not in printed
    )


@pytest.mark.slow
def test_an_older_final_model_does_not_take_the_place_of_a_newer_checkpoint(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "out", final_step=4, checkpoints=[4, 8], hub_strategy="every_save")
    write_export(run / "hub/000001-main", step=8, started="later")
    for is_waiting in (True, False):
        assert main(["hub", "push", "out"]) == 0
        assert published(hub) == {"model.safetensors": b"\0weights 8"}
        printed = capsys.readouterr().out
        assert "out/final is not published, main is of 8 updates already" in printed
        assert ("main: the model after 8 updates, which waited" in printed) == is_waiting
    copy = ["hub", "push", "out", "--hub_model_id", "tester/copy"]
    assert main(copy) == 0
    assert hub.model("copy").files()["model.safetensors"] == b"\0weights 4", (
        "no checkpoint was published there"
    )
    write_export(run / "hub/000001-main", step=12, started="later")
    assert main(copy) == 0
    assert hub.model("copy").files()["model.safetensors"] == b"\0weights 4", (
        "what waits is for another repository"
    )
    assert main(["hub", "push", "out"]) == 0
    assert published(hub) == {"model.safetensors": b"\0weights 12"}


def test_a_run_in_progress_is_left_alone(
    hub: LoopbackHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_folder, "TIMEOUT_SECONDS", 0)
    run = write_run(tmp_path / "out", final_step=4, checkpoints=[4, 8])
    with held(run), pytest.raises(SystemExit) as stopped:
        main(["hub", "push", "out"])
    assert stopped.value.code == 2
    assert "another process is at work in out" in capsys.readouterr().err
    assert not hub.requests


def test_an_outbox_that_cannot_be_filled_is_no_success(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "out", final_step=4, checkpoints=[4])
    (run / "hub").write_text("in the way")
    assert main(["hub", "push", "out"]) == 1
    printed = capsys.readouterr().out
    assert "NOT pushed: main" in printed and "to finish later" in printed
