"""Models of strangers: their code does not run, and weights that are no numbers are refused."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from banks import write_bank
from downstream_models import make_text_model
from runs import run_here, small_flags, write_corpus
from safetensors.torch import load_file, save_file

from bert_pretrain.__main__ import main
from bert_pretrain.embedding.search import open_bank
from bert_pretrain.errors import InputError
from bert_pretrain.text.prepared import PreparedCorpus, write_manifest
from bert_pretrain.training.checkpoint_state import STATE_FILE, read_state_file, write_state

PACKAGE = Path(__file__).parents[2] / "bert_pretrain"
CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class TheirConfig(PreTrainedConfig):
    model_type = "theirs"
class TheirModel(PreTrainedModel):
    config_class = TheirConfig
class TheirTokenizer(PreTrainedTokenizerFast):
    pass
"""
COMMANDS = {
    "pretrain from": "pretrain {flags} --output_dir out --model_name_or_path {model}",
    "pretrain as": "pretrain {flags} --output_dir out --config_name {model}",
    "pretrain with its tokenizer": "pretrain {flags} --output_dir out --tokenizer_name {model}",
    "evaluate": "evaluate --model {model} --suite minimal_pairs",
    "finetune": "finetune --model {model} --train_file rows.jsonl --output_dir out",
    "embed": "embed --model {model} --data_files rows.jsonl --output out/rows.parquet",
}


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    printed = capsys.readouterr()
    assert stopped.value.code == 2, printed
    assert "Traceback" not in printed.err
    return printed.err


def write_rows(folder: Path) -> None:
    rows = [{"text": f"the value {i}", "label": i % 2} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with labelled rows in it."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_the_code_of_a_stranger_is_not_run_even_if_somebody_agrees(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    marker, theirs = folder / "it-ran", folder / "theirs"
    theirs.mkdir()
    (theirs / "theirs.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {
        "AutoConfig": "theirs.TheirConfig",
        "AutoModel": "theirs.TheirModel",
        "AutoModelForMaskedLM": "theirs.TheirModel",
        "AutoModelForSequenceClassification": "theirs.TheirModel",
        "AutoTokenizer": ["theirs.TheirTokenizer", "theirs.TheirTokenizer"],
    }
    for file in ("config.json", "tokenizer_config.json"):
        (theirs / file).write_text(json.dumps({"model_type": "theirs", "auto_map": auto_map}))
    flags = " ".join(small_flags(folder))
    refused(COMMANDS[name].format(flags=flags, model=theirs), capsys)
    assert not marker.exists()
    assert not (folder / "out").exists()


def loading_calls(*methods: str) -> list[tuple[str, str, dict[str | None, str]]]:
    """Return file, owner and keywords of every call of methods in the package."""
    calls = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in methods:
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                calls.append((path.name, ast.unparse(called.value), keywords))
    return calls


def test_whatever_chooses_a_class_by_itself_is_told_to_run_no_foreign_code() -> None:
    calls = [
        call
        for call in loading_calls("from_pretrained", "from_config")
        if call[1].startswith("Auto") or "auto_class" in call[1]
    ]
    assert len(calls) > 11
    assert [call for call in calls if call[2].get("trust_remote_code") != "False"] == []


def test_weights_are_read_from_safetensors_alone() -> None:
    calls = [
        call
        for call in loading_calls("from_pretrained")
        if not call[1].endswith(("Config", "Tokenizer", "Processor", "super()"))
    ]
    assert len(calls) > 5
    assert [call for call in calls if call[2].get("use_safetensors") != "True"] == []


def test_whatever_reads_weights_of_strangers_looks_whether_they_are_numbers() -> None:
    """Those of a run's own checkpoint are known by their digest, and were looked at when saved."""
    readers = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "use_safetensors=True" in ast.unparse(node):
                readers[node.name] = "check_finite_weights(" in ast.unparse(node)
    assert len(readers) > 5
    assert [name for name, looks in readers.items() if not looks] == ["load_model"]


def test_no_archive_is_unpacked() -> None:
    unpacking = ("extractall", "extract", "unpack_archive")
    assert loading_calls(*unpacking) == []
    assert loading_calls("extractfile") != []  # a member of a shard is read, wherever it would lie


@pytest.mark.parametrize("name", ["pretrain from", "evaluate", "finetune", "embed"])
def test_weights_that_are_no_numbers_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = make_text_model(folder / "model")
    path = folder / "model/model.safetensors"
    weights = load_file(path)
    key = "bert.encoder.layer.1.output.dense.weight"
    weights[key][3, 4] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    flags = " ".join(small_flags(folder))
    message = refused(COMMANDS[name].format(flags=flags, model=model), capsys)
    named = key.removeprefix("bert.") if name == "embed" else key  # it loads the encoder alone
    assert f"hold NaN or infinity, such as {named}" in message
    assert not (folder / "out").exists()


class Touch:
    """Unpickled by a reader that trusts its file, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pretrain from", "evaluate", "finetune", "embed"])
def test_pickled_weights_run_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model, marker = make_text_model(folder / "model"), folder / "it-ran"
    (folder / "model/model.safetensors").unlink()
    torch.save({"weight": Touch(marker)}, folder / "model/pytorch_model.bin")
    torch.load(folder / "model/pytorch_model.bin", weights_only=False)
    assert marker.exists()  # it would
    marker.unlink()
    flags = " ".join(small_flags(folder))
    message = refused(COMMANDS[name].format(flags=flags, model=model), capsys)
    assert "pickled ones (pytorch_model.bin) are not read" in message
    assert "save it with its method save_pretrained" in message
    assert not marker.exists()


def test_a_pickle_in_a_checkpoint_runs_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*small_flags(folder), "--output_dir", "out", "--max_steps", "2"]
    run_here(folder, flags)
    marker = folder / "it-ran"
    checkpoint = folder / "out/checkpoints/step-000002"
    torch.save({"state": Touch(marker)}, checkpoint / "optimizer.bin")
    # Whoever writes the file can write its digest too.
    state, files = read_state_file(checkpoint / STATE_FILE)
    digest = hashlib.sha256((checkpoint / "optimizer.bin").read_bytes()).hexdigest()
    write_state(checkpoint / STATE_FILE, state, files | {"optimizer.bin": digest})
    message = refused(" ".join([*flags, "--resume_from_checkpoint", "latest"]), capsys)
    assert "optimizer.bin cannot be read" in message
    assert not marker.exists()


@pytest.mark.parametrize("form", ["an array of objects", "no array"])
@pytest.mark.parametrize("name", ["validation_documents.npy", "token_counts.npy", "rows.npy"])
def test_a_pickle_in_an_array_runs_nothing(folder: Path, name: str, form: str) -> None:
    marker = folder / "it-ran"
    content: Any = Touch(marker)
    if name == "rows.npy":
        path = folder / name
        bank = write_bank(path, np.ones((1, 1), dtype=np.float32), sizes=[1])
        read: Callable[[], Any] = partial(open_bank, bank.path)
    else:
        write_corpus(folder / "corpus.jsonl")
        assert main(["prepare", "--data_files", "corpus.jsonl", "--output_dir", "corpus"]) == 0
        path = folder / "corpus" / name
        read = partial(PreparedCorpus.load, folder / "corpus")
    if form == "no array":
        path.write_bytes(pickle.dumps(content))
    else:
        np.save(path, np.array([content], dtype=object), allow_pickle=True)
    np.load(path, allow_pickle=True)
    assert marker.exists()  # it would
    marker.unlink()
    if name != "rows.npy":  # whoever writes the file can write its digest too
        manifest = json.loads((folder / "corpus/manifest.json").read_text())
        write_manifest(folder / "corpus", {**manifest, "files": None})
    with pytest.raises(InputError):
        read()
    assert not marker.exists()
