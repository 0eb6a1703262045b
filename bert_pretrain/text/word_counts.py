"""The words of a text, counted: a text enters once, document by document, and counts leave.

A tokenizer is learnt from counts, and what a text is made of is read off them, so nothing else of
a text need be held in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from tokenizers import normalizers, pre_tokenizers

from bert_pretrain.text.prepared import grouped

PRE_TOKENIZER = pre_tokenizers.BertPreTokenizer()  # parts at spaces and around punctuation
_HELD_OUT = 50  # one passage in so many is held out
# Distinct ones held before they are cut into words, some 50 MB, or letters of text without spaces,
# whose chunks are whole clauses.
_MOST_CHUNKS, _MOST_UNSPACED = 500_000, 20_000_000
_LONG_CHUNK = 30  # letters
_CHARACTERS_AT_ONCE = 100_000  # cut in one call; the normaliser takes some 50 bytes for each


def count_words(
    texts: Iterable[str], normalizer: normalizers.Normalizer
) -> tuple[Counter[str], Counter[str]]:
    """Count the words of most passages of a text, and those of the passages held out.

    A passage is a line of a document. Whether it is held out depends on nothing but what it says:
    not on the order of the text, and copies of a passage are all on one side.

    Args:
        texts: read once, in order.
        normalizer: what becomes of characters before words are told apart.

    Returns:
        Occurrences of each word in the passages to learn from, and in the others.
    """
    words: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    # Cutting a chunk between two spaces into words costs much more than counting it; most recur.
    chunks: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    num_unspaced = 0
    for text in texts:
        for passage in text.splitlines():
            parts = passage.split()
            chunks[_is_held_out(passage)].update(parts)
            if len(passage) > _LONG_CHUNK * len(parts):
                num_unspaced += len(passage)
            if len(chunks[False]) > _MOST_CHUNKS or num_unspaced > _MOST_UNSPACED:
                _cut_into(words, chunks, normalizer)
                num_unspaced = 0
    _cut_into(words, chunks, normalizer)
    return words


def cut_words(chunks: Mapping[str, int], normalizer: normalizers.Normalizer) -> Counter[str]:
    """Return the words of chunks of text, each with the number of its occurrences."""
    with_count = defaultdict(list)
    for chunk, count in chunks.items():
        with_count[count].append(chunk)
    words: Counter[str] = Counter()
    for count, group in with_count.items():
        for some in grouped(group, len, _CHARACTERS_AT_ONCE):
            text = normalizer.normalize_str(" ".join(some))
            for word, _ in PRE_TOKENIZER.pre_tokenize_str(text):
                words[word] += count
    return words


def count_characters(words: Mapping[str, int]) -> Counter[str]:
    """Return the number of occurrences of each character of counted words."""
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    return characters


def _is_held_out(passage: str) -> bool:
    digest = hashlib.blake2b(passage.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT == 0


def _cut_into(
    words: tuple[Counter[str], Counter[str]],
    chunks: tuple[Counter[str], Counter[str]],
    normalizer: normalizers.Normalizer,
) -> None:
    for counted, waiting in zip(words, chunks, strict=True):
        counted.update(cut_words(waiting, normalizer))
        waiting.clear()
