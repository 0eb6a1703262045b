"""Fonts for names in any script: which of the installed ones have the characters.

Matplotlib's own font has no Chinese, Japanese or Korean, and would draw a box for each character.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

_STAND_IN = "Last Resort"  # a font that has a box for every character


class DrawnNames(NamedTuple):
    """Names as they can be drawn.

    Attributes:
        names: as given; those that no font has are numbers.
        families: fonts, the usual one first, which together have all characters.
        note: a line for people that tells the names behind the numbers; empty without any.
    """

    names: tuple[str, ...]
    families: tuple[str, ...]
    note: str


@lru_cache(maxsize=8)
def drawn_names(names: tuple[str, ...]) -> DrawnNames:
    """Return how names are to be drawn with the fonts that Matplotlib finds on this machine."""
    from matplotlib import font_manager

    usual = font_manager.FontProperties()
    known = _characters(font_manager.findfont(usual))
    families = [usual.get_name()]
    missing = {character for name in names for character in name if not character.isspace()} - known
    while missing:
        family, found = _best_font(frozenset(missing))
        if not found:
            break
        families.append(family)
        missing -= found
    drawn = tuple(
        str(number) if missing.intersection(name) else name for number, name in enumerate(names)
    )
    numbers = [f"{n} = {name}" for n, name in enumerate(names) if missing.intersection(name)]
    note = ""
    if numbers:
        note = "no font on this machine has the characters of some classes, which pictures number: "
        note += ", ".join(numbers)
    return DrawnNames(drawn, tuple(families), note)


def _best_font(wanted: frozenset[str]) -> tuple[str, frozenset[str]]:
    """Return the upright font that has most of some characters, by name, and those it has."""
    from matplotlib import font_manager

    # The regular weight comes first, and of equally good ones the first name.
    entries = sorted(
        (
            entry
            for entry in font_manager.fontManager.ttflist
            if entry.style == entry.variant == "normal" and _STAND_IN not in entry.name
        ),
        key=lambda entry: (entry.weight not in (400, "normal", "regular"), entry.name, entry.fname),
    )
    best, found = "", frozenset[str]()
    for entry in entries:
        own = wanted & _characters(entry.fname)
        if len(own) > len(found):
            best, found = entry.name, own
        if len(found) == len(wanted):
            break
    return best, found


@cache
def _characters(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a damaged file, or one that was removed since
        return frozenset()
