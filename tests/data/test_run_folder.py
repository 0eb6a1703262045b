"""What a run has written is read, also while it is written; one process at a time works there."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from bert_pretrain.data import run_folder
from bert_pretrain.data.run_folder import (
    LOCK_FILE,
    checkpoint_path,
    held,
    is_held,
    list_checkpoints,
    read_final,
    read_rows,
    step_of,
    thinned,
)
from bert_pretrain.errors import InputError
from bert_pretrain.training.metrics import JsonLines

# Holds a folder in a process that has a child, as a run has workers, until both are killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from bert_pretrain.data.run_folder import held
with held(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_last_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    assert read_rows(path) == [{"step": 1}, {"step": 2, "loss": 0.5}]


def test_a_word_that_is_a_line_separator_cuts_no_row(tmp_path: Path) -> None:
    path = tmp_path / "fill_mask.jsonl"
    rows = [
        {"step": step, "candidates": [["\u2028", 0.5], ["\u0085", 0.25]]} for step in (0, 10, 20)
    ]
    written = JsonLines(path)
    for row in rows:
        written.write(row)
    assert read_rows(path) == rows
    written.cut_back(keep_until_step=10)
    assert read_rows(path) == rows[:2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read"),
        (b"\xff\n", "cannot be read"),
        (b'{"step": 1}\n?\n', "line 2, is not JSON"),
        (b'{"loss": 1}\n', "line 1, has no step"),
        (b"[]\n", "line 1, has no step"),
    ],
)
def test_what_is_no_record_of_a_run_is_refused(
    tmp_path: Path, text: bytes | None, expected: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=expected):
        read_rows(path)


@given(
    splits=st.lists(st.sampled_from(["train", "train", "train", "validation", "warning"])),
    most=st.integers(1, 9),
)
def test_of_many_training_rows_some_evenly_spread_are_kept_and_all_others(
    splits: list[str], most: int
) -> None:
    rows = [{"split": split, "step": step} for step, split in enumerate(splits)]
    kept = thinned(iter(rows), most=most)
    assert kept == [row for row in rows if row in kept]
    trained = [row for row in rows if row["split"] == "train"]
    assert [row for row in rows if row["split"] != "train"] == [
        row for row in kept if row["split"] != "train"
    ]
    numbers = [number for number, row in enumerate(trained) if row in kept]
    assert min(len(trained), (most + 1) // 2) <= len(numbers) <= min(len(trained), most + 1)
    assert not trained or (numbers[0] == 0 and numbers[-1] == len(trained) - 1)
    assert len({b - a for a, b in itertools.pairwise(numbers[:-1])}) <= 1
    assert len(trained) > most or kept == rows


def test_complete_checkpoints_are_listed_by_their_step(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "checkpoints") == []
    for name in ("step-1000000", "step-999999", "step-000010", "step-000020.tmp", "step-5", "old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "trainer_state.json").touch()
    (tmp_path / "checkpoints/step-000030").mkdir()  # empty: it was never a checkpoint
    found = list_checkpoints(tmp_path / "checkpoints")
    assert [step_of(path) for path in found] == [10, 999999, 1000000]
    assert found == [checkpoint_path(tmp_path / "checkpoints", step_of(path)) for path in found]


def test_final_is_the_end_of_a_run_until_a_later_start(tmp_path: Path) -> None:
    assert read_final(tmp_path) is None
    (tmp_path / "final").mkdir()
    (tmp_path / "final/run.json").write_text('{"config": {}, "started": "noon", "step": 8}')
    for started, is_end in (("noon", True), ("later", False)):
        (tmp_path / "run.json").write_text(f'{{"config": {{}}, "started": "{started}"}}')
        assert read_final(tmp_path) == (8, is_end)


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
    monkeypatch.setattr(run_folder, "TIMEOUT_SECONDS", 0.2)
    assert is_held(tmp_path)
    with pytest.raises(InputError, match="another process is at work"), held(tmp_path):
        pass
    process.kill()
    process.wait()
    # A worker may keep the lock a little longer: whoever starts the run again waits for that.
    monkeypatch.setattr(run_folder, "TIMEOUT_SECONDS", 30)
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
