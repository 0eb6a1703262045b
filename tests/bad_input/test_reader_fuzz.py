"""Readers of files that come from elsewhere: whatever bytes they meet, they read or refuse them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from strange_files import DEEP, IMAGES, LONG_NUMBER, image, parquet, rows

from bert_pretrain.data.json_files import read_json
from bert_pretrain.data.row_files import read_csv, read_lines, read_tsv
from bert_pretrain.data.run_folder import read_rows, read_run_json
from bert_pretrain.downstream.progress import PROGRESS_FILE, SeedProgress
from bert_pretrain.downstream.tables import read_table
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.pair_files import read_pairs
from bert_pretrain.images.decoding import ImageRow, decode_rows, picture_conversion
from bert_pretrain.images.tables import open_parquet as open_images
from bert_pretrain.text.prepared import (
    ARROW_FILE,
    MANIFEST,
    TOKEN_COUNTS_FILE,
    VALIDATION_FILE,
    PreparedCorpus,
)
from bert_pretrain.training.checkpoint import STATE_FILE, read_state
from bert_pretrain.training.metrics import JsonLines

TEXTS = rows({"text": "Some text. More text."}, {"text": "é \u2028"})
RECORD = json.dumps({"config": {"seed": 1}, "versions": {}, "started": "now"}).encode()
METRICS = rows({"split": "train", "step": 1, "loss": 0.5}, {"split": "validation", "step": 2})
STATE = json.dumps({"format_version": 1, "step": 2, "files": {}, "digest": "0"}).encode()
PROGRESS = json.dumps({"identity": {"a": 1}, "outcomes": {"1": {"metrics": {}}}}).encode()
PAIRS = rows({"good": "It is.", "bad": "It are."}, {"sentence_good": "a", "sentence_bad": "b"})
CELLS = b'text,label\n"A text, quoted.",1\nAnother.,2\n'


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "jpeg")
    return file.getvalue()


def zstandard(content: bytes) -> bytes:
    file = pa.BufferOutputStream()
    with pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(content)
    return bytes(file.getvalue())


def decode(path: Path) -> None:
    row = ImageRow(str(path), {"bytes": None, "path": str(path)}, None)
    (outcome,) = decode_rows(iter([row]), picture_conversion(8, 3, None))
    assert (outcome.pixels is None) == bool(outcome.reason)


class Reader(NamedTuple):
    """A file as it should be, and who reads it."""

    name: str
    content: bytes
    read: Callable[[Path], Any]


def lines(path: Path) -> Any:
    return list(read_lines(path, parameter="data_files"))


def table(path: Path) -> Any:
    return read_table(str(path), parameter="train_file")


def read_images(path: Path) -> Any:
    return list(open_images([path], "image", "label", parameter="data_files").read())


READERS = {
    "text": Reader("a.txt", "A text.\n\nAnother: é.\n".encode(), lines),
    "gzip": Reader("a.txt.gz", gzip.compress(TEXTS, mtime=0), lines),
    "bzip2": Reader("a.txt.bz2", bz2.compress(TEXTS), lines),
    "xz": Reader("a.txt.xz", lzma.compress(TEXTS), lines),
    "zstd": Reader("a.txt.zst", zstandard(TEXTS), lines),
    "csv": Reader("a.csv", CELLS, lambda path: list(read_csv(path, parameter="data_files"))),
    "tsv": Reader(
        "a.tsv",
        CELLS.replace(b",", b"\t"),
        lambda path: list(read_tsv(path, parameter="data_files", quotes="minimal")),
    ),
    "json lines": Reader("a.jsonl", TEXTS, lambda path: list(read_json(path, parameter="x"))),
    "json array": Reader(
        "a.json", b'[{"text": "a"}, {"b": [1, 2.5]}]', lambda p: list(read_json(p, parameter="x"))
    ),
    "parquet": Reader("a.parquet", parquet({"text": ["a", "b"] * 9, "label": [0, 1] * 9}), table),
    "images": Reader("b.parquet", parquet({"image": IMAGES[:3]}), read_images),
    "labelled csv": Reader("b.csv", CELLS, table),
    "labelled json": Reader("b.jsonl", TEXTS, table),
    "pairs": Reader("pairs.jsonl", PAIRS, read_pairs),
    "png": Reader("a.png", image(), decode),
    "jpeg": Reader("a.jpg", jpeg(), decode),
    "run.json": Reader("run.json", RECORD, lambda path: read_run_json(path.parent)),
    "metrics": Reader("metrics.jsonl", METRICS, read_rows),
    "metrics cut back": Reader(
        "more.jsonl", METRICS, lambda path: JsonLines(path).cut_back(keep_until_step=1)
    ),
    "checkpoint": Reader(STATE_FILE, STATE, lambda path: read_state(path.parent)),
    "seeds": Reader(
        PROGRESS_FILE,
        PROGRESS,
        lambda p: SeedProgress(p.parent, {"a": 1}, seeds=range(100)).read(),
    ),
}
# What earlier versions answered with a traceback.
FOUND: list[tuple[str, bytes]] = [
    *((name, DEEP) for name in ("run.json", "metrics", "checkpoint", "seeds", "pairs")),
    ("metrics", DEEP + b"\n"),
    ("metrics cut back", DEEP + b"\n"),
    ("metrics cut back", b'{"step": ' + LONG_NUMBER + b"}\n"),
    ("metrics cut back", b"\xff\xfe\n"),
    ("metrics", b'{"step": "one"}\n'),
    ("seeds", b'{"identity": [], "outcomes": []}'),
    ("images", parquet({"image": IMAGES})[:-60]),
    (
        "parquet",
        parquet({"text": ["a", "b"] * 9}).replace(b"\x01\x00\x00\x00b", b"\x01\x00\x00\x00\x80"),
    ),
]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file with some bytes changed, put in or cut away, or any bytes at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=60))
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(found) - 1)))
        more = draw(st.binary(min_size=1, max_size=4))
        action = draw(st.sampled_from(["change", "put in", "cut away", "cut off"]))
        if action == "change":
            found[place : place + len(more)] = more
        elif action == "put in":
            found[place:place] = more
        elif action == "cut away":
            del found[place : place + draw(st.integers(1, 40))]
        else:
            del found[place:]
    return bytes(found)


def check(reader: Reader, content: bytes, folder: Path) -> None:
    path = folder / reader.name
    path.write_bytes(content)
    try:
        reader.read(path)
    except InputError as error:
        assert str(error).strip() and error.advice
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(folder: Path, name: str) -> None:
    path = folder / READERS[name].name
    path.write_bytes(READERS[name].content)
    if name == "checkpoint":  # nobody can make up its digest
        with pytest.raises(InputError, match="damaged"):
            READERS[name].read(path)
    else:
        READERS[name].read(path)
    path.unlink()


@pytest.mark.parametrize(("name", "content"), FOUND, ids=range(len(FOUND)))
def test_what_was_found_is_refused_or_read(folder: Path, name: str, content: bytes) -> None:
    check(READERS[name], content, folder)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(folder: Path, name: str, data: st.DataObject) -> None:
    check(READERS[name], data.draw(damaged(READERS[name].content)), folder)


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=3000, derandomize=False)
@given(data=st.data())
def test_many_damaged_files_are_refused_or_read(
    folder: Path, name: str, data: st.DataObject
) -> None:
    check(READERS[name], data.draw(damaged(READERS[name].content)), folder)


@pytest.mark.parametrize("name", [MANIFEST, ARROW_FILE, VALIDATION_FILE, TOKEN_COUNTS_FILE])
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_corpus_is_refused_or_read(
    whole_world: Path, folder: Path, name: str, data: st.DataObject
) -> None:
    """Bytes of its tokens are not looked at here: what they say is numbers, whatever they are."""
    copy = folder / "corpus"
    shutil.copytree(whole_world / "prepared", copy, dirs_exist_ok=True)
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(data.draw(damaged(whole)))
    try:
        corpus = PreparedCorpus.load(copy)
        assert np.issubdtype(corpus.token_counts.dtype, np.integer)
    except InputError as error:
        assert error.advice
    finally:
        shutil.rmtree(copy)
