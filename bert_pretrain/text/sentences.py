# ruff: noqa: RUF001 (full-width and Arabic characters are meant)
"""Documents to sentences, and the codes that name a language.

sentencex knows the marks and abbreviations of many languages. Each paragraph is split by the rules
of the stated language, or, if it is in a script that this language is not written in, of a language
of that script. What sentencex lacks is here: scripts whose sentences it does not find, and ends
that it sees where there is none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import regex

from bert_pretrain.errors import InputError

# Whose rules split a paragraph in a script (ISO 15924) that the stated language is not written in.
_LANGUAGE_OF_SCRIPT = {
    "Arab": "ar",
    "Armn": "hy",
    "Beng": "bn",
    "Cyrl": "ru",
    "Deva": "hi",
    "Ethi": "am",
    "Geor": "ka",
    "Grek": "el",
    "Gujr": "gu",
    "Guru": "pa",
    "Hang": "ko",
    "Hani": "zh",
    "Hebr": "he",
    "Hira": "ja",
    "Kana": "ja",
    "Khmr": "km",
    "Knda": "kn",
    "Laoo": "lo",
    "Latn": "en",
    "Mlym": "ml",
    "Mymr": "my",
    "Orya": "or",
    "Sinh": "si",
    "Taml": "ta",
    "Telu": "te",
    "Thai": "th",
    "Tibt": "bo",
}
# Codes of scripts that are mixtures, each with what it mixes.
_MIXED_SCRIPTS = {
    "Hans": {"Hani"},
    "Hant": {"Hani"},
    "Jpan": {"Hani", "Hira", "Kana"},
    "Kore": {"Hang", "Hani"},
}
_IN_TWO_SCRIPTS = {code: {"Cyrl", "Latn"} for code in ("az", "bs", "kk", "sr", "uz")}
_BEYOND_LATIN = regex.compile("[\u0370-\u1cff\u2c00-\u2dff\u2e80-\ud7ff\uf900-\ufaff]")
_LETTERS = regex.compile("|".join(rf"(?P<{s}>\p{{{s}}})" for s in _LANGUAGE_OF_SCRIPT))
_LOOKED_AT, _SAMPLED = 400, 100  # characters of a paragraph that tell its script

_SHORTEST_PHRASE = 12  # characters; shorter ones are names, numbers and items of a list


@dataclass(frozen=True)
class _ScriptRule:
    """What else ends a sentence in a script.

    Attributes:
        ends: matches what ends a sentence, up to where the next one begins.
        shortest: characters that a sentence must have for that.
        description: of `ends`, for people.
    """

    ends: regex.Pattern[str]
    shortest: int
    description: str


_SPACE_BETWEEN_LETTERS = _ScriptRule(
    # Not before signs that are written after a space.
    regex.compile(r"(?<=[\p{Thai}\p{Lao}])(?<!\p{Nd})\s+(?=[\p{Thai}\p{Lao}])(?![\p{Nd}ๆໆฯ])"),
    _SHORTEST_PHRASE,
    f"spaces between letters, in phrases of {_SHORTEST_PHRASE} characters or more",
)
_SCRIPT_RULES = {
    # Khmer writes "and so on" between two such marks.
    "Khmr": _ScriptRule(
        regex.compile(r"(?:(?<!។ល)។(?!ល។)|[៕៚])[\s\p{Pf}\p{Pe}\"']*"), 0, "the marks ។ ៕ ៚"
    ),
    "Laoo": _SPACE_BETWEEN_LETTERS,
    "Thai": _SPACE_BETWEEN_LETTERS,
    "Tibt": _ScriptRule(
        regex.compile(r"[།༎༏༐༑][།༎༏༐༑\s]*"),
        _SHORTEST_PHRASE,
        f"shad, in phrases of {_SHORTEST_PHRASE} characters or more",
    ),
}

# sentencex leaves a quotation whole, but knows only some brackets.
_UNKNOWN_BRACKETS = "『』【】〔〕〈〉"
_KNOWN_BRACKETS = str.maketrans(_UNKNOWN_BRACKETS, "《》《》《》《》")
# Where sentencex sees an end, but the sentence goes on.
_GOES_ON = regex.compile(
    r"""
      (?<=\d．) (?=\d)                                             # full-width decimals
    | (?<=[。．！？!?][」』）〉》”]\s*)                             # what is said of a quotation,
      (?=[とのをがはにもへ、，。] | って | など | なんて)               # in Japanese
    | (?<=[.!?]["”’」』]\s*) (?=(?:이?라고|이?라는|이?라며|하고)\b)     # and in Korean
    | (?<=(?<![\p{L}\p{M}]) (?!\p{N})\p{Arabic} \.\s*)             # Arabic titles and initials
    | (?<=(?<![\p{L}\p{M}]) (?:डॉ|डा|प्रो|श्री|ডা|ড|মো|פרופ) \.\s*)   # titles before a name
    """,
    regex.VERBOSE,
)


def standard_language(language: str) -> str:
    """Return the standard code (BCP 47) of a language whose code is spelt in any usual way.

    Raises:
        InputError: it is no code of a language, such as a name or the code of a country.
    """
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    advice = "pass the code, such as de for German, as `language`"
    try:
        known = Language.get(language)
        if known.is_valid() and len(known.language or "") in (2, 3):  # else for private use
            return known.to_tag()
        country = Language.get(f"und-{language}")
        # What is spoken there: "en" too if nobody knows.
        spoken = country.maximize().language
        if country.is_valid() and spoken != "en":
            advice = f"{language} is the code of a country; did you mean `language` {spoken}?"
    except LanguageTagError:
        pass
    raise InputError.out_of_range(
        "language", language, "the code of a language, such as de, pt-BR or zh-Hans", advice
    )


def sentence_rules(language: str | None) -> str:
    """Return the code of the rules for a language, of which dialects have none of their own.

    Args:
        language: a standard code; None = not stated, then the rules are those of English.
    """
    if language is None:
        return _LANGUAGE_OF_SCRIPT["Latn"]
    from langcodes import Language

    # Mandarin (cmn) and Standard Arabic (arb) have those of Chinese and Arabic.
    return Language.get(language).prefer_macrolanguage().language or language


def split_sentences(text: str, language: str) -> list[str]:
    """Split a document into stripped, non-empty sentences; a newline always ends one.

    Args:
        text: the document.
        language: code of the rules for paragraphs in a script that this language is written in;
            others are split by the rules of a language of their own script.
    """
    paragraphs = filter(None, map(str.strip, text.splitlines()))
    pieces = (piece.strip() for paragraph in paragraphs for piece in _split(paragraph, language))
    return [sentence for sentence in pieces if sentence]


def describe_splitter(paragraph: str, language: str) -> str:
    """Say what splits a paragraph in a text of a language."""
    script = _script(paragraph)
    rule = _SCRIPT_RULES.get(script)
    described = f"sentencex, rules of {_rules(script, language)}"
    return f"{described}; {rule.description}" if rule else described


def _split(paragraph: str, language: str) -> list[str]:
    from sentencex import segment

    pieces: list[str]
    if paragraph.isascii():  # most text, and nothing below applies to it
        pieces = segment(_rules("Latn", language), paragraph)
        return pieces
    script = _script(paragraph)
    shown = paragraph
    if any(bracket in paragraph for bracket in _UNKNOWN_BRACKETS):
        shown = paragraph.translate(_KNOWN_BRACKETS)
    pieces = _joined(paragraph, segment(_rules(script, language), shown))
    if rule := _SCRIPT_RULES.get(script):
        pieces = [phrase for piece in pieces for phrase in _phrases(piece, rule)]
    return pieces


def _script(paragraph: str) -> str:
    """Return the script of most letters in a sample of a paragraph; Latin if it has no letters."""
    beginning = paragraph[:_LOOKED_AT]
    sample = beginning[:: max(1, len(beginning) // _SAMPLED)]
    if not _BEYOND_LATIN.search(sample):
        return "Latn"
    scripts = Counter(map(_script_of_letter, sample))
    del scripts[""]
    return max(scripts, key=scripts.__getitem__, default="Latn")


@cache  # a text has some thousands of different characters
def _script_of_letter(character: str) -> str:
    """Return the script of a character; "" if it belongs to none of them."""
    found = _LETTERS.match(character)
    return found.lastgroup if found else ""


def _rules(script: str, language: str) -> str:
    """Return the code of the language whose rules split a paragraph of a script."""
    return language if script in _scripts_of(language) else _LANGUAGE_OF_SCRIPT[script]


@cache
def _scripts_of(language: str) -> set[str]:
    """Return the scripts that a language is usually written in."""
    from langcodes import Language

    script = Language.get(language).maximize().script or ""
    return _IN_TWO_SCRIPTS.get(language) or _MIXED_SCRIPTS.get(script, {script})


def _joined(paragraph: str, pieces: list[str]) -> list[str]:
    """Cut a paragraph into pieces of these lengths, but not where a sentence goes on."""
    ends = list(accumulate(map(len, pieces)))
    wanted = [end for end in ends[:-1] if not _GOES_ON.match(paragraph, end)]
    return [paragraph[begin:end] for begin, end in pairwise([0, *wanted, len(paragraph)])]


def _phrases(piece: str, rule: _ScriptRule) -> list[str]:
    """Cut at each end of a script that leaves phrases which are long enough."""
    phrases: list[str] = []
    begin = 0
    for found in rule.ends.finditer(piece):
        phrase = piece[begin : found.end()]
        if len(phrase.rstrip()) >= rule.shortest:
            phrases.append(phrase)
            begin = found.end()
    rest = piece[begin:]
    if phrases and len(rest) < rule.shortest:
        phrases[-1] += rest
    else:
        phrases.append(rest)
    return phrases
