"""A run in which nothing moves ends, and one that moves does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from runs import ROOT
from tiny_task import LineObjective, NumberCollator, line_trainer
from torch.utils.data import get_worker_info

from bert_pretrain.data.stream import Batch, Part
from bert_pretrain.errors import MachineError
from bert_pretrain.training.trainer import Trainer
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


class StoppedCollator(NumberCollator):
    """One that gets a signal in the loader's worker when it comes to row 19."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def collate(self, parts: list[Part], progress: float = 0.0) -> Batch:
        batch = super().collate(parts, progress)
        if get_worker_info() is not None and 19 in batch["x"]:
            os.kill(os.getpid(), self.number)
        return batch


def trainer_with_worker(folder: Path, number: signal.Signals) -> Trainer:
    objective = LineObjective()
    objective.training.collator = StoppedCollator(number)
    trainer = line_trainer(Accelerator(cpu=True), folder, objective=objective)
    trainer.layout = replace(trainer.layout, num_workers=1)
    return trainer


def test_a_killed_loader_worker_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as raised:
        trainer_with_worker(tmp_path, signal.SIGKILL).train()
    message = str(raised.value)
    assert "a process that reads rows has died (DataLoader worker (pid" in message
    assert "`resume_from_checkpoint` auto" in message and "`dataloader_num_workers`" in message


HANGING_WORKER = """
import signal, sys
from pathlib import Path
from test_watchdog import trainer_with_worker
from bert_pretrain.training.watchdog import Watchdog
trainer = trainer_with_worker(Path(sys.argv[1]), signal.SIGSTOP)
trainer.watchdog = Watchdog(1.0)
trainer.train()
"""


@pytest.mark.slow
def test_a_loader_worker_that_hangs_ends_the_run_with_the_place_that_waits_for_it(
    tmp_path: Path,
) -> None:
    places = map(str, (ROOT, ROOT / "tests", Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", HANGING_WORKER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "process 0 has not moved for 1 seconds since the rows of update " in done.stderr
