"""The prepared corpus: token ids, word starts and sentence lengths, but no text.

Its `TokenStore` is mapped into memory, and read by global token position. Its manifest holds the
digests of all files and one of itself. Whoever opens a corpus has them compared: a file is read for
that where its size or times are not those it had when this machine read it last, so once on each
machine and again when something has touched it.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from bert_pretrain.data.digests import damages, digests_of, unseal, write_sealed
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.errors import InputError, first_line

ARROW_FILE, VALIDATION_FILE, MANIFEST = "corpus.arrow", "validation_documents.npy", "manifest.json"
TOKEN_COUNTS_FILE = "token_counts.npy"
FILES = (ARROW_FILE, TOKEN_COUNTS_FILE, VALIDATION_FILE)  # beside the manifest, which lists them
COLUMNS = ("input_ids", "word_starts", "sentence_lengths")  # of the Arrow file, lists
FORMAT_VERSION = 4  # raised whenever what is written changes
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
        """Map the Arrow file `path`; its tokens are read when they are used.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds something else, as a stranger's file may.
        """
        shards: list[Shard] = []
        first_token = first_document = 0
        for batch in pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_batches():
            types = {field.name: field.type for field in batch.schema}
            if not all(pa.types.is_list(types.get(name, pa.null())) for name in COLUMNS):
                raise ValueError(f"{path.name} has other columns than {', '.join(COLUMNS)}")
            batch.validate(full=True)  # offsets may lead out of their file
            (tokens, _), (starts, _), (lengths, sentences) = (
                _list_column(batch, name) for name in COLUMNS
            )
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
        """How often each token id occurs in the training documents, int64 (vocab_size or more,)."""
        return _read_integers(self.folder / TOKEN_COUNTS_FILE)

    @property
    def provenance(self) -> dict[str, Any]:
        """What tells this corpus from others, for the record of a run."""
        return {
            "key": self.manifest["key"],
            "folder": str(self.folder.absolute()),
            "fingerprint": self.manifest["source"]["fingerprint"],
            "files": self.manifest["files"],
        }

    @classmethod
    def load(cls, folder: Path) -> PreparedCorpus:
        """Map the corpus in `folder`, if it is what was written.

        Raises:
            InputError: the folder holds no complete corpus, or a damaged one.
        """
        manifest = read_manifest(folder)
        if damaged := damages(folder, manifest["files"]):
            name, (what, _) = next(iter(damaged.items()))
            raise _unusable(folder, f"{name} {what}")
        try:
            store = TokenStore.open(folder / ARROW_FILE)
            validation_documents = _read_integers(folder / VALIDATION_FILE)
            _read_integers(folder / TOKEN_COUNTS_FILE)
            if np.setdiff1d(validation_documents, np.arange(store.num_documents)).size:
                raise ValueError(f"{VALIDATION_FILE} holds out documents that there are not")
        except (OSError, ValueError) as error:
            raise _unusable(folder, str(error)) from error
        all_documents = np.arange(store.num_documents, dtype=np.int64)
        train_documents = np.setdiff1d(all_documents, validation_documents, assume_unique=True)
        return cls(folder, store, train_documents, validation_documents, manifest)


def is_prepared(folder: Path) -> bool:
    """Return whether a folder holds a prepared corpus, damaged or not.

    A manifest.json alone tells nothing: many programs write one.
    """
    if (folder / ARROW_FILE).is_file():
        return True
    try:
        record = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"format_version", "tokenizer", "counts"} <= record.keys()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared corpus, without the digest of itself.

    Raises:
        InputError: there is none, or it is damaged or of another format.
    """
    try:
        record = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        written_in = record["format_version"]
        manifest = unseal(record) if written_in == FORMAT_VERSION else record
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(folder, f"{MANIFEST}: {error}") from error
    if written_in != FORMAT_VERSION:
        raise InputError(
            f"{folder} was written in format {written_in} but must be in {FORMAT_VERSION}",
            advice="prepare it again with bert-pretrain prepare",
        )
    if set(manifest.get("files", ())) != set(FILES):  # names of other files lead elsewhere
        raise _unusable(folder, f"{MANIFEST} does not list its files")
    if missing := [part for part in _PARTS if not isinstance(manifest.get(part), dict)]:
        raise _unusable(folder, f"{MANIFEST} has no {', '.join(missing)}")
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


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a corpus whose other files are all there, with their digests."""
    files = manifest.get("files") or digests_of(folder, FILES)
    write_sealed(folder / MANIFEST, {**manifest, "files": files})


def _unusable(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder} is no complete prepared corpus ({why})",
        advice="pass a folder that bert-pretrain prepare wrote, or prepare the text again there",
    )


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
    np.save(folder / TOKEN_COUNTS_FILE, counts)
