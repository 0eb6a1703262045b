"""Documents to a prepared corpus on disk, in one streaming pass."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from huggingface_hub.constants import HF_HOME
from numpy.typing import DTypeLike, NDArray
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from bert_pretrain.data.atomic import atomic_folder, check_creatable
from bert_pretrain.data.copies import Shelf, hold
from bert_pretrain.errors import InputError
from bert_pretrain.text.distinct import DistinctDocuments
from bert_pretrain.text.division import Division, divide, write_divided
from bert_pretrain.text.documents import DocumentSource
from bert_pretrain.text.found_corpus import found_corpus, restated
from bert_pretrain.text.literal_text import literal_backend
from bert_pretrain.text.newlines import SplitText
from bert_pretrain.text.prepared import (
    ARROW_FILE,
    FORMAT_VERSION,
    VALIDATION_FILE,
    PreparedCorpus,
    TokenStore,
    count_tokens,
    folder_lock,
    grouped,
    read_manifest,
    write_manifest,
    write_token_counts,
)
from bert_pretrain.text.sentences import sentence_rules, split_sentences
from bert_pretrain.text.tokenizers import has_space_in_words, tokenizer_hash, vocabulary_size
from bert_pretrain.text.words import WordFinder, describe_words

_SENTENCES_PER_BATCH = 2_000  # tokenised at once, on all cores
_TOKENS_PER_RECORD_BATCH = 4_000_000  # 12 MB of ids and word starts
_MADE_WITH = ("datasets", "tokenizers", "sentencex", "regex")  # whose versions a corpus names


@dataclass(frozen=True)
class _Document:
    """A tokenised document; characters and UTF-8 bytes are those of its sentences."""

    input_ids: NDArray[Any]
    word_starts: NDArray[np.uint8]
    sentence_lengths: NDArray[np.uint32]
    digest: bytes
    num_characters: int
    num_bytes: int


@dataclass(frozen=True)
class _Written:
    """What is kept in memory of the documents of an Arrow file: digests, characters and bytes."""

    digests: list[bytes]
    num_characters: array[int]
    num_bytes: array[int]


def default_cache_dir() -> Path:
    """Return where corpora are kept: below the Hugging Face cache, which HF_HOME moves."""
    return Path(HF_HOME) / "bert_pretrain" / "prepared"


def prepared_copies() -> Shelf:
    """Return where prepared corpora are kept, for whoever lists and removes them."""
    return Shelf(default_cache_dir(), _describe_copy, folder_lock)


def _describe_copy(folder: Path) -> str:
    manifest = read_manifest(folder)
    return f"{manifest['counts']['tokens']:,} tokens of {manifest['source']['description']}"


def prepare_corpus(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerFast,
    *,
    output_dir: Path | None,
    language: str | None,
    validation_share: float,
    seed: int,
    held_out: DocumentSource | None = None,
    show_progress: bool = True,
) -> PreparedCorpus:
    """Prepare a corpus, or load it if `output_dir` holds the same one already, undamaged.

    Of processes that call this at once the first prepares, the others wait. A process that is
    killed leaves nothing that could be taken for a corpus.

    Args:
        source: the documents; exact duplicates are dropped.
        tokenizer: cuts sentences into tokens, without special ones.
        output_dir: target folder; another corpus in it is replaced. None = a folder in the cache.
        language: standard code of the text's language, whose rules split sentences; None = not
            stated, then the rules are those of English. Paragraphs in other scripts have their own,
            see `split_sentences`. If the folder holds a corpus that differs only in the stated
            language, in what is noted of it or where its files lie, its manifest alone is written
            again.
        validation_share: share of the tokens held out, in [0, 0.5), see `division`. What is held
            out does not depend on the order of documents.
        seed: of that choice.
        held_out: the documents to hold out, in place of a share. Training documents that are among
            them are left out and named in the manifest.
        show_progress: whether to draw a progress bar.

    Raises:
        InputError: `output_dir` holds something else, or the source cannot be used.
    """
    rules = sentence_rules(language)
    languages = {"language": language or source.language, "sentence_rules": rules}
    share = validation_share if held_out is None else None
    notes = [*source.notes, *(held_out.notes if held_out is not None else ())]
    choices = {**languages, "validation_share": share, "seed": seed, "notes": notes}
    division = share if held_out is None else held_out.fingerprint
    parts = [FORMAT_VERSION, source.fingerprint, tokenizer_hash(tokenizer), rules, division]
    if has_space_in_words(tokenizer):
        parts.append("a space before each sentence but the first")
    # Where no share is drawn, the seed decides nothing.
    determinants = json.dumps([*parts, seed if share else None, metadata.version("sentencex")])
    finder = WordFinder()
    key = hashlib.sha256(determinants.encode()).hexdigest()
    # Of a corpus with text that the segmenter has cut; installing another changes no other corpus.
    segmented_key = hashlib.sha256(f"{key} {finder.segmenter.name}".encode()).hexdigest()
    is_ours = output_dir is None
    output_dir = (output_dir or default_cache_dir() / key[:20]).absolute()
    check_creatable(output_dir, parameter="output_dir")
    files = [*source.files, *(held_out.files if held_out is not None else ())]
    with folder_lock(output_dir):
        corpus = found_corpus(output_dir, {key, segmented_key}, is_ours=is_ours)
        if corpus is not None:
            if is_ours:
                hold(output_dir)
            return restated(corpus, languages, notes, files)
        with atomic_folder(output_dir) as aside:
            filled = _fill(aside, source, held_out, tokenizer, finder, choices, show_progress)
            filled["source"]["files"] = files
            corpus_key = segmented_key if filled["words"]["segmenter"] else key
            identity = {"format_version": FORMAT_VERSION, "key": corpus_key}
            write_manifest(aside, identity | filled)
        if is_ours:
            hold(output_dir)
        return PreparedCorpus.load(output_dir)


def _fill(
    folder: Path,
    source: DocumentSource,
    held_out_source: DocumentSource | None,
    tokenizer: PreTrainedTokenizerFast,
    finder: WordFinder,
    choices: dict[str, Any],
    show_progress: bool,
) -> dict[str, Any]:
    """Write all of a corpus but its manifest, which is returned; `choices` are part of it."""
    dtype = np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.uint32
    distinct = DistinctDocuments(source, held_out_source, choices["seed"])
    documents = _tokenise(
        iter(distinct), tokenizer, finder, choices["sentence_rules"], dtype, distinct.skipped
    )
    progress = tqdm(documents, desc="preparing", unit=" documents", disable=not show_progress)
    written = _write(progress, folder / ARROW_FILE, dtype)
    if not written.digests:
        raise InputError(
            f"{source.description} holds no sentence",
            advice="pass other `data_files` or `dataset_name`",
        )
    sizes = [np.array(column) for column in (written.num_characters, written.num_bytes)]
    if held_out_source is None:
        division = _divide(folder / ARROW_FILE, written.digests, choices["validation_share"])
        held_out, num_cut = division.held_out, len(division.cut)
        held_out_sizes = [division.held_out_sum(column) for column in sizes]
    else:
        held_out = np.flatnonzero([distinct.is_held_out[digest] for digest in written.digests])
        num_cut, held_out_sizes = 0, [int(column[held_out].sum()) for column in sizes]
    np.save(folder / VALIDATION_FILE, held_out)
    counts = {
        "characters": int(sizes[0].sum()),
        "bytes": int(sizes[1].sum()),
        "validation_documents": len(held_out),
        "validation_characters": held_out_sizes[0],
        "validation_bytes": held_out_sizes[1],
        "divided_documents": num_cut,
    }
    described = {"description": source.description, "fingerprint": source.fingerprint}
    if held_out_source is not None:
        described["held_out"] = held_out_source.description
    return {
        "source": described,
        "tokenizer": {
            "name": tokenizer.name_or_path,
            "hash": tokenizer_hash(tokenizer),
            "vocab_size": vocabulary_size(tokenizer),
        },
        **choices,
        **_count(folder, held_out, tokenizer, finder, counts),
        "skipped": dict(distinct.all_skipped),
        "held_out_twice": distinct.held_out_twice,
        "versions": {name: metadata.version(name) for name in _MADE_WITH},
    }


def _count(
    folder: Path,
    held_out: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerFast,
    finder: WordFinder,
    counts: dict[str, int],
) -> dict[str, Any]:
    """Write how often each token occurs in the training documents; return the manifest's counts."""
    store, vocab_size = TokenStore.open(folder / ARROW_FILE), vocabulary_size(tokenizer)
    training = np.setdiff1d(np.arange(store.num_documents), held_out, assume_unique=True)
    token_counts = count_tokens(store, training, vocab_size)
    write_token_counts(folder, token_counts)
    held_out_counts = count_tokens(store, held_out, vocab_size)
    unknown = tokenizer.unk_token_id
    num_unknown = 0 if unknown is None else token_counts[unknown] + held_out_counts[unknown]
    num_sentences = sum(len(shard.sentence_lengths) for shard in store.shards)
    return {
        "counts": {
            "documents": store.num_documents,
            "sentences": num_sentences,
            "tokens": store.num_tokens,
            "validation_tokens": int(held_out_counts.sum()),
        }
        | counts,
        "words": describe_words(store, finder),
        "unknown_rate": int(num_unknown) / store.num_tokens,
        "tokens_per_sentence": store.num_tokens / num_sentences,
        "tokens_per_document": store.num_tokens / store.num_documents,
    }


def _divide(file: Path, digests: list[bytes], validation_share: float) -> Division:
    """Choose what an Arrow file's documents hold out, and cut those in it that are to be cut."""
    division = divide(TokenStore.open(file), digests, validation_share)
    if len(division.cut):
        whole = file.with_suffix(".whole")
        file.rename(whole)
        write_divided(whole, file, division)
        whole.unlink()
    return division


def _tokenise(
    documents: Iterator[tuple[str, bytes]],
    tokenizer: PreTrainedTokenizerFast,
    finder: WordFinder,
    language: str,
    dtype: DTypeLike,
    skipped: Counter[str],
) -> Iterator[_Document]:
    """Cut documents into sentences and those into tokens, many short documents at once."""
    backend = literal_backend(tokenizer)
    space = " " if has_space_in_words(tokenizer) else ""
    split = ((_sentences(text, language), digest) for text, digest in documents)
    for group in grouped(split, lambda document: len(document[0]), _SENTENCES_PER_BATCH):
        texts = [
            space * (number > 0) + sentence
            for sentences, _ in group
            for number, sentence in enumerate(sentences)
        ]
        encoded = _encode(texts, backend, finder, dtype)
        for sentences, digest in group:
            cut = list(islice(encoded, len(sentences)))
            kept = [(ids, starts) for ids, starts in cut if len(ids)]
            skipped["sentences without tokens"] += len(cut) - len(kept)
            if not kept:
                skipped["documents without tokens"] += 1
                continue
            ids, starts = (np.concatenate(parts) for parts in zip(*kept, strict=True))
            lengths = np.array([len(ids) for ids, _ in kept], dtype=np.uint32)
            size = sum(map(len, sentences)), sum(len(text.encode()) for text in sentences)
            yield _Document(ids, starts, lengths, digest, *size)


def _sentences(text: str, language: str) -> list[str]:
    return text.sentences if isinstance(text, SplitText) else split_sentences(text, language)


def _encode(
    sentences: list[str], backend: Tokenizer, finder: WordFinder, dtype: DTypeLike
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Yield token ids and word starts of each sentence, both (T,)."""
    # Encodings are large; a novel's would take a gigabyte at once.
    for first in range(0, len(sentences), _SENTENCES_PER_BATCH):
        batch = sentences[first : first + _SENTENCES_PER_BATCH]
        encodings = backend.encode_batch(batch, add_special_tokens=False)
        starts = finder.word_starts(batch, (encoding.offsets for encoding in encodings))
        for encoding, is_start in zip(encodings, starts, strict=True):
            yield np.array(encoding.ids, dtype=dtype), is_start


def _write(documents: Iterable[_Document], path: Path, dtype: DTypeLike) -> _Written:
    """Write the Arrow file, record batch by record batch."""
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    token_type = np.dtype(dtype).name
    types = {"input_ids": token_type, "word_starts": "uint8", "sentence_lengths": "uint32"}
    features = Features({name: List(Value(type_name)) for name, type_name in types.items()})
    written = _Written([], array("q"), array("q"))
    with ArrowWriter(features=features, path=str(path)) as writer:
        size = _TOKENS_PER_RECORD_BATCH
        for group in grouped(documents, lambda document: len(document.input_ids), size):
            columns = {}
            for name in types:
                rows = [getattr(document, name) for document in group]
                offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
                columns[name] = pa.ListArray.from_arrays(offsets, np.concatenate(rows))
            writer.write_table(pa.table(columns), writer_batch_size=len(group))
            written.digests.extend(document.digest for document in group)
            written.num_characters.extend(document.num_characters for document in group)
            written.num_bytes.extend(document.num_bytes for document in group)
        if written.digests:
            writer.finalize()
    return written
