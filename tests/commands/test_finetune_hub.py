"""`bert-pretrain finetune --push_to_hub` against a loopback Hub that works or refuses."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from downstream_models import make_text_model, sentences, write_rows
from loopback_hub import TOKEN, Fault, LoopbackHub, Repository, running_hub, text_files

from bert_pretrain.__main__ import main
from bert_pretrain.commands import finetuning as finetune_module
from bert_pretrain.data import run_folder
from bert_pretrain.publishing import pusher as pusher_module

NAME = "tester/classifier"
PRIVATE_FILES = {"LICENSE": b"mine"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that upload processes started from here find; the current folder has rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pusher_module, "_FIRST_WAIT", 0.05)
    write_rows(tmp_path / "train.jsonl", sentences(32))
    with running_hub() as hub:
        for name, value in hub.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield hub


def finetune(model: str, *flags: str, output_dir: str = "out") -> int:
    files = ["--train_file", "train.jsonl", "--validation_share", "0.5", "--output_dir", output_dir]
    recipe = ["--max_steps", "1", "--mixed_precision", "no"]
    publish = ["--push_to_hub", "--hub_model_id", NAME]
    return main(["finetune", "--model", model, *files, *recipe, *publish, *flags])


def finish(text: str) -> int:
    """Type the command that a message ends with."""
    program, *arguments = shlex.split(text.split("to finish later: ")[1].splitlines()[0])
    assert program == "bert-pretrain"
    return main(arguments)


def test_a_private_classifier_is_whole_and_tells_nothing_of_the_machine(
    hub: LoopbackHub, model: str
) -> None:
    hub.faults = [Fault(r"POST .*/commit/main", 500)]
    assert finetune(model, "--hub_private_repo") == 0
    repository = hub.model("classifier")
    assert repository.is_private
    final = {path.name: path.read_bytes() for path in Path("out/final").iterdir()}
    assert repository.files() == final and {
        "README.md",
        "model.safetensors",
        "tokenizer.json",
    } <= set(final)
    assert sorted(path.name for path in Path("out").glob("[!.]*")) == [
        "final",
        "results.json",
        "seed-42",
    ]
    assert f'pipeline("text-classification", model="{NAME}")\n' in final["README.md"].decode()
    for name, text in text_files(repository).items():
        if not name.endswith("tokenizer.json"):
            for private in (model, str(Path.cwd()), str(Path.home()), TOKEN):
                assert private not in text, name


def test_a_repository_that_exists_keeps_its_other_files(hub: LoopbackHub, model: str) -> None:
    hub.repositories["model", NAME] = existing = Repository(is_private=True)
    existing.commit("main", PRIVATE_FILES)
    assert finetune(model, "--hub_private_repo") == 0
    assert existing.files().items() >= PRIVATE_FILES.items()
    assert "model.safetensors" in existing.files()


def test_what_was_to_be_private_is_not_made_public(
    hub: LoopbackHub, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["model", NAME] = public = Repository(is_private=False)
    public.commit("main", PRIVATE_FILES)
    assert (
        finetune(model, "--hub_private_repo") == 0
    )  # the model is there, and the Hub's part is said
    assert public.files() == PRIVATE_FILES
    assert "is public" in capsys.readouterr().out
    assert Path("out/final/model.safetensors").is_file()


@pytest.mark.slow
def test_a_refused_token_leaves_the_model_and_the_command_named_brings_it_later(
    hub: LoopbackHub,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_refusedtoken")
    assert finetune(model, "--hub_private_repo", output_dir="my out") == 0
    printed = capsys.readouterr()
    assert "401" in printed.out
    assert "NOT pushed" in printed.out and "refusedtoken" not in printed.out + printed.err
    assert (
        Path("my out/final/model.safetensors").is_file() and Path("my out/results.json").is_file()
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert finish(printed.out) == 0
    assert hub.model("classifier").is_private
    assert set(hub.model("classifier").files()) == {
        path.name for path in Path("my out/final").iterdir()
    }
    assert not Path("my out/hub").exists()


def test_nobody_else_publishes_a_classifier_that_is_being_trained(
    hub: LoopbackHub,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_folder, "TIMEOUT_SECONDS", 0)
    seen = []
    monkeypatch.setattr(
        finetune_module,
        "submit_final",
        lambda _, folder, **__: seen.append(run_folder.is_held(folder)),
    )
    assert finetune(model) == 0
    assert seen == [True] and not run_folder.is_held(Path("out"))


@pytest.mark.slow
def test_flags_given_to_a_push_are_in_the_command_that_finishes_it(
    hub: LoopbackHub, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(model) == 0
    capsys.readouterr()
    hub.faults = [Fault(r"POST .*/commit/", 413, times=100)]
    assert main(["hub", "push", "out", "--hub_model_id", "tester/copy", "--hub_private_repo"]) == 1
    hub.faults = []
    assert finish(capsys.readouterr().out) == 0
    assert hub.model("copy").is_private
    assert hub.model("copy").files() == hub.model("classifier").files()
