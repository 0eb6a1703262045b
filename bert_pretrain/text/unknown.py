"""How much of a text becomes the unknown token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from tokenizers import Encoding, Tokenizer

_WORDS_AT_ONCE = 10_000


@dataclass
class UnknownCount:
    """Tokens and characters of a text, and how many of them a tokenizer does not know.

    A tokenizer that looks words up gives a whole word up for one character that it does not know,
    so the share of characters can be far above that of tokens.

    Attributes:
        unknown_id: id of the unknown token; None = the tokenizer has none.
        tokens: of the text.
        unknown_tokens: those that are unknown.
        characters: of the text.
        lost_characters: those within unknown tokens.
    """

    unknown_id: int | None
    tokens: int = 0
    unknown_tokens: int = 0
    characters: int = 0
    lost_characters: int = 0

    @property
    def token_share(self) -> float:
        """Unknown tokens as a share of all, in [0, 1]."""
        return self.unknown_tokens / max(1, self.tokens)

    @property
    def character_share(self) -> float:
        """Lost characters as a share of all, in [0, 1]."""
        return self.lost_characters / max(1, self.characters)

    def add(self, text: str, encoding: Encoding, *, times: int = 1) -> None:
        """Count a text that was encoded without special tokens and that occurs some times."""
        ids = encoding.ids
        self.tokens += times * len(ids)
        self.characters += times * len(text)
        if self.unknown_id not in ids:  # nearly always; offsets cost more than all the rest
            return
        for token_id, (start, end) in zip(ids, encoding.offsets, strict=True):
            if token_id == self.unknown_id:
                self.unknown_tokens += times
                self.lost_characters += times * (end - start)


def count_unknown(backend: Tokenizer, words: Mapping[str, int], unknown_token: str) -> UnknownCount:
    """Return how much a tokenizer does not know of counted words."""
    unknown = UnknownCount(backend.token_to_id(unknown_token))
    waiting = iter(words.items())
    while some := list(islice(waiting, _WORDS_AT_ONCE)):
        encodings = backend.encode_batch([word for word, _ in some], add_special_tokens=False)
        for (word, times), encoding in zip(some, encodings, strict=True):
            unknown.add(word, encoding, times=times)
    return unknown
