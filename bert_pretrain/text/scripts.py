"""What the letters of a text are: of which scripts, and how many carry a mark."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bert_pretrain.text.word_counts import count_characters

# Scripts in which a letter without its mark may stand for the letter with it. In the others a mark
# is a vowel, a tone or the voice of a consonant.
_WITH_ACCENTS = ("Latin", "Greek", "Cyrillic")
_SHORTEST_SHARE = 0.001  # of a script worth a word; also of letters with a mark that mean something
_NAMES = {"Cjk": "Han", "Ideographic": "Han"}


@dataclass(frozen=True)
class Letters:
    """The letters of a text.

    Attributes:
        scripts: share of the letters that each script has, the largest first.
        marked: letters with a mark that `strip_accents` would take off, and such marks on their
            own, in relation to all letters.
    """

    scripts: dict[str, float]
    marked: float

    @property
    def has_mere_accents(self) -> bool:
        """Whether marks are so rare, and on such letters, that the text hardly needs them.

        English has them on one letter in thousands, in names; German on 1.5 %, Vietnamese on 23 %.
        """
        with_accents = sum(self.scripts.get(script, 0.0) for script in _WITH_ACCENTS)
        return with_accents > 1 - _SHORTEST_SHARE and self.marked < _SHORTEST_SHARE

    def __str__(self) -> str:
        shown = [
            f"{100 * share:.1f} % {script}"
            for script, share in self.scripts.items()
            if share >= _SHORTEST_SHARE
        ]
        return f"{', '.join(shown) or 'no'} letters, {100 * self.marked:.2f} % with marks"


def describe_letters(words: Mapping[str, int]) -> Letters:
    """Return what the letters of counted words are."""
    scripts: Counter[str] = Counter()
    num_marked = 0
    for character, count in count_characters(words).items():
        if unicodedata.category(character).startswith("L"):
            scripts[_script(character)] += count
        if has_mark(character):
            num_marked += count
    total = max(1, scripts.total())
    shares = {script: count / total for script, count in scripts.most_common()}
    return Letters(shares, num_marked / total)


def has_mark(character: str) -> bool:
    """Return whether BERT's stripping of accents would take something off a character."""
    parts = unicodedata.normalize("NFD", character)
    return any(unicodedata.category(part) == "Mn" for part in parts)


def _script(letter: str) -> str:
    """Return the script of a letter, as its Unicode name begins with it."""
    words = re.split("[ -]", unicodedata.name(letter, "unnamed"))
    name = words[1 if words[0] in ("FULLWIDTH", "HALFWIDTH") else 0].capitalize()
    return _NAMES.get(name, name)
