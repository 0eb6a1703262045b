# ruff: noqa: RUF001
"""Words are those of the text, whatever the tokenizer makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from languages import SAMPLES, Sample
from numpy.typing import NDArray
from stores import store_of
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bert_pretrain.commands.prepare import main as prepare_command
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.pseudo_likelihood import encode_sentences
from bert_pretrain.text.documents import DocumentSource
from bert_pretrain.text.masking import MaskingRule, MaskingUnit, mask_tokens
from bert_pretrain.text.preparation import prepare_corpus
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.tokenizers import load_tokenizer
from bert_pretrain.text.words import WordFinder, check_unit, describe_words, find_segmenter

icu = pytest.importorskip("icu4py.breakers", reason="the extra `scripts` is not installed")

BY_LANGUAGE = {sample.language: sample for sample in SAMPLES}
UNSPACED = ("th", "lo", "km", "my", "zh", "ja")
SHIPPED = load_tokenizer(None).backend_tokenizer
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train(kind: str, texts: Sequence[str], vocab_size: int = 1200) -> Tokenizer:
    """Return a tokenizer of one of the four usual kinds."""
    options: dict[str, Any] = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, **options)
    elif kind == "unsplit_bpe":  # SentencePiece's, which merges across spaces
        backend = Tokenizer(models.BPE(unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, **options)
    elif kind == "byte_bpe":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, **options)
    else:
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=vocab_size, unk_token="[UNK]", **options)
    backend.train_from_iterator(texts, trainer)
    return backend


KINDS = ("wordpiece", "unsplit_bpe", "byte_bpe", "unigram")


@pytest.fixture(scope="module")
def backends() -> dict[str, Tokenizer]:
    texts = [sentence for sample in SAMPLES for sentence in (*sample.sentences, sample.text)]
    return {kind: train(kind, texts) for kind in KINDS}


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icu4py", None)


def encode(backend: Tokenizer, sentences: Sequence[str]) -> list[Encoding]:
    encodings: list[Encoding] = backend.encode_batch(sentences, add_special_tokens=False)
    return encodings


def starts_of(sentences: Sequence[str], encodings: Sequence[Encoding]) -> list[list[int]]:
    found = WordFinder().word_starts(sentences, [encoding.offsets for encoding in encodings])
    assert all(starts.dtype == np.uint8 for starts in found)
    return [starts.tolist() for starts in found]


def words_of(sentence: str, *, with_extra: bool = True) -> list[tuple[int, int]]:
    """Return [begin, end) of each word, as ICU or Unicode's default rule cut the whole sentence."""
    pieces = icu.WordBreaker(sentence, "en") if with_extra else regex.split(r"(?w)\b", sentence)
    words, begin = [], 0
    for piece in pieces:
        if piece.strip(" \u0f0b"):  # the tsheg between syllables
            words.append((begin, begin + len(piece)))
        begin += len(piece)
    return words


def naive_starts(encoding: Encoding, words: Sequence[tuple[int, int]]) -> list[int]:
    """A token begins a word if it is the first to hold a character of it."""
    reached, starts = -1, []
    for begin, end in encoding.offsets:
        held = [n for n, (first, last) in enumerate(words) if first < end and begin < last]
        # A token of a space alone belongs to the word after it.
        latest = max(held, default=sum(last <= begin for _, last in words))
        starts.append(int(latest > reached))
        reached = max(reached, latest)
    return starts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.language)
def test_words_are_those_of_icu_for_any_tokenizer(
    backends: dict[str, Tokenizer], kind: str, sample: Sample
) -> None:
    encodings = encode(backends[kind], sample.sentences)
    expected = [
        naive_starts(encoding, words_of(sentence))
        for encoding, sentence in zip(encodings, sample.sentences, strict=True)
    ]
    assert starts_of(sample.sentences, encodings) == expected


@pytest.mark.usefixtures("without_extra")
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.language)
def test_without_the_extra_words_are_those_of_unicode(
    backends: dict[str, Tokenizer], sample: Sample
) -> None:
    encodings = encode(backends["unigram"], sample.sentences)
    expected = [
        naive_starts(encoding, words_of(sentence, with_extra=False))
        for encoding, sentence in zip(encodings, sample.sentences, strict=True)
    ]
    assert starts_of(sample.sentences, encodings) == expected


SPACED = "".join({c for s in SAMPLES if s.language not in (*UNSPACED, "bo") for c in s.text})


@settings(max_examples=200)
@given(st.text(SPACED + "aé'’-.,_$+€…«»\u00ad\u200d ", min_size=1, max_size=60))
def test_text_with_spaces_has_the_words_that_bert_gives_it(sentence: str) -> None:
    [encoding] = encode(SHIPPED, [sentence])
    expected = [n != before for before, n in pairwise([None, *encoding.word_ids])]
    assert starts_of([sentence], [encoding]) == [expected]


@settings(max_examples=100)
@given(st.lists(st.text("ab .ก ดวงอาทิตย์太阳従🙂ー3\u200b\n", min_size=1), min_size=1))
def test_a_sentence_has_the_same_words_in_any_company(sentences: list[str]) -> None:
    encodings = encode(SHIPPED, sentences)
    alone = [starts_of([s], [e])[0] for s, e in zip(sentences, encodings, strict=True)]
    assert starts_of(sentences, encodings) == alone


CUTS = [
    # Numbers and foreign words in the midst of scripts without spaces, characters beyond 16 bits.
    ("ราคา100บาท", "ราคา 100 บาท"),
    ("Tシャツを3月に買った。", "T シャツ を 3 月 に 買 っ た 。"),
    ("🙂北京大学🙂的学生", "🙂 北京 大学 🙂 的 学生"),
    ("don't well-known U.S. l'eau", "don ' t well - known U . S . l ' eau"),
    ("ខ្ញុំ\u200bទៅ។", "ខ្ញុំ \u200bទៅ ។"),
    ("ཉི་མ་ཤར།", "ཉི ་མ ་ཤར །"),
    ("ሰላም፡ለዓለም።", "ሰላም ፡ለዓለም ።"),
]


@pytest.mark.parametrize(("sentence", "cut"), CUTS)
def test_words_of_mixed_text(sentence: str, cut: str) -> None:
    characters = [(n, n + 1) for n, c in enumerate(sentence) if c != " "]
    [starts] = WordFinder().word_starts([sentence], [characters])
    pieces = [
        (" " if begins else "") + sentence[n]
        for (n, _), begins in zip(characters, starts, strict=True)
    ]
    assert "".join(pieces).strip() == cut


@pytest.mark.parametrize(
    ("sentence", "offsets", "expected"),
    [
        # Spaces belong to the word after them, as tokens of their own and at either end of a token.
        ("a bc", [(0, 1), (1, 2), (2, 3), (3, 4)], [1, 1, 0, 0]),
        ("a bc", [(0, 2), (2, 4)], [1, 1]),
        # A token that ends a word and begins the next belongs to the next.
        ("of the sun", [(0, 6), (6, 8), (8, 10)], [1, 1, 0]),
        ("sunrise here", [(0, 3), (3, 10), (10, 12)], [1, 1, 0]),
        # Several tokens of one character; a token without characters before and after one.
        ("太", [(0, 1), (0, 1), (0, 1)], [1, 0, 0]),
        ("sun", [(0, 0), (0, 3), (3, 3)], [1, 0, 1]),
        # What a normaliser removes at the beginning of a word.
        ("a \u00adbc", [(0, 1), (3, 4), (4, 5)], [1, 1, 0]),
        ("", [], []),
    ],
)
def test_tokens_find_their_words_by_their_characters(
    sentence: str, offsets: list[tuple[int, int]], expected: list[int]
) -> None:
    texts = [sentence, "x", sentence]
    found = WordFinder().word_starts(texts, [offsets, [(0, 1)], offsets])
    assert [starts.tolist() for starts in found] == [expected, [1], expected]


def mask_rows(
    encodings: Sequence[Encoding],
    starts: Sequence[Sequence[int]],
    unit: MaskingUnit,
    *,
    num_rows: int = 400,
) -> NDArray[np.bool_]:
    """Return what is hidden in rows of the same sentences, bool (num_rows, T)."""
    ids = np.array([[i for encoding in encodings for i in encoding.ids]] * num_rows)
    begins = np.array([[s for sentence in starts for s in sentence]] * num_rows, dtype=bool)
    rule = MaskingRule(
        mlm_probability=0.15, unit=unit, mask_token_id=4, ordinary_ids=np.arange(5, 50)
    )
    keys = np.arange(num_rows, dtype=np.uint64)
    everywhere = np.ones(ids.shape, dtype=bool)
    _, labels, _ = mask_tokens(
        ids, everywhere, begins, rule, row_keys=keys, max_predictions=ids.shape[1]
    )
    return np.asarray(labels != -100)


@pytest.mark.parametrize("unit", ["whole_word", "span"])
@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "unigram"])
@pytest.mark.parametrize("language", ["en", "hi", "bo", *UNSPACED])
def test_what_is_hidden_together_are_whole_words_of_the_text(
    backends: dict[str, Tokenizer], language: str, kind: str, unit: MaskingUnit
) -> None:
    """But for a row whose words are all too long, which hides the beginning of one."""
    sentences = BY_LANGUAGE[language].sentences * 3
    encodings = encode(backends[kind], sentences)
    hidden = mask_rows(encodings, starts_of(sentences, encodings), unit, num_rows=50)
    place = 0
    for sentence, encoding in zip(sentences, encodings, strict=True):
        mine = hidden[:, place : place + len(encoding)]
        place += len(encoding)
        words = words_of(sentence)
        for word in words:
            holders = [
                [other for other in words if other[0] < end and begin < other[1]]
                for begin, end in encoding.offsets
            ]
            tokens = [n for n, held in enumerate(holders) if held == [word]]
            is_shared = any(word in held and len(held) > 1 for held in holders)
            if tokens and not is_shared:
                assert (mine[:, tokens].all(axis=1) == mine[:, tokens].any(axis=1)).all()


def num_runs(hidden: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of runs of hidden tokens in each row."""
    begins = hidden.copy()
    begins[:, 1:] &= ~hidden[:, :-1]
    return np.asarray(begins.sum(axis=1))


@pytest.mark.parametrize("language", ["en", "ru", "hi", "zh", "th"])
def test_a_tokenizer_that_splits_nothing_hides_words_and_not_the_beginning_of_a_sentence(
    backends: dict[str, Tokenizer], language: str
) -> None:
    sentences = BY_LANGUAGE[language].sentences * 2
    encodings = encode(backends["unsplit_bpe"], sentences)
    assert all(set(encoding.word_ids) == {0} for encoding in encodings), "it sees a single word"
    hidden = mask_rows(encodings, starts_of(sentences, encodings), "whole_word")
    assert (num_runs(hidden) == 1).mean() < 0.1
    # Every place is hidden about as often as any other.
    assert (hidden.mean(axis=0) > 0.03).all()


@pytest.mark.parametrize(
    "sentences",
    [
        [
            "さかなは、ちいさなかわのなかで、ゆっくりとおよいでいる。",
            "はるになると、とりたちがきたのくにへかえってゆく。",
            "みずはつめたく、そらはとてもあおい。",
        ],
        [
            "ดวงอาทิตย์ขึ้นทางทิศตะวันออก, น้ำแข็งตัวที่ศูนย์องศา!",
            "หนึ่งสัปดาห์มีเจ็ดวัน, ปลาอาศัยอยู่ในน้ำ!",
        ],
        BY_LANGUAGE["km"].sentences,
        BY_LANGUAGE["my"].sentences,
    ],
    ids=["kana", "th", "km", "my"],
)
def test_targets_are_hardly_more_often_punctuation_than_tokens_are(sentences: list[str]) -> None:
    """They are where a run of letters counts as one word, which is too long to be hidden."""
    encodings = encode(train("wordpiece", sentences, vocab_size=1), [*sentences] * 2)
    assert not any("[UNK]" in encoding.tokens for encoding in encodings)
    hidden = mask_rows(encodings, starts_of([*sentences] * 2, encodings), "whole_word")
    is_punctuation = np.array(
        [bool(regex.fullmatch(r"\p{P}", token)) for e in encodings for token in e.tokens]
    )
    share = hidden[:, is_punctuation].sum() / hidden.sum()
    assert 0 < share < 2.2 * is_punctuation.mean()


def test_a_chinese_whole_word_has_several_characters(backends: dict[str, Tokenizer]) -> None:
    sentences = BY_LANGUAGE["zh"].sentences
    encodings = encode(backends["wordpiece"], sentences)
    found = describe(sentences, encodings)
    assert found["tokens_per_word"] > 1.3 and found["segmenter"].startswith("ICU ")
    assert found["share_without_spaces"] == pytest.approx(1 - 4 / sum(map(len, sentences))), (
        "all but the full stops"
    )


def describe(sentences: Sequence[str], encodings: Sequence[Encoding]) -> dict[str, Any]:
    finder = WordFinder()
    starts = finder.word_starts(sentences, [encoding.offsets for encoding in encodings])
    store = store_of(
        [[encoding.ids for encoding in encodings]], word_starts=[[s.tolist() for s in starts]]
    )
    return describe_words(store, finder)


def test_a_corpus_is_described_by_its_words(backends: dict[str, Tokenizer]) -> None:
    sentences = ["The sun, the sun.", "A " + "ACGT" * 200]
    encodings = encode(backends["byte_bpe"], sentences)
    described = describe(sentences, encodings)
    num_tokens = [len(encoding) for encoding in encodings]
    long_word = num_tokens[1] - naive_starts(encodings[1], words_of(sentences[1])).index(1, 1)
    assert described["number"] == 6 + 2 and described["per_sentence"] == 4
    assert described["tokens_per_word"] == sum(num_tokens) / 8
    assert described["share_in_long_words"] == long_word / sum(num_tokens)
    assert (described["segmenter"], described["share_without_spaces"]) == (None, 0)


GOOD = {
    "per_sentence": 9.0,
    "tokens_per_word": 1.4,
    "share_in_long_words": 0.01,
    "share_across_words": 0.02,
    "share_without_spaces": 0.0,
    "segmenter": None,
    "has_dictionary": False,
}


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_a_unit_that_a_corpus_cannot_give_is_refused_or_warned_of(unit: MaskingUnit) -> None:
    assert check_unit(GOOD, unit) == []
    with pytest.raises(InputError, match="`masking` token"):
        check_unit(GOOD | {"share_in_long_words": 0.6}, unit)
    unspaced = {"share_without_spaces": 0.3, "segmenter": "Unicode"}
    [warning] = check_unit(GOOD | unspaced, unit)
    assert "icu4py" in warning and "30%" in warning
    assert check_unit(GOOD | unspaced | {"has_dictionary": True}, unit) == []
    [warning] = check_unit(GOOD | {"share_across_words": 0.5}, unit)
    assert "several words" in warning
    assert len(check_unit(GOOD | {"tokens_per_word": 1.0}, unit)) == (unit == "whole_word")


def test_single_tokens_need_no_words() -> None:
    bad = {"share_in_long_words": 1.0, "share_across_words": 1.0, "share_without_spaces": 1.0}
    assert check_unit(GOOD | bad, "token") == []


@pytest.fixture
def prepare(tmp_path: Path) -> Iterator[Callable[[list[str]], PreparedCorpus]]:
    """Prepare texts in one folder, which keeps a corpus with the same key."""

    def call(texts: list[str]) -> PreparedCorpus:
        source = DocumentSource("texts", "".join(texts), lambda: iter(texts))
        return prepare_corpus(
            source,
            load_tokenizer(None),
            output_dir=tmp_path / "corpus",
            language=None,
            validation_share=0.0,
            seed=1,
            show_progress=False,
        )

    yield call


@pytest.mark.parametrize(("language", "is_another"), [("zh", True), ("en", False), ("bo", False)])
def test_a_corpus_depends_on_the_segmenter_only_if_that_has_cut_it(
    prepare: Callable[[list[str]], PreparedCorpus],
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    is_another: bool,
) -> None:
    texts = [BY_LANGUAGE[language].text]
    with_extra = prepare(texts)
    assert with_extra.manifest["words"]["segmenter"] == (
        find_segmenter().name if is_another else None
    )
    monkeypatch.setitem(sys.modules, "icu4py", None)
    without = prepare(texts)
    assert (without.manifest["key"] != with_extra.manifest["key"]) == is_another
    number, other = (corpus.manifest["words"]["number"] for corpus in (without, with_extra))
    assert (number > other) == is_another
    monkeypatch.undo()
    assert prepare(texts).manifest["key"] == with_extra.manifest["key"]


@pytest.mark.usefixtures("without_extra")
@pytest.mark.parametrize("unit", ["token", "whole_word", "span"])
def test_a_user_without_the_extra_is_told_of_it_once_if_words_are_needed(
    backends: dict[str, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: str
) -> None:
    with_roles(backends["byte_bpe"]).save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "thai.txt"
    path.write_text("\n\n".join([BY_LANGUAGE["th"].text, *(s.text for s in SAMPLES)] * 2))
    flags = f"--data_files {path} --output_dir {tmp_path / 'out'} --masking {unit} "
    flags += f"--tokenizer_name {tmp_path / 'tokenizer'}"
    assert prepare_command([*flags.split(), "--pair_mode", "google"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("icu4py") == (unit != "token")
    assert "--masking" in shown or unit == "token"
    assert "cut into characters" in shown


def with_roles(backend: Tokenizer) -> PreTrainedTokenizerFast:
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    roles = dict(zip(names, SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def test_whole_words_of_text_without_words_are_refused(
    backends: dict[str, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_roles(backends["byte_bpe"]).save_pretrained(tmp_path / "tokenizer")
    strands = np.random.default_rng(0).choice([*"ACGT"], size=(40, 6, 300))
    documents = [". ".join("".join(strand) for strand in document) for document in strands]
    (tmp_path / "dna.txt").write_text("\n\n".join(documents))
    flags = f"--data_files {tmp_path}/dna.txt --tokenizer_name {tmp_path}/tokenizer".split()
    flags += ["--output_dir", str(tmp_path / "out"), "--pair_mode", "google", "--masking"]
    for unit in ("whole_word", "span"):
        with pytest.raises(SystemExit) as stopped:
            prepare_command([*flags, unit])
        assert stopped.value.code == 2
        assert "error: --masking is" in capsys.readouterr().err
    assert prepare_command([*flags, "token"]) == 0


def test_pseudo_likelihoods_hide_words_of_the_text(backends: dict[str, Tokenizer]) -> None:
    """A tokenizer that splits nothing would otherwise hide the whole rest of a sentence."""
    tokenizer = with_roles(backends["unsplit_bpe"])
    sentences = [sentence for s in SAMPLES for sentence in s.sentences]
    for encoded, sentence in zip(encode_sentences(tokenizer, sentences), sentences, strict=True):
        [encoding] = encode(backends["unsplit_bpe"], [sentence])
        expected = np.cumsum(naive_starts(encoding, words_of(sentence)))
        assert encoded.words.tolist() == expected.tolist()
