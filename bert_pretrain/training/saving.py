"""Saves checkpoints while training goes on: a copy in memory, then a thread that writes it.

Enters: the state after an update. Leaves: `checkpoints/step-000100/`, whole, some updates later. At
most one is in the making; until it has its name, the one before it is what a run goes on from.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from bert_pretrain.data.atomic import naming_disk
from bert_pretrain.data.processes import gather_on_hosts
from bert_pretrain.errors import MachineError, first_line
from bert_pretrain.training.checkpoint_state import LoopState
from bert_pretrain.training.checkpoint_writing import (
    Retention,
    read_config_files,
    take_snapshot,
    write_checkpoint,
)
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.sharding import DistributedModel

_NICENESS = 10  # what is written may wait for what trains


class CheckpointSaver:
    """Saves the checkpoints of a run.

    The first process alone copies and writes; all must call the methods that are collectives.

    Attributes:
        on_written: called on the first process with the folder of each checkpoint that is whole, in
            the thread that trains, so it must not communicate with the others; a later save may
            remove the folder. None = nobody is.
    """

    def __init__(
        self,
        model: DistributedModel,
        average: WeightAverage | None,
        folder: Path,
        *,
        write_config: Callable[[Path], None],
        retention: Retention,
    ) -> None:
        """Write nothing yet.

        Args:
            model: with its optimisers.
            average: of its weights; None = there is none.
            folder: the run's checkpoint folder.
            write_config: writes what transformers needs beside the weights into a folder; the same
                at any time.
            retention: which checkpoints stay.
        """
        self.on_written: Callable[[Path], None] | None = None
        self._model = model
        self._average = average
        self._folder = folder
        self._write_config = write_config
        self._retention = retention
        self._config_files: dict[str, bytes] | None = None
        self._thread: threading.Thread | None = None
        self._arrival: torch.cuda.Event | None = None  # of the copy that the thread writes
        self._written: Path | None = None
        self._error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a checkpoint could not be written, which `settle` will raise on all processes."""
        return self._error is not None

    @property
    def has_written(self) -> bool:
        """Whether `report` has something to tell."""
        return self._written is not None

    def begin(self, state: LoopState, *, needed: int | None = None) -> None:
        """Copy the present state, and let it be written; a collective.

        It waits for the checkpoint before, if that is still being written.

        Args:
            state: of the loop, the same on every process.
            needed: updates of a checkpoint that the run may go back to, which stays.

        Raises:
            MachineError: the checkpoint before could not be written.
        """
        self.settle()
        snapshot = take_snapshot(self._model, self._average)
        if snapshot is None:
            return
        try:
            with naming_disk(self._folder.parent):
                if self._config_files is None:
                    # Not in the thread: a tokenizer must not be written while another one uses it.
                    self._config_files = read_config_files(self._write_config, self._folder)
        except Exception as error:
            self._error = error
            return
        write = partial(
            write_checkpoint,
            snapshot,
            self._folder,
            state=state,
            config_files=self._config_files,
            retention=self._retention,
            needed=needed,
        )
        self._arrival = snapshot.arrival
        # No daemon: a process that ends in order does not end before it.
        self._thread = threading.Thread(target=self._work, args=(write,), name="checkpoint")
        self._thread.start()

    def before_update(self) -> None:
        """Let a GPU copy what is saved before it changes it; the host does not wait."""
        if self._arrival is not None:
            torch.cuda.current_stream(self._model.accelerator.device).wait_event(self._arrival)
            self._arrival = None

    def report(self) -> None:
        """Tell of a checkpoint that has become whole since the last call."""
        if self._written is not None:
            written, self._written = self._written, None
            if self.on_written is not None:
                self.on_written(written)

    def settle(self) -> None:
        """Wait until what is being written is whole, and tell of it; a collective.

        Raises:
            MachineError: it could not be written; all processes raise it.
        """
        self._join()
        self.report()
        error, self._error = self._error, None
        (reason, *_) = gather_on_hosts(None if error is None else str(error) or first_line(error))
        if error is not None:
            raise error
        if reason is not None:
            raise MachineError(f"the first process cannot save: {reason}")

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Settle at the end of a block; where it fails, make what is being written whole first."""
        try:
            yield
        except BaseException:
            self._join()
            if self._error is not None:
                tqdm.write(f"WARNING: the last checkpoint was not written: {self._error}")
            raise
        self.settle()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, write: Callable[[], Path]) -> None:
        if sys.platform == "linux":  # where threads have priorities of their own
            with contextlib.suppress(OSError):  # it is as well written without
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            with naming_disk(self._folder.parent):
                self._written = write()
        except BaseException as error:  # it is raised where all processes wait for it
            self._error = error
