"""`verify` finds whatever is no longer as a run wrote it, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downstream_models import make_text_model
from runs import run_here, small_flags

from bert_pretrain.__main__ import main
from bert_pretrain.commands import verify as command
from bert_pretrain.commands.verify import FAULTS, Check, verify
from bert_pretrain.data.digests import write_sealed
from bert_pretrain.hardware import code_sha256
from bert_pretrain.text.tokenizers import load_tokenizer, tokenizer_hash

# What may differ without a word: pictures, tables and the card may be edited, a lock has no
# content; a row of metrics.jsonl has no digest, since the file grows.
FREE = ("fill_mask.jsonl", "metrics.jsonl", "curves.png", "README.md", ".lock")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a text, the corpus prepared of it, and a run in `out`."""
    folder = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pretrain.text.preparation.HF_HOME", str(folder / "hf"))
        flags = [*small_flags(folder), "--model_name_or_path", make_text_model(folder / "model")]
        run_here(folder, [*flags, "--max_steps", "4", "--save_steps", "2", "--output_dir", "out"])
        yield folder


@pytest.fixture
def changed(folder: Path) -> Iterator[Callable[[Path], None]]:
    """Return what remembers a file, which is as it was after the test."""
    kept: dict[Path, bytes] = {}

    def remember(path: Path) -> None:
        kept[path] = path.read_bytes()

    yield remember
    for path, content in kept.items():
        path.write_bytes(content)


def faults(run_dir: Path) -> dict[str, Check]:
    return {check.what: check for check in verify(run_dir) if check.state in FAULTS}


def corpus_of(folder: Path) -> Path:
    (manifest,) = (folder / "hf").rglob("manifest.json")
    return manifest.parent


def test_a_whole_run_is_whole_and_says_what_it_was_made_of(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(folder / "out"), "--json", str(folder / "verified.json")]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("nothing is damaged\n")
    checked = json.loads((folder / "verified.json").read_text())
    assert checked["is_whole"] is True
    states = {check["what"]: check["state"] for check in checked["checks"]}
    corpus = corpus_of(folder)
    assert states == dict.fromkeys(
        [
            *("run.json", "metrics.jsonl", "final/run.json", "final/", "the program"),
            *("checkpoints/step-000002", "checkpoints/step-000004", "tokenizer in final"),
            *(str(corpus), f"{corpus}/manifest.json", "files it was made of"),
            f"weights of {folder / 'model'}",
        ],
        "ok",
    )
    record = json.loads((folder / "out/run.json").read_text())
    tokenizer = load_tokenizer(str(folder / "model"))
    assert record["sources"]["tokenizer"]["sha256"] == tokenizer_hash(tokenizer)
    assert record["code_sha256"] == code_sha256()
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert [file["path"] for file in manifest["source"]["files"]] == [str(folder / "corpus.jsonl")]
    card = (folder / "out/final/README.md").read_text()
    weights = json.loads((folder / "out/final/run.json").read_text())["files"]["model.safetensors"]
    for digest in (weights, manifest["key"], record["sources"]["tokenizer"]["sha256"]):
        assert digest in card


def test_one_flipped_bit_in_any_file_is_found(
    folder: Path, changed: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_tokenizer", lambda name: None)
    sha256 = json.loads((folder / "out/run.json").read_text())["sources"]["tokenizer"]["sha256"]
    monkeypatch.setattr(command, "tokenizer_hash", lambda tokenizer: sha256)
    files = [*(folder / "out").rglob("*"), *corpus_of(folder).iterdir()]
    files += [folder / "corpus.jsonl", folder / "model/model.safetensors"]
    generator = np.random.default_rng(4)
    tried = 0
    for path in filter(Path.is_file, files):
        if path.name in FREE:
            continue
        changed(path)
        whole = path.read_bytes()
        content = bytearray(whole)
        place = int(generator.integers(len(content)))
        content[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(content)
        assert faults(folder / "out"), (path, place)
        path.write_bytes(whole)
        tried += 1
    assert tried > 20 and faults(folder / "out") == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("out/run.json", "run.json"),
        ("out/metrics.jsonl", "metrics.jsonl"),
        ("out/checkpoints/step-000002/optimizer.bin", "checkpoints/step-000002"),
        ("out/final/model.safetensors", "final/: model.safetensors"),
        ("corpus.jsonl", "files it was made of: {folder}/corpus.jsonl"),
    ],
)
def test_a_file_that_is_gone_is_named(
    folder: Path,
    changed: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
    name: str,
    expected: str,
) -> None:
    changed(folder / name)
    (folder / name).unlink()
    (fault,) = faults(folder / "out").values()
    assert fault.what == expected.format(folder=folder)
    assert main(["verify", str(folder / "out")]) == 1
    shown = capsys.readouterr().out
    assert "1 of " in shown and "damaged or missing" in shown and fault.what in shown


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda lines: [lines[0], "{", *lines[1:]], "line 2, is not JSON"),
        (lambda lines: [*lines, lines[1]], "a row of update 1 after one of 4"),
        (
            lambda lines: [line for line in lines if "validation" not in line],
            "rows up to update -1",
        ),
    ],
)
def test_rows_that_are_damaged_or_out_of_order_are_found(
    folder: Path,
    changed: Callable[[Path], None],
    edit: Callable[[list[str]], list[str]],
    found: str,
) -> None:
    path = folder / "out/metrics.jsonl"
    changed(path)
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")
    assert found in faults(folder / "out")["metrics.jsonl"].found


def test_a_row_that_is_being_written_is_no_damage(
    folder: Path, changed: Callable[[Path], None]
) -> None:
    path = folder / "out/metrics.jsonl"
    changed(path)
    path.write_text(path.read_text() + '{"split": "tra')
    assert faults(folder / "out") == {}


def test_another_program_and_another_card_are_no_fault(
    folder: Path, changed: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "code_sha256", lambda: "0" * 64)
    changed(folder / "out/final/README.md")
    (folder / "out/final/README.md").write_text("mine")
    states = {check.what: check.state for check in verify(folder / "out")}
    assert states.pop("the program") == "changed" and set(states.values()) == {"ok"}


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        ("run.json", {"config": ["x"]}, "config is no object"),
        ("run.json", None, "it has no config"),
        ("run.json", {"sources": {"data": 5}}, "data is no object"),
        ("run.json", {"sources": {"data": {"folder": [], "files": {}}}}, "folder is '[]'"),
        ("run.json", {"sources": {"data": {"folder": "/x"}}}, "data has no files"),
        ("run.json", {"sources": {"data": {"folder": "/x", "files": {"a": 1}}}}, "a of files is"),
        ("run.json", {"sources": {"tokenizer": {}}}, "tokenizer has no sha256"),
        ("run.json", {"sources": {"initial_weights": "x"}}, "initial_weights is no object"),
        ("final/run.json", {"files": ["model.safetensors"]}, "files is no object"),
        ("final/run.json", {"files": {"model.safetensors": None}}, "model.safetensors of files"),
    ],
)
def test_a_record_of_another_form_is_damaged_though_its_digest_is_right(
    folder: Path,
    changed: Callable[[Path], None],
    name: str,
    changes: dict[str, Any] | None,
    found: str,
) -> None:
    path = folder / "out" / name
    changed(path)
    write_sealed(path, {} if changes is None else json.loads(path.read_text()) | changes)
    check = faults(folder / "out")[name]
    assert check.state == "damaged" and found in check.found


def test_a_manifest_of_another_form_is_damaged(
    folder: Path, changed: Callable[[Path], None]
) -> None:
    path = corpus_of(folder) / "manifest.json"
    changed(path)
    write_sealed(path, json.loads(path.read_text()) | {"source": {"files": [{"path": 5}]}})
    assert faults(folder / "out")[str(path)].found == "an entry of files has no sha256"


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_record_that_is_none_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert faults(tmp_path)["run.json"].state == "damaged"


def test_names_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").write_text("of somebody else")
    for name in ("../outside", str(tmp_path / "outside")):
        (check,) = command._file_checks("final/", tmp_path / "inside", {name: "0" * 64})
        assert (check.state, check.found) == ("damaged", "it leads out of the folder")


def test_a_run_of_an_older_version_or_on_its_way_is_unknown_not_damaged(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out/final")
    record = json.loads((tmp_path / "out/run.json").read_text())
    del record["digest"], record["sources"]
    (tmp_path / "out/run.json").write_text(json.dumps(record))
    assert faults(tmp_path / "out").keys() == {"run.json"}  # this version's has one
    del record["code_sha256"]
    (tmp_path / "out/run.json").write_text(json.dumps(record))
    states = {check.what: check.state for check in verify(tmp_path / "out")}
    assert states.pop("checkpoints/step-000002") == states.pop("metrics.jsonl") == "ok"
    del states["checkpoints/step-000004"]
    shutil.rmtree(tmp_path / "out/checkpoints")
    states |= {check.what: check.state for check in verify(tmp_path / "out")}
    assert states.pop("checkpoints/") == "unknown" and states.pop("metrics.jsonl") == "ok"
    assert states == dict.fromkeys(["run.json", "final/", "what it is made of"], "unknown")


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, problem in (([], "holds no run"), (["--json", str(tmp_path)], "as --json")):
        with pytest.raises(SystemExit) as stopped:
            main(["verify", str(tmp_path), *flags])
        assert stopped.value.code == 2
        assert problem in capsys.readouterr().err


def test_a_copy_that_the_cache_no_longer_has_is_no_fault(folder: Path) -> None:
    corpus = corpus_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pretrain.text.preparation.HF_HOME", str(folder / "hf"))
        aside = corpus.rename(folder / "aside")
        try:
            states = {check.what: check.state for check in verify(folder / "out")}
        finally:
            aside.rename(corpus)
    assert states["data"] == "unknown" and not set(states.values()) & set(FAULTS)


def test_files_of_another_machine_are_unknown_not_missing(tmp_path: Path) -> None:
    """So a corpus from the Hub names them, by their last part."""
    files = [{"path": "corpus.jsonl", "sha256": "0" * 64}]
    write_sealed(tmp_path / "manifest.json", {"source": {"files": files}})
    checks = list(command._data_checks({"folder": str(tmp_path), "files": {}}))
    assert [(check.what, check.state) for check in checks][-1] == (
        "files it was made of",
        "unknown",
    )
    assert not [check for check in checks if check.state in command.FAULTS]
