"""A fine-tuning that was ended goes on with the seeds that are left, to the same results."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from downstream_models import make_text_model, sentences, write_rows
from runs import environment, python_command
from safetensors.torch import load_file

import bert_pretrain.commands.finetuning as command
from bert_pretrain.__main__ import main
from bert_pretrain.errors import InputError

FLAGS = (
    "--train_file train.jsonl --validation_file dev.jsonl --seeds 1 2 --max_steps 6 "
    "--learning_rate 1e-3 --mixed_precision no"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", sentences(32))
    write_rows(tmp_path / "dev.jsonl", sentences(16, seed=1))
    make_text_model(tmp_path / "model")
    return tmp_path


def finetune(out: str, *more: str) -> dict[str, Any]:
    assert main(["finetune", "--model", "model", "--output_dir", out, *FLAGS.split(), *more]) == 0
    results: dict[str, Any] = json.loads(Path(out, "results.json").read_text())
    return results


def ended_while(
    monkeypatch: pytest.MonkeyPatch, name: str, *, calls: int, out: str = "ended"
) -> None:
    """Begin a fine-tuning and end it in a call of one of the command's functions."""
    real, num_calls = getattr(command, name), 0

    def end(*arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == calls:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(command, name, end)
        finetune(out)
    assert stopped.value.code == 130


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("train", 2),
        *(
            pytest.param(name, calls, marks=pytest.mark.slow)
            for name, calls in (("_save_model", 1), ("write_json", 1))
        ),
    ],
)
def test_what_goes_on_ends_as_what_was_never_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls: int
) -> None:
    whole = finetune("whole")
    ended_while(monkeypatch, name, calls=calls)
    assert_alike(finetune("ended", "--resume"), whole)


def assert_alike(resumed: dict[str, Any], whole: dict[str, Any]) -> None:
    """Compare what is in the folder `ended` with what is in `whole`."""
    assert resumed["seeds"] == whole["seeds"] and resumed["best_seed"] == whole["best_seed"]
    ours, theirs = (load_file(f"{out}/final/model.safetensors") for out in ("ended", "whole"))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    names = {path.name for path in Path("ended").glob("[!.]*")}
    assert names == {path.name for path in Path("whole").glob("[!.]*")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_process_loses_no_more_than_the_seed_that_it_trained(
    folder: Path, seed: int
) -> None:
    flags = f"finetune --model model --output_dir ended {FLAGS} --max_steps 60"
    command_line = python_command(f"bert-pretrain {flags}")
    process = subprocess.Popen(command_line, env=environment(folder), cwd=folder)
    while not list(Path("ended").glob(f"seed-{seed}.tmp/checkpoint-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    outcomes = json.loads(Path("ended/.progress.json").read_text())["outcomes"]
    assert list(outcomes) == [str(before) for before in range(1, seed)]
    whole = finetune("whole", "--max_steps", "60")
    assert_alike(finetune("ended", "--resume", "--max_steps", "60"), whole)


def test_finished_seeds_are_not_trained_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_while(monkeypatch, "train", calls=2)
    trained: list[int] = []
    real = command.train

    def note(*arguments: Any, seed: int, **options: Any) -> Any:
        trained.append(seed)
        return real(*arguments, seed=seed, **options)

    monkeypatch.setattr(command, "train", note)
    finetune("ended", "--resume")
    assert trained == [2]


def test_a_finished_command_says_so_and_leaves_everything_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune("out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    capsys.readouterr()
    finetune("out", "--resume")
    shown = capsys.readouterr().out
    assert "all seeds of out are finished" in shown and "accuracy" in shown
    with pytest.raises(SystemExit) as stopped:
        finetune("out", "--resume", "--weight_decay", "0.5")
    assert stopped.value.code == 2 and "not an empty folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--learning_rate", "2e-3"], "was begun with other --learning_rate"),
        (["--train_file", "dev.jsonl"], "--train_file"),
    ],
)
def test_another_fine_tuning_is_not_continued(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    expected: str,
) -> None:
    ended_while(monkeypatch, "train", calls=2)
    before = Path("ended/.progress.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        finetune("ended", "--resume", *more)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err
    assert Path("ended/.progress.json").read_bytes() == before


def test_where_there_is_nothing_to_go_on_with_it_begins(folder: Path) -> None:
    assert finetune("new", "--resume")["seeds"] == finetune("whole")["seeds"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [(".progress.json", "is damaged"), ("thesis.tex", "is not an empty folder")],
)
def test_a_folder_of_something_else_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    Path("other").mkdir()
    Path("other", name).write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        finetune("other", "--resume")
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err
    assert Path("other", name).read_text() == "mine"


def test_a_refused_adaptation_leaves_the_seeds_that_were_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["finetune", "--model", "model", "--output_dir", "ended", *FLAGS.split()]
    flags += ["--adapt_minutes", "1"]
    real, num_trained = command.train, 0

    def train_one(*arguments: Any, **options: Any) -> Any:
        nonlocal num_trained
        num_trained += 1
        if num_trained == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("the texts are gone")

    monkeypatch.setattr(command, "train", train_one)
    monkeypatch.setattr(command, "adapt", lambda *_, **__: ("model", None))
    with pytest.raises(SystemExit):
        main(flags)
    kept = Path("ended/.progress.json").read_text()
    assert list(json.loads(kept)["outcomes"]) == ["1"]
    monkeypatch.setattr(command, "adapt", refuse)
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--resume"])
    assert stopped.value.code == 2 and "the texts are gone" in capsys.readouterr().err
    assert Path("ended/.progress.json").read_text() == kept
