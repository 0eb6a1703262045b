"""Saves checkpoints while training goes on: a copy in memory, then a thread that writes it.

Enters: the state after an update. Leaves: `checkpoints/step-000100/`, whole, some updates later. At
most one is in the making; until it has its name, the one before it is what a run goes on from.

Where the model is sharded every process copies and writes what it holds; once all have, the first
one completes the checkpoint. That they have is told between updates, in the thread that trains:
threads that wrote would otherwise wait for a process that is dead.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
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
    open_folder,
    read_config_files,
    write_checkpoint,
    write_shards,
)
from bert_pretrain.training.divided_files import Written
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.memory import return_freed_memory
from bert_pretrain.training.sharding import DistributedModel
from bert_pretrain.training.snapshots import Snapshot, take_snapshot

_NICENESS = 10  # what is written may wait for what trains


class CheckpointSaver:
    """Saves the checkpoints of a run.

    The first process alone copies and writes, or, where the model is sharded, all do. All must call
    the methods that are collectives.

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
        # Of a sharded checkpoint until it is completed: whether there is one, the same on every
        # process; what this process has written of it; and how the first one completes it.
        self._is_open = False
        self._shards: dict[str, list[Written]] | None = None
        self._complete: Callable[[Sequence[dict[str, list[Written]]]], Path] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a checkpoint could not be written, which `settle` will raise on all processes."""
        return self._error is not None

    @property
    def has_written(self) -> bool:
        """Whether `report` has something to tell."""
        return self._written is not None

    @property
    def has_shards(self) -> bool:
        """Whether this process has written its shards, for `complete` once all have."""
        return self._shards is not None

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
        complete = None
        if snapshot is not None and self._model.accelerator.is_main_process:
            try:
                complete = self._prepared(snapshot, state, needed)
            except Exception as error:
                self._error = error
        if self._model.is_sharded:
            # Nobody can write before the first process has made the files.
            self._is_open = not any(gather_on_hosts(self._error is not None))
            if self._is_open:
                assert snapshot is not None
                self._complete, self._arrival = complete, snapshot.arrival
                self._start(partial(self._write_shards, snapshot, state["step"]))
        elif snapshot is not None and complete is not None:
            self._arrival = snapshot.arrival
            self._start(partial(self._write, partial(complete, ())))

    def complete(self) -> None:
        """Let the first process complete what all processes have written; a collective."""
        self._join()
        self._is_open = False
        shards = gather_on_hosts(self._shards)
        complete, self._complete, self._shards = self._complete, None, None
        if complete is not None and None not in shards:
            self._start(partial(self._write, partial(complete, shards)))

    def _prepared(
        self, snapshot: Snapshot, state: LoopState, needed: int | None
    ) -> Callable[[Sequence[dict[str, list[Written]]]], Path]:
        """Return what writes a checkpoint, once all shards of it are written."""
        with naming_disk(self._folder.parent):
            if self._config_files is None:
                # Not in the thread: a tokenizer must not be written while another one uses it.
                self._config_files = read_config_files(self._write_config, self._folder)
            if self._model.is_sharded:
                open_folder(snapshot, self._folder, step=state["step"])

        def write(shards: Sequence[dict[str, list[Written]]]) -> Path:
            assert self._config_files is not None
            return write_checkpoint(
                snapshot,
                self._folder,
                state=state,
                config_files=self._config_files,
                retention=self._retention,
                needed=needed,
                shards=shards,
            )

        return write

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
            return_freed_memory()

    def settle(self) -> None:
        """Wait until what is being written is whole, and tell of it; a collective.

        Raises:
            MachineError: it could not be written; all processes raise it.
        """
        if self._is_open:
            self.complete()
        self._join()
        self.report()
        error, self._error = self._error, None
        reasons = gather_on_hosts(None if error is None else str(error) or first_line(error))
        if error is not None:
            raise error
        for process, reason in enumerate(reasons):
            if reason is not None:
                name = f"process {process}" if process else "the first process"
                raise MachineError(f"{name} cannot save: {reason}")

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Settle at the end of a block; where it fails, make what is being written whole first.

        A sharded checkpoint that is not being completed yet is given up then: who fails cannot know
        whether the other processes are still there.
        """
        try:
            yield
        except BaseException:
            self._join()
            reason: object = self._error
            if self._is_open and self._model.accelerator.is_main_process:
                reason = reason or "not all processes are known to have written their shards"
            if reason is not None:
                tqdm.write(f"WARNING: the last checkpoint was not written: {reason}")
            raise
        self.settle()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self, work: Callable[[], None]) -> None:
        # No daemon: a process that ends in order does not end before it.
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        if sys.platform == "linux":  # where threads have priorities of their own
            with contextlib.suppress(OSError):  # it is as well written without
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            device = self._model.accelerator.device
            # Else a new thread would open the first GPU; without a number there is one alone.
            if device.type == "cuda" and device.index is not None:
                torch.cuda.set_device(device)
            with naming_disk(self._folder.parent):
                work()
        except BaseException as error:  # it is raised where all processes wait for it
            self._error = error

    def _write(self, write: Callable[[], Path]) -> None:
        self._written = write()

    def _write_shards(self, snapshot: Snapshot, step: int) -> None:
        self._shards = write_shards(snapshot, self._folder, step=step)
