"""The documents of a corpus without exact duplicates, and without what is held out beside them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from bert_pretrain.text.documents import DocumentSource

_MOST_NAMED, _NAMED_CHARACTERS = 3, 60


class DistinctDocuments:
    """One pass over documents and their digests, the held-out ones first.

    Attributes:
        is_held_out: by digest of what was met, whether it is of the source that is held out; about
            100 bytes of memory a document.
        skipped: how many were left out, by reason.
        held_out_twice: how some training documents begin that are left out as they are held out.
    """

    def __init__(self, source: DocumentSource, held_out: DocumentSource | None, seed: int) -> None:
        """Name the sources; `held_out` None = nothing is held out by a source of its own."""
        self._sources = (
            [(False, source)] if held_out is None else [(True, held_out), (False, source)]
        )
        self._key = str(seed).encode()
        self.is_held_out: dict[bytes, bool] = {}
        self.skipped: Counter[str] = Counter()
        self.held_out_twice: list[str] = []

    @property
    def all_skipped(self) -> Counter[str]:
        """How many the sources and this pass left out, by reason."""
        return sum((source.skipped for _, source in self._sources), self.skipped)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Yield each distinct document and its digest, of the seed and its text."""
        for is_held_out, source in self._sources:
            for text in source:
                digest = hashlib.blake2b(text.encode(), digest_size=16, key=self._key).digest()
                if digest not in self.is_held_out:
                    self.is_held_out[digest] = is_held_out
                    yield text, digest
                elif self.is_held_out[digest] and not is_held_out:
                    self.skipped["held out as well"] += 1
                    if len(self.held_out_twice) < _MOST_NAMED:
                        self.held_out_twice.append(" ".join(text.split())[:_NAMED_CHARACTERS])
                else:
                    self.skipped["duplicates"] += 1
