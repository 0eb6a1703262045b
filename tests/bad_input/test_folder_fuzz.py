"""Models, embeddings and shards of strangers: whatever bytes a file has, it is read or refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from banks import write_bank
from downstream_models import make_text_model
from hypothesis import given, settings
from hypothesis import strategies as st
from strange_files import image
from test_reader_fuzz import damaged

from bert_pretrain.downstream.models import read_model_config
from bert_pretrain.embedding.search import open_bank
from bert_pretrain.errors import InputError
from bert_pretrain.images.tars import open_tars
from bert_pretrain.models.loaded_models import load_encoder
from bert_pretrain.text.tokenizers import load_tokenizer


class Reader(NamedTuple):
    """A file beside others, and who reads it."""

    name: str
    read: Callable[[Path], Any]


def read_bank(path: Path) -> Any:
    return list(open_bank(path.parent / "bank.npy").blocks())


def read_rows(path: Path) -> Any:
    bank = open_bank(path)
    return list(bank.blocks()), bank.facts_of([0])


def read_tar(path: Path) -> Any:
    return list(open_tars([path], parameter="data_files").read())


def read_weights(path: Path) -> Any:
    return load_encoder(str(path.parent), read_model_config(str(path.parent)))


READERS = {
    "matrix": Reader("bank.npy", read_bank),
    "table of a matrix": Reader("bank.rows.parquet", read_bank),
    "embeddings": Reader("rows.parquet", read_rows),
    "shard": Reader("images.tar", read_tar),
    "configuration": Reader("config.json", lambda path: read_model_config(str(path.parent))),
    "weights": Reader("model.safetensors", read_weights),
    "tokenizer": Reader("tokenizer.json", lambda path: load_tokenizer(str(path.parent))),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all of these files, whole."""
    folder = tmp_path_factory.mktemp("whole")
    make_text_model(folder)
    for name in ("bank.npy", "rows.parquet"):
        write_bank(folder / name, np.eye(3, 2, dtype=np.float32), sizes=[3])
    with tarfile.open(folder / "images.tar", "w") as archive:
        for name, content in (("1.png", image()), ("1.cls", b"3"), ("2.png", image())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder


def check(reader: Reader, folder: Path, content: bytes) -> None:
    """Read a file with other content, which is then as it was."""
    path = folder / reader.name
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        reader.read(path)
    except InputError as error:
        assert str(error).strip() and error.advice
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(folder: Path, name: str) -> None:
    READERS[name].read(folder / READERS[name].name)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(folder: Path, name: str, data: st.DataObject) -> None:
    whole = (folder / READERS[name].name).read_bytes()
    check(READERS[name], folder, data.draw(damaged(whole)))


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=1000, derandomize=False)
@given(data=st.data())
def test_many_damaged_files_are_refused_or_read(
    folder: Path, name: str, data: st.DataObject
) -> None:
    whole = (folder / READERS[name].name).read_bytes()
    check(READERS[name], folder, data.draw(damaged(whole)))


def test_an_archive_that_is_named_as_a_matrix_is_refused(folder: Path) -> None:
    archive = io.BytesIO()
    np.savez(archive, a=np.eye(2))
    check(READERS["matrix"], folder, archive.getvalue())
