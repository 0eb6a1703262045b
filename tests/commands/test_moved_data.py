"""The identity of a corpus is its content: a run goes on where the same bytes lie."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from runs import metrics, run_here, small_flags, write_corpus
from test_bad_input import refusal

from bert_pretrain.__main__ import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of this test, whose caches lie there too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("bert_pretrain.text.preparation.HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def pretraining(folder: Path, data: str, *more: str) -> list[str]:
    flags = small_flags(folder)
    flags[flags.index("--data_files") + 1] = data
    return [*flags, "--output_dir", "out", "--per_device_train_batch_size", "4", *more]


@pytest.mark.slow
def test_a_run_goes_on_from_the_same_bytes_elsewhere_and_from_no_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, moved = folder / "here", folder / "there/deep"
    data.mkdir()
    write_corpus(data / "a.jsonl", num_documents=30)
    write_corpus(data / "b.jsonl", num_documents=30, seed=1)
    run_here(folder, pretraining(folder, "here/*.jsonl", "--max_steps", "1"))
    shutil.copytree(data, moved)
    shutil.rmtree(data)
    os.utime(moved / "a.jsonl", ns=(1, 1))
    shutil.rmtree(folder / "hf")  # another machine has nothing prepared
    go_on = pretraining(
        folder, "there/deep", "--max_steps", "2", "--resume_from_checkpoint", "latest"
    )
    run_here(folder, go_on)
    assert metrics(folder / "out")[-1]["step"] == 2

    text = (moved / "b.jsonl").read_bytes()
    place = text.index(b"model")
    (moved / "b.jsonl").write_bytes(text[:place] + b"x" + text[place + 1 :])
    go_on[go_on.index("--max_steps") + 1] = "3"
    message = refusal(go_on, capsys)
    assert "no: other corpus, or read, divided or tokenised otherwise (--data_files" in message


def test_a_corpus_is_not_prepared_again_for_files_that_were_moved(folder: Path) -> None:
    write_corpus(folder / "a.jsonl", num_documents=20)
    assert main(["prepare", "--data_files", "a.jsonl", "--output_dir", "out"]) == 0
    before = (folder / "out/corpus.arrow").stat()
    (folder / "a.jsonl").rename(folder / "b.jsonl")
    assert main(["prepare", "--data_files", "b.jsonl", "--output_dir", "out"]) == 0
    after = (folder / "out/corpus.arrow").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_was_found_out_about_the_text_is_said_and_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Google's own script reads them: a sentence a line, a blank line between documents."""
    corpus = write_corpus(folder / "corpus.jsonl", num_documents=40)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    (folder / "data").mkdir()
    (folder / "data/a.txt").write_text("\n\n".join(text.replace(". ", ".\n") for text in texts))
    (folder / "data/b.pdf").write_text("x")
    assert main(["prepare", "--data_files", "data", "--output_dir", "out"]) == 0
    manifest = json.loads((folder / "out/manifest.json").read_text())
    num_sentences = sum(text.count(".") for text in texts)
    assert manifest["counts"]["sentences"] == num_sentences
    printed = capsys.readouterr().out
    assert len(manifest["notes"]) == 2
    for note in manifest["notes"]:
        assert f"note             {note}" in printed
    assert "newlines in .txt: sentence" in printed and "1 .pdf" in printed
