"""Batches for the training loop: what each process computes, read ahead by workers if wanted.

A stream of rows enters; windows of micro-batches leave. The rows of a window depend on the place in
the data and the number of the update alone; processes, micro-batches and workers only divide them
up.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bert_pretrain.data.course import Course
from bert_pretrain.data.signals import outlive_stop_signals
from bert_pretrain.data.stream import Batch, Collator, HeldOutRows, Part, Place, TrainingStream
from bert_pretrain.errors import MachineError, first_line

_SECONDS_OF_DYING = 2.0


@dataclass
class Window:
    """The share of one update that a process computes.

    Attributes:
        micro_batches: one forward and backward pass each, on the host until `copied_ahead`.
        next_place: where the following window begins.
        num_units: what the throughput counts (tokens, images), over this process's share.
        targets: what each loss sum of each micro-batch is divided by; the trainer counts them
            before the batches leave the host.
        flops: floating-point operations that are useful, counted likewise.
    """

    micro_batches: list[Batch]
    next_place: Place
    num_units: int
    targets: list[dict[str, int]] = field(default_factory=list)
    flops: float = 0.0

    def pin_memory(self) -> Window:
        """Return it in memory that a device copies from while the host goes on; for the loader."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> Window:
        """Return it on a device; from pinned memory the copies are only begun."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Window:
        batches = [
            {name: change(tensor) for name, tensor in batch.items()} for batch in self.micro_batches
        ]
        return replace(self, micro_batches=batches)


@dataclass(frozen=True)
class WindowRequest:
    """A window to collate; small enough to be sent to a worker."""

    micro_batches: list[list[Part]]
    next_place: Place
    progress: float = 0.0


class WindowReader(Dataset[Window]):
    """Collates requests, in this process or in workers."""

    def __init__(self, collator: Collator) -> None:
        """Keep the collator."""
        self.collator = collator

    def __getitem__(self, request: WindowRequest) -> Window:
        """Return the window of a request."""
        batches = [
            self.collator.collate(parts, request.progress) for parts in request.micro_batches
        ]
        num_units = sum(self.collator.num_units(batch) for batch in batches)
        return Window(batches, request.next_place, num_units)


class _RequestSampler(Sampler[WindowRequest]):
    """The endless sequence of requests from a place on."""

    def __init__(self, make: Callable[[], Iterator[WindowRequest]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[WindowRequest]:
        return self._make()


def training_windows(
    stream: TrainingStream[Any],
    place: Place,
    *,
    course: Course,
    first_step: int = 0,
    num_processes: int,
    process_index: int,
    num_micro_batches: int,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[Window]:
    """Yield one process's share of every window from `place` on, without end.

    Args:
        stream: the rows of epoch after epoch, and what makes batches of them.
        place: where the first window begins.
        course: what each update is: its rows, over all processes, its phase, and its progress.
        first_step: updates before the first window.
        num_processes: how many share a window, each getting a nearly equal, contiguous part.
        process_index: which of them this is.
        num_micro_batches: nearly equal parts that a process's share of a full window is cut into.
        num_workers: worker processes that collate ahead; 0 = this process, when asked.
        pin_memory: whether batches are to be in pinned memory, see `Window.pin_memory`.
    """

    def requests() -> Iterator[WindowRequest]:
        here = place
        for step in itertools.count(first_step):
            here = stream.enter(here, course.phase(step))
            parts, here = stream.take(here, course.rows(step))
            share = _cut(parts, num_processes)[process_index]
            num_pieces = course.micro_batches(
                step, num_processes=num_processes, num_micro_batches=num_micro_batches
            )
            yield WindowRequest(_cut(share, num_pieces), here, course.progress(step))

    loader: DataLoader[Window] = DataLoader(
        WindowReader(stream.collator),
        batch_size=None,
        sampler=_RequestSampler(requests),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker,
    )
    return _windows_of(loader)


def _windows_of(loader: DataLoader[Window]) -> Iterator[Window]:
    try:
        yield from loader
    except (OSError, EOFError):
        # A worker that dies while it hands over a window breaks the connection first. The signal
        # of its death, out of which torch says what it was, comes a moment later.
        time.sleep(_SECONDS_OF_DYING)
        raise


def _begin_worker(worker_id: int) -> None:
    outlive_stop_signals()


@contextlib.contextmanager
def explaining_lost_workers() -> Iterator[None]:
    """Turn the death of a loader's worker into an error that says how to go on.

    torch raises it out of a signal handler, wherever this process is at that moment.

    Raises:
        MachineError: a worker has died inside the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):  # no error of its own type
            raise
        raise MachineError(
            f"a process that reads rows has died ({first_line(error)}), most often of a lack of "
            "memory; continue from the last checkpoint with `resume_from_checkpoint` auto, and "
            "pass fewer `dataloader_num_workers`, or 0"
        ) from error


def copied_ahead(
    windows: Iterator[Window],
    device: torch.device,
    section: Callable[[str], AbstractContextManager[None]],
) -> Iterator[Window]:
    """Yield windows on a device, where each is copied while the one before it is computed.

    On a GPU the copies run on a stream of their own, one window ahead, so the windows are to be in
    pinned memory. Elsewhere a window is copied when it is asked for. `section` is told of the time
    that copies take, see `training.profiling`.
    """
    if device.type != "cuda":
        for window in windows:
            with section("copy"):
                moved = window.to(device)
            yield moved
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin_copy() -> tuple[Window, torch.cuda.Event]:
        window = next(windows)
        with torch.cuda.stream(copying), section("copy"):
            return window.to(device), copying.record_event()

    following = begin_copy()
    while True:
        (window, is_copied), following = following, begin_copy()
        computing = torch.cuda.current_stream(device)
        computing.wait_event(is_copied)
        for batch in window.micro_batches:
            for tensor in batch.values():
                # Its memory may be used again only when the computing stream is done with it.
                tensor.record_stream(computing)
        yield window


def evaluation_batches(
    held_out: HeldOutRows[Any],
    *,
    batch_size: int,
    num_processes: int = 1,
    process_index: int = 0,
    are_compared: bool = False,
) -> Iterator[Batch]:
    """Yield one process's share of the held-out rows in whole batches; no two processes share one.

    Which rows are together in a batch does not depend on the number of processes. Where the rows of
    a batch `are_compared`, a last one by itself goes with the batch before it: it has no other to
    be compared with, and its loss would be 0 whatever was learnt.
    """
    rows = held_out.rows
    bounds = [*range(0, len(rows), batch_size), len(rows)]
    if are_compared and len(bounds) > 2 and len(rows) % batch_size == 1:
        del bounds[-2]
    batches = list(itertools.pairwise(bounds))
    for begin, end in batches[process_index::num_processes]:
        chunk = rows[begin:end]
        yield held_out.collator.collate([(0, chunk, held_out.plan.take(chunk))])


def _cut(parts: list[Part], num_pieces: int) -> list[list[Part]]:
    """Cut a sequence of parts into contiguous pieces whose numbers of rows differ by at most 1."""
    total = sum(len(rows) for _, rows, _ in parts)
    bounds = [total * piece // num_pieces for piece in range(num_pieces + 1)]
    return [_slice(parts, begin, end) for begin, end in itertools.pairwise(bounds)]


def _slice(parts: list[Part], begin: int, end: int) -> list[Part]:
    sliced = []
    offset = 0
    for epoch, rows, plan in parts:
        low, high = max(begin - offset, 0), min(end - offset, len(rows))
        if low < high:
            sliced.append((epoch, rows[low:high], plan.take(np.arange(low, high))))
        offset += len(rows)
    return sliced
