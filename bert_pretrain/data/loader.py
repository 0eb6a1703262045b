"""Batches for the training loop: which rows each process computes, read ahead by workers if wanted.

Plans and a collator enter; windows of micro-batches leave. The rows of a window depend on the place
in the data and the global batch size alone; processes, micro-batches and workers only divide them
up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from bert_pretrain.objectives.interface import Batch, Place, Window


class Plan(Protocol):
    """The rows of a pass over the data, in training order."""

    def __len__(self) -> int:
        """Return the number of rows, at least 1."""
        ...

    def take(self, rows: NDArray[np.int64]) -> Plan:
        """Return the given rows, in that order, as a small plan to send to a worker process."""
        ...


AnyPlan = TypeVar("AnyPlan", bound=Plan)


class Collator(Protocol):
    """Makes batches of the rows of plans."""

    def collate(self, instances: Any, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Return the batch of `instances`, which are `rows` of the plan of `epoch`."""
        ...

    def num_units(self, batch: Batch) -> int:
        """Return what the throughput counts in a batch."""
        ...


Part = tuple[int, NDArray[np.int64], Plan]  # epoch, row numbers, those rows of its plan


class TrainingStream(Generic[AnyPlan]):
    """An endless sequence of instances, epoch after epoch, that can be entered at any place.

    A place is (epoch, position): an instance is the row `position` of the plan of `epoch`. Plans
    have different lengths in different epochs; a batch that reaches the end of one takes the rest
    from the next, so that no instance is dropped.
    """

    def __init__(self, plan_for_epoch: Callable[[int], AnyPlan]) -> None:
        """Keep the function that makes the plan of an epoch; it is pure and no plan is empty."""
        self._plan_for_epoch = plan_for_epoch
        self._plans: dict[int, AnyPlan] = {}

    def plan(self, epoch: int) -> AnyPlan:
        """Return the plan of an epoch; the last two plans asked for are kept in memory."""
        if epoch not in self._plans:
            while len(self._plans) > 1:
                del self._plans[next(iter(self._plans))]
            self._plans[epoch] = self._plan_for_epoch(epoch)
        return self._plans[epoch]

    def take(
        self, epoch: int, position: int, count: int
    ) -> tuple[list[tuple[int, NDArray[np.int64]]], tuple[int, int]]:
        """Return the next `count` instances from a place, and the place after them.

        Args:
            epoch: Epoch to start in.
            position: Row to start at; the length of the epoch's plan means the start of the next
                epoch.
            count: Instances wanted, at least 1.

        Returns:
            Parts (epoch, rows) with int64 rows that together have `count` rows, and the next
            (epoch, position).
        """
        parts: list[tuple[int, NDArray[np.int64]]] = []
        while count > 0:
            num_left = len(self.plan(epoch)) - position
            if num_left <= 0:
                epoch, position = epoch + 1, 0
                continue
            num_taken = min(count, num_left)
            parts.append((epoch, np.arange(position, position + num_taken)))
            position += num_taken
            count -= num_taken
        return parts, (epoch, position)


@dataclass(frozen=True)
class _Request:
    """A window to collate; small enough to be sent to a worker."""

    micro_batches: list[list[Part]]
    next_place: Place


class WindowReader(Dataset[Window]):
    """Collates requests, in this process or in workers."""

    def __init__(self, collator: Collator) -> None:
        """Keep the collator."""
        self.collator = collator

    def __getitem__(self, request: _Request) -> Window:
        """Return the window of a request."""
        batches = [self._collate(parts) for parts in request.micro_batches]
        num_units = sum(self.collator.num_units(batch) for batch in batches)
        return Window(batches, request.next_place, num_units)

    def _collate(self, parts: list[Part]) -> Batch:
        batches = [self.collator.collate(plan, rows, epoch) for epoch, rows, plan in parts]
        if len(batches) == 1:
            return batches[0]
        return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


class _Requests(Sampler[_Request]):
    """The endless sequence of requests from a place on."""

    def __init__(self, make: Callable[[], Iterator[_Request]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[_Request]:
        return self._make()


def training_windows(
    stream: TrainingStream[Any],
    collator: Collator,
    place: Place,
    *,
    global_batch_size: int,
    num_processes: int,
    process_index: int,
    num_micro_batches: int,
    num_workers: int,
) -> Iterator[Window]:
    """Yield one process's share of every window from `place` on, without end.

    Args:
        stream: the instances of epoch after epoch.
        collator: makes batches of them.
        place: where the first window begins.
        global_batch_size: rows of a window over all processes.
        num_processes: how many share a window, each getting a nearly equal, contiguous part.
        process_index: which of them this is.
        num_micro_batches: nearly equal parts that a process's share is cut into.
        num_workers: worker processes that collate ahead; 0 = this process, when asked.
    """

    def requests() -> Iterator[_Request]:
        here = place
        while True:
            parts, here = _take(stream, here, global_batch_size)
            share = _cut(parts, num_processes)[process_index]
            yield _Request(_cut(share, num_micro_batches), here)

    loader: DataLoader[Window] = DataLoader(
        WindowReader(collator),
        batch_size=None,
        sampler=_Requests(requests),
        num_workers=num_workers,
        pin_memory=False,
    )
    return iter(loader)


def evaluation_batches(
    plan: Plan,
    collator: Collator,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    num_processes: int,
    process_index: int,
) -> Iterator[Batch]:
    """Yield one process's share of `rows`, whole batches; over all processes each row occurs exactly once.

    Which rows are together in a batch does not depend on the number of processes.
    """
    for begin in range(process_index * batch_size, len(rows), num_processes * batch_size):
        chunk = rows[begin : begin + batch_size]
        yield collator.collate(plan.take(chunk), chunk, 0)


def _take(stream: TrainingStream[Any], place: Place, count: int) -> tuple[list[Part], Place]:
    taken, (epoch, position) = stream.take(place.epoch, place.position, count)
    return [(e, rows, stream.plan(e).take(rows)) for e, rows in taken], Place(epoch, position)


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
