"""The prepared corpus: token ids, word starts and sentence lengths, but no text.

Its `TokenStore` is mapped into memory, and read by global token position.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from filelock import FileLock
from huggingface_hub import constants
from numpy.typing import NDArray

from bert_pretrain.data.atomic import atomic_file
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.errors import InputError, first_line

ARROW_FILE, VALIDATION_FILE, MANIFEST = "corpus.arrow", "validation_documents.npy", "manifest.json"
TOKEN_COUNTS_FILE = "token_counts.npy"
FORMAT_VERSION = 3  # raised whenever what is written changes
_PARTS = ("source", "tokenizer", "counts", "words", "skipped")  # objects of every manifest

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """The documents of one Arrow record batch, as NumPy views onto the memory map.

    Attributes:
        first_token: global position of `tokens[0]` when all shards are chained.
        first_document: global index of its first document.
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

    def __init__(self, shards: Sequence[Shard], *, path: Path | None = None) -> None:
        """Chain `shards`, which follow each other without a gap; `path` is the file they map."""
        self.shards = list(shards)
        self.path = path
        self.num_tokens = sum(len(shard.tokens) for shard in self.shards)
        self.num_documents = sum(len(shard.sentences_per_document) for shard in self.shards)
        # With an end, so that shard i holds what lies from number i up to number i + 1.
        self.token_bounds = [*(shard.first_token for shard in self.shards), self.num_tokens]
        self.document_bounds = [*(s.first_document for s in self.shards), self.num_documents]

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Map the Arrow file `path`; its tokens are read when they are used."""
        shards: list[Shard] = []
        first_token = first_document = 0
        for batch in pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_batches():
            tokens, _ = _list_column(batch, "input_ids")
            starts, _ = _list_column(batch, "word_starts")
            lengths, sentences = _list_column(batch, "sentence_lengths")
            shards.append(Shard(first_token, first_document, tokens, starts, lengths, sentences))
            first_token += len(tokens)
            first_document += batch.num_rows
        return cls(shards, path=path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send a worker process the path to map, not the corpus."""
        if self.path is not None:
            return TokenStore.open, (self.path,)
        return TokenStore, (self.shards,)

    def read(self, start: int, length: int) -> NDArray[Any]:
        """Return a view of the `length` token ids from global position `start`."""
        shard = self._shard_at(start)
        return shard.tokens[start - shard.first_token :][:length]

    def read_word_starts(self, start: int, length: int) -> NDArray[np.uint8]:
        """Return a view of the word starts (1 = begins a word) of `read(start, length)`."""
        shard = self._shard_at(start)
        return shard.word_starts[start - shard.first_token :][:length]

    def _shard_at(self, position: int) -> Shard:
        return self.shards[bisect_right(self.token_bounds, position) - 1]


def _list_column(batch: pa.RecordBatch, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the values of a list column (a view) and the length of each list."""
    column = batch.column(name)
    # `.values` is the whole child array even of a slice; `.offsets` respects the slice.
    offsets = column.offsets.to_numpy()
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    return values.to_numpy(zero_copy_only=True), np.diff(offsets).astype(np.int64)


def grouped(
    items: Iterable[Item], size_of: Callable[[Item], int], size: int
) -> Iterator[list[Item]]:
    """Group items until their sizes reach `size` together, which keeps memory flat."""
    group: list[Item] = []
    total = 0
    for item in items:
        group.append(item)
        total += size_of(item)
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def count_tokens(
    store: TokenStore, documents: NDArray[np.int64], vocab_size: int
) -> NDArray[np.int64]:
    """Return how often each token id occurs in `documents`, int64 (at least vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    is_wanted = np.zeros(store.num_documents, dtype=bool)
    is_wanted[documents] = True
    for shard in store.shards:
        num_documents = len(shard.sentences_per_document)
        wanted = is_wanted[shard.first_document : shard.first_document + num_documents]
        per_sentence = np.repeat(wanted, shard.sentences_per_document)
        tokens = shard.tokens[np.repeat(per_sentence, shard.sentence_lengths)]
        found = np.bincount(tokens, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def unigram_entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy in nats of a distribution of counts.

    It is the loss of the best predictor that ignores the context.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def stated_language(manifest: Mapping[str, Any]) -> str | None:
    """Return the language that somebody stated a corpus to be of; None if nobody did."""
    language: str | None = manifest.get("language")
    # In older manifests it names the rules that split sentences, English unless stated otherwise.
    is_default = "sentence_rules" not in manifest and language == "en"
    return None if is_default else language


@dataclass(frozen=True)
class PreparedCorpus:
    """A prepared corpus as `bert_pretrain.text.preparation` wrote it.

    Attributes:
        folder: where it lies.
        store: all documents.
        train_documents: int64, sorted indices of the documents to train on.
        validation_documents: int64, sorted indices of those held out.
        manifest: what it is and was made of.
    """

    folder: Path
    store: TokenStore
    train_documents: NDArray[np.int64]
    validation_documents: NDArray[np.int64]
    manifest: dict[str, Any]

    @property
    def language(self) -> str | None:
        """The code of its language, as far as somebody stated it."""
        return stated_language(self.manifest)

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        """How often each token id occurs in the training documents, int64 (at least vocab_size,).

        Corpora of earlier versions lack the counts; they are counted once and kept beside the
        corpus if its folder can be written to.
        """
        path = self.folder / TOKEN_COUNTS_FILE
        if not path.exists():
            places = (self.folder, self.folder.absolute().parent)  # of the counts, of the lock
            if not all(os.access(place, os.W_OK) for place in places):
                return self._counted_tokens()
            with folder_lock(self.folder):
                if not path.exists():
                    write_token_counts(self.folder, self._counted_tokens())
        return _read_integers(path)

    def _counted_tokens(self) -> NDArray[np.int64]:
        vocab_size = self.manifest["tokenizer"]["vocab_size"]
        return count_tokens(self.store, self.train_documents, vocab_size)

    @classmethod
    def load(cls, folder: Path) -> PreparedCorpus:
        """Map the corpus in `folder`.

        Raises:
            InputError: the folder holds no complete corpus.
        """
        try:
            manifest = _read_manifest(folder)
            validation_documents = _read_integers(folder / VALIDATION_FILE)
            if (folder / TOKEN_COUNTS_FILE).exists():  # else they are counted when needed
                _read_integers(folder / TOKEN_COUNTS_FILE)
            store = TokenStore.open(folder / ARROW_FILE)
            if validation_documents.max(initial=0) >= max(1, store.num_documents) or (
                validation_documents.min(initial=0) < 0
            ):
                raise ValueError(f"{VALIDATION_FILE} names documents that {ARROW_FILE} lacks")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{folder} is no complete prepared corpus ({error})",
                advice="pass a folder that bert-pretrain prepare wrote, or prepare the text again",
            ) from error
        all_documents = np.arange(store.num_documents, dtype=np.int64)
        train_documents = np.setdiff1d(all_documents, validation_documents, assume_unique=True)
        return cls(folder, store, train_documents, validation_documents, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a corpus.

    Raises:
        InputError: it was written in another format.
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    manifest = parse_json((folder / MANIFEST).read_text())
    if not isinstance(manifest, dict):
        raise ValueError(f"{MANIFEST} is no object")
    written_in = manifest.get("format_version")
    if written_in != FORMAT_VERSION:
        raise InputError(
            f"{folder} was written in format {written_in} but must be in {FORMAT_VERSION}",
            advice="prepare it again with bert-pretrain prepare",
        )
    if missing := [part for part in _PARTS if not isinstance(manifest.get(part), dict)]:
        raise ValueError(f"{MANIFEST} has no {', '.join(missing)}")
    return manifest


def _read_integers(path: Path) -> NDArray[np.int64]:
    """Return the whole numbers (N,) of an .npy file.

    Raises:
        ValueError: it holds none.
        OSError: it cannot be read.
    """
    try:
        numbers = np.load(path)
    except OSError:
        raise
    except Exception as error:  # the reader of damaged files raises whatever it stumbles over
        raise ValueError(f"{path.name}: {first_line(error)}") from error
    if getattr(numbers, "ndim", 0) != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(f"{path.name} holds no list of whole numbers")
    whole: NDArray[np.int64] = numbers
    return whole


def folder_lock(folder: Path) -> FileLock:
    """Return the lock that a process holds while it writes a prepared corpus into a folder.

    It lies in the cache, so that a refusal leaves no file beside the folder; where there can be no
    cache, it does lie there.
    """
    locks = Path(constants.HF_HOME) / "bert_pretrain" / "locks"
    absolute = str(folder.absolute())
    with contextlib.suppress(OSError):
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{hashlib.sha256(absolute.encode()).hexdigest()[:20]}.lock")
    return FileLock(f"{absolute}.lock")


def write_token_counts(folder: Path, counts: NDArray[np.int64]) -> None:
    """Write the token counts of the training documents beside a corpus."""
    with atomic_file(folder / TOKEN_COUNTS_FILE) as aside, aside.open("wb") as file:
        np.save(file, counts)
