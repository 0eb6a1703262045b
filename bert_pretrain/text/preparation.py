"""Documents to a prepared corpus on disk, in one streaming pass: split, tokenised, written aside, renamed.

A `DocumentSource` and a tokenizer enter; a folder with `corpus.arrow`, `validation_documents.npy`
and `manifest.json` leaves, which `PreparedCorpus` maps into memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from numpy.typing import DTypeLike, NDArray
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from bert_pretrain.data.atomic import atomic_folder, write_json
from bert_pretrain.errors import InputError
from bert_pretrain.text.documents import DEFAULT_SENTENCE_RULES, DocumentSource, split_sentences
from bert_pretrain.text.prepared import (
    ARROW_FILE,
    FORMAT_VERSION,
    MANIFEST,
    VALIDATION_FILE,
    PreparedCorpus,
    stated_language,
)
from bert_pretrain.text.tokenizers import bare_backend, tokenizer_hash

_SENTENCES_PER_BATCH = 2_000  # tokenised at once, on all cores
_TOKENS_PER_RECORD_BATCH = 4_000_000  # 12 MB of ids and word starts


@dataclass
class _Document:
    input_ids: NDArray[Any]
    word_starts: NDArray[np.uint8]
    sentence_lengths: NDArray[np.uint32]
    digest: bytes


@dataclass
class _Written:
    """What is counted while documents are written; `digests` and `document_lengths` (tokens) are in their order."""

    digests: list[bytes] = field(default_factory=list)
    document_lengths: list[int] = field(default_factory=list)
    num_sentences: int = 0
    num_unknown: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def count(self, document: _Document, unk_token_id: int | None) -> None:
        self.digests.append(document.digest)
        self.document_lengths.append(len(document.input_ids))
        self.num_sentences += len(document.sentence_lengths)
        if unk_token_id is not None:
            self.num_unknown += int((document.input_ids == unk_token_id).sum())


def corpus_key(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerFast,
    *,
    language: str | None,
    validation_share: float,
    seed: int,
) -> str:
    """Return a hash of everything that determines a prepared corpus; its arguments are those of `prepare_corpus`."""
    determinants = [
        FORMAT_VERSION,
        source.fingerprint,
        tokenizer_hash(tokenizer),
        language or DEFAULT_SENTENCE_RULES,
        validation_share,
        seed,
        metadata.version("sentencex"),
    ]
    return hashlib.sha256(json.dumps(determinants).encode()).hexdigest()


def prepare_corpus(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerFast,
    *,
    output_dir: Path,
    language: str | None,
    validation_share: float,
    seed: int,
    show_progress: bool = True,
) -> PreparedCorpus:
    """Prepare a corpus, or load it if `output_dir` holds the same one already.

    Processes that call this at once do the work once: the first prepares, the others wait. A
    process that is killed leaves nothing that would be taken for a corpus.

    Args:
        source: the documents; exact duplicates are dropped.
        tokenizer: cuts sentences into tokens, without special ones.
        output_dir: target folder; a corpus of other content in it is replaced.
        language: code of the text's language, whose rules split sentences; None = not stated, then
            the rules are those of English. A corpus that is there already is told if it is stated
            otherwise than before.
        validation_share: share of documents held out, in (0, 0.5): those with the smallest digests
            of seed and text, so that the choice depends on neither order nor chance; at least 2 of
            4 or more.
        seed: of that choice.
        show_progress: whether to draw a progress bar.

    Raises:
        InputError: `output_dir` holds something else, or the source cannot be used.
    """
    key = corpus_key(
        source, tokenizer, language=language, validation_share=validation_share, seed=seed
    )
    rules, stated = language or DEFAULT_SENTENCE_RULES, language or source.language
    output_dir = output_dir.absolute()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{output_dir}.lock"):
        manifest = _manifest_in(output_dir)
        if manifest is None or manifest["key"] != key:
            with atomic_folder(output_dir) as aside:
                written = _write(source, tokenizer, aside / ARROW_FILE, rules, seed, show_progress)
                held_out = _held_out(written.digests, validation_share)
                np.save(aside / VALIDATION_FILE, held_out)
                manifest = {
                    "format_version": FORMAT_VERSION,
                    "key": key,
                    "source": {
                        "description": source.description,
                        "fingerprint": source.fingerprint,
                    },
                    "tokenizer": {
                        "name": tokenizer.name_or_path,
                        "hash": tokenizer_hash(tokenizer),
                        "vocab_size": len(tokenizer),
                    },
                    "language": stated,
                    "sentence_rules": rules,
                    "validation_share": validation_share,
                    "seed": seed,
                    **_statistics(written, held_out),
                    "skipped": dict(written.skipped + source.skipped),
                    "versions": {
                        name: metadata.version(name)
                        for name in ("datasets", "tokenizers", "sentencex")
                    },
                }
                (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        elif stated_language(manifest) != stated:
            write_json(
                output_dir / MANIFEST, manifest | {"language": stated, "sentence_rules": rules}
            )
        return PreparedCorpus.load(output_dir)


def _manifest_in(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of the corpus in `folder`, None if there is nothing, and refuse anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        manifest = None
    # Many programs write a manifest.json; only ours may be replaced.
    if not isinstance(manifest, dict) or not {"format_version", "key"} <= manifest.keys():
        raise InputError(
            f"{folder} is neither empty nor a prepared corpus", advice="pass another `output_dir`"
        )
    return manifest


def _write(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    language: str,
    seed: int,
    show_progress: bool,
) -> _Written:
    """Write the Arrow file, record batch by record batch, and return what was counted on the way."""
    written = _Written()
    dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32
    types = {
        "input_ids": np.dtype(dtype).name,
        "word_starts": "uint8",
        "sentence_lengths": "uint32",
    }
    features = Features({name: List(Value(type_name)) for name, type_name in types.items()})
    documents = _tokenise(
        _distinct(source, seed, written.skipped), tokenizer, language, dtype, written.skipped
    )
    progress = tqdm(documents, desc="preparing", unit=" documents", disable=not show_progress)
    with ArrowWriter(features=features, path=str(path)) as writer:
        for group in _record_batches(progress):
            table = pa.table(
                {
                    name: _list_array([getattr(document, name) for document in group])
                    for name in types
                }
            )
            writer.write_table(table, writer_batch_size=len(group))
            for document in group:
                written.count(document, tokenizer.unk_token_id)
        if not written.digests:
            raise InputError(
                f"{source.description} holds no sentence",
                advice="pass other `data_files` or `dataset_name`",
            )
        writer.finalize()
    return written


def _record_batches(documents: Iterable[_Document]) -> Iterator[list[_Document]]:
    """Group documents up to a size that keeps memory flat and record batches few."""
    group: list[_Document] = []
    num_tokens = 0
    for document in documents:
        group.append(document)
        num_tokens += len(document.input_ids)
        if num_tokens >= _TOKENS_PER_RECORD_BATCH:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group


def _list_array(rows: list[NDArray[Any]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(rows))


def _statistics(written: _Written, held_out: NDArray[np.int64]) -> dict[str, Any]:
    lengths = np.array(written.document_lengths, dtype=np.int64)
    num_tokens = int(lengths.sum())
    return {
        "counts": {
            "documents": len(lengths),
            "sentences": written.num_sentences,
            "tokens": num_tokens,
            "validation_documents": len(held_out),
            "validation_tokens": int(lengths[held_out].sum()),
        },
        "unknown_rate": written.num_unknown / num_tokens,
        "tokens_per_sentence": num_tokens / written.num_sentences,
        "tokens_per_document": num_tokens / len(lengths),
    }


def _distinct(
    source: Iterable[str], seed: int, skipped: Counter[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield documents with their digests, leaving out exact duplicates.

    A digest of 16 bytes, about 100 with its place in a Python set, is all that stays in memory of a
    document.
    """
    seen: set[bytes] = set()
    for text in source:
        digest = hashlib.blake2b(text.encode(), digest_size=16, key=str(seed).encode()).digest()
        if digest in seen:
            skipped["duplicates"] += 1
            continue
        seen.add(digest)
        yield text, digest


def _tokenise(
    documents: Iterator[tuple[str, bytes]],
    tokenizer: PreTrainedTokenizerFast,
    language: str,
    dtype: DTypeLike,
    skipped: Counter[str],
) -> Iterator[_Document]:
    """Tokenise many short documents at once, and a long one in several pieces."""
    backend = bare_backend(tokenizer)
    group: list[tuple[list[str], bytes]] = []
    num_sentences = 0
    for text, digest in documents:
        sentences = split_sentences(text, language)
        group.append((sentences, digest))
        num_sentences += len(sentences)
        if num_sentences >= _SENTENCES_PER_BATCH:
            yield from _tokenise_group(group, backend, dtype, skipped)
            group, num_sentences = [], 0
    yield from _tokenise_group(group, backend, dtype, skipped)


def _tokenise_group(
    group: list[tuple[list[str], bytes]],
    backend: Tokenizer,
    dtype: DTypeLike,
    skipped: Counter[str],
) -> Iterator[_Document]:
    input_ids, word_starts, lengths = _encode(
        [s for sentences, _ in group for s in sentences], backend, dtype
    )
    sentence = token = 0
    for sentences, digest in group:
        document_lengths = lengths[sentence : sentence + len(sentences)]
        sentence += len(sentences)
        inside = slice(token, token + int(document_lengths.sum()))
        token = inside.stop
        skipped["sentences without tokens"] += int((document_lengths == 0).sum())
        if inside.start == inside.stop:
            skipped["documents without tokens"] += 1
            continue
        yield _Document(
            input_ids[inside], word_starts[inside], document_lengths[document_lengths > 0], digest
        )


def _encode(
    sentences: list[str], backend: Tokenizer, dtype: DTypeLike
) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.uint32]]:
    """Return token ids (T,), word starts (T,) and the number of tokens of each sentence (S,)."""
    ids, starts = [np.empty(0, dtype=dtype)], [np.empty(0, dtype=np.uint8)]
    lengths: list[int] = []
    # Encodings are large; a novel's would take a gigabyte at once.
    for first in range(0, len(sentences), _SENTENCES_PER_BATCH):
        batch = sentences[first : first + _SENTENCES_PER_BATCH]
        for encoding in backend.encode_batch(batch, add_special_tokens=False):
            # A token outside any word has the number None, which becomes a NaN and so differs from
            # its neighbours.
            words = np.array(encoding.word_ids, dtype=np.float32)
            is_start = np.ones(len(words), dtype=np.uint8)
            is_start[1:] = words[1:] != words[:-1]
            ids.append(np.array(encoding.ids, dtype=dtype))
            starts.append(is_start)
            lengths.append(len(words))
    return np.concatenate(ids), np.concatenate(starts), np.array(lengths, dtype=np.uint32)


def _held_out(digests: list[bytes], validation_share: float) -> NDArray[np.int64]:
    """Return the sorted indices of the documents with the smallest digests."""
    count = math.ceil(validation_share * len(digests))
    if count and len(digests) >= 4:
        count = max(2, count)
    order = sorted(range(len(digests)), key=digests.__getitem__)
    return np.sort(np.array(order[:count], dtype=np.int64))
