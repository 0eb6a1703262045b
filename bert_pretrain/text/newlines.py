"""What a newline inside a document means: a wrapped line, or the end of a sentence or a paragraph.

Documents as they stand in their files enter; what leaves are documents in which a newline ends a
paragraph, and `SplitText` where every line is a sentence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from typing import Literal, NamedTuple, TypeAlias

NewlineRule: TypeAlias = Literal["space", "sentence", "paragraph"]

SAMPLE_SIZE = 1_000_000  # characters of a text that are enough for `choose_rule`

_LINE_END = re.compile(r"\r\n?|\n")
# Han and kana, and the punctuation and full-width letters beside them, stand without spaces.
_CJK = (
    r"\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60"
    r"\U00020000-\U0003ffff"
)
_BETWEEN_CJK = re.compile(rf"(?<=[{_CJK}])\n(?=[{_CJK}])")
_FIRST_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")
_CJK_ENDS = r"[\u3002\uff01\uff1f]"
_ENDS = rf"(?:[.!?\u2026\u061f\u06d4\u0964\u0965\u0589\u0f0d\u0f0e\u1362\u17d4\u104b]|{_CJK_ENDS})"
_CLOSING = r"[\"'\u2019\u201d\u00bb)\]\u300d\u300f\uff09\u3011]*"
_FINISHED = re.compile(rf"{_ENDS}{_CLOSING}$")
# A mark after a short word is often that of an abbreviation, such as Mrs. or No.
_SEVERAL = re.compile(rf"(?<=\w\w\w\w){_ENDS}+{_CLOSING}\s+(?![a-z])|{_CJK_ENDS}{_CLOSING}(?=\w)")

# Of line ends, see `choose_rule`. The next word did not fit at all of those that a program made,
# at 62 % of them and more where no blank line stands between paragraphs, at 40 % and more of those
# that people made (licences, release notes, manuals); but at up to 11 % in prose that is not
# wrapped, 20 % in code, 29 % in verse. A sentence ends at up to 33 % of the line ends of wrapped
# text, and at 80 % and more of those of a sentence a line. Of such lines up to 24 % seem to hold
# several sentences, of a paragraph a line 36 % and more.
_FEW_LINE_ENDS = 20
_MANY_IN_SAMPLE = 10
_WIDTH_QUANTILE = 0.9  # long addresses, and lists, are wider than the column
_MIN_FULL, _MAX_NOT_FULL = 0.55, 0.35
_MIN_FINISHED, _MAX_SEVERAL = 0.7, 0.3
_MIN_TOLD = 0.5

_LineEnd: TypeAlias = tuple[str, str]  # a line and the one that follows it


class SplitText(str):
    """A document with a sentence on every line, which nothing splits further."""

    __slots__ = ()

    @property
    def sentences(self) -> list[str]:
        """The lines that hold something, stripped."""
        return [line for line in map(str.strip, _LINE_END.split(self)) if line]


class Choice(NamedTuple):
    """A rule and, for people, why it was taken; "" where no document has two lines."""

    rule: NewlineRule
    reason: str


def follow_rule(text: str, rule: NewlineRule) -> str:
    """Return a document in which a newline ends a paragraph, or `SplitText`.

    Args:
        text: with the newlines of its file.
        rule: `space`: lines are wrapped, so those of a paragraph are joined by a space, where two
            Chinese or Japanese characters meet by nothing, and a blank line ends the paragraph;
            `paragraph`: so does every newline; `sentence`: every line is a sentence.
    """
    if rule == "paragraph":
        return text
    if rule == "sentence":
        return SplitText(text)
    lines = map(str.strip, _LINE_END.split(text))
    paragraphs = ("\n".join(run) for has_text, run in groupby(lines, key=bool) if has_text)
    return "\n".join(_BETWEEN_CJK.sub("", lines).replace("\n", " ") for lines in paragraphs)


def choose_rule(samples: Iterable[str], usual: NewlineRule) -> Choice:
    """Tell what newlines mean in a text by nothing but parts of it.

    Lines are wrapped if most of them end where the next word did not fit into the width of the
    widest ones, and few where sentences do. Of others, a line is a sentence if most end as
    sentences do and few hold several. What remains is read as paragraphs: verse, code and lists,
    too.

    Args:
        samples: parts of the text, such as documents. One of many lines may have a width of its
            own.
        usual: the rule where the text does not tell: of few line ends, of a share of full lines
            between that of wrapped text and of others, or of lines without spaces.
    """
    by_sample = [ends for ends in map(_line_ends, samples) if ends]
    total = sum(map(len, by_sample))
    if total == 0:
        return Choice(usual, "")
    if total < _FEW_LINE_ENDS:
        return Choice(usual, f"{usual}, as usual in such files: {total} line ends tell nothing")
    shares = _Shares.of(by_sample)
    if shares.finished >= _MIN_FINISHED:
        if shares.several <= _MAX_SEVERAL:
            return Choice("sentence", f"sentence: a line is one ({shares})")
    elif shares.told < _MIN_TOLD or _MAX_NOT_FULL < shares.full < _MIN_FULL:
        unknown = f"{usual}, as usual in such files: the text does not tell ({shares})"
        return Choice(usual, f"{unknown}; if that is wrong, pass `newline`")
    elif shares.full >= _MIN_FULL:
        return Choice("space", f"space: lines are wrapped ({shares})")
    return Choice("paragraph", f"paragraph: a line is one ({shares})")


def _line_ends(text: str) -> list[_LineEnd]:
    """Return the lines that another one of the same paragraph follows, each with that one."""
    # What a line is indented by counts for where it ends.
    lines = (line.expandtabs().rstrip() for line in _LINE_END.split(text))
    return [(line, following) for line, following in pairwise(lines) if line and following]


class _Shares(NamedTuple):
    """What line ends are like, as shares from 0 to 1.

    Attributes:
        num_line_ends: all of them.
        finished: share where the line ends as a sentence does.
        several: share whose line holds several sentences.
        told: share where the next line has a first word, because it has more than one.
        full: share of these where that word did not fit into the line.
    """

    num_line_ends: int
    finished: float
    several: float
    told: float
    full: float

    def __str__(self) -> str:
        return (
            f"of {self.num_line_ends:,} line ends {self.finished:.0%} end a sentence and "
            f"{self.full:.0%} stand where the next word did not fit, "
            f"{self.several:.0%} of the lines hold several sentences"
        )

    @classmethod
    def of(cls, by_sample: Sequence[list[_LineEnd]]) -> _Shares:
        """Count; by_sample holds at least one line end."""
        ends = [end for sample in by_sample for end in sample]
        samples = [sample for sample in by_sample if len(sample) >= _MANY_IN_SAMPLE]
        samples.append(
            [end for sample in by_sample if len(sample) < _MANY_IN_SAMPLE for end in sample]
        )
        num_told = sum(_first_word(following) != following.lstrip() for _, following in ends)
        # Programs count letters or, where these are wide, narrow or nothing, columns.
        num_full = max(
            sum(_num_full(sample, size) for sample in samples) for size in (len, _columns)
        )
        return cls(
            num_line_ends=len(ends),
            finished=sum(bool(_FINISHED.search(line)) for line, _ in ends) / len(ends),
            several=sum(bool(_SEVERAL.search(line)) for line, _ in ends) / len(ends),
            told=num_told / len(ends),
            full=num_full / max(1, num_told),
        )


def _first_word(line: str) -> str:
    """Return what could have stood at the end of the line before; of Chinese, one character."""
    found = _FIRST_WORD.search(line)
    return found[0] if found else ""


def _num_full(ends: list[_LineEnd], size: Callable[[str], int]) -> int:
    """Return how many lines of one width ended where the next word did not fit."""
    if not ends:
        return 0
    sizes = [(size(line), size(following)) for line, following in ends]
    widths = sorted(map(max, sizes))
    width = widths[int(_WIDTH_QUANTILE * (len(widths) - 1))]
    num_full = 0
    for (line_size, _), (_, following) in zip(sizes, ends, strict=True):
        word = _first_word(following)
        if word == following.lstrip():
            continue
        # No line begins with a comma: of Chinese, two more characters may have moved along.
        needed = 3 * size(word) if _IS_CJK.match(word) else 1 + size(word)
        num_full += line_size + needed > width
    return num_full


def _columns(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    num_wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    num_marks = sum(unicodedata.category(letter) in ("Mn", "Me") for letter in text)
    return len(text) + num_wide - num_marks
