"""Bad input to programs as a shell starts them: a message alone, and status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from refusals import snapshot
from runs import PROGRAM, ROOT, environment

MODULE = ["-m", "bert_pretrain"]
TOKENIZER = str(ROOT / "tokenizer/train_tokenizer.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # A byte that no text in UTF-8 has, as a shell passes it on.
        ([*MODULE, "evaluate", "--model", b"caf\xe9", "--suite", "knn"], "--model is 'caf\\udce9'"),
        ([PROGRAM, "--max_steps", "x"], "--max_steps is 'x'"),
        ([TOKENIZER, "--vocab_size", "1"], "--vocab_size is 1"),
        (
            [*MODULE, "prepare", "--data_files", "nowhere.txt", "--output_dir", "out"],
            "no file 'nowhere.txt'",
        ),
        ([*MODULE, "finetune"], "--model, --output_dir must"),
    ],
)
def test_a_program_is_refused_by_its_message_alone(
    tmp_path: Path, words: list[str | bytes], expected: str
) -> None:
    before = snapshot(tmp_path)
    done = subprocess.run(
        [sys.executable, *words],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert expected in done.stderr and done.stdout == ""
    assert snapshot(tmp_path) == before
