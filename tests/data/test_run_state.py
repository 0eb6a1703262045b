"""A folder belongs to one process at a time, for as long as that lives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_pretrain.data import run_state
from bert_pretrain.data.run_state import held, is_held
from bert_pretrain.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
# Holds a folder in a process that has a child, as a run has workers, until both are killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from bert_pretrain.data.run_state import held
with held(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_until_its_process_ends_however_that_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_held(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    monkeypatch.setattr(run_state, "_PATIENCE_SECONDS", 0.2)
    assert is_held(tmp_path)
    with pytest.raises(InputError, match="another process is at work"), held(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    # Its worker is still there and ends a little later: whoever starts the run again waits for
    # that.
    monkeypatch.setattr(run_state, "_PATIENCE_SECONDS", 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: os.kill(child, 9))
        with held(tmp_path):
            assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert not list(tmp_path.iterdir())
