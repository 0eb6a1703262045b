"""Bad input ends with one message, status 2, no traceback, and nothing on disk."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import small_flags, write_corpus, write_model_config
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bert_pretrain.__main__ import main

SENTENCE = "The model returns a list of values. "


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


FILES = {
    "empty.txt": (b"", "empty"),
    "binary.txt": (b"MZ\x00\x01\x02" * 50, "binary"),
    "latin1.txt": ("caf\xe9 cr\xe8me".encode("latin-1"), "UTF-8"),
    "column.jsonl": (b'{"body": "Some text. More text."}\n', "--text_column"),
    "broken.jsonl": (b'{"text": "Some text."}\n{"text": \n', "line 2"),
    "column.csv": (b"body,label\nSome text.,1\n", "--text_column"),
    "shifted.csv": (b"text,label\nSome text, not quoted.,1\n", "more cells in row 1"),
    "text.docx": (b"PK", "extension"),
    "cut.txt.gz": (gzip.compress(SENTENCE.encode() * 999)[:40], "gzip"),
    "blank.txt": (b"\n\n  \n", "no text"),
    "one.txt": ((SENTENCE * 40).encode(), "document"),
    "short.jsonl": (
        b"".join(b'{"text": "Sentence number %d."}\n' % i for i in range(40)),
        "--objective mlm",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_an_unusable_file_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content, expected = FILES[name]
    (folder / name).write_bytes(content)
    config = str(write_model_config(folder / "c"))
    flags = ["--data_files", name, "--config_name", config, "--max_seq_length", "48"]
    message = refusal(flags, capsys)
    assert expected in message
    assert not (folder / "runs").exists()


def test_a_run_begun_by_another_process_while_this_one_got_ready_stays(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def held_after_another(run_dir: Path) -> Iterator[None]:
        write(run_dir / "run.json", "of another process")
        yield

    monkeypatch.setattr("bert_pretrain.commands.pretrain.held", held_after_another)
    message = refusal([*small_flags(folder), "--max_steps", "1", "--output_dir", "out"], capsys)
    assert "out holds another run" in message
    assert (folder / "out/run.json").read_text() == "of another process" and len(
        list((folder / "out").iterdir())
    ) == 1


def test_a_missing_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere*.txt" in refusal(["--data_files", "nowhere*.txt"], capsys)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--mlm_probability 15", "--mlm_probability 0.15"),
        ("--mlm_probability 0", "(0, 1)"),
        ("--dropout 1", "--dropout"),
        ("--random_replace_prob -0.1", "[0, 1]"),
        ("--mask_replace_prob 0.9 --random_replace_prob 0.2", "is 1.1 but must be at most 1"),
        ("--short_seq_prob 1.5", "[0, 1)"),
        ("--seed 4294967296", "[0, 4294967295]"),
        ("--language german", "--language"),
        ("--max_seq_length 7", "at least 8"),
        ("--max_seq_length 65", "64 positions"),
        ("--learning_rate -1", "--learning_rate"),
        ("--learning_rate inf", "finite"),
        ("--max_hours nan", "finite"),
        ("--preprocessing_num_workers -1", "--preprocessing_num_workers"),
        ("--output_dir corpus.jsonl/out", "--output_dir"),
        ("--max_steps 5 --num_train_epochs 1", "--num_train_epochs"),
        ("--recipe none_such", "minutes"),
        ("--config_name gigantic", "tiny"),
        ("--config_name ./gigantic", "as --config_name, or one of tiny"),
        ("--config_name roberta-gigantic", "modernbert-"),
        ("--config_name roberta-tiny", "--objective mlm"),
        ("--objective mlm --pair_mode sop", "--pair_mode"),
        ("--objective mlm --same_document_partners", "--same_document_partners"),
        ("--pair_mode google --same_document_partners", "means nothing to --pair_mode google"),
        ("--validation_files nowhere.txt", "--validation_files takes paths"),
        ("--validation_split test", "--validation_split"),
        ("--optimizer adamw --adamw_learning_rate 1e-3", "--learning_rate"),
        ("--global_batch_size 2 --gradient_accumulation_steps 4", "--global_batch_size"),
        ("--no_such_flag 1", "no_such_flag"),
        ("--optimizer sgd", "muon"),
        ("--schedule cosine --decay_shape sqrt", "--decay_shape sqrt means nothing to --schedule"),
        ("--optimizer lamb --adamw_learning_rate 1e-3", "means nothing to --optimizer lamb"),
        ("--export_ema", "--export_ema means nothing without --ema_decay"),
        ("--ema_decay 1", "[0, 1)"),
        ("--stop_at_loss 3 --eval_steps 0", "--stop_at_loss means nothing with --eval_steps 0"),
        ("--model_name_or_path nowhere", "--model_name_or_path"),
        ("--max_seq_length 24,48 --max_steps 9", "128:0.9,512:0.1"),
        ("--max_seq_length 24:0.5,48:0.4 --max_steps 9", "add up to 0.9"),
        ("--max_seq_length 24:0.9,65:0.1 --max_steps 9", "64 positions"),
        ("--max_seq_length 7:0.9,48:0.1 --max_steps 9", "is 7 but must be at least 8"),
        ("--max_seq_length 24:0.99,48:0.01 --max_steps 9", "of 9 updates that is none"),
        ("--max_seq_length 24:0.5,48:0.5 --max_hours 1", "pass --max_steps"),
        ("--mlm_probability 0.3:0.2:0.1", "FIRST:LAST"),
        ("--mlm_probability 0.3:0 --max_steps 9", "(0, 1)"),
        ("--mlm_probability 0.3:0.1 --max_hours 1", "--max_hours alone"),
        ("--batch_size_ramp 8", "such as 8:0.3"),
        ("--batch_size_ramp 8:1.5", "START:SHARE"),
        ("--batch_size_ramp 0:0.5", "START:SHARE"),
        ("--batch_size_ramp 33:0.5", "begins with 33 rows but an update has 32"),
        ("--batch_size_ramp 8:0.5 --num_train_epochs 1", "pass --max_steps in place"),
        ("--batch_size_ramp 8:0.5 --max_hours 1", "--max_hours alone"),
    ],
)
def test_a_bad_value_names_its_flag(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: str, expected: str
) -> None:
    assert expected in refusal([*small_flags(folder), *flags.split()], capsys)
    assert not (folder / "runs").exists()


def test_one_document_cannot_be_trained_and_evaluated_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "one.txt", "A sentence. Another one. A third one.")
    for flags in (["--objective", "mlm"], []):
        message = refusal([*flags, "--data_files", "one.txt"], capsys)
        assert "one.txt" in message and "1 document" in message and "--document_boundary" in message


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


def test_damaged_weights_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(write_model_config(folder / "model", vocab_size=8192))
    (model / "model.safetensors").write_bytes(b"no weights")
    assert "weights of" in refusal(
        [*small_flags(folder), "--model_name_or_path", str(model)], capsys
    )


def test_a_folder_in_use_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = folder / "used"
    run_dir.mkdir()
    write(run_dir / "run.json", "{}")
    assert "another run" in refusal([*small_flags(folder), "--output_dir", "used"], capsys)
    write(run_dir / "notes.txt", "mine")
    (run_dir / "run.json").unlink()
    assert "not an empty folder" in refusal([*small_flags(folder), "--output_dir", "used"], capsys)
    assert [path.name for path in run_dir.iterdir()] == ["notes.txt"]


def test_resuming_nothing_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in refusal(
        [*small_flags(folder), "--resume_from_checkpoint", "latest"], capsys
    )
    assert "not a checkpoint" in refusal(
        [*small_flags(folder), "--resume_from_checkpoint", str(folder)], capsys
    )


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


def test_prepare_refuses_a_folder_that_is_no_corpus(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine").mkdir()
    write(folder / "mine/notes.txt", "mine")
    corpus = write_corpus(folder / "corpus.jsonl")
    message = refusal(
        ["--data_files", str(corpus), "--output_dir", "mine"], capsys, command="prepare"
    )
    assert "--output_dir" in message
    assert (folder / "mine/notes.txt").read_text() == "mine"


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


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretend"]) == 2
    assert "prepare" in capsys.readouterr().err


def test_every_document_once_in_the_manifest(folder: Path) -> None:
    corpus = write_corpus(folder / "corpus.jsonl", num_documents=20)
    corpus.write_text(corpus.read_text() * 2)
    assert main(["prepare", "--data_files", str(corpus), "--output_dir", "out"]) == 0
    manifest = json.loads((folder / "out/manifest.json").read_text())
    assert manifest["counts"]["documents"] == 20
    assert manifest["skipped"]["duplicates"] == 20
