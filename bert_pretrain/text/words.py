"""Words, found in the text itself and not in what a tokenizer made of it.

Sentences and their encodings enter; whether each token begins a word leaves.

A word is a run of characters between spaces, and every punctuation character is a word of its own.
This is BERT's rule (google-research/bert, basic tokenisation), here for any tokenizer: "don't" is
three words. Scripts that part no words by spaces are cut by a segmenter: by the dictionaries of ICU
where `icu4py` is installed, else at the default boundaries of Unicode (UAX 29), which leave mostly
single characters. A Tibetan word is a syllable, which a tsheg ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from bert_pretrain.errors import InputError
from bert_pretrain.text.masking import MaskingUnit
from bert_pretrain.text.prepared import TokenStore

_SPACE, _PUNCTUATION, _LETTER, _UNSPACED = range(4)
# Later ones win. Unicode's line breaking calls SA the scripts of South East Asia whose words only a
# dictionary finds; each script comes with the signs that it shares with others.
_KINDS = {
    _UNSPACED: regex.compile(r"[\p{Line_Break=SA}\p{scx=Hani}\p{scx=Hira}\p{scx=Kana}]+"),
    _PUNCTUATION: regex.compile(r"[\p{P}$+<=>^`|~]+"),
    # With what parts words in place of a space: zero-width space, tsheg, Ethiopic wordspace.
    _SPACE: regex.compile(r"[\s\u200b\u0f0b\u1361]+"),
}
_NEWLINE = 10

_LONG_WORD = 10  # tokens; longer ones are hardly words: DNA, base64
_MOST_IN_LONG_WORDS = 0.5  # share of tokens; beyond, words are refused as a unit
_MUCH_UNSPACED = 0.01  # share of characters
_MUCH_ACROSS = 0.2  # share of tokens; byte-level BPE has a few per cent, such as '."'
_HARDLY_MORE_THAN_ONE = 1.01  # tokens per word; the default corpus has 1.04


@dataclass(frozen=True)
class Segmenter:
    """What cuts text of scripts without spaces into words.

    Attributes:
        name: with the version that decides where it cuts.
        has_dictionary: whether it knows words; else it cuts into characters.
        cut: returns the pieces of a text in order; a newline is always a piece.
    """

    name: str
    has_dictionary: bool
    cut: Callable[[str], Iterable[str]]


def find_segmenter() -> Segmenter:
    """Return ICU's segmenter if `icu4py` is installed, else Unicode's default boundaries."""
    try:
        from icu4py import icu_version
        from icu4py.breakers import WordBreaker
    except ImportError:
        return Segmenter("Unicode", False, regex.compile(r"(?w)\b").split)
    # Iterated for pieces, as its offsets count UTF-16 units. The locale changes no word here.
    return Segmenter(f"ICU {icu_version}", True, lambda text: WordBreaker(text, "en"))


@dataclass
class WordFinder:
    """Finds the words of sentences, and counts what it has met.

    Attributes:
        segmenter: for scripts without spaces.
        num_characters: without spaces.
        num_unspaced: those of them that are of scripts without spaces.
        num_tokens: of all sentences.
        num_across: tokens that hold pieces of several words.
    """

    segmenter: Segmenter = field(default_factory=find_segmenter)
    num_characters: int = 0
    num_unspaced: int = 0
    num_tokens: int = 0
    num_across: int = 0

    def word_starts(
        self, sentences: Sequence[str], offsets: Iterable[Sequence[tuple[int, int]]]
    ) -> list[NDArray[np.uint8]]:
        """Return for each sentence which of its tokens begin a word, uint8 (T,), 1 = begins.

        A token begins a word if it reaches into one that no token before it has reached. So a token
        that ends one word and begins the next belongs to the next one, the tokens of one character
        (byte-level BPE) stay together, and a space belongs to the word after it.

        Args:
            sentences: what was encoded.
            offsets: of each sentence the characters of each token, as [begin, end); not of special
                tokens.
        """
        word, is_space = self._number_words("\n".join([*sentences, ""]))
        bounds, num_tokens = _chained(offsets)
        sentence_begins = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences)])[:-1]
        bounds += np.repeat(sentence_begins, num_tokens)[:, None]
        # A token that a normaliser adds has no characters.
        first, last = bounds[:, 0], np.maximum(bounds[:, 1] - 1, bounds[:, 0])
        first_word = word[first] + is_space[first]
        last_word = np.maximum(word[last], first_word)  # the first one is later in a mere space
        self.num_tokens += len(bounds)
        self.num_across += int((last_word > first_word).sum())

        begins = np.ones(len(bounds), dtype=np.uint8)
        begins[1:] = last_word[1:] > last_word[:-1]
        ends = list(accumulate(num_tokens, initial=0))
        begins[[end for end in ends if end < len(begins)]] = 1
        return [begins[first:end] for first, end in pairwise(ends)]

    def _number_words(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Number the words of a text.

        Returns:
            For each character the number of its word, for a space that of the word before it,
            int64 (C,); and which characters are spaces, bool (C,).
        """
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        kinds = _kinds_of_characters()[codes]
        is_space, is_unspaced = kinds == _SPACE, kinds == _UNSPACED
        self.num_characters += int((~is_space).sum())
        self.num_unspaced += int(is_unspaced.sum())
        begins = ~is_space
        begins[1:] &= (kinds[1:] != kinds[:-1]) | (kinds[1:] == _PUNCTUATION)
        if is_unspaced.any():
            begins[is_unspaced] = _cut(codes[is_unspaced], begins[is_unspaced], self.segmenter)
        return np.cumsum(begins), is_space


@cache
def _kinds_of_characters() -> NDArray[np.uint8]:
    """Return the kind of each code point, uint8 (1114112,)."""
    kinds = np.full(sys.maxunicode + 1, _LETTER, dtype=np.uint8)
    characters = "".join(map(chr, range(sys.maxunicode + 1)))
    for kind, pattern in _KINDS.items():
        for run in pattern.finditer(characters):
            kinds[run.start() : run.end()] = kind
    return kinds


def _chained(
    offsets: Iterable[Sequence[tuple[int, int]]],
) -> tuple[NDArray[np.int64], list[int]]:
    """Return the offsets of all sentences, int64 (T, 2), and how many tokens each has."""
    num_tokens: list[int] = []

    def counted() -> Iterator[Sequence[tuple[int, int]]]:
        for pairs in offsets:
            num_tokens.append(len(pairs))
            yield pairs

    # One sentence's at a time: many small objects alive make Python's memory management slow.
    numbers = chain.from_iterable(chain.from_iterable(counted()))
    return np.fromiter(numbers, dtype=np.int64).reshape(-1, 2), num_tokens


def _cut(
    codes: NDArray[np.uint32], begins_run: NDArray[np.bool_], segmenter: Segmenter
) -> NDArray[np.bool_]:
    """Return which characters (C,) begin a word, given those that begin a run of a script."""
    parted = np.insert(codes, np.flatnonzero(begins_run), _NEWLINE)
    pieces = segmenter.cut(parted.tobytes().decode("utf-32-le"))
    begins = np.zeros(len(parted) + 1, dtype=np.bool_)
    begins[np.cumsum(np.fromiter(map(len, pieces), dtype=np.int64))] = True
    return np.asarray(begins[:-1][parted != _NEWLINE])


def describe_words(store: TokenStore, finder: WordFinder) -> dict[str, Any]:
    """Return what a manifest says of the words of a corpus.

    Args:
        store: the corpus.
        finder: that found its words, and has met no other text.
    """
    num_words = num_in_long_words = num_sentences = 0
    for shard in store.shards:
        lengths = np.diff(np.flatnonzero(np.append(shard.word_starts, 1)))  # (W,)
        num_words += len(lengths)
        num_in_long_words += int(lengths[lengths > _LONG_WORD].sum())
        num_sentences += len(shard.sentence_lengths)
    return {
        "number": num_words,
        "per_sentence": num_words / num_sentences,
        "tokens_per_word": store.num_tokens / num_words,
        "share_in_long_words": num_in_long_words / store.num_tokens,
        "share_across_words": finder.num_across / max(1, finder.num_tokens),
        "share_without_spaces": finder.num_unspaced / max(1, finder.num_characters),
        "segmenter": finder.segmenter.name if finder.num_unspaced else None,
        "has_dictionary": finder.segmenter.has_dictionary,
    }


def check_unit(words: Mapping[str, Any], unit: MaskingUnit) -> list[str]:
    """Return warnings where the words of a corpus are less than a unit of masking promises.

    Args:
        words: what its manifest says of them.
        unit: what is to be masked together.

    Raises:
        InputError: most of the text has no words.
    """
    if unit == "token":
        return []
    in_long_words, across = words["share_in_long_words"], words["share_across_words"]
    if in_long_words > _MOST_IN_LONG_WORDS:
        raise InputError(
            f"`masking` is {unit!r}, but {in_long_words:.0%} of the tokens of this text lie in "
            f"words of more than {_LONG_WORD} tokens: it has hardly any spaces",
            advice="pass `masking` token, or a tokenizer that was trained on such text as "
            "`tokenizer_name`",
            parameter="masking",
            value=unit,
        )
    warnings = []
    if not words["has_dictionary"] and words["share_without_spaces"] > _MUCH_UNSPACED:
        warnings.append(
            f"{words['share_without_spaces']:.0%} of the characters belong to scripts that part no "
            "words by spaces, and this corpus was prepared without a dictionary of their words, so "
            f"that single characters stand for words in `masking` {unit}: install "
            "icu4py (the extra 'scripts' of bert-pretrain) and prepare the text again"
        )
    elif unit == "whole_word" and words["tokens_per_word"] < _HARDLY_MORE_THAN_ONE:
        warnings.append(
            f"a word has {words['tokens_per_word']:.2f} tokens on average in this text, so that "
            "`masking` whole_word hides hardly anything else than token"
        )
    if across > _MUCH_ACROSS:
        warnings.append(
            f"{across:.0%} of the tokens hold pieces of several words, as the tokenizer does not "
            "part text at spaces: what is masked together may show a piece of its words"
        )
    return warnings
