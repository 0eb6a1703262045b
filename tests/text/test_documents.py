"""Sources of documents and their errors."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset

from bert_pretrain.errors import InputError
from bert_pretrain.text import documents as corpus
from bert_pretrain.text.documents import (
    DocumentSource,
    TextSource,
    open_documents,
)

TEXTS = [
    'First document. It has a comma, and a quote: "so".',
    "Second one.\nIts second paragraph.",
    "Dritte: äöü €.",
]


def open_files(*paths: Path | str, **options: Any) -> DocumentSource:
    return open_documents(TextSource(data_files=[str(path) for path in paths], **options))


def write(path: Path, texts: list[str]) -> Path:
    """Write the same documents in the format that the name asks for."""
    kind = path.name.removesuffix(".gz").rsplit(".")[-1]
    if kind == "parquet":
        pd.DataFrame({"id": range(len(texts)), "text": texts}).to_parquet(path.with_name("plain"))
        content = path.with_name("plain").read_bytes()
    elif kind == "csv":
        content = (
            pd.DataFrame({"id": range(len(texts)), "text": texts}).to_csv(index=False).encode()
        )
    else:
        content = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_row_is_a_document(tmp_path: Path, kind: str, suffix: str) -> None:
    source = open_files(write(tmp_path / f"texts.{kind}{suffix}", TEXTS))
    assert list(source) == TEXTS
    assert list(source) == TEXTS, "a second pass reads the same"


def test_blank_lines_end_documents_and_wrapped_lines_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\nA sentence that is\nwrapped. Another.\r\n\n \t \nThe second\ndocument.")
    assert list(open_files(path)) == [
        "A sentence that is wrapped. Another.",
        "The second document.",
    ]


def test_a_file_can_be_one_document_of_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Other file.\n")
    (tmp_path / "a.txt").write_text("One\nparagraph.\n\n\nAnother\nparagraph.\n")
    source = open_files(tmp_path / "*.txt", document_boundary="file")
    assert list(source) == ["One paragraph.\nAnother paragraph.", "Other file."]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_of_a_csv_file_tells_what_separates_its_cells(
    tmp_path: Path, separator: str
) -> None:
    frame = pd.DataFrame({"id, first": [1, 2], "text": ["one; and, two\tthree", 'a "quote"']})
    frame.to_csv(tmp_path / "a.csv", sep=separator, index=False, quoting=csv.QUOTE_NONNUMERIC)
    assert list(open_files(tmp_path / "a.csv")) == frame["text"].tolist()


def test_files_are_read_in_order_of_the_flag_and_once_each(tmp_path: Path) -> None:
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert list(open_files(tmp_path / "c.txt", tmp_path / "*.txt")) == ["c", "a", "b"]


def test_byte_order_marks_and_brackets_in_names_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    path.write_bytes(b"\xef\xbb\xbfText.")
    assert list(open_files(path)) == ["Text."]


def test_files_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 3 + "bad\n")
    # What newlines mean is told by the first part of the text, which is read at once.
    documents = iter(open_files(path, newline="paragraph"))
    assert [next(documents) for _ in range(3)] == ["good"] * 3
    with pytest.raises(InputError, match="line 4"):
        next(documents)


def test_empty_documents_are_skipped_and_counted_anew_in_each_pass(tmp_path: Path) -> None:
    rows = [
        {"text": "a"},
        {"text": " \n"},
        {"text": None},
        {"text": 3},
        {"text": ""},
        {"text": "half \ud800"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    source = open_files(path)
    for _ in range(2):
        assert list(source) == ["a"]
        assert source.skipped == {"empty": 2, "not text": 3}


def test_the_fingerprint_follows_content_and_options(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = open_files(path).fingerprint
    assert open_files(path).fingerprint == first
    assert open_files(path, document_boundary="file").fingerprint != first
    assert open_files(path, text_column="other").fingerprint != first
    assert open_files(path, newline="sentence").fingerprint != first
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert open_files(path).fingerprint != first


def test_the_fingerprint_is_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    first, second = tmp_path / "here", tmp_path / "there/deep"
    first.mkdir()
    write(first / "a.jsonl", TEXTS)
    write(first / "b.csv.gz", TEXTS[:1])
    shutil.copytree(first, second)  # gzip notes the second of writing
    os.utime(second / "a.jsonl", ns=(1, 1))
    here = open_files(first / "*").fingerprint
    assert open_files(second / "*").fingerprint == here
    assert open_files(second / "a.jsonl", first / "b.csv.gz").fingerprint == here
    assert open_files(first / "b.csv.gz", first / "a.jsonl").fingerprint != here, "order decides"
    (second / "a.jsonl").rename(second / "z.jsonl")
    assert open_files(second / "z.jsonl", second / "b.csv.gz").fingerprint == here
    text = (second / "z.jsonl").read_text()
    (second / "z.jsonl").write_text(text.replace("First", "first"))
    assert open_files(second / "z.jsonl", second / "b.csv.gz").fingerprint != here


def test_the_fingerprint_of_a_data_set_is_of_its_content(tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"text": TEXTS})
    dataset.save_to_disk(tmp_path / "first")
    # Another fingerprint of `datasets`, because it was made in another way.
    dataset.map(lambda row: row).save_to_disk(tmp_path / "second")
    state = [
        json.loads((tmp_path / name / "state.json").read_text()) for name in ("first", "second")
    ]
    assert state[0]["_fingerprint"] != state[1]["_fingerprint"]

    def fingerprint(name: str) -> str:
        return open_documents(TextSource(dataset_name=str(tmp_path / name))).fingerprint

    first = fingerprint("first")
    assert fingerprint("second") == first
    (tmp_path / "first").rename(tmp_path / "moved")
    assert fingerprint("moved") == first
    Dataset.from_dict({"text": [*TEXTS[:2], TEXTS[2] + "!"]}).save_to_disk(tmp_path / "other")
    assert fingerprint("other") != first


def test_a_file_that_changes_while_documents_are_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    documents = iter(open_files(path))
    next(documents)
    with path.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(InputError, match=r"a.jsonl changes while it is read"):
        list(documents)


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    Dataset.from_dict({"text": TEXTS, "id": [1, 2, 3]}).save_to_disk(tmp_path / "saved")
    source = open_documents(TextSource(dataset_name=str(tmp_path / "saved")))
    assert list(source) == list(source) == TEXTS
    Dataset.from_dict({"text": TEXTS[:2]}).save_to_disk(tmp_path / "other")
    assert (
        open_documents(TextSource(dataset_name=str(tmp_path / "other"))).fingerprint
        != source.fingerprint
    )
    with pytest.raises(InputError, match=r"no column 'body'.*'text', 'id'.*`text_column`"):
        open_documents(TextSource(dataset_name=str(tmp_path / "saved"), text_column="body"))


def test_a_local_folder_is_a_data_set_streamed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.jsonl", TEXTS)
    for streaming in (False, True):
        source = open_documents(TextSource(dataset_name=str(folder), streaming=streaming))
        assert list(source) == list(source) == TEXTS
    with pytest.raises(InputError, match=r"no split 'test'; it has train; change `dataset_split`"):
        open_documents(TextSource(dataset_name=str(folder), dataset_split="test"))


def test_docs_is_the_embedded_corpus_and_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "embedded_documents", lambda: TEXTS)
    for name in (None, "docs"):
        source = open_documents(TextSource(dataset_name=name))
        assert list(source) == TEXTS and source.language == "en"


BAD_FILES = {
    "missing.txt": (None, "no file"),
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b"\n \n\n", "no text"),
    "nul.txt": (b"text \0 text", "binary"),
    "latin.txt": ("é".encode("latin-1"), "0xe9"),
    "photo.jpeg": (b"x", r"unknown extension.*\.jsonl"),
    "cut.txt.gz": (gzip.compress(b"word " * 999)[:30], "gzip"),
    "not.txt.gz": (b"plain text", "gzip"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": ', "line 2, is not JSON"),
    "digits.jsonl": (b'{"text": "a"}\n{"text": ' + b"1" * 5000 + b"}", "line 2, is not JSON"),
    "deep.jsonl": (b"[" * 200_000, "line 1, is not JSON"),
    "not.txt.zst": (b"plain text", "cannot be read .*ZSTD"),
    "cut.txt.zst": (
        pa.compress(b"Words that go on. " * 9999, codec="zstd", asbytes=True)[:40],
        "cannot be read .*Truncated",
    ),
    "list.jsonl": (b"[1, 2]", "line 1, is a list, not an object"),
    "other.jsonl": (
        b'{"body": "a", "id": 1}',
        r"no column 'text'; it has 'body', 'id'; pass .* `text_column`",
    ),
    "other.csv": (
        b"body,id\na,1\n",
        r"no column 'text'; it has 'body', 'id'; pass .* `text_column`",
    ),
    "latin.csv": ("text,id\n\xe9,1\n".encode("latin-1"), "not UTF-8 text .*0xe9"),
    "cut.csv.gz": (gzip.compress(b"text,id\n" + b"words,1\n" * 999)[:60], "gzip"),
    "cut.parquet.gz": (gzip.compress(bytes(range(256)) * 9)[:300], "gzip"),
    "ragged.csv": (b'text,id\n"never closed,1\nb', "CSV"),
    "fake.parquet": (b"no parquet at all", "Parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_the_flag_to_change(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(open_files(path))
    assert name in str(caught.value)
    assert (
        "`data_files`" in str(caught.value)
        or "`text_column`" in str(caught.value)
        or "line" in str(caught.value)
    )


def test_an_unknown_data_set_is_one_message() -> None:
    with pytest.raises(InputError, match=r"'no/such_data_set' cannot be loaded .*`dataset_name`"):
        open_documents(TextSource(dataset_name="no/such_data_set"))


def test_zstandard_files_are_read_also_of_several_frames(tmp_path: Path) -> None:
    frames = [pa.compress(text, codec="zstd", asbytes=True) for text in (b"One.\n\nT", b"wo.")]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert list(open_files(tmp_path / "a.txt.zst")) == ["One.", "Two."]


def test_a_stream_that_breaks_off_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "One sentence. And another one."}
        raise ConnectionError("the line is dead")

    stream = IterableDataset.from_generator(rows)
    monkeypatch.setattr("bert_pretrain.text.data_sets._load_split", lambda *_, **__: stream)
    source = open_documents(TextSource(dataset_name="me/texts", streaming=True, newline="space"))
    with pytest.raises(InputError, match=r"cannot be read to its end \(.*the line is dead"):
        list(source)
