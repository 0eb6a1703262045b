# ruff: noqa: RUF001
"""What newlines mean: as told, or as the text shows."""

from __future__ import annotations

import inspect
import random
import re
import textwrap

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from languages import SAMPLES, Sample

from bert_pretrain.text.newlines import NewlineRule, SplitText, choose_rule, follow_rule

WORDS = re.findall(
    r"\w+",
    "the old bridge over our river was built by people who had never seen so much water before it "
    "came down from those hills one night and took away half of what they owned",
)


def sentence(generator: random.Random) -> str:
    words = generator.choices(WORDS, k=generator.randint(4, 22))
    return " ".join(words).capitalize() + generator.choice(".?!.")


def paragraph(generator: random.Random, low: int = 2, high: int = 7) -> str:
    return " ".join(sentence(generator) for _ in range(generator.randint(low, high)))


def paragraphs(count: int = 40, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [paragraph(generator) for _ in range(count)]


words = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=9)
texts = st.lists(st.lists(words, min_size=1, max_size=40).map(" ".join), min_size=1, max_size=5)


@settings(max_examples=200)
@given(texts, st.integers(12, 80), st.sampled_from(["\n", "\r\n", "\r"]))
def test_wrapped_text_is_joined_to_what_it_was(
    original: list[str], width: int, newline: str
) -> None:
    assume(
        not any(
            "\u3000" <= letter <= "\uff60" or letter >= "\U00020000" for letter in str(original)
        )
    )
    wrapped = [
        newline.join(textwrap.wrap(part, width, break_on_hyphens=False, break_long_words=False))
        for part in original
    ]
    text = (newline * 2).join(wrapped)
    assert follow_rule(text, "space") == "\n".join(original)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.language)
@pytest.mark.parametrize("width", [9, 40])
def test_text_in_any_script_is_joined_to_what_it_was(sample: Sample, width: int) -> None:
    text = sample.text
    if sample.script in ("Han", "Japanese"):  # are broken between any two characters
        wrapped = [text[start : start + width] for start in range(0, len(text), width)]
    else:
        wrapped = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
    assert len(wrapped) > 1 or width == 40
    assert follow_rule("\n".join(wrapped), "space") == text


def test_words_of_other_scripts_beside_chinese_keep_their_space() -> None:
    text = "我们用\nBERT\n模型，\n很好。\n\n第二段"
    assert follow_rule(text, "space") == "我们用 BERT 模型，很好。\n第二段"


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_no_rule_loses_anything_but_blanks(text: str) -> None:
    for rule in ("space", "paragraph", "sentence"):
        assert "".join(follow_rule(text, rule).split()) == "".join(text.split())  # type: ignore[arg-type]
    assert follow_rule(text, "paragraph") == text
    joined = follow_rule(text, "space")
    assert follow_rule(joined.replace("\n", "\n\n"), "space") == joined


def test_lines_that_are_sentences_stay_as_they_are() -> None:
    split = follow_rule("Dr. Smith came. He saw.\r\n\n  Nothing!  \n", "sentence")
    assert isinstance(split, SplitText)
    assert split.sentences == ["Dr. Smith came. He saw.", "Nothing!"]
    assert not isinstance(follow_rule("a\nb", "paragraph"), SplitText)


@pytest.mark.parametrize("width", [40, 72, 80, 120])
@pytest.mark.parametrize("indent", ["", "    "])
@pytest.mark.parametrize("between", ["\n\n", "\n"])
def test_wrapped_lines_are_told_by_where_they_end(width: int, between: str, indent: str) -> None:
    wrapped = (textwrap.fill(part, width, initial_indent=indent) for part in paragraphs())
    assert choose_rule([between.join(wrapped)], "paragraph").rule == "space"
    # A whole text may be indented, and some lines be wider than the others.
    wider = textwrap.indent(between.join([*paragraphs(3), *map(textwrap.fill, paragraphs())]), "  ")
    assert choose_rule([wider], "paragraph").rule == "space"


def test_each_file_may_be_wrapped_at_its_own_width() -> None:
    texts = [
        "\n\n".join(textwrap.fill(part, width) for part in paragraphs(12, seed=width))
        for width in (38, 60, 72, 100)
    ]
    assert choose_rule(texts, "paragraph").rule == "space"


def test_short_documents_are_looked_at_together() -> None:
    texts = [textwrap.fill(part, 40) for part in paragraphs(60)]
    assert choose_rule(texts, "paragraph").rule == "space"


def test_a_paragraph_or_a_sentence_on_each_line_is_told_from_wrapped_lines() -> None:
    generator = random.Random(1)
    lines = [sentence(generator) for _ in range(200)]
    assert choose_rule(["\n".join(lines)], "space").rule == "sentence"
    assert (
        choose_rule(
            ["\n".join(lines[first : first + 4]) for first in range(0, 200, 4)], "space"
        ).rule
        == "sentence"
    )
    assert choose_rule(["\n".join(paragraphs(60))], "space").rule == "paragraph"
    # Most paragraphs of a dialogue are one sentence.
    mixed = [paragraph(generator, 1, 3) for _ in range(200)]
    assert choose_rule(["\n".join(mixed)], "space").rule == "paragraph"


POEM = """\
The river runs below the hill
and nobody is at the mill
the wheel has stopped the stones are bare
the miller's boots are on the stair

I walked along the frozen lane
between the hedges in the rain
and counted every gate I passed
the first one green and grey the last
"""


def test_verse_code_and_messages_are_no_wrapped_text() -> None:
    generator = random.Random(2)
    messages = ["ok", "yes please", "where are you?", "at the station, the train is late", "lol"]
    for text in (
        POEM * 5,
        inspect.getsource(textwrap),
        inspect.getsource(random),
        "\n".join(generator.choices(messages, k=300)),
    ):
        assert choose_rule([text], "space").rule == "paragraph"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.language)
def test_sentences_a_line_are_told_in_any_script_that_ends_them(sample: Sample) -> None:
    lines = random.Random(3).choices(sample.sentences, k=200)
    choice = choose_rule(["\n".join(lines)], "space")
    if sample.language in ("th", "lo"):  # neither an end nor, within a line, a space
        assert choice.rule == "space" and "does not tell" in choice.reason
    else:
        assert choice.rule == "sentence"


@pytest.mark.parametrize("language", ["en", "ru", "ar", "hi", "zh", "ja", "ko", "am"])
def test_wrapped_lines_are_told_in_any_script(language: str) -> None:
    sample = next(sample for sample in SAMPLES if sample.language == language)
    space = "" if language in ("zh", "ja") else " "
    text = space.join(random.Random(4).choices(sample.sentences, k=200))
    lines = textwrap.wrap(text, 40)
    assert choose_rule(["\n".join(lines)], "paragraph").rule == "space"


@pytest.mark.parametrize("usual", ["space", "paragraph"])
def test_where_the_text_does_not_tell_the_usual_rule_holds_and_the_flag_is_named(
    usual: NewlineRule,
) -> None:
    assert choose_rule(["one line", "another"], usual) == (usual, "")
    few = choose_rule(["one\ntwo\nthree"], usual)
    assert few.rule == usual and "2 line ends" in few.reason
    # Lines of another width, which do not reach the end of the wider ones.
    half_wrapped = "\n".join(
        textwrap.fill(part, 24 if number % 5 < 1 else 72)
        for number, part in enumerate(paragraphs())
    )
    unsure = choose_rule([half_wrapped], usual)
    assert unsure.rule == usual and "`newline`" in unsure.reason
    words = choose_rule(["\n".join(WORDS * 3)], usual)  # lines without spaces
    assert words.rule == usual and "`newline`" in words.reason


def test_the_choice_depends_on_the_text_alone() -> None:
    texts = [textwrap.fill(part, 50) for part in paragraphs(30)]
    assert choose_rule(texts, "space") == choose_rule(iter(texts), "space")
