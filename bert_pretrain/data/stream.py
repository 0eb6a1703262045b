"""Which rows are trained on, in which order, and where one is in it.

Plans of blocks of rows and a collator enter; parts of plans leave, for `loader` to make batches of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.ahead import begin_ahead
from bert_pretrain.errors import InputError

Batch = dict[str, Tensor]

_ROW_BITS = 32  # of a row's number, below those of its block


class Place(NamedTuple):
    """Where the training data continue: an epoch, a block of it, and a row of the block's plan."""

    epoch: int = 0
    block: int = 0
    position: int = 0

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Place:
        """Return the place that a checkpoint keeps as a list.

        Raises:
            InputError: it is not one of three numbers.
        """
        if len(numbers) != len(cls._fields):
            raise InputError(
                f"the checkpoint's place in the data is {list(numbers)} but must be an epoch, a "
                "block and a row: it was written by another version",
                advice="continue it with the version that its run.json names, or begin a new run",
            )
        return cls(*numbers)

    def __str__(self) -> str:
        """Return it in words for a message."""
        return f"row {self.position} of epoch {self.epoch}, block {self.block}"


class Plan(Protocol):
    """The rows of a block of an epoch, in training order."""

    def __len__(self) -> int:
        """Return the number of rows, at least 1."""
        ...

    def take(self, rows: NDArray[np.int64]) -> Plan:
        """Return the given rows, in that order, as a small plan to send to a worker process."""
        ...


AnyPlan = TypeVar("AnyPlan", bound=Plan)
AnyPlan_co = TypeVar("AnyPlan_co", bound=Plan, covariant=True)

Part = tuple[int, NDArray[np.int64], Any]  # an epoch, row numbers, these rows of a plan


class Blocks(Protocol[AnyPlan_co]):
    """Every epoch as a sequence of blocks about equal in rows, each planned by itself.

    What is too much to be planned at once, in time or memory, has several blocks.
    """

    @property
    def num_blocks(self) -> int:
        """Blocks of every epoch, at least 1."""
        ...

    @property
    def are_made_ahead(self) -> bool:
        """Whether a plan takes longer than the start of a process that makes it ahead.

        Then the planners can be pickled.
        """
        ...

    def planner(self, epoch: int, block: int) -> Callable[[], AnyPlan_co]:
        """Return what makes the plan of a block, always the same one, never empty."""
        ...


@dataclass(frozen=True)
class WholeEpochs(Generic[AnyPlan]):
    """Epochs of a single block each, planned when it is needed.

    Attributes:
        plan_for_epoch: a pure function; no plan is empty.
    """

    plan_for_epoch: Callable[[int], AnyPlan]
    num_blocks: int = 1
    are_made_ahead: bool = False

    def planner(self, epoch: int, block: int) -> Callable[[], AnyPlan]:
        """Return what makes the plan of an epoch."""
        return lambda: self.plan_for_epoch(epoch)


def first_row(block: int) -> int:
    """Return the number within an epoch of a block's first row.

    Random draws are keyed by row numbers, so those of different blocks must differ, and a block's
    must not depend on how many rows the blocks before it have.
    """
    return block << _ROW_BITS


class Collator(Protocol):
    """Makes batches of the rows of plans; it is sent to worker processes, so it can be pickled.

    Attributes:
        unit: what the throughput counts: "tokens", "images".
    """

    unit: str

    def collate(self, parts: Sequence[Part]) -> Batch:
        """Return the batch of rows of one epoch or of several."""
        ...

    def num_units(self, batch: Batch) -> int:
        """Return what the throughput counts in a batch."""
        ...


class TrainingStream(Generic[AnyPlan]):
    """An endless sequence of rows, epoch after epoch, that can be entered at any place.

    Plans have different lengths. A window that reaches the end of one takes the rest from the next
    block or epoch, so that no row is dropped. Beside the block that is read, the one before it is
    kept in memory, and the one after it may be in the making.
    """

    def __init__(
        self, blocks: Blocks[AnyPlan], collator: Collator, *, identity: dict[str, Any]
    ) -> None:
        """Keep what makes the rows.

        Args:
            blocks: make the plans.
            collator: makes batches of rows.
            identity: what tells these data from others, as JSON takes it: a checkpoint continues
                only on the same.
        """
        self.collator = collator
        self.identity = identity
        self.blocks = blocks
        self._plans: dict[tuple[int, int], AnyPlan] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._ahead: dict[tuple[int, int], Future[AnyPlan]] = {}  # one at most

    def plan(self, epoch: int, block: int = 0) -> AnyPlan:
        """Return the plan of a block; the last two plans asked for are kept in memory."""
        key = (epoch, block)
        if key not in self._plans:
            made = self._ahead.pop(key, None)
            plan = made.result() if made is not None else self.blocks.planner(*key)()
            while len(self._plans) > 1:
                del self._plans[next(iter(self._plans))]
            self._plans[key], self._lengths[key] = plan, len(plan)
        return self._plans[key]

    def any_plan(self) -> AnyPlan:
        """Return a plan that is in memory, or the first block's of the first epoch."""
        return self.plan(*next(iter(self._plans), (0, 0)))

    def rows_per_epoch(self) -> int:
        """Return the rows of the first epoch if it has one block.

        Of several blocks only the first is planned, and the others are taken to have as many rows.
        They are samples of the same text, so this is off by some per cent at most (the spread of
        rows over blocks in `benchmarks/block_quality.py`); `num_epochs` tells what was passed.
        """
        return self.blocks.num_blocks * len(self.plan(0))

    def num_epochs(self, place: Place) -> float:
        """Return how many epochs lie before a place; blocks count alike, whatever their rows."""
        key = (place.epoch, place.block)
        if key not in self._lengths:
            self.plan(*key)
        share = (place.block + place.position / self._lengths[key]) / self.blocks.num_blocks
        return place.epoch + share

    def take(self, place: Place, count: int) -> tuple[list[Part], Place]:
        """Return the next `count` >= 1 rows from a place, as parts of blocks, and the place after.

        The length of a plan, as a position, means the start of the next block.
        """
        epoch, block, position = place
        parts: list[Part] = []
        while count > 0:
            plan = self.plan(epoch, block)
            self._begin(*self._after(epoch, block))
            rows = np.arange(position, min(position + count, len(plan)))
            if len(rows):
                parts.append((epoch, first_row(block) + rows, plan.take(rows)))
                position += len(rows)
                count -= len(rows)
            else:
                (epoch, block), position = self._after(epoch, block), 0
        return parts, Place(epoch, block, position)

    def _after(self, epoch: int, block: int) -> tuple[int, int]:
        """Return the epoch and the block that follow a block."""
        is_last = block + 1 == self.blocks.num_blocks
        return (epoch + 1, 0) if is_last else (epoch, block + 1)

    def _begin(self, epoch: int, block: int) -> None:
        """Let a plan be made by another process, if that is worth it and not done."""
        key = (epoch, block)
        if self.blocks.are_made_ahead and key not in self._plans and key not in self._ahead:
            self._ahead = {key: begin_ahead(self.blocks.planner(*key))}


@dataclass(frozen=True)
class HeldOutRows(Generic[AnyPlan]):
    """The fixed rows of evaluation.

    Attributes:
        plan: their plan.
        rows: int64 (N,), those of its rows that are evaluated.
        collator: makes batches of them.
    """

    plan: AnyPlan
    rows: NDArray[np.int64]
    collator: Collator
