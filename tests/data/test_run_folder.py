"""What a run has written is read, also while it is being written, and what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_pretrain.data.run_folder import (
    checkpoint_path,
    list_checkpoints,
    read_final,
    read_rows,
    step_of,
)
from bert_pretrain.errors import InputError
from bert_pretrain.training.metrics import JsonLines


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


def test_complete_checkpoints_are_listed_by_their_step(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "checkpoints") == []
    for name in ("step-1000000", "step-999999", "step-000010", "step-000020.tmp", "step-5", "old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
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
