"""Documents to a prepared corpus on disk: one streaming pass, split into sentences, tokenised, written aside, renamed.

A `DocumentSource` and a tokenizer enter; a folder with `corpus.arrow`, `validation_documents.npy` and `manifest.json`
leaves, which `PreparedCorpus` maps into memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Sequence, Value
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from bert_pretrain.data.corpus import DocumentSource, split_sentences
from bert_pretrain.data.prepared import ARROW_FILE, MANIFEST, VALIDATION_FILE, PreparedCorpus
from bert_pretrain.data.tokenizers import tokenizer_hash
from bert_pretrain.errors import InputError

FORMAT_VERSION = 1
_SENTENCES_PER_BATCH = 2_000  # tokenised at once, on all cores
_TOKENS_PER_RECORD_BATCH = 4_000_000  # 12 MB of ids and word starts


@dataclass
class _Document:
    input_ids: NDArray[Any]
    word_starts: NDArray[np.uint8]
    sentence_lengths: NDArray[np.uint32]
    digest: bytes


def corpus_key(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerFast,
    *,
    language: str,
    validation_share: float,
    seed: int,
) -> str:
    """Return a hash of everything that determines a prepared corpus."""
    determinants = [
        FORMAT_VERSION,
        source.fingerprint,
        tokenizer_hash(tokenizer),
        language,
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
    language: str,
    validation_share: float,
    seed: int,
    show_progress: bool = True,
) -> PreparedCorpus:
    """Prepare a corpus, or load it if `output_dir` holds the same one already.

    Processes that call this at once do the work once: the first prepares, the others wait. A process that is killed
    leaves nothing that would be taken for a corpus.

    Args:
        source: the documents; exact duplicates are dropped.
        tokenizer: cuts sentences into tokens, without special ones.
        output_dir: target folder; a corpus of other content in it is replaced.
        language: of the sentence rules.
        validation_share: share of documents held out, in (0, 0.5): those with the smallest digests of seed and text, so
            that the choice depends on neither order nor chance; at least 2 if there are 4.
        seed: of that choice.
        show_progress: whether to draw a progress bar.

    Raises:
        InputError: `output_dir` holds something else, or the source cannot be used.
    """
    key = corpus_key(source, tokenizer, language=language, validation_share=validation_share, seed=seed)
    output_dir = output_dir.absolute()
    if output_dir.is_file() or (
        output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / MANIFEST).is_file()
    ):
        raise InputError(f"{output_dir} is neither empty nor a prepared corpus; pass another --output_dir")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{output_dir}.lock"):
        if not _holds(output_dir, key):
            aside = Path(f"{output_dir}.tmp")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            _write(source, tokenizer, aside, language, validation_share, seed, key, show_progress)
            shutil.rmtree(output_dir, ignore_errors=True)
            os.replace(aside, output_dir)
    return PreparedCorpus.load(output_dir)


def _holds(folder: Path, key: str) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return bool(manifest.get("key") == key)


def _write(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    language: str,
    validation_share: float,
    seed: int,
    key: str,
    show_progress: bool,
) -> None:
    skipped: Counter[str] = Counter()
    digests: list[bytes] = []
    counts = {"documents": 0, "sentences": 0, "tokens": 0}
    num_unknown = 0
    dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32
    features = Features(
        {
            "input_ids": Sequence(Value(np.dtype(dtype).name)),
            "word_starts": Sequence(Value("uint8")),
            "sentence_lengths": Sequence(Value("uint32")),
        }
    )
    documents = _tokenised(_distinct(source, seed, skipped), tokenizer, language, dtype, skipped)
    progress = tqdm(documents, desc="preparing", unit=" documents", disable=not show_progress)
    with ArrowWriter(features=features, path=str(folder / ARROW_FILE)) as writer:
        pending = 0
        for document in progress:
            row = {
                "input_ids": document.input_ids,
                "word_starts": document.word_starts,
                "sentence_lengths": document.sentence_lengths,
            }
            writer.write(row)
            pending += len(document.input_ids)
            if pending >= _TOKENS_PER_RECORD_BATCH:
                writer.write_examples_on_file()
                pending = 0
            digests.append(document.digest)
            counts["documents"] += 1
            counts["sentences"] += len(document.sentence_lengths)
            counts["tokens"] += len(document.input_ids)
            num_unknown += int((document.input_ids == tokenizer.unk_token_id).sum())
        if not digests:
            raise InputError(f"{source.description} holds no sentence; pass other --data_files or --dataset_name")
        writer.finalize()
    np.save(folder / VALIDATION_FILE, _held_out(digests, validation_share))
    manifest = {
        "format_version": FORMAT_VERSION,
        "key": key,
        "source": {"description": source.description, "fingerprint": source.fingerprint},
        "tokenizer": {
            "name": tokenizer.name_or_path,
            "hash": tokenizer_hash(tokenizer),
            "vocab_size": len(tokenizer),
        },
        "language": language,
        "validation_share": validation_share,
        "seed": seed,
        "counts": counts,
        "skipped": dict(skipped + source.skipped),
        "unknown_rate": num_unknown / counts["tokens"],
        "versions": {name: metadata.version(name) for name in ("datasets", "tokenizers", "sentencex")},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _distinct(
    source: Iterable[str], seed: int, skipped: Counter[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield documents with their digests, leaving out exact duplicates; 16 bytes a document are held in memory."""
    seen: set[bytes] = set()
    for text in source:
        digest = hashlib.blake2b(text.encode(), digest_size=16, key=str(seed).encode()).digest()
        if digest in seen:
            skipped["duplicates"] += 1
            continue
        seen.add(digest)
        yield text, digest


def _tokenised(
    documents: Iterator[tuple[str, bytes]],
    tokenizer: PreTrainedTokenizerFast,
    language: str,
    dtype: Any,
    skipped: Counter[str],
) -> Iterator[_Document]:
    """Tokenise many short documents at once, and a long one in several pieces: memory does not follow their length."""
    group: list[tuple[list[str], bytes]] = []
    num_sentences = 0
    for text, digest in documents:
        sentences = split_sentences(text, language)
        group.append((sentences, digest))
        num_sentences += len(sentences)
        if num_sentences >= _SENTENCES_PER_BATCH:
            yield from _tokenise_group(group, tokenizer, dtype, skipped)
            group, num_sentences = [], 0
    yield from _tokenise_group(group, tokenizer, dtype, skipped)


def _tokenise_group(
    group: list[tuple[list[str], bytes]],
    tokenizer: PreTrainedTokenizerFast,
    dtype: Any,
    skipped: Counter[str],
) -> Iterator[_Document]:
    sentences = _encode((sentence for document, _ in group for sentence in document), tokenizer, dtype)
    for document, digest in group:
        pieces = [piece for piece in islice(sentences, len(document)) if len(piece[0])]
        if not pieces:
            skipped["without tokens"] += 1
            continue
        lengths = np.array([len(ids) for ids, _ in pieces], dtype=np.uint32)
        input_ids = np.concatenate([ids for ids, _ in pieces])
        yield _Document(input_ids, np.concatenate([starts for _, starts in pieces]), lengths, digest)


def _encode(
    sentences: Iterator[str], tokenizer: PreTrainedTokenizerFast, dtype: Any
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Yield token ids and word starts of each sentence."""
    backend = tokenizer.backend_tokenizer
    while batch := list(islice(sentences, _SENTENCES_PER_BATCH)):
        for encoding in backend.encode_batch(batch, add_special_tokens=False):
            # A token outside any word (None) stands alone; two neighbours of one word share its number.
            words = [-1 - i if word is None else word for i, word in enumerate(encoding.word_ids)]
            word_ids = np.array(words, dtype=np.int64)
            starts = np.ones(len(word_ids), dtype=np.uint8)
            starts[1:] = word_ids[1:] != word_ids[:-1]
            yield np.array(encoding.ids, dtype=dtype), starts


def _held_out(digests: list[bytes], validation_share: float) -> NDArray[np.int64]:
    """Return the sorted indices of the documents with the smallest digests."""
    count = int(np.ceil(validation_share * len(digests)))
    if len(digests) >= 4:
        count = max(2, count)
    order = sorted(range(len(digests)), key=digests.__getitem__)
    return np.sort(np.array(order[:count], dtype=np.int64))
