"""Six small groups of English minimal pairs from templates, for a first look without a download.

They were written for this package, so their figures do not compare with BLiMP's. The words are
common both in prose and in documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from bert_pretrain.evaluation.minimal_pairs import MinimalPair

PAIRS_PER_GROUP = 50

_THINGS = (
    ("file", "files"),
    ("list", "lists"),
    ("name", "names"),
    ("model", "models"),
    ("table", "tables"),
    ("image", "images"),
    ("number", "numbers"),
    ("method", "methods"),
)
_PLACES = (("group", "groups"), ("page", "pages"), ("set", "sets"))
_ADJECTIVES = ("new", "small", "different", "valid", "simple", "large")
_PERSONS = ("man", "woman", "boy", "girl", "king", "queen")
_REFLEXIVES = ("himself", "herself")
_PAST = ("found", "helped", "saw", "called", "lost", "asked", "taught", "hid", "stopped", "changed")
_PARTICIPLES = (
    ("given", "give"),
    ("taken", "take"),
    ("written", "write"),
    ("seen", "see"),
    ("known", "know"),
)
_SOME, _NONE = ("everyone", "somebody", "someone"), ("nobody", "no one", "no user")


def template_pairs() -> list[MinimalPair]:
    """Return the pairs, `PAIRS_PER_GROUP` of each group, the same every time."""
    found = []
    for group, make in _GROUPS.items():
        pairs = list(dict.fromkeys(make()))
        # Evenly spread over all combinations, so that every word is used.
        places = [number * len(pairs) // PAIRS_PER_GROUP for number in range(PAIRS_PER_GROUP)]
        found += [MinimalPair(*pairs[place], group, f"template {group}") for place in places]
    return found


def _agreement() -> Iterator[tuple[str, str]]:
    for (one, many), adjective in product(_THINGS, _ADJECTIVES):
        yield f"the {one} is {adjective} .", f"the {one} are {adjective} ."
        yield f"the {many} are {adjective} .", f"the {many} is {adjective} ."


def _agreement_across_phrase() -> Iterator[tuple[str, str]]:
    for (one, many), (place, places), adjective in product(_THINGS, _PLACES, _ADJECTIVES):
        subject = f"the {one} in the {places}"
        yield f"{subject} is {adjective} .", f"{subject} are {adjective} ."
        subject = f"the {many} in the {place}"
        yield f"{subject} are {adjective} .", f"{subject} is {adjective} ."


def _determiner_noun() -> Iterator[tuple[str, str]]:
    for (one, many), adjective in product(_THINGS, _ADJECTIVES):
        yield f"we use this {adjective} {one} .", f"we use this {adjective} {many} ."
        yield f"we use these {adjective} {many} .", f"we use these {adjective} {one} ."


def _reflexive() -> Iterator[tuple[str, str]]:
    for number, person in enumerate(_PERSONS):
        # Each form is right as often as wrong, so that its frequency decides nothing.
        good, bad = _REFLEXIVES[number % 2], _REFLEXIVES[1 - number % 2]
        for verb in _PAST:
            yield f"the {person} {verb} {good} .", f"the {person} {verb} {bad} ."


def _participle() -> Iterator[tuple[str, str]]:
    for (one, many), (good, bad) in product(_THINGS, _PARTICIPLES):
        yield f"the {one} has been {good} .", f"the {one} has been {bad} ."
        yield f"the {many} have been {good} .", f"the {many} have been {bad} ."


def _negative_polarity() -> Iterator[tuple[str, str]]:
    for none, some, (participle, _), things in product(_NONE, _SOME, _PARTICIPLES, _THINGS):
        for thing in things:
            ending = f"has ever {participle} the {thing} ."
            yield f"{none} {ending}", f"{some} {ending}"


_GROUPS = {
    "subject-verb agreement": _agreement,
    "agreement across a phrase": _agreement_across_phrase,
    "determiner-noun agreement": _determiner_noun,
    "reflexive pronoun": _reflexive,
    "participle": _participle,
    "negative polarity": _negative_polarity,
}
