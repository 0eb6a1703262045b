"""Training a tokenizer: any script, the same result every time, and nothing lost in silence."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from languages import SAMPLES, Sample
from recombined import recombine, zipf_text
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from bert_pretrain.commands import train_tokenizer
from bert_pretrain.errors import InputError
from bert_pretrain.publishing.tokenizer_files import save_tokenizer
from bert_pretrain.text import word_counts
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.scripts import describe_letters
from bert_pretrain.text.tokenizer_training import train_wordpiece
from bert_pretrain.text.unknown import UnknownCount, count_unknown
from bert_pretrain.text.word_counts import count_words

ROOT = Path(__file__).resolve().parents[2]
BY_LANGUAGE = {sample.language: sample for sample in SAMPLES}
ENGLISH = recombine(BY_LANGUAGE["en"], 200)
AS_WRITTEN = normalizers.BertNormalizer(strip_accents=False, lowercase=False)


def squeezed(text: str) -> str:
    return "".join(text.lower().split())


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.language)
def test_nothing_but_case_and_spaces_is_lost_in_any_script(sample: Sample) -> None:
    tokenizer = train_wordpiece(recombine(sample, 100), vocab_size=400, show_progress=False)
    ids = tokenizer(sample.text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert squeezed(decoded) == squeezed(sample.text)


def folded(text: str, corpus: list[str], **options: object) -> str:
    """Return what becomes of a text in a tokenizer trained on a corpus."""
    tokenizer = train_wordpiece(corpus, vocab_size=300, show_progress=False, **options)  # type: ignore[arg-type]
    return tokenizer.backend_tokenizer.normalizer.normalize_str(text)


def test_rare_accents_are_stripped_as_bert_does_and_frequent_ones_kept() -> None:
    rare = [*ENGLISH, *ENGLISH, "A café."]  # one mark among some 20,000 letters
    assert folded("É", rare) == "e"
    assert folded("É", rare, lowercase=False) == "É"
    assert folded("É", rare, strip_accents=False) == "é"
    assert folded("É", ["Un café."] * 9) == "é"


def test_unpointed_hebrew_keeps_the_points_that_other_text_may_have() -> None:
    text = BY_LANGUAGE["he"].text
    assert describe_letters({text: 1}).marked == 0
    pointed = "שָׁלוֹם"
    assert folded(pointed, [text]) == pointed


@pytest.mark.parametrize(
    ("language", "script", "marked"),
    [("en", "Latin", 0.0), ("th", "Thai", 0.375), ("zh", "Han", 0.0), ("ko", "Hangul", 0.0)],
)
def test_letters_are_told_apart(language: str, script: str, marked: float) -> None:
    letters = describe_letters({BY_LANGUAGE[language].text: 7})
    assert letters.scripts == {script: 1.0}
    assert letters.marked == pytest.approx(marked)


def test_shares_of_scripts_count_letters_and_not_words() -> None:
    letters = describe_letters({"abc": 2, "де": 1, "日本": 1, "カ": 1, "12!": 9})
    expected = {"Latin": 6, "Cyrillic": 2, "Han": 2, "Katakana": 1}
    assert letters.scripts == pytest.approx({name: n / 11 for name, n in expected.items()})


def unknown_share(tokenizer: Tokenizer, texts: list[str]) -> float:
    ids = [token_id for text in texts for token_id in tokenizer.encode(text).ids[1:-1]]
    return ids.count(tokenizer.token_to_id("[UNK]")) / len(ids)


@pytest.mark.parametrize("vocab_size", [8192, 30522])
def test_six_thousand_chinese_characters_are_known(vocab_size: int) -> None:
    lines: list[str] = []
    tokenizer = train_wordpiece(
        zipf_text(6000, 2500),
        vocab_size=vocab_size,
        show_progress=False,
        report=lines.append,
    )
    others = list(zipf_text(6000, 100, seed=1))
    share = unknown_share(tokenizer.backend_tokenizer, others)
    assert share < 0.005
    assert len(tokenizer) <= vocab_size
    assert lines[0].startswith("text: 100.0 % Han letters, 0.00 % with marks; so: ")


def test_the_alphabet_is_the_smallest_that_covers_the_share_asked_for() -> None:
    letters = "абвгдежзийклмноп"
    counts = {letter: 2**number for number, letter in enumerate(letters)}
    text = " ".join(letter for letter, count in counts.items() for _ in range(count))
    total = sum(counts.values())
    for coverage in (0.5, 0.9, 0.999, 1.0):
        needed, expected = coverage * total, set()
        for letter in reversed(letters):
            if needed > 0:
                expected.add(letter)
                needed -= counts[letter]
        tokenizer = train_wordpiece(
            [text],
            vocab_size=1000,
            alphabet_coverage=coverage,
            strip_accents=False,
            max_unknown_share=1,
            show_progress=False,
        )
        assert expected == set(letters) & set(tokenizer.get_vocab())


def test_a_letter_seen_only_at_the_start_of_words_is_known_within_them() -> None:
    tokenizer = train_wordpiece(["жил был"] * 9, vocab_size=300, show_progress=False)
    assert tokenizer.unk_token_id not in tokenizer("лижлыб 7жил7")["input_ids"]


TRAINING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from languages import SAMPLES
from recombined import recombine
from bert_pretrain.text.tokenizer_training import train_wordpiece
texts = [passage for sample in SAMPLES for passage in recombine(sample, 60)]
tokenizer = train_wordpiece(texts, vocab_size=2000, show_progress=False)
Path(sys.argv[3]).write_text(tokenizer.backend_tokenizer.to_str())
"""


def test_two_processes_train_the_same_tokenizer(tmp_path: Path) -> None:
    threads = {"0": "1", "1": "4"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(ROOT / "tests"), str(ROOT), str(tmp_path / name)],
            env=os.environ
            | {
                "PYTHONHASHSEED": name,
                "RAYON_NUM_THREADS": threads[name],
                "TOKENIZERS_PARALLELISM": "true",
            },
        )
        for name in threads
    ]
    assert [process.wait() for process in running] == [0, 0]
    first, second = ((tmp_path / name).read_text() for name in threads)
    assert first == second
    assert len(json.loads(first)["model"]["vocab"]) > 1500


def test_the_order_of_the_documents_does_not_matter() -> None:
    texts = [passage for sample in SAMPLES[:9] for passage in recombine(sample, 30)]
    shuffled = random.Random(1).sample(texts, len(texts))
    first, second = (
        train_wordpiece(order, vocab_size=900, show_progress=False).backend_tokenizer.to_str()
        for order in (texts, shuffled)
    )
    assert first == second


def test_names_of_special_tokens_in_the_text_are_words_like_others() -> None:
    literal, spaced = (
        train_wordpiece(
            [f"{left}MASK{right} and {left}SEP{right} here"] * 9,
            vocab_size=300,
            show_progress=False,
        )
        for left, right in (("[", "]"), ("[ ", " ]"))
    )
    assert literal.get_vocab() == spaced.get_vocab()
    assert {"mask", "sep"} < set(literal.get_vocab())
    assert [token_id for name, token_id in literal.get_vocab().items() if "[" in name[1:]] == []


# Control characters are taken out by the normaliser and part words here; no text needs them.
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")))


@given(TEXTS)
def test_words_are_counted_as_the_tokenizer_cuts_whole_passages(texts: list[str]) -> None:
    training, held_out = count_words(texts, AS_WRITTEN)
    cut = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    expected = Counter(
        word
        for text in texts
        for passage in text.splitlines()
        for word, _ in cut(AS_WRITTEN.normalize_str(passage))
    )
    assert training + held_out == expected


def test_little_memory_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [passage for sample in SAMPLES for passage in recombine(sample, 30)]
    expected = count_words(texts, AS_WRITTEN)
    monkeypatch.setattr(word_counts, "_MOST_CHUNKS", 3)
    monkeypatch.setattr(word_counts, "_CHARACTERS_AT_ONCE", 20)
    assert count_words(texts, AS_WRITTEN) == expected


def test_one_passage_in_fifty_is_held_out_whatever_the_order() -> None:
    passages = [f"w{number}" for number in range(10_000)]
    training, held_out = count_words(["\n".join(passages)], AS_WRITTEN)
    again = count_words([*reversed(passages), *passages], AS_WRITTEN)[1]
    assert set(held_out) == set(again) and not set(held_out) & set(training)
    # 200 expected; 4 sigma of the binomial: 4 * sqrt(10,000 * .02 * .98) = 56.
    assert abs(len(held_out) - 200) < 56


def test_a_word_with_one_unknown_character_is_lost_whole() -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "ab": 1, "##c": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    unknown = UnknownCount(0)
    text = "ab abx abc"
    unknown.add(text, backend.encode(text), times=3)
    assert (unknown.tokens, unknown.unknown_tokens) == (12, 3)
    assert (unknown.characters, unknown.lost_characters) == (30, 9)
    assert unknown.token_share == 1 / 4 and unknown.character_share == 9 / 30
    assert count_unknown(backend, {"abc": 2, "x": 5}, "[UNK]").token_share == 5 / 9


def test_a_tokenizer_without_unknown_token_loses_nothing() -> None:
    backend = Tokenizer(models.BPE({"a": 0}, []))
    unknown = UnknownCount(None)
    unknown.add("a", backend.encode("a"))
    assert unknown.token_share == unknown.character_share == 0


def test_what_is_unknown_is_measured_on_passages_held_out() -> None:
    # Each passage has a character of its own, so that all of those held out are unknown.
    passages = [f"{chr(0x4E00 + number)} {'word ' * 9}" for number in range(8000)]
    lines: list[str] = []
    train_wordpiece(
        passages,
        vocab_size=30_000,
        alphabet_coverage=1,
        max_unknown_share=1,
        show_progress=False,
        report=lines.append,
    )
    share, tokens = re.match(
        r"unknown: ([\d.]+) % of ([\d,]+) tokens are .*held out", lines[1]
    ).groups()
    assert share == "10.000"
    assert int(tokens.replace(",", "")) % 10 == 0
    with pytest.raises(InputError, match=r"10\.00 % of the tokens.*`max_unknown_share` 0\.1"):
        train_wordpiece(passages, vocab_size=30_000, show_progress=False)


def dna(num_words: int, length: int) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices("acgt", k=length)) for _ in range(num_words)]


def test_long_words_are_known_also_when_the_tokenizer_is_loaded_again(tmp_path: Path) -> None:
    texts = [*ENGLISH, *dna(20, 300)]
    tokenizer = train_wordpiece(texts, vocab_size=400, show_progress=False)
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for one in (tokenizer, loaded):
        encoded = one(dna(1, 300)[0], "the sun")
        assert one.unk_token_id not in encoded["input_ids"]
        assert encoded["token_type_ids"][-1] == 1
        assert one("a" * 301)["input_ids"][1] == one.unk_token_id
    assert loaded.mask_token_id == 4 and loaded.model_max_length == 512


def test_long_words_that_are_lost_are_an_error_by_their_characters() -> None:
    texts = [*ENGLISH, *dna(5, 300)]
    with pytest.raises(InputError, match=r"characters lost.*`max_input_chars_per_word`") as caught:
        train_wordpiece(texts, vocab_size=400, max_input_chars_per_word=100, show_progress=False)
    lost = sum(map(len, dna(5, 300))) / len("".join("".join(texts).split()))
    assert f"{100 * lost:.2f} % of the characters" in str(caught.value)


def test_a_tokenizer_of_ordinary_words_is_a_bert_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(
        recombine(BY_LANGUAGE["hi"], 100), vocab_size=400, show_progress=False
    )
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__name__.startswith("BertTokenizer")
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def run_command(folder: Path, texts: list[str], *flags: str) -> dict[str, object]:
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    source = ["--data_files", str(folder / "text.txt"), "--output_dir", str(folder / "own")]
    train_tokenizer.main([*source, "--vocab_size", "400", "--overwrite", *flags])
    return json.loads((folder / "own/tokenizer.json").read_text(encoding="utf-8"))


def test_the_command_says_in_one_line_what_it_saw_and_chose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(tmp_path, recombine(BY_LANGUAGE["hi"], 20))
    first, second, _ = capsys.readouterr().out.strip().split("\n")
    assert re.match(r"text: 100.0 % Devanagari letters, 4\d\.\d\d % with marks; so: ", first)
    assert "lowercase on, strip_accents off, split_cjk on, an alphabet of " in first
    assert second.startswith("unknown: 0.000 % of ")


def test_every_choice_is_a_flag(tmp_path: Path) -> None:
    texts = recombine(BY_LANGUAGE["ja"], 20)
    chosen = run_command(tmp_path, texts)
    assert chosen["normalizer"] == {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": False,
        "lowercase": True,
    }
    assert chosen["model"]["max_input_chars_per_word"] == 100
    flags = "--strip_accents on --no_lowercase --no_split_cjk --max_input_chars_per_word 70"
    chosen = run_command(tmp_path, texts, *flags.split(), "--alphabet_coverage", "0.99999")
    assert chosen["normalizer"] == {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": False,
        "strip_accents": True,
        "lowercase": False,
    }
    assert chosen["model"]["max_input_chars_per_word"] == 70


def test_too_much_unknown_text_is_refused_with_its_flag_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [" ".join(map(chr, range(0x4E00, 0x4E00 + 500)))]
    with pytest.raises(SystemExit) as stopped:
        run_command(tmp_path, texts)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "[UNK]" in error and "--vocab_size" in error and "Traceback" not in error
    accepted = re.search(r"--max_unknown_share ([\d.]+)", error)[1]
    assert not (tmp_path / "own").exists()
    run_command(tmp_path, texts, "--max_unknown_share", accepted)


def test_the_command_reads_whatever_prepare_reads() -> None:
    sources = {field.name for field in dataclasses.fields(TextSource)}
    division = {"validation_share", "validation_files", "validation_split"}
    of_preparation = division | {"language", "preprocessing_num_workers"}
    flags = {field.name for field in dataclasses.fields(train_tokenizer.TokenizerArguments)}
    assert sources - of_preparation <= flags
