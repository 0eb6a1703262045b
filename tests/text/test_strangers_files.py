"""A stranger's file of text is one message or counted, and never fills the memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ROOT

from bert_pretrain.data import json_files, row_files
from bert_pretrain.data.row_files import LONGEST_LINE, read_parquet_columns
from bert_pretrain.errors import InputError
from bert_pretrain.text.documents import DocumentSource, TextSource, open_documents


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
ROW = b'{"text": "a"}\n'


def open_files(path: Path, **options: str) -> DocumentSource:
    return open_documents(TextSource(data_files=[str(path)], **options))  # type: ignore[arg-type]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "LONGEST_LINE", 2**16)
    monkeypatch.setattr(json_files, "LONGEST_LINE", 2**16)
    monkeypatch.setattr(row_files, "_SMALL_CONTENT", 2**19)
    monkeypatch.setattr(row_files, "_BYTES_AT_ONCE", 2**12)
    monkeypatch.setattr(json_files, "_LETTERS_AT_ONCE", 2**12)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("txt", b"a\n" * 2**19),
        ("jsonl", ROW * 2**16),
        ("json", b"[" + b" " * 2**20 + b"]"),
        ("csv", b"text\n" + b"a\n" * 2**19),
        ("tsv", b"text\n" + b"a\n" * 2**19),
        ("parquet", bytes(2**20)),
    ],
)
def test_a_compressed_file_that_holds_too_many_times_its_size_is_refused(
    tmp_path: Path, kind: str, content: bytes, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_MOST_TIMES_AS_LARGE", 20)  # of gzip's 1000
    path = tmp_path / f"a.{kind}{compression}"
    path.write_bytes(COMPRESS[compression](content))
    with pytest.raises(InputError, match=r"holds more than 20 times its own.*`data_files`"):
        list(open_files(path))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("compression", ["", *COMPRESS])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("txt", b"a\n\n" + b"b" * 2**17),
        ("txt", bytes(2**17)),
        ("jsonl", ROW + b'{"text": "' + b"a" * 2**17 + b'"}\n'),
        ("csv", b"text\na\n" + b"b" * 2**17),
        ("tsv", b"text\na\n" + b"b" * 2**17),
    ],
)
def test_a_line_that_is_too_long_is_refused(
    tmp_path: Path, kind: str, content: bytes, compression: str
) -> None:
    path = tmp_path / f"a.{kind}{compression}"
    path.write_bytes(COMPRESS.get(compression, bytes)(content))
    with pytest.raises(InputError, match=rf"a.{kind}.* has a line of more than 65,536 bytes"):
        list(open_files(path))


@pytest.mark.usefixtures("small_limits")
def test_an_array_may_be_one_line_but_an_object_in_it_not_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a" * 1000}] * 200))
    assert len(list(open_files(path))) == 200
    path.write_text(json.dumps([{"text": "a"}, {"text": "a" * 2**18}]))
    with pytest.raises(InputError, match="an object is longer than 65,536 letters"):
        list(open_files(path))


@pytest.mark.usefixtures("small_limits")
def test_lines_up_to_the_longest_are_read(tmp_path: Path) -> None:
    texts = ["b" * (2**16 - 1), "c" * 10, "d" * (2**16 - 1)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    assert list(open_files(tmp_path / "a.txt")) == texts


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("depth", [300, 900, 5_000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_nesting_is_one_message_or_counted(
    tmp_path: Path, kind: str, depth: int, brackets: str
) -> None:
    opening = "[" if brackets == "[]" else '{"a": '
    row = '{"text": ' + opening * depth + '"x"' + brackets[1] * depth + "}"
    other = '{"text": "some text"}'
    path = tmp_path / f"a.{kind}"
    path.write_text(f"[{other}, {row}]" if kind == "json" else f"{other}\n{row}\n")
    try:
        source = open_files(path)
        documents = list(source)
    except InputError as error:
        assert "a.json" in str(error) and ("JSON" in str(error) or "array" in str(error))
    else:
        assert documents[0] == "some text"
        assert len(documents) == 2 or source.skipped["not text"] == 1
    path.write_text(f"[{row}]" if kind == "json" else f"{row}\n")
    with pytest.raises(InputError) as refused:
        list(open_files(path, text_column="body"))
    assert len(str(refused.value)) < 5000


def test_a_row_without_the_column_does_not_print_a_name_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"x" * 10**6: "some text"}))
    with pytest.raises(InputError, match="no column 'text'") as refused:
        list(open_files(path))
    assert len(str(refused.value)) < 500


def parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def test_large_rows_of_a_parquet_file_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_PARQUET_BYTES_AT_ONCE", 2**16)
    texts = [letter * 10**5 for letter in "abcdefgh"]
    content = parquet(pa.table({"text": texts}), compression="zstd", use_dictionary=False)
    (tmp_path / "a.parquet").write_bytes(content)
    sizes = []
    batches = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, batch_size: int, **options: object) -> object:
        sizes.append(batch_size)
        return batches(self, batch_size=batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert list(open_files(tmp_path / "a.parquet")) == texts
    assert set(sizes) == {1}


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_a_damaged_parquet_file_is_read_or_one_message(tmp_path: Path, compression: str) -> None:
    """Among what is changed are the lengths that its pages and its footer declare."""
    texts = [f"Text number {number}. " * (number % 7) for number in range(300)]
    content = parquet(pa.table({"text": texts}), compression=compression, row_group_size=100)
    generator = np.random.default_rng(5)
    path = tmp_path / "a.parquet"
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(int(generator.integers(1, 4))):
            place = int(generator.integers(len(damaged)))
            damaged[place] = int(generator.integers(256))
        path.write_bytes(damaged)
        try:
            for row in read_parquet_columns(path, ["text"], parameter="data_files"):
                cell = row["text"]
                assert cell is None or isinstance(cell, str | bytes)
            outcomes.add("read")
        except InputError as error:
            assert str(path) in str(error) and "`data_files`" in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_text_longer_than_any_document_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_pretrain.text.documents.LONGEST_DOCUMENT", 100)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{"a" * n}"}}\n' for n in (9, 101, 100)))
    source = open_files(tmp_path / "a.jsonl")
    assert list(map(len, source)) == [9, 100]
    assert source.skipped == {"longer than 100 letters": 1}


# Bytes of which files are made, and pieces of them that readers act upon.
PIECES = st.sampled_from(
    [
        *rb'{"text": ~"a"~}~[~]~,~"~text~\u~\ud800~null~1e999~-~;~ '.split(b"~"),
        *(b"\n", b"\n\n", b"\t", b"\r", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    ]
)
CONTENT = st.lists(PIECES | st.binary(max_size=4), max_size=30).map(b"".join)


@settings(max_examples=150)
@given(
    content=CONTENT,
    kind=st.sampled_from(["txt", "jsonl", "json", "csv", "tsv", "parquet"]),
    compression=st.sampled_from(["", *COMPRESS]),
    is_compressed=st.booleans(),
    quotes=st.sampled_from(["none", "minimal"]),
    boundary=st.sampled_from(["line", "blank_line", "file"]),
)
def test_whatever_a_file_holds_is_read_counted_or_one_message(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    kind: str,
    compression: str,
    is_compressed: bool,
    quotes: str,
    boundary: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{kind}{compression}"
    path.write_bytes(COMPRESS[compression](content) if compression and is_compressed else content)
    try:
        texts = list(open_files(path, tsv_quotes=quotes, document_boundary=boundary))
    except InputError as error:
        assert path.name in str(error)
    else:
        assert texts and all(isinstance(text, str) and text.strip() for text in texts)


READ = """
import sys
from pathlib import Path
from bert_pretrain.data.row_files import read_lines
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import peak_resident_bytes
before = peak_resident_bytes()
try:
    for line in read_lines(Path(sys.argv[1]), parameter="data_files"):
        pass
except InputError as error:
    print(error)
print((peak_resident_bytes() - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it does not tell its peak")
@pytest.mark.parametrize("letter", [b"\0", b"a"])
def test_a_gigabyte_in_one_line_of_a_megabyte_takes_bounded_memory(
    tmp_path: Path, letter: bytes
) -> None:
    part = gzip.compress(letter * 2**24)
    (tmp_path / "a.txt.gz").write_bytes(part * 64)
    assert (tmp_path / "a.txt.gz").stat().st_size < 2 * 10**6
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "a.txt.gz")],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    message, mebibytes = done.stdout.splitlines()
    assert f"has a line of more than {LONGEST_LINE:,} bytes" in message
    assert int(mebibytes) < 4 * LONGEST_LINE // 2**20
