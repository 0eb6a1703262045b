"""The prepared corpus: token ids, word starts and sentence lengths, memory-mapped.

What enters is an Arrow file written by `prepare_corpus`; what leaves is a `TokenStore`, which
sentence pairs, masks and collators read by global token position. No text is kept and nothing is
copied into memory.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import DTypeLike, NDArray

from bert_pretrain.errors import InputError

ARROW_FILE, VALIDATION_FILE, MANIFEST = "corpus.arrow", "validation_documents.npy", "manifest.json"
FORMAT_VERSION = 2  # raised whenever what is written changes


@dataclass(frozen=True)
class Shard:
    """The documents of one Arrow record batch, as NumPy views onto the memory map.

    Attributes:
        first_token: Global position of `tokens[0]` when all shards are chained.
        first_document: Global index of its first document.
        tokens: uint16 or uint32 (T,), ids without special tokens.
        word_starts: uint8 (T,), 1 where a token begins a word.
        sentence_lengths: uint32 (S,), tokens of each sentence, all positive, T in sum.
        sentences_per_document: int64 (D,), all positive, S in sum.
    """

    first_token: int
    first_document: int
    tokens: NDArray[Any]
    word_starts: NDArray[np.uint8]
    sentence_lengths: NDArray[np.uint32]
    sentences_per_document: NDArray[np.int64]


class TokenStore:
    """Random access to the tokens of a corpus by their global position.

    A range that is read lies inside one document, hence inside one shard.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Chain `shards`, which must follow each other without a gap."""
        self.shards = list(shards)
        self.num_tokens = sum(len(shard.tokens) for shard in self.shards)
        self.num_documents = sum(len(shard.sentences_per_document) for shard in self.shards)
        self._first_tokens = [shard.first_token for shard in self.shards]
        self._path: Path | None = None

    def read(self, start: int, length: int) -> NDArray[Any]:
        """Return a view of the `length` token ids from global position `start`."""
        shard = self._shard_at(start)
        return shard.tokens[start - shard.first_token :][:length]

    def read_word_starts(self, start: int, length: int) -> NDArray[np.uint8]:
        """Return a view of the word starts (1 = begins a word) of `read(start, length)`."""
        shard = self._shard_at(start)
        return shard.word_starts[start - shard.first_token :][:length]

    def _shard_at(self, position: int) -> Shard:
        return self.shards[bisect_right(self._first_tokens, position) - 1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send a worker process the path to map, not the corpus."""
        if self._path is not None:
            return TokenStore.open, (self._path,)
        return TokenStore, (self.shards,)

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Map the Arrow file `path`; nothing is read before it is used."""
        store = cls(list(_shards(Dataset.from_file(str(path)))))
        store._path = path
        return store

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Sequence[Sequence[int]]],
        dtype: DTypeLike = np.uint16,
        *,
        word_starts: Sequence[Sequence[Sequence[int]]] | None = None,
        documents_per_shard: int | None = None,
    ) -> TokenStore:
        """Build a store in memory, for tests and small uses.

        Args:
            documents: Token ids as documents of sentences.
            dtype: Type of the token ids.
            word_starts: 1 where a token begins a word, nested like `documents`; by default every
                token is a word.
            documents_per_shard: Where to cut shards; by default there is one.
        """
        size = documents_per_shard or max(1, len(documents))
        shards: list[Shard] = []
        first_token = 0
        for first in range(0, len(documents), size):
            part = documents[first : first + size]
            lengths = [len(sentence) for document in part for sentence in document]
            tokens = np.fromiter(_flatten(part), dtype=dtype, count=sum(lengths))
            starts = np.ones(len(tokens), dtype=np.uint8)
            if word_starts is not None:
                starts[:] = list(_flatten(word_starts[first : first + size]))
            shard = Shard(
                first_token=first_token,
                first_document=first,
                tokens=tokens,
                word_starts=starts,
                sentence_lengths=np.array(lengths, dtype=np.uint32),
                sentences_per_document=np.array(
                    [len(document) for document in part], dtype=np.int64
                ),
            )
            shards.append(shard)
            first_token += len(tokens)
        return cls(shards)


def _flatten(documents: Sequence[Sequence[Sequence[int]]]) -> Iterator[int]:
    return chain.from_iterable(chain.from_iterable(documents))


def _shards(dataset: Dataset) -> Iterator[Shard]:
    first_token = first_document = 0
    for batch in dataset.data.table.to_batches():
        tokens, _ = _list_column(batch, "input_ids")
        word_starts, _ = _list_column(batch, "word_starts")
        sentence_lengths, sentences_per_document = _list_column(batch, "sentence_lengths")
        yield Shard(
            first_token=first_token,
            first_document=first_document,
            tokens=tokens,
            word_starts=word_starts,
            sentence_lengths=sentence_lengths,
            sentences_per_document=sentences_per_document,
        )
        first_token += len(tokens)
        first_document += batch.num_rows


def _list_column(batch: pa.RecordBatch, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the values of a list column (a view) and the length of each list."""
    column = batch.column(name)
    # `.values` is the whole child array even of a slice; `.offsets` respects the slice.
    offsets = column.offsets.to_numpy()
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    return values.to_numpy(zero_copy_only=True), np.diff(offsets).astype(np.int64)


def stated_language(manifest: Mapping[str, Any]) -> str | None:
    """Return the language that somebody stated a corpus to be of; None if nobody did.

    Older manifests name under `language` the rules that split sentences, those of English unless it
    was stated.
    """
    language: str | None = manifest.get("language")
    is_default = "sentence_rules" not in manifest and language == "en"
    return None if is_default else language


@dataclass(frozen=True)
class PreparedCorpus:
    """A prepared corpus as `bert_pretrain.text.preparation` wrote it.

    Attributes:
        store: all documents.
        train_documents: int64, sorted indices of the documents to train on.
        validation_documents: int64, sorted indices of those held out.
        manifest: what it is and was made of.
    """

    store: TokenStore
    train_documents: NDArray[np.int64]
    validation_documents: NDArray[np.int64]
    manifest: dict[str, Any]

    @property
    def language(self) -> str | None:
        """The code of its language, as far as somebody stated it."""
        return stated_language(self.manifest)

    @classmethod
    def load(cls, folder: Path) -> PreparedCorpus:
        """Map the corpus in `folder`.

        Raises:
            InputError: the folder holds no complete corpus.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            validation_documents = np.load(folder / VALIDATION_FILE)
            store = TokenStore.open(folder / ARROW_FILE)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder} is no complete prepared corpus ({error})",
                advice="remove the folder and prepare it again with bert-pretrain prepare",
            ) from error
        if manifest.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{folder} was written in format {manifest.get('format_version')} but must be in "
                f"{FORMAT_VERSION}",
                advice="prepare it again with bert-pretrain prepare",
            )
        all_documents = np.arange(store.num_documents, dtype=np.int64)
        train_documents = np.setdiff1d(all_documents, validation_documents, assume_unique=True)
        return cls(store, train_documents, validation_documents, manifest)
