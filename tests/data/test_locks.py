"""A folder belongs to one process at a time, for as long as that process lives."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from bert_pretrain.data import locks
from bert_pretrain.data.locks import LOCK_FILE, held, is_held
from bert_pretrain.errors import InputError

# Holds a folder in a process that has a child, as a run has workers, until both are killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from bert_pretrain.data.locks import held
with held(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds `tmp_path`, and the number of its child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, 9)
    process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_folder_is_held_until_its_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: tuple[subprocess.Popen[str], int]
) -> None:
    process, child = holder
    monkeypatch.setattr(locks, "TIMEOUT_SECONDS", 0.2)
    assert is_held(tmp_path)
    with pytest.raises(InputError, match="another process is at work"), held(tmp_path):
        pass
    process.kill()
    process.wait()
    # A worker may keep the lock a little longer: whoever starts the run again waits for that.
    monkeypatch.setattr(locks, "TIMEOUT_SECONDS", 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: os.kill(child, 9))
        with held(tmp_path):
            assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_asking_leaves_nothing_in_a_folder(tmp_path: Path) -> None:
    assert not is_held(tmp_path) and not list(tmp_path.iterdir())
    with held(tmp_path):
        pass
    assert not is_held(tmp_path) and [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_folder_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    (tmp_path / LOCK_FILE).touch()
    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), held(tmp_path):
        assert not is_held(tmp_path)
