"""Hashes of files: of their bytes, wherever they lie, and computed as seldom as can be."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import environment

from bert_pretrain.data import content
from bert_pretrain.data.content import check_unchanged, hash_files
from bert_pretrain.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache here, and let the clock of the file system be an exact one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(content, "_SETTLED_NANOSECONDS", 0)
    return tmp_path / "hf/bert_pretrain/content" / content.CACHE_FILE


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the paths of files that are hashed, as they are."""
    paths: list[Path] = []
    hash_one: Callable[..., object] = content._hash

    def spy(path: Path, *more: object) -> object:
        paths.append(path)
        return hash_one(path, *more)

    monkeypatch.setattr(content, "_hash", spy)
    return paths


def write(path: Path, text: str = "some text") -> Path:
    path.write_text(text)
    return path


def test_a_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a", "one"), write(tmp_path / "b", "two"), write(tmp_path / "c", "")]
    found = hash_files(paths)
    assert [file.path for file in found] == paths
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert [file.hash for file in found] == expected


def test_a_large_file_is_read_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [whole] = hash_files([write(tmp_path / "a", "0123456789" * 50)])
    monkeypatch.setattr(content, "_BLOCK_SIZE", 7)
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
    assert hash_files([tmp_path / "b"])[0].hash == whole.hash


def test_a_file_is_hashed_once_as_long_as_nothing_changes(
    tmp_path: Path, opened: list[Path], cache: Path
) -> None:
    first, second = write(tmp_path / "a", "one"), write(tmp_path / "b", "two")
    before = hash_files([first])
    assert hash_files([first]) == before and opened == [first]
    hash_files([first, second])
    assert opened == [first, second], "a file more does not let the others be read again"
    os.utime(first, ns=(5, 5))
    assert hash_files([first])[0].hash == before[0].hash and opened[2:] == [first]
    cache.unlink()
    hash_files([second])
    assert opened[3:] == [second]


def test_a_change_is_seen_even_if_size_and_time_were_put_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "one")
    status = path.stat()
    [before] = hash_files([path])
    write(path, "two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hash_files([path])[0].hash != before.hash


def test_a_file_that_was_just_written_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Path]
) -> None:
    monkeypatch.setattr(content, "_SETTLED_NANOSECONDS", 10**12)
    path = write(tmp_path / "a")
    assert hash_files([path]) == hash_files([path])
    assert opened == [path, path]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'{"PATH": 3}', b'{"PATH": [[1], 2, 3]}']
)
def test_a_damaged_cache_is_ignored_and_replaced(
    tmp_path: Path, cache: Path, opened: list[Path], damage: bytes
) -> None:
    path = write(tmp_path / "a")
    before = hash_files([path])
    cache.write_bytes(damage.replace(b"PATH", str(path).encode()))
    assert hash_files([path]) == before
    assert hash_files([path]) == before
    assert opened == [path, path], "once before, once after the damage"


def test_hashes_of_files_that_are_gone_are_forgotten(tmp_path: Path, cache: Path) -> None:
    gone, here = write(tmp_path / "gone"), write(tmp_path / "here", "other")
    hash_files([gone])
    gone.unlink()
    hash_files([here])
    assert "gone" not in cache.read_text() and "here" in cache.read_text()


def test_without_a_cache_that_can_be_written_files_are_hashed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(content.os, "access", lambda *_: False)  # the tests may run as root
    assert hash_files([write(tmp_path / "a")])[0].hash and not cache.exists()


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", "0123456789")
    monkeypatch.setattr(content, "_BLOCK_SIZE", 5)
    sha256 = hashlib.sha256

    def appending(*content: bytes) -> object:
        if not content:  # begins to hash the file
            with path.open("a") as file:
                file.write("more")
        return sha256(*content)

    monkeypatch.setattr(content.hashlib, "sha256", appending)
    with pytest.raises(InputError, match="a changes while it is read"):
        hash_files([path])


def test_a_file_that_changes_after_it_was_hashed_is_found_out(tmp_path: Path) -> None:
    [file] = hash_files([write(tmp_path / "a", "one")])
    check_unchanged(file)
    write(tmp_path / "a", "three")
    with pytest.raises(InputError, match="a changes while it is read"):
        check_unchanged(file)
    (tmp_path / "a").unlink()
    with pytest.raises(InputError, match="a cannot be read"):
        check_unchanged(file)


def test_what_was_hashed_before_an_interruption_is_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Path]
) -> None:
    monkeypatch.setattr(content, "_KEEP_AFTER", 0)
    first, second = write(tmp_path / "a", "one"), tmp_path / "b"
    second.mkdir()  # cannot be read
    with pytest.raises(InputError, match="b cannot be read"):
        hash_files([first, second])
    hash_files([first])
    assert opened == [first, second]


def test_of_threads_that_ask_at_once_one_computes(tmp_path: Path, opened: list[Path]) -> None:
    paths = [write(tmp_path / name, name) for name in "abc"]
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(hash_files(paths))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(other == found[0] for other in found)
    assert opened == paths


PROGRAM = """
import sys
from pathlib import Path
from bert_pretrain.data import content
content._SETTLED_NANOSECONDS = 0
print(*[file.hash for path in sys.argv[1:] for file in content.hash_files([Path(path)])])
"""


def test_processes_that_write_the_cache_at_once_lose_nothing(
    tmp_path: Path, cache: Path, opened: list[Path]
) -> None:
    paths = [write(tmp_path / f"{number}.txt", str(number)) for number in range(12)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, paths[number::3])], env=environment(tmp_path)
        )
        for number in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    hash_files(paths)
    assert not opened, "all twelve are known"
