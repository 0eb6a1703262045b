"""Texts of any length in the languages of `languages.py`, made of its words in new orders."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from itertools import accumulate

from languages import Sample


def recombine(sample: Sample, num_passages: int, *, seed: int = 0) -> list[str]:
    """Return passages of two or three sentences each.

    They are made of the words of the sample or, where no space parts words, of its characters, each
    with the marks on it.
    """
    generator = random.Random(seed)
    has_spaces = any(" " in sentence for sentence in sample.sentences)
    end = sample.sentences[0][-1]
    end = end if unicodedata.category(end).startswith("P") else ""
    bare = [sentence.removesuffix(end) for sentence in sample.sentences]
    units = [unit for text in bare for unit in (text.split() if has_spaces else clusters(text))]
    space, lengths = (" ", (3, 8)) if has_spaces else ("", (5, 16))

    def sentence() -> str:
        return space.join(generator.choices(units, k=generator.randint(*lengths))) + end

    between = "" if sample.script in ("Han", "Japanese") else " "
    return [
        between.join(sentence() for _ in range(generator.randint(2, 3)))
        for _ in range(num_passages)
    ]


def clusters(text: str) -> list[str]:
    """Cut a text into characters, each with the marks on it."""
    found: list[str] = []
    for character in text:
        if found and unicodedata.category(character).startswith("M"):
            found[-1] += character
        else:
            found.append(character)
    return found


def zipf_text(num_characters: int, num_passages: int, *, seed: int = 0) -> Iterator[str]:
    """Yield passages of 100 Chinese characters, the n-th of them as frequent as 1 / n."""
    generator = random.Random(seed)
    characters = [chr(0x4E00 + number) for number in range(num_characters)]
    weights = list(accumulate(1 / (number + 1) for number in range(num_characters)))
    for _ in range(num_passages):
        yield "".join(generator.choices(characters, cum_weights=weights, k=100))
