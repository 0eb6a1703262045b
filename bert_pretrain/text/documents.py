"""Raw text: where documents come from, and how they are split into sentences.

A document is a `str`, its paragraphs separated by newlines. Documents are read one at a time, so
that no corpus is ever held in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bert_pretrain.data.names import existing_files, is_saved_dataset
from bert_pretrain.data.row_files import (
    file_kind,
    is_unicode,
    open_parquet,
    read_csv,
    read_json_lines,
    read_lines,
)
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.text.embedded import embedded_documents, embedded_key

DocumentBoundary: TypeAlias = Literal["blank_line", "file"]
EXTENSIONS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
DEFAULT_SENTENCE_RULES = "en"  # where no language is stated
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*", re.IGNORECASE)


@dataclass(frozen=True)
class TextSource:
    """Where text comes from and how it becomes documents.

    Attributes:
        dataset_name: `docs` for the documentation inside the user's Python, a folder saved by
            `datasets`, or a data set on the Hub or in a local folder; for `open_corpus` also a
            prepared corpus. None = `docs`, unless there are `data_files`.
        data_files: paths or globs of .txt, .jsonl, .csv and .parquet, each also with .gz or .zst.
        text_column: column that holds the text; a row is a document.
        document_boundary: what ends a document of a .txt: a blank line, or the file. In the first
            case the lines of a document are joined by spaces, because they are usually wrapped; in
            the second a blank line ends a paragraph.
        streaming: whether to read a Hub data set without downloading it first.
        language: code of the text's language; None = not stated.
        validation_share: share of documents that a corpus holds out, in (0, 0.5).
        preprocessing_num_workers: threads that tokenise; 0 = one per core.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_split: str = "train"
    data_files: list[str] | None = None
    text_column: str = "text"
    document_boundary: DocumentBoundary = "blank_line"
    streaming: bool = False
    language: str | None = None
    validation_share: float = 0.05
    preprocessing_num_workers: int = 0


@dataclass
class DocumentSource:
    """Documents that can be read again and again.

    Attributes:
        description: what the source is, for people.
        fingerprint: changes when the documents may have changed.
        read: starts a new pass over the documents.
        skipped: how many the last pass left out, by reason.
        language: code of its language; None = not known.
    """

    description: str
    fingerprint: str
    read: Callable[[], Iterator[str]]
    skipped: Counter[str] = field(default_factory=Counter)
    language: str | None = None

    def __iter__(self) -> Iterator[str]:
        """Read all documents; empty ones are skipped and counted.

        Raises:
            InputError: a file cannot be used, or there is no document at all.
        """
        self.skipped.clear()
        is_empty = True
        for text in self.read():
            if not isinstance(text, str) or not is_unicode(text):
                self.skipped["not text"] += 1
            elif not text.strip():
                self.skipped["empty"] += 1
            else:
                is_empty = False
                yield text
        if is_empty:
            raise InputError(
                f"{self.description} holds no text",
                advice="pass other `data_files` or `dataset_name`",
            )


def open_documents(text: TextSource) -> DocumentSource:
    """Find the documents of a text. Files are opened when they are read.

    Raises:
        InputError: a file is missing, empty or of an unknown kind, or the data set cannot be
            loaded.
    """
    if text.data_files:
        return _open_files(text.data_files, text.text_column, text.document_boundary)
    if text.dataset_name not in (None, "docs"):
        return _open_dataset(text)
    description = "docs: the documentation inside this Python"
    key = embedded_key()
    return DocumentSource(description, key, lambda: iter(embedded_documents()), language="en")


def check_language(language: str) -> None:
    """Raise `InputError` unless a language is named by a code: sentencex takes all as English."""
    if not _LANGUAGE_CODE.fullmatch(language):
        raise InputError.out_of_range(
            "language", language, "a code such as en or pt-br", "pass the code as `language`"
        )


def split_sentences(text: str, language: str) -> list[str]:
    """Split a document into stripped, non-empty sentences; a newline always ends one.

    A language without rules of its own gets those of a related one.
    """
    from sentencex import segment

    paragraphs = filter(None, map(str.strip, text.splitlines()))
    pieces = (piece.strip() for paragraph in paragraphs for piece in segment(language, paragraph))
    return [sentence for sentence in pieces if sentence]


def _open_files(
    patterns: list[str], text_column: str, document_boundary: DocumentBoundary
) -> DocumentSource:
    paths = list(dict.fromkeys(path for pattern in patterns for path in existing_files(pattern)))
    for path in paths:
        if file_kind(path) not in EXTENSIONS:
            raise InputError(
                f"{path} has an unknown extension",
                advice=f"`data_files` takes {', '.join(EXTENSIONS)}, each also with .gz or .zst",
            )
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty", advice="remove it from `data_files`")
    identity = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    described = json.dumps([identity, text_column, document_boundary])
    names = ", ".join(path.name for path in paths[:4]) + (", ..." if len(paths) > 4 else "")

    def read() -> Iterator[str]:
        for path in paths:
            yield from _read_file(path, text_column, document_boundary)

    return DocumentSource(names, hashlib.sha256(described.encode()).hexdigest(), read)


def _read_file(path: Path, text_column: str, document_boundary: DocumentBoundary) -> Iterator[str]:
    kind = file_kind(path)
    if kind == ".txt":
        yield from _read_text(path, document_boundary)
    elif kind in (".jsonl", ".json"):
        for number, row in read_json_lines(path, parameter="data_files"):
            if text_column not in row:
                raise _missing_column(f"{path}, line {number},", text_column, list(row))
            yield row[text_column]
    elif kind == ".csv":
        for block in read_csv(path, parameter="data_files"):
            if text_column not in block.columns:
                raise _missing_column(path, text_column, list(block.columns))
            yield from block[text_column].tolist()
    else:
        with open_parquet(path, parameter="data_files") as parquet:
            if text_column not in parquet.schema_arrow.names:
                raise _missing_column(path, text_column, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(batch_size=1000, columns=[text_column]):
                yield from batch.column(0).to_pylist()


def _read_text(path: Path, document_boundary: DocumentBoundary) -> Iterator[str]:
    lines = (line.strip() for line in read_lines(path, parameter="data_files"))
    runs = (" ".join(run) for has_text, run in groupby(lines, key=bool) if has_text)
    if document_boundary == "blank_line":
        yield from runs
    elif text := "\n".join(runs):
        yield text


def _missing_column(where: object, text_column: str, columns: list[Any]) -> InputError:
    listed = ", ".join(map(repr, columns)) or "none"
    return InputError(
        f"{where} has no column {text_column!r}",
        advice=f"it has {listed}; pass one of them as `text_column`",
    )


def _open_dataset(text: TextSource) -> DocumentSource:
    from datasets import DatasetDict, IterableDatasetDict, load_dataset, load_from_disk

    name, config_name, split = text.dataset_name, text.dataset_config_name, text.dataset_split
    assert name is not None
    column = text.text_column
    folder = Path(name)
    is_saved = is_saved_dataset(folder)
    try:
        if is_saved:
            dataset = load_from_disk(name)
        else:
            dataset = load_dataset(name, config_name, streaming=text.streaming)
    except Exception as error:  # datasets raises whatever its builders and the network raise
        raise InputError(
            f"the data set {name!r} cannot be loaded ({first_line(error)})",
            advice="`dataset_name` takes 'docs', a folder or a Hub id",
        ) from error
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        if split not in dataset:
            raise InputError(
                f"the data set {name!r} has no split {split!r}",
                advice=f"it has {', '.join(map(str, dataset))}; change `dataset_split`",
            )
        dataset, folder = dataset[split], folder / split
    columns = dataset.column_names
    if columns is not None and column not in columns:
        raise _missing_column(f"the data set {name!r}", column, columns)
    if is_saved:
        identity = json.loads((folder / "state.json").read_text())["_fingerprint"]
    elif files := getattr(dataset, "cache_files", None):  # a stream has none
        # The end of a path in the cache: configuration, version, hash of the content, file.
        identity = [Path(file["filename"]).parts[-4:] for file in files]
    else:
        identity = f"{name} {config_name} {dataset.info.version}"
    fingerprint = hashlib.sha256(json.dumps([identity, split, column]).encode()).hexdigest()
    texts = dataset.select_columns([column])
    return DocumentSource(f"{name} ({split})", fingerprint, lambda: (row[column] for row in texts))
