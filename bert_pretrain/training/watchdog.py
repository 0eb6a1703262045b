"""Ends a run in which nothing moves any more, and says where.

A process that waits for another one, or for a worker that hangs, waits for ever and says nothing.
Here a thread of each process looks whether its loop still makes progress.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bert_pretrain.errors import MachineError, first_line, spell

_LOOKS = 20  # at the loop, in the time that it may stand still
_SECONDS_TO_ANSWER = 10.0


class Watchdog:
    """Watches one process's loop.

    Attributes:
        place: where the loop was when it last moved, in words.
    """

    def __init__(self, seconds: float) -> None:
        """Watch nothing yet; all processes must call this.

        Args:
            seconds: that the loop may stand still; 0 = for ever.
        """
        self.place = "the start"
        self._seconds = seconds
        self._num_beats = 0
        self._is_over = threading.Event()
        # The threads of all processes talk to each other in a group of their own.
        self._group: Any = None
        if seconds and dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend=dist.Backend.GLOO)

    def beat(self, place: str) -> None:
        """Note that the loop has come to a place."""
        self.place = place
        self._num_beats += 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the loop that runs in this block."""
        if self._seconds == 0:
            yield
            return
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    @contextlib.contextmanager
    def explaining_lost_processes(self) -> Iterator[None]:
        """Turn the end of another process into an error that says where this one was.

        Raises:
            MachineError: the connection to another process broke inside the block.
        """
        try:
            yield
        except RuntimeError as error:
            # NCCL's errors have a type of their own, gloo's have not.
            if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
                raise
            raise MachineError(
                "another process of the run has ended or cannot be reached since "
                f"{self.place}; it, or the launcher, says why. Continue from the last checkpoint "
                "with `resume_from_checkpoint` auto"
            ) from error

    def _watch(self) -> None:
        interval = self._seconds / _LOOKS
        seen, seconds_still, last_look = self._num_beats, 0.0, time.monotonic()
        while not self._is_over.wait(interval):
            now = time.monotonic()
            # A process that was itself stopped for an hour has not stood still for an hour.
            seconds_still += min(now - last_look, 2 * interval)
            last_look = now
            if self._num_beats != seen:
                seen, seconds_still = self._num_beats, 0.0
            elif seconds_still >= self._seconds:
                self._give_up()

    def _give_up(self) -> None:
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(
            f"error: process {rank} has not moved for {self._seconds:g} seconds since "
            f"{self.place}{self._describe_others()}. {spell(_ADVICE)}\n"
        )
        faulthandler.dump_traceback(sys.stderr)  # where each thread is
        sys.stderr.flush()
        # A loader's worker that hangs would outlive this process, and hold what it inherited: the
        # lock of the run directory, and the pipe that a launcher reads to its end.
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)  # no exception reaches a thread that waits

    def _describe_others(self) -> str:
        """Say if other processes do not even answer; those that do say where they are."""
        if self._group is None:
            return ""
        reasons = ["no answer"]

        def ask() -> None:
            try:
                dist.monitored_barrier(
                    self._group, timedelta(seconds=_SECONDS_TO_ANSWER), wait_all_ranks=True
                )
                reasons[0] = ""
            except RuntimeError as error:
                reasons[0] = first_line(error)

        # All but the first process wait for it, whatever their timeout.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(2 * _SECONDS_TO_ANSWER)
        return f"; others do not answer ({reasons[0]})" if reasons[0] else ""


_ADVICE = (
    "Continue from the last checkpoint with `resume_from_checkpoint` auto; if an update takes so "
    "long, raise `stuck_timeout`"
)
