"""A run in which nothing moves ends, and one that moves does not."""

from __future__ import annotations

import subprocess
import sys
import time

from bert_pretrain.training.watchdog import Watchdog

STANDING = """
import time
from bert_pretrain.training.watchdog import Watchdog
watchdog = Watchdog(0.4)
with watchdog.watching():
    watchdog.beat("the rows of update 7")
    time.sleep(60)
"""


def test_a_loop_that_stands_still_is_ended_with_its_place_and_its_stack() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STANDING], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "process 0 has not moved for 0.4 seconds since the rows of update 7." in done.stderr
    assert "--resume_from_checkpoint auto" in done.stderr and "--stuck_timeout" in done.stderr
    assert 'File "<string>", line 7' in done.stderr


def test_a_slow_loop_that_moves_is_left_alone() -> None:
    watchdog = Watchdog(0.4)
    with watchdog.watching():
        for number in range(8):
            watchdog.beat(f"update {number}")
            time.sleep(0.1)
    assert watchdog.place == "update 7"
