"""Bad input ends with one message, status 2, no traceback, and nothing on disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from downstream_models import make_text_model
from runs import small_flags, write_corpus, write_model_config
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bert_pretrain.__main__ import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bert_pretrain.text.preparation.HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def refusal(flags: list[str], capsys: pytest.CaptureFixture[str], command: str = "pretrain") -> str:
    with pytest.raises(SystemExit) as stopped:
        main([command, *flags])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def make_no_mask_tokenizer(folder: Path) -> str:
    backend = Tokenizer(
        models.WordLevel(
            {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4}, unk_token="[UNK]"
        )
    )
    special = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "no_mask")
    return str(folder / "no_mask")


def test_a_run_begun_by_another_process_while_this_one_got_ready_stays(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def held_after_another(run_dir: Path) -> Iterator[None]:
        write(run_dir / "run.json", "of another process")
        yield

    monkeypatch.setattr("bert_pretrain.commands.pretraining.held", held_after_another)
    message = refusal([*small_flags(folder), "--max_steps", "1", "--output_dir", "out"], capsys)
    assert "out holds another run" in message
    assert (folder / "out/run.json").read_text() == "of another process" and len(
        list((folder / "out").iterdir())
    ) == 1


def test_a_tokenizer_without_mask_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(
        [*small_flags(folder), "--tokenizer_name", make_no_mask_tokenizer(folder)], capsys
    )
    assert "mask" in message and "--tokenizer_name" in message


def test_a_vocabulary_larger_than_the_models_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig.from_pretrained(write_model_config(folder / "small", vocab_size=100))
    BertForMaskedLM(config).save_pretrained(folder / "small")
    default = str(Path(__file__).parents[2] / "tokenizer/docs-uncased-8192")
    flags = ["--model_name_or_path", str(folder / "small"), "--tokenizer_name", default]
    message = refusal([*small_flags(folder), *flags], capsys)
    assert "8,192" in message and "100" in message


def test_checkpoints_of_another_model_or_damaged_ones_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*small_flags(folder), "--output_dir", "out", "--resume_from_checkpoint", "latest"]
    assert main(["pretrain", *flags[:-2], "--max_steps", "2"]) == 0
    capsys.readouterr()
    before = [(folder / "out" / name).read_text() for name in ("metrics.jsonl", "run.json")]
    other = write_model_config(folder / "other", hidden_size=64)
    message = refusal([*flags, "--config_name", str(other), "--max_steps", "3"], capsys)
    rows = [line.split() for line in message.splitlines()]
    assert ["the", "model's", "hidden_size", "32", "64", "no"] in rows
    assert ["--max_steps", "2", "3", "yes"] in rows
    message = refusal([*flags, "--seed", "7"], capsys)
    assert ["--seed", "42", "7", "no"] in [line.split() for line in message.splitlines()]
    weights = folder / "out/checkpoints/step-000002/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "damaged" in refusal(flags, capsys)
    assert [(folder / "out" / name).read_text() for name in ("metrics.jsonl", "run.json")] == before


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        ("prepare", "--data_files corpus.jsonl --seed -1", "[0, 4294967295]"),
        ("prepare", "--data_files blank.txt", "no text"),
        ("prepare", "--data_files blank.txt --dataset_name=", "--dataset_name is ''"),
        ("train-tokenizer", "--dataset_name=", "--dataset_name is ''"),
        ("train-tokenizer", "--data_files blank.txt", "no text"),
        ("evaluate", "--model model --suite nsp --dataset_name=", "--dataset_name is ''"),
        ("evaluate", "--model model --suite knn --floors chance", "--floors is 'chance'"),
        ("evaluate", "--model model --suite knn --floors none pca", "--floors is 'none pca'"),
        ("finetune", "--model model --dataset_name=", "--dataset_name is ''"),
        ("finetune", "--model model --train_file blank.txt --learning_rate -1", "at least 0"),
        ("finetune", "--model model --train_file blank.txt", "blank.txt"),
    ],
)
def test_a_refusal_leaves_no_file_behind(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, flags: str, expected: str
) -> None:
    write_corpus(folder / "corpus.jsonl")
    write(folder / "blank.txt", "\n\n  \n")
    make_text_model(folder / "model")
    before = sorted(folder.rglob("*"))
    where = ["--output_dir", "new/out"] if command != "evaluate" else []
    assert expected in refusal([*flags.split(), *where], capsys, command)
    assert sorted(folder.rglob("*")) == before


def test_prepare_and_pretrain_know_what_an_objective_needs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "tweets.txt", "\n\n".join(f"Sentence number {i}." for i in range(40)))
    config = str(write_model_config(folder / "c"))
    messages = [
        refusal(["--data_files", "tweets.txt", *flags], capsys, command).split("error: ")[1]
        for command, flags in (
            ("prepare", ["--output_dir", "out"]),
            ("pretrain", ["--config_name", config, "--max_seq_length", "48"]),
        )
    ]
    assert messages[0] == messages[1]
    assert "none of 38 training documents" in messages[0] and "--objective mlm" in messages[0]
    # What the message advises is what prepare takes.
    flags = ["prepare", "--objective", "mlm", "--data_files", "tweets.txt", "--output_dir", "out"]
    assert main(flags) == 0
    card = capsys.readouterr().out
    assert "tokens read      100.0 % an epoch" in card and "random next" not in card
    message = refusal([*flags[1:], "--pair_mode", "sop"], capsys, "prepare")
    assert "--pair_mode means nothing to --objective mlm" in message


@pytest.mark.parametrize("command", ["prepare", "pretrain"])
def test_a_refusal_of_held_out_documents_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write_corpus(folder / "corpus.jsonl")
    write(folder / "tweets.txt", "One sentence.\n\nAnother sentence.")
    flags = ["--data_files", "corpus.jsonl", "--validation_files", "tweets.txt"]
    config = str(write_model_config(folder / "c"))
    more = ["--config_name", config] if command == "pretrain" else []
    message = refusal(
        [*flags, *more, "--max_seq_length", "48", "--output_dir", "out"], capsys, command
    )
    assert "none of 2 held-out documents" in message and "--validation_files" in message
    more += ["--max_steps", "1"] if command == "pretrain" else []
    mlm = ["--objective", "mlm", "--max_seq_length", "48", "--output_dir", "out-2"]
    assert main([command, *flags, *more, *mlm]) == 0


def test_every_document_once_in_the_manifest(folder: Path) -> None:
    corpus = write_corpus(folder / "corpus.jsonl", num_documents=20)
    corpus.write_text(corpus.read_text() * 2)
    assert main(["prepare", "--data_files", str(corpus), "--output_dir", "out"]) == 0
    manifest = json.loads((folder / "out/manifest.json").read_text())
    assert manifest["counts"]["documents"] == 20
    assert manifest["skipped"]["duplicates"] == 20
