"""Raw text: where documents come from.

A document is a `str`, its paragraphs separated by newlines, or a `SplitText`, its sentences.
Documents are read one at a time, so that no corpus is ever held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bert_pretrain.data.content import HashedFile, check_unchanged, hash_files
from bert_pretrain.data.names import is_saved_dataset
from bert_pretrain.data.row_files import Quotes, file_kind, is_unicode
from bert_pretrain.errors import InputError
from bert_pretrain.text.data_sets import open_text_column
from bert_pretrain.text.embedded import embedded_documents, embedded_key
from bert_pretrain.text.file_search import FoundFiles, find_files, find_split
from bert_pretrain.text.newlines import SAMPLE_SIZE, NewlineRule, choose_rule, follow_rule
from bert_pretrain.text.prepared import is_prepared
from bert_pretrain.text.text_files import (
    LONGEST_DOCUMENT,
    DocumentBoundary,
    FileReader,
    first_texts,
)

MOST_LISTED = 10_000  # files that a manifest names one by one; a megabyte of it
_DATA_SET = "data set"  # beside the kinds of files


@dataclass(frozen=True)
class TextSource:
    """Where text comes from and how it becomes documents.

    Attributes:
        dataset_name: `docs` for the documentation inside the user's Python, a folder saved by
            `datasets`, or a data set on the Hub or in a local folder; for `open_corpus` also a
            prepared corpus. None = `docs`, unless there are `data_files`.
        data_files: paths or globs of files of `file_search.EXTENSIONS`, also compressed, or of
            folders, which are read whole.
        text_column: column that holds the text, `a.b` = b within a; a row is a document, and so is
            a list of texts, each a paragraph.
        document_boundary: what ends a document of a .txt: a blank line, the line, or the file.
        newline: what a newline inside a document means, see `newlines.follow_rule`; `auto` = what
            a first part of the text makes of it, for each kind of file alone.
        tsv_quotes: what quotes are in a .tsv, see `read_tsv`.
        streaming: whether to read a Hub data set without downloading it first.
        language: code of the text's language in any usual spelling; None = not stated.
        validation_share: share of its tokens that a corpus holds out, in (0, 0.5).
        validation_files: paths or globs of the text to hold out, in place of a share.
        validation_split: the split of the data set to hold out, in place of a share.
        preprocessing_num_workers: threads that tokenise; 0 = one per core.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_split: str = "train"
    data_files: list[str] | None = None
    text_column: str = "text"
    document_boundary: DocumentBoundary = "blank_line"
    newline: Literal["auto"] | NewlineRule = "auto"
    tsv_quotes: Quotes = "none"
    streaming: bool = False
    language: str | None = None
    validation_share: float = 0.05
    validation_files: list[str] | None = None
    validation_split: str | None = None
    preprocessing_num_workers: int = 0


@dataclass
class DocumentSource:
    """Documents that can be read again and again.

    Attributes:
        description: what the source is, for people.
        fingerprint: tells the content of what is read, wherever it lies, and how it is read.
        read: starts a new pass over the documents.
        skipped: how many the last pass left out, by reason.
        language: code of its language; None = not known.
        notes: what was decided about the text and what was left out, a line each.
        files: `path` and `sha256` of each file that is read; none where that is not known, or
            they are more than `MOST_LISTED`.
        newline_rules: what a newline means in each kind of file.
    """

    description: str
    fingerprint: str
    read: Callable[[], Iterator[str]]
    skipped: Counter[str] = field(default_factory=Counter)
    language: str | None = None
    notes: tuple[str, ...] = ()
    files: list[dict[str, str]] = field(default_factory=list)
    newline_rules: dict[str, NewlineRule] = field(default_factory=dict)

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
            elif len(text) > LONGEST_DOCUMENT:
                self.skipped[f"longer than {LONGEST_DOCUMENT:,} letters"] += 1
            else:
                is_empty = False
                yield text
        if is_empty:
            skipped = ", ".join(f"{count:,} {why}" for why, count in self.skipped.items())
            column = ", or another `text_column`" if self.skipped["not text"] else ""
            raise InputError(
                f"{self.description} holds no text" + (f" (skipped: {skipped})" if skipped else ""),
                advice=f"pass other `data_files` or `dataset_name`{column}",
            )


def open_documents(
    text: TextSource, *, known_rules: Mapping[str, NewlineRule] | None = None
) -> DocumentSource:
    """Find the documents of a text, hash its files, and see what their newlines mean.

    In files of kinds that `known_rules` has they mean what these say: text that is held out is read
    as that which it is held out from.

    Raises:
        InputError: a file is missing, empty, of an unknown kind or cannot be read, or the data set
            cannot be loaded.
    """
    found = files_of(text)
    if found is not None:
        return _open_files(text, found, known_rules or {})
    if text.dataset_name in (None, "docs"):
        return _open_embedded(text)
    return _open_dataset(text, known_rules or {})


def files_of(text: TextSource) -> FoundFiles | None:
    """Return the files that a text is in; None if it is embedded, or for `datasets` to read.

    Raises:
        InputError: as `find_files` and `find_split`.
    """
    if text.data_files:
        return find_files(text.data_files)
    if text.dataset_name in (None, "docs") or text.dataset_config_name is not None:
        return None
    folder = Path(str(text.dataset_name))
    if is_prepared(folder):
        raise InputError(
            f"{folder} is a prepared corpus, whose text has become tokens",
            advice="pass the text that it was made of",
        )
    is_for_datasets = not folder.is_dir() or is_saved_dataset(folder)
    return None if is_for_datasets else find_split(folder, text.dataset_split)


def _open_embedded(text: TextSource) -> DocumentSource:
    rule: NewlineRule = "paragraph" if text.newline == "auto" else text.newline
    return DocumentSource(
        "docs: the documentation inside this Python",
        embedded_key() if rule == "paragraph" else _hash([embedded_key(), rule]),
        lambda: _following(rule, embedded_documents()),
        language="en",
    )


def _open_files(
    text: TextSource, found: FoundFiles, known_rules: Mapping[str, NewlineRule]
) -> DocumentSource:
    reader = FileReader(text.text_column, text.document_boundary, text.tsv_quotes)
    files = hash_files(found.paths)
    rules, notes = _newline_rules(text, reader, found.paths, known_rules)
    names = [path.name for path in found.paths[:4]] + ["..."] * (len(found.paths) > 4)
    identity = [(file_kind(file.path), file.hash) for file in files]
    how = [rules, text.text_column, text.document_boundary, text.tsv_quotes]

    def read() -> Iterator[Any]:
        for file in files:
            yield from _following(rules[file_kind(file.path)], reader.read(file.path))
            check_unchanged(file)

    return DocumentSource(
        ", ".join(names),
        _hash([identity, how]),
        read,
        notes=(*notes, *found.notes),
        files=_listed(files),
        newline_rules=rules,
    )


def _newline_rules(
    text: TextSource, reader: FileReader, paths: list[Path], known: Mapping[str, NewlineRule]
) -> tuple[dict[str, NewlineRule], list[str]]:
    """Return what a newline means in each kind of file, and why where that was found out."""
    rules: dict[str, NewlineRule] = {}
    notes = []
    for kind in sorted(set(map(file_kind, paths))):
        if kind in known:
            rules[kind] = known[kind]
            continue
        # Lines of a .txt are wrapped more often than not, those of a cell hardly ever.
        usual: NewlineRule = "space" if kind == ".txt" else "paragraph"
        alike = [path for path in paths if file_kind(path) == kind]
        rules[kind], reason = _newline_rule(text, reader.sample(alike, SAMPLE_SIZE), usual)
        notes += [f"newlines in {kind}: {reason}"] if reason else []
    return rules, notes


def _open_dataset(text: TextSource, known_rules: Mapping[str, NewlineRule]) -> DocumentSource:
    name, config_name, split = text.dataset_name, text.dataset_config_name, text.dataset_split
    column = open_text_column(
        str(name), config_name, split, text.text_column, streaming=text.streaming
    )
    rule, reason = known_rules.get(_DATA_SET), ""
    if rule is None:
        rule, reason = _newline_rule(text, first_texts(column.read(), SAMPLE_SIZE), "paragraph")
    return DocumentSource(
        f"{name} ({split})",
        _hash([column.identity, split, text.text_column, rule]),
        lambda: _following(rule, column.read()),
        notes=(f"newlines: {reason}",) if reason else (),
        files=_listed(column.files),
        newline_rules={_DATA_SET: rule},
    )


def _newline_rule(
    text: TextSource, samples: Iterable[str], usual: NewlineRule
) -> tuple[NewlineRule, str]:
    """Return what a newline means, and why if that was found out."""
    return choose_rule(samples, usual) if text.newline == "auto" else (text.newline, "")


def _following(rule: NewlineRule, cells: Iterable[Any]) -> Iterator[Any]:
    for cell in cells:
        yield follow_rule(cell, rule) if isinstance(cell, str) else cell


def _listed(files: Sequence[HashedFile]) -> list[dict[str, str]]:
    if len(files) > MOST_LISTED:
        return []
    return [{"path": str(file.path.absolute()), "sha256": file.hash} for file in files]


def _hash(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
