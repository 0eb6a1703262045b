"""`bert-pretrain finetune --adapt_minutes`: masked words of unlabelled texts before the labels."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from downstream_models import (
    make_image_model,
    make_text_model,
    read_rows,
    sentences,
    write_rows,
)
from transformers import AutoModel, AutoModelForSequenceClassification

from bert_pretrain.__main__ import main
from bert_pretrain.commands import finetuning as finetune_command

SHORT = ["--max_steps", "2", "--num_evaluations", "1", "--mixed_precision", "no"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_text_model(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", sentences(200))
    return tmp_path


def finetune(*flags: str, model: str = "model") -> int:
    command = ["finetune", "--model", model, "--output_dir", "out", *SHORT, *flags]
    if "--dataset_name" not in flags:
        command += ["--train_file", "train.jsonl"]
    try:
        return main(command)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.slow
def test_the_encoder_learns_from_the_training_texts_before_the_labels(folder: Path) -> None:
    assert finetune("--adapt_minutes", "0.05", "--freeze_encoder") == 0
    written = [row["text"] for row in read_rows(folder / "out/unlabelled.jsonl")]
    rows = read_rows(folder / "train.jsonl")
    # The rows that choose the checkpoint are not learnt from, with or without their labels.
    assert len(written) == 180 and set(written) <= {row["text"] for row in rows}
    adaptation = json.loads(Path("out/results.json").read_text())["config"]["adaptation"]
    assert adaptation["mlm_loss_after"] < adaptation["mlm_loss_before"]
    # The encoder of the classifier, which was frozen, is the adapted one.
    classifier = AutoModelForSequenceClassification.from_pretrained("out/final")
    found = classifier.base_model.state_dict()
    adapted = AutoModel.from_pretrained("out/adapted/final").state_dict()
    first = AutoModel.from_pretrained("model").state_dict()
    for name, value in adapted.items():
        if "pooler" not in name:
            assert torch.equal(value, found[name]), name
    assert not all(torch.equal(value, first[name]) for name, value in adapted.items())
    card = Path("out/final/README.md").read_text()
    assert "learnt masked words for 0.05 minutes from texts without labels" in card


@pytest.mark.slow
def test_a_command_that_goes_on_keeps_its_adapted_encoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [row["text"] for row in sentences(60, seed=5)]
    Path("plain.txt").write_text("\n\n".join(texts))
    flags = ["--adapt_minutes", "0.02", "--unlabelled_files", "plain.txt", "--seeds", "1", "2"]

    def end(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(finetune_command, "_train_one", end)
        assert finetune(*flags) == 128 + signal.SIGINT
    metrics = Path("out/adapted/metrics.jsonl").read_bytes()
    assert finetune(*flags, "--resume") == 0
    assert Path("out/adapted/metrics.jsonl").read_bytes() == metrics
    results = json.loads(Path("out/results.json").read_text())
    assert list(results["seeds"]) == ["1", "2"]
    assert results["config"]["adaptation"]["texts"] == ["plain.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--unlabelled_files", "train.jsonl"], "--unlabelled_files means nothing without"),
        (["--adapt_minutes", "-1"], "--adapt_minutes"),
        (["--adapt_minutes", "1", "--from_scratch"], "--from_scratch leaves the encoder unread"),
    ],
)
def test_flags_that_mean_nothing_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert finetune(*flags) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no file 'texts.txt'"), ("", "remove it from --unlabelled_files")],
)
def test_texts_that_are_not_there_are_refused_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is not None:
        Path("texts.txt").write_text(content)
    flags = ["--adapt_minutes", "1", "--unlabelled_files", "texts.txt"]
    assert finetune(*flags) == 2
    error = capsys.readouterr().err
    assert words in error and "--unlabelled_files" in error
    curve = f"evaluate --suite label_efficiency --model model --train_file train.jsonl {SHORT[0]} 2"
    curve += f" --output_dir out --arms adapted {' '.join(flags)}"
    with pytest.raises(SystemExit) as stopped:
        main(curve.split())
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("files", [["--unlabelled_files", "texts.jsonl"], []])
def test_texts_that_cannot_be_learnt_from_end_the_command_with_the_runs_own_reason(
    folder: Path, capfd: pytest.CaptureFixture[str], files: list[str]
) -> None:
    Path("texts.jsonl").write_text('{"text": "one document"}\n')
    write_rows(folder / "train.jsonl", [{"text": "?", "label": str(n % 2)} for n in range(40)])
    assert finetune("--adapt_minutes", "1", *files) == 2
    err = capfd.readouterr().err
    assert "calls them data_files" in err and "change --unlabelled_files" in err
    assert "Traceback" not in err
    # The same folder will do once the texts are others.
    assert [path.name for path in Path("out").iterdir()] == [".lock"]


def test_images_have_no_masked_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_image_model(folder / "images")
    assert finetune("--dataset_name", "digits", "--adapt_minutes", "1", model="images") == 2
    assert "--adapt_minutes means nothing for an image encoder" in capsys.readouterr().err
