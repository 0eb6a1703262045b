# ruff: noqa: RUF001
"""Documents are split into sentences as people of each language and script would."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languages import SAMPLES, Sample

from bert_pretrain.errors import InputError
from bert_pretrain.text.sentences import (
    describe_splitter,
    sentence_rules,
    split_sentences,
    standard_language,
)

SIGNS = "".join({c for sample in SAMPLES for c in sample.text}) + "abc.!?。．「」『』3３ๆ \n"


def test_sentences_end_at_newlines_and_not_after_abbreviations() -> None:
    assert split_sentences("Dr. Smith came. He saw!\nA heading\n\nIt cost 3.5 dollars.", "en") == [
        "Dr. Smith came.",
        "He saw!",
        "A heading",
        "It cost 3.5 dollars.",
    ]
    assert split_sentences("Das ist z.B. gut. Ja.", "de")[-1] == "Ja."


@settings(max_examples=200)
@given(st.text(max_size=300) | st.text(SIGNS, max_size=300), st.sampled_from(SAMPLES))
def test_splitting_loses_nothing_but_blanks(text: str, sample: Sample) -> None:
    sentences = split_sentences(text, sample.language)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


@pytest.mark.parametrize("is_stated", [True, False])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.language)
def test_each_language_is_split_whether_it_is_stated_or_not(
    sample: Sample, is_stated: bool
) -> None:
    rules = sentence_rules(sample.language if is_stated else None)
    assert tuple(split_sentences(sample.text, rules)) == sample.sentences


def test_each_paragraph_of_a_mixed_text_is_split_as_if_alone() -> None:
    text = "\n".join(sample.text for sample in SAMPLES)
    expected = [sentence for sample in SAMPLES for sentence in sample.sentences]
    for language in ("en", "ja", "th", "ru"):
        assert split_sentences(text, language) == expected


def test_a_language_rules_its_own_script_and_no_other() -> None:
    russian, english = "Он живёт в г. Москве. Да.", "Mr. Smith came. Yes."
    for language in ("en", "ru", "th"):
        assert split_sentences(f"{russian}\n{english}", language) == [
            "Он живёт в г. Москве.",
            "Да.",
            "Mr. Smith came.",
            "Yes.",
        ]
    ukrainian, serbian = "Вода замерзає.", "Voda se mrzne na nuli."
    assert describe_splitter(ukrainian, "uk") == "sentencex, rules of uk"
    assert describe_splitter(serbian, "sr") == "sentencex, rules of sr", "it has two scripts"
    assert describe_splitter("The river Волга is long.", "en") == "sentencex, rules of en"


WRONG_ENDS = [
    # What is said of a quotation belongs to its sentence.
    "彼は「雨だ。傘がいる。」と言った。|次の日。",
    "「本当？」って聞いた。|「はい。」|「いいえ。」",
    "『雪国。』の話だ。|彼は言う。|「父は『雨だ。傘がいる。』と言った。」|【注。】|彼は来た（昨日のことだ。）が、帰った。",
    "그는 “비가 온다. 우산이 필요하다.”라고 말했다.|끝.",
    "他说：“下雨了。带伞吧。”|然后走了。",
    # Full-width decimals.
    "価格は３．１４円です。|円周率は3.14です。",
    # Titles and initials.
    "قال د. أحمد إن الجو حار.|ثم خرج أ. سالم.",
    "كتب م. أ. سعيد الكتاب.|هل أنت بخير؟|نعم.",
    "डॉ. शर्मा आए।|प्रो. वर्मा गए।|क्या हुआ?|कुछ नहीं।",
    "পরে ডা. রহমান এলেন।|জল ঠান্ডা।",
    # The first mark of "and so on" ends nothing.
    "គាត់ទិញត្រី បន្លែ ។ល។ និងអង្ករ។|គាត់ទៅផ្ទះ៕",
    # Thai and Lao: short phrases go with the next, signs and numbers with their words.
    "นาย สมชาย ใจดีเป็นคนขาย|ของต่าง ๆ มีราคา 100 บาท|เขาอยู่ในกรุงเทพฯ มานานแล้ว",
    "ລາຄາ 100 ກີບຕໍ່ກິໂລ|ປາອາໄສຢູ່ໃນນ້ຳ",
    # Tibetan: two shads are one end, and short items are no sentences.
    "བཀྲ་ཤིས་བདེ་ལེགས།། |ཉི་མ། ཟླ་བ། སྐར་མ་དང་བཅས།",
]


@pytest.mark.parametrize("marked", WRONG_ENDS)
def test_a_sentence_does_not_end_where_it_goes_on(marked: str) -> None:
    """Ends are marked by a bar here."""
    has_spaces = not any(c in marked for c in "。｡")
    text = marked.replace("|", " " if has_spaces else "")
    assert split_sentences(text, "en") == [piece.strip() for piece in marked.split("|")]


@pytest.mark.parametrize(
    ("spelt", "standard", "rules"),
    [
        ("de", "de", "de"),
        ("DEU", "de", "de"),
        ("ger", "de", "de"),
        ("eng", "en", "en"),
        ("en_US", "en-US", "en"),
        ("zh_CN", "zh-CN", "zh"),
        ("zh-hans", "zh-Hans", "zh"),
        ("chi", "zh", "zh"),
        ("cmn", "cmn", "zh"),
        ("arb", "arb", "ar"),
        ("pt-br", "pt-BR", "pt"),
        ("iw", "he", "he"),
        ("sr_Latn", "sr-Latn", "sr"),
        ("yue", "yue", "yue"),
    ],
)
def test_a_language_may_be_spelt_in_any_usual_way(spelt: str, standard: str, rules: str) -> None:
    assert (standard_language(spelt), sentence_rules(standard)) == (standard, rules)


@pytest.mark.parametrize(
    ("spelt", "right"),
    [("jp", "ja"), ("cn", "zh"), ("gr", "el"), ("cz", "cs"), ("dk", "da"), ("UA", "uk")],
)
def test_the_code_of_a_country_is_refused_with_the_code_of_its_language(
    spelt: str, right: str
) -> None:
    with pytest.raises(InputError, match=f"did you mean `language` {right}"):
        standard_language(spelt)


@pytest.mark.parametrize(
    "spelt", ["english", "German", "", " ", "e", "xx", "x-own", "us", "1", "ж"]
)
def test_what_is_no_code_of_a_language_is_refused(spelt: str) -> None:
    with pytest.raises(InputError, match="`language`") as caught:
        standard_language(spelt)
    assert caught.value.parameter == "language" and caught.value.value == spelt
