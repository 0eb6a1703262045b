"""docs/languages.md says what is: a row for each language that is tested, and each cell true."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import regex
from languages import SAMPLES, Sample
from runs import ROOT

from bert_pretrain.text.sentences import describe_splitter
from bert_pretrain.text.words import Segmenter, WordFinder, find_segmenter

PAGE = (ROOT / "docs/languages.md").read_text(encoding="utf-8")
UNICODE = Segmenter("Unicode", False, regex.compile(r"(?w)\b").split)


class Row(NamedTuple):
    """The cells of a row that are checked; the page may have more columns."""

    language: str
    script: str
    splitter: str
    word_with_extra: str
    word_without: str


def read_rows() -> list[Row]:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("|")
    ]
    header, _, *rows = cells
    columns = [
        header.index(name)
        for name in (
            "language",
            "script",
            "sentences split by",
            "word, with `[scripts]`",
            "word, without",
        )
    ]
    return [Row(*(row[column] for column in columns)) for row in rows]


ROWS = read_rows()
PAIRS = list(zip(ROWS, SAMPLES, strict=False))


def test_the_page_has_a_row_for_each_language_that_is_tested() -> None:
    assert [(row.language, row.script) for row in ROWS] == [(s.language, s.script) for s in SAMPLES]


@pytest.mark.parametrize(("row", "sample"), PAIRS, ids=[row.language for row in ROWS])
def test_the_page_says_what_splits_sentences(row: Row, sample: Sample) -> None:
    assert row.splitter == describe_splitter(sample.text, sample.language)


def words_of(sentence: str, segmenter: Segmenter) -> list[str]:
    """Return the words of a sentence that has single characters for tokens."""
    places = range(len(sentence))
    [starts] = WordFinder(segmenter).word_starts([sentence], [[(n, n + 1) for n in places]])
    begins = [n for n in places if starts[n]]
    ends = [*begins[1:], len(sentence)]
    return [sentence[begin:end].strip() for begin, end in zip(begins, ends, strict=True)]


def words_by(rule: str, sentence: str) -> list[str]:
    """Return the words of a sentence as a rule of the table says."""
    if rule == "character":
        return regex.findall(r"[^\s\p{M}]\p{M}*", sentence)  # with its marks
    if rule == "syllable":
        return re.findall("\u0f0b?[^\u0f0b\u0f0d ]+|\u0f0b?\u0f0d", sentence)
    assert rule == "between spaces"
    return regex.findall(r"\p{P}|[^\s\p{P}]+", sentence)


@pytest.mark.parametrize("with_extra", [True, False])
@pytest.mark.parametrize(("row", "sample"), PAIRS, ids=[row.language for row in ROWS])
def test_the_page_says_what_a_word_is(row: Row, sample: Sample, with_extra: bool) -> None:
    rule = row.word_with_extra if with_extra else row.word_without
    if with_extra:
        pytest.importorskip("icu4py")
    for sentence in sample.sentences:
        words = words_of(sentence, find_segmenter() if with_extra else UNICODE)
        if rule == "dictionary":
            characters = words_by("character", sentence)
            assert len(sentence.split()) < len(words) <= 0.9 * len(characters)
        else:
            assert words == words_by(rule, sentence)


def test_the_readme_leads_to_the_page() -> None:
    assert "docs/languages.md" in (ROOT / "README.md").read_text(encoding="utf-8")
