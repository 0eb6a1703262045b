"""Runs that continue a model with other tokens, rows or tokenizers; ids that have holes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from runs import metrics, run_here, small_flags, write_corpus, write_model_config
from tokenizer_kinds import KINDS, wordpiece
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
)

from bert_pretrain.__main__ import main
from bert_pretrain.commands.text_task import text_task
from bert_pretrain.config.pretraining import parse_config
from bert_pretrain.errors import InputError
from bert_pretrain.text.tokenizers import load_tokenizer

FEW = ["--max_steps", "2", "--global_batch_size", "8", "--per_device_train_batch_size", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model of a short run, `first/final`."""
    folder = tmp_path_factory.mktemp("continued")
    run_here(folder, [*small_flags(folder), *FEW, "--output_dir", "first"])
    return folder


def refusal(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", *flags])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def flags_of(folder: Path, out: str, *more: str) -> list[str]:
    flags = [*small_flags(folder), *FEW, "--output_dir", str(folder / out)]
    return [*flags, "--model_name_or_path", str(folder / "first/final"), *more]


def test_a_model_learns_added_tokens_in_longer_rows_and_goes_on_after_an_interruption(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(None)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    tokenizer.add_tokens(["returns."])
    tokenizer.save_pretrained(folder / "added")
    named = flags_of(folder, "grown", "--tokenizer_name", str(folder / "added"))
    assert "--resize_vocab" in refusal(named, capsys)
    named += ["--max_seq_length", "96", "--save_steps", "1"]
    assert "--grow_positions" in refusal([*named, "--resize_vocab"], capsys)
    assert not (folder / "grown").exists()
    named += ["--resize_vocab", "--grow_positions", "interpolate"]
    run_here(folder, named)
    final = folder / "grown/final"
    model, loading = AutoModelForPreTraining.from_pretrained(final, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    config = model.config
    assert (config.vocab_size, config.max_position_embeddings) == (8194, 96)
    exported = AutoTokenizer.from_pretrained(final)
    text = "the model returns. [E1] " * 30
    inputs = exported(text, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 96) and 8192 in inputs["input_ids"]
    with torch.no_grad():
        assert model(**inputs).prediction_logits.isfinite().all()
    expected = metrics(folder / "grown")
    shutil.rmtree(folder / "grown/checkpoints/step-000002")
    run_here(folder, [*named, "--resume_from_checkpoint", "latest"])
    assert metrics(folder / "grown") == expected


def test_tokens_of_the_user_are_protected_in_a_run(folder: Path) -> None:
    tokenizer = load_tokenizer(None)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    tokenizer.save_pretrained(folder / "one-added")
    flags = [*small_flags(folder), "--tokenizer_name", str(folder / "one-added")]
    task = text_task(parse_config([*flags, "--torch_compile", "off"]), Accelerator(cpu=True))
    rule = task.objective.training.collator.rule
    assert rule.protected_ids.tolist() == [8192] and rule.ordinary_ids[-1] == 8191


def test_another_tokenizer_is_refused_and_forced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = list(load_tokenizer(None).get_vocab().items())
    shifted = {piece: i if i < 5 else 5 + (i - 4) % 8187 for piece, i in pieces}
    BertTokenizer(vocab=shifted).save_pretrained(folder / "shifted")
    flags = flags_of(folder, "forced", "--tokenizer_name", str(folder / "shifted"))
    message = refusal(flags, capsys)
    assert "99.9 % of the 8,192" in message and "--force_tokenizer" in message
    run_here(folder, [*flags, "--force_tokenizer"])
    assert AutoTokenizer.from_pretrained(folder / "forced/final").get_vocab() == shifted


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--resize_vocab", "means nothing without --model_name_or_path"),
        ("--force_tokenizer", "means nothing without --model_name_or_path"),
        ("--grow_positions repeat", "means nothing without --model_name_or_path"),
        ("--objective contrastive --resize_vocab", "means nothing to --objective contrastive"),
    ],
)
def test_a_flag_without_a_model_to_change_is_refused(
    flag: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(flag.split(), capsys)


def vocabulary_with_a_line_twice(folder: Path) -> Path:
    """Write the files of an old BERT whose vocab.txt has a line twice; returns the folder."""
    folder.mkdir()
    pieces = sorted(wordpiece().get_vocab().items(), key=lambda entry: entry[1])
    lines = [piece for piece, _ in pieces]
    lines.insert(7, lines[-1])
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ids_with_holes_train_and_are_exported(tmp_path: Path) -> None:
    name = vocabulary_with_a_line_twice(tmp_path / "holes")
    tokenizer = load_tokenizer(str(name))
    largest = max(tokenizer.get_vocab().values())
    assert largest == len(tokenizer) and 7 not in tokenizer.get_vocab().values()
    out = tmp_path / "out"
    flags = [*small_flags(tmp_path), *FEW, "--tokenizer_name", str(name), "--output_dir", str(out)]
    run_here(tmp_path, flags)
    model = AutoModelForPreTraining.from_pretrained(out / "final")
    assert model.config.vocab_size == largest + 1
    # A bias that does not begin as the logarithm of a frequency stands out as 0.
    assert model.cls.predictions.bias.max() < -0.5
    exported = AutoTokenizer.from_pretrained(out / "final")
    text = "the model returns data in the east"
    assert exported(text)["input_ids"] == tokenizer(text)["input_ids"]
    (row,) = [row for row in metrics(out) if row["split"] == "validation"][-1:]
    assert np.isfinite(row["loss"])


def test_an_added_token_that_takes_the_id_of_another_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(vocabulary_with_a_line_twice(tmp_path / "holes")))
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    tokenizer.save_pretrained(tmp_path / "added")
    with pytest.raises(InputError, match=r"gives .*'\[E1\]'.* one id"):
        load_tokenizer(str(tmp_path / "added"))


@pytest.mark.parametrize("kind", ["BERT", "RoBERTa", "WordPiece without post-processor"])
def test_a_model_of_one_token_type_trains_pairs_and_is_used_as_it_was_trained(
    kind: str, tmp_path: Path
) -> None:
    KINDS[kind].build().save_pretrained(tmp_path / "tokenizer")
    write_corpus(tmp_path / "corpus.jsonl")
    out = tmp_path / "out"
    flags = [*small_flags(tmp_path), *FEW, "--tokenizer_name", str(tmp_path / "tokenizer")]
    config = write_model_config(tmp_path / "one", type_vocab_size=1)
    flags[flags.index("--config_name") + 1] = str(config)
    printed = run_here(tmp_path, [*flags, "--output_dir", str(out)])
    assert "NOTE: the segments of a pair have no token types" in printed
    model = AutoModelForPreTraining.from_pretrained(out / "final").eval()
    inputs = AutoTokenizer.from_pretrained(out / "final")("the tree", "a file", return_tensors="pt")
    assert "token_type_ids" not in inputs
    with torch.no_grad():
        assert model(**inputs).seq_relationship_logits.shape == (1, 2)


def test_a_model_with_fewer_rows_than_its_tokenizer_is_not_evaluated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = BertConfig.from_pretrained(write_model_config(folder / "less", vocab_size=100))
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "less")
    load_tokenizer(None).save_pretrained(folder / "less")
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--model", str(folder / "less"), "--suite", "fill_mask"])
    assert stopped.value.code == 2
    assert "8,192 rows but that of the model has 100" in capsys.readouterr().err
