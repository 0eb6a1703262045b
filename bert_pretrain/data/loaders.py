"""Batches for the training loop: which rows each process computes, read ahead by workers if wanted.

Plans and a collator enter; windows of micro-batches leave. The rows of a window depend on the place in the data and the
global batch size alone; processes, micro-batches and workers only divide them up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from bert_pretrain.data.collators import PretrainingCollator, TrainingStream
from bert_pretrain.data.sentence_pairs import EpochPlan
from bert_pretrain.objectives.base import Batch, Place, Window

Part = tuple[int, NDArray[np.int64], EpochPlan]  # epoch, row numbers, those rows of its plan


@dataclass(frozen=True)
class _Request:
    """A window to collate; small enough to be sent to a worker."""

    micro_batches: list[list[Part]]
    next_place: Place


class WindowReader(Dataset[Window]):
    """Collates requests, in this process or in workers."""

    def __init__(self, collator: PretrainingCollator) -> None:
        """Keep the collator."""
        self.collator = collator

    def __getitem__(self, request: _Request) -> Window:
        """Return the window of a request."""
        batches = [self._collate(parts) for parts in request.micro_batches]
        num_tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        return Window(batches, request.next_place, num_tokens)

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
    stream: TrainingStream,
    collator: PretrainingCollator,
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
    plan: EpochPlan,
    collator: PretrainingCollator,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    num_processes: int,
    process_index: int,
) -> Iterator[Batch]:
    """Yield one process's share of `rows`; over all processes each row occurs exactly once."""
    share = rows[process_index::num_processes]
    for begin in range(0, len(share), batch_size):
        chunk = share[begin : begin + batch_size]
        yield collator(plan, chunk, 0)


def _take(stream: TrainingStream, place: Place, count: int) -> tuple[list[Part], Place]:
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
