"""Training, loading and checking tokenizers."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bert_pretrain.commands import train_tokenizer
from bert_pretrain.errors import InputError
from bert_pretrain.text import tokenizers as ours
from bert_pretrain.text.tokenizer_training import train_wordpiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = ["The quick brown fox jumps over the lazy dog. Café, naïve, ÜBER and Zürich!"] * 5
SHIPPED = ours.load_tokenizer(None)
SHIPPED_VOCABULARY = set(SHIPPED.get_vocab())
SCRIPT = Path(__file__).resolve().parents[2] / "tokenizer" / "train_tokenizer.py"


def train(texts: Iterable[str] | None = None, **options: object) -> PreTrainedTokenizerFast:
    defaults = {
        "vocab_size": 300,
        "lowercase": True,
        "model_max_length": 99,
        "show_progress": False,
    }
    return train_wordpiece(TEXT if texts is None else texts, **{**defaults, **options})  # type: ignore[arg-type]


def test_a_saved_tokenizer_loads_without_this_package_and_lays_out_pairs(tmp_path: Path) -> None:
    train().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer).__name__.startswith("BertTokenizer")
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, 4]
    assert tokenizer.model_max_length == 99
    encoded = tokenizer("the fox", "dog")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        "[CLS]",
        "the",
        "fox",
        "[SEP]",
        "dog",
        "[SEP]",
    ]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "the fox dog"


def test_case_and_accents_are_folded_or_kept_as_asked_for(tmp_path: Path) -> None:
    for lowercase, strip_accents, expected in (
        (True, True, ["cafe", "zurich"]),
        (True, False, ["café", "zürich"]),
        (False, None, ["Café", "Zürich"]),
    ):
        train(lowercase=lowercase, strip_accents=strip_accents).save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path).tokenize("Café Zürich") == expected


def test_characters_of_a_keyboard_are_never_unknown() -> None:
    for lowercase in (True, False):
        tokenizer = train(["word word"], lowercase=lowercase)
        text = " ".join(string.digits + string.ascii_letters + string.punctuation)
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_rare_characters_do_not_fill_the_vocabulary() -> None:
    foreign = [chr(0x4E00 + i) for i in range(2000)]
    texts = [*TEXT, " ".join(foreign)]
    tokenizer = train(texts, vocab_size=400, min_frequency=1, max_unknown_share=1)
    assert sum(character in tokenizer.get_vocab() for character in foreign) < 256
    assert len(tokenizer) <= 400


def test_a_small_text_gives_a_smaller_vocabulary() -> None:
    assert len(train(vocab_size=30_000)) < 300


@pytest.mark.parametrize("flags", ["--vocab_size 99", "--min_frequency 0", "--model_max_length 7"])
def test_a_value_out_of_range_names_its_flag(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_tokenizer.main(flags.split())
    assert stopped.value.code == 2
    assert f"change {flags.split()[0]}" in capsys.readouterr().err


def test_errors_of_the_source_reach_the_caller() -> None:
    def texts() -> Iterator[str]:
        yield "one"
        raise InputError("bad file")

    with pytest.raises(InputError, match="bad file"):
        train(texts())


def longest_match(word: str, vocabulary: set[str]) -> list[str]:
    """Take the longest known piece, again and again (WordPiece, Wu et al. 2016), for one word."""
    pieces: list[str] = []
    while word:
        prefix = "##" if pieces else ""
        for length in range(len(word), 0, -1):
            if prefix + word[:length] in vocabulary:
                pieces.append(prefix + word[:length])
                word = word[length:]
                break
        else:
            return ["[UNK]"]
    return pieces


@settings(max_examples=200)
@given(st.text(string.ascii_lowercase, min_size=1, max_size=30))
def test_words_are_cut_by_longest_match(word: str) -> None:
    assert SHIPPED.tokenize(word) == longest_match(word, SHIPPED_VOCABULARY)


def test_the_shipped_tokenizer_is_an_uncased_bert_of_8192_pieces() -> None:
    tokenizer = ours.load_tokenizer(None)
    assert len(tokenizer) == 8192
    assert tokenizer.model_max_length == 512
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, 4]
    assert tokenizer.tokenize("The Function RETURNS") == ["the", "function", "returns"]
    assert tokenizer.unk_token_id not in tokenizer(string.printable)["input_ids"]


def test_the_hash_follows_the_vocabulary_and_not_the_last_call() -> None:
    tokenizer = ours.load_tokenizer(None)
    before = ours.tokenizer_hash(tokenizer)
    tokenizer("some text that is long", truncation=True, max_length=3, padding="max_length")
    assert ours.tokenizer_hash(tokenizer) == before
    assert len(ours.bare_backend(tokenizer).encode("some text that is long").ids) == 7
    assert ours.tokenizer_hash(ours.load_tokenizer(None)) == before
    assert ours.tokenizer_hash(train()) != before


def word_level(folder: Path, **special: str) -> Path:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "a"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def test_any_fast_tokenizer_with_the_four_special_tokens_is_taken(tmp_path: Path) -> None:
    special = {
        "mask_token": "[MASK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
    }
    assert ours.load_tokenizer(str(word_level(tmp_path / "full", **special))).mask_token_id == 4
    del special["mask_token"]
    with pytest.raises(InputError, match=r"no mask token.*`tokenizer_name`"):
        ours.load_tokenizer(str(word_level(tmp_path / "maskless", **special)))
    with pytest.raises(InputError, match=r"shares ids.*`tokenizer_name`"):
        ours.load_tokenizer(str(word_level(tmp_path / "shared", **special, mask_token="[CLS]")))


def test_what_is_no_tokenizer_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    for name in (str(tmp_path), str(tmp_path / "missing"), "no/such-tokenizer"):
        with pytest.raises(InputError, match="`tokenizer_name`"):
            ours.load_tokenizer(name)


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT))
    command = [
        sys.executable,
        str(SCRIPT),
        "--data_files",
        "text.txt",
        "--vocab_size",
        "200",
        "--output_dir",
        "own",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "own" / "tokenizer.json").read_text())
    assert f"{len(saved['model']['vocab'])} pieces" in done.stdout


def test_a_folder_with_other_things_is_never_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT))
    for extra in ([], ["--overwrite"]):
        arguments = [
            "--data_files",
            str(tmp_path / "text.txt"),
            "--output_dir",
            str(tmp_path),
            *extra,
        ]
        with pytest.raises(SystemExit) as stopped:
            train_tokenizer.main(arguments)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert "--output_dir" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
