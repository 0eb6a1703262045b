"""The folder in which every refused command is tried."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from strange_files import make_world


@pytest.fixture(scope="session")
def whole_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files, made once."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        _cache_in(tmp_path_factory.mktemp("caches"), patch)
        make_world(folder)
    return folder


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where texts are prepared and images decoded, once for all tests."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def world(whole_world: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, as the current one."""
    torch.set_num_threads(1)
    monkeypatch.chdir(whole_world)
    _cache_in(caches, monkeypatch)
    yield whole_world
    for name in ("out", "runs"):  # of a command that was not refused: only its own test fails
        shutil.rmtree(whole_world / name, ignore_errors=True)


def _cache_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("bert_pretrain.text.preparation.HF_HOME", str(folder))
    patch.setattr("bert_pretrain.images.corpus.HF_HOME", str(folder))
