"""Which rows are trained on, in which order, and where one is in it.

Plans of blocks of rows and a collator enter; parts of plans leave, for `loader` to make batches of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.ahead import begin_ahead
from bert_pretrain.errors import InputError

Batch = dict[str, Tensor]

_ROW_BITS = 32  # of a row's number, below those of its block


class Place(NamedTuple):
    """Where the training data continue: an epoch, a block of it, and a row of the block's plan.

    Attributes:
        epoch: number of the epoch; no two phases share one, so their random draws differ.
        block: number within it.
        position: rows of its plan that lie before.
        phase: number of the phase, see `TrainingStream`.
        unread: epochs that phases left when they ended, part by part, which nobody trained on.
    """

    epoch: int = 0
    block: int = 0
    position: int = 0
    phase: int = 0
    unread: float = 0.0

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Place:
        """Return the place that a checkpoint keeps as a list.

        Raises:
            InputError: it is not one of as many numbers, none of them negative.
        """
        if len(numbers) != len(cls._fields) or not all(0 <= n < 2**63 for n in numbers):
            raise InputError(
                f"the checkpoint's place in the data is {list(numbers)} but must be an epoch, a "
                "block, a row, a phase and what is unread: it was written by another version",
                advice="continue it with the version that its run.json names, or begin a new run",
            )
        epoch, block, position, phase, unread = numbers
        return cls(int(epoch), int(block), int(position), int(phase), unread)

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


_BlockKey = tuple[int, int, int]  # an epoch, a block of it, a phase


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

    def collate(self, parts: Sequence[Part], progress: float = 0.0) -> Batch:
        """Return the batch of rows of one epoch or of several, all of one phase.

        `progress` is the share of the run that lies behind, in [0, 1], where it changes a batch.
        """
        ...

    def num_units(self, batch: Batch) -> int:
        """Return what the throughput counts in a batch."""
        ...


class TrainingStream(Generic[AnyPlan]):
    """An endless sequence of rows, epoch after epoch, that can be entered at any place.

    Plans have different lengths. A window that reaches the end of one takes the rest from the next
    block or epoch, so that no row is dropped. Beside the block that is read, the one before it is
    kept in memory, and the one after it may be in the making.

    A run may have phases, such as short rows first and long ones later: the same data as other
    rows. A phase begins where `enter` says, with an epoch of its own.
    """

    def __init__(
        self,
        blocks: Blocks[AnyPlan],
        collator: Collator,
        *,
        identity: dict[str, Any],
        later_phases: Sequence[Blocks[AnyPlan]] = (),
        heaviest_phase: int = 0,
        heaviest_progress: float = 0.0,
    ) -> None:
        """Keep what makes the rows.

        Args:
            blocks: make the plans, of the first phase.
            collator: makes batches of rows.
            identity: what tells these data from others, as JSON takes it: a checkpoint continues
                only on the same.
            later_phases: make the plans of each further phase.
            heaviest_phase: the one whose rows take most memory.
            heaviest_progress: share of the run behind at which rows of one phase take most of it.
        """
        self.collator = collator
        self.identity = identity
        self.phases = (blocks, *later_phases)
        self.heaviest_phase, self.heaviest_progress = heaviest_phase, heaviest_progress
        self._plans: dict[_BlockKey, AnyPlan] = {}
        self._lengths: dict[_BlockKey, int] = {}
        self._ahead: dict[_BlockKey, Future[AnyPlan]] = {}  # one at most

    @property
    def blocks(self) -> Blocks[AnyPlan]:
        """What makes the plans of the first phase."""
        return self.phases[0]

    def enter(self, place: Place, phase: int) -> Place:
        """Return where a phase goes on from a place: there, or at the next epoch if it begins."""
        if place.phase == phase:
            return place
        left = place.epoch + 1 - self._num_begun(place)
        return Place(place.epoch + 1, phase=phase, unread=place.unread + left)

    def plan(self, epoch: int, block: int = 0, phase: int = 0) -> AnyPlan:
        """Return the plan of a block; the last two plans asked for are kept in memory."""
        key = (epoch, block, phase)
        if key not in self._plans:
            made = self._ahead.pop(key, None)
            plan = made.result() if made is not None else self._planner(*key)()
            while len(self._plans) > 1:
                del self._plans[next(iter(self._plans))]
            self._plans[key], self._lengths[key] = plan, len(plan)
        return self._plans[key]

    def any_plan(self, phase: int = 0) -> AnyPlan:
        """Return a plan of a phase that is in memory, or its first block's of the first epoch."""
        held = next((plan for key, plan in self._plans.items() if key[2] == phase), None)
        return held if held is not None else self.plan(0, 0, phase)

    def rows_per_epoch(self, phase: int = 0) -> int:
        """Return the rows of a phase's first epoch if it has one block.

        Of several blocks only the first is planned, and the others are taken to have as many rows.
        They are samples of the same text, so this is off by some per cent at most (the spread of
        rows over blocks in `benchmarks/block_quality.py`); `num_epochs` tells what was passed.
        """
        return self.phases[phase].num_blocks * len(self.plan(0, 0, phase))

    def num_epochs(self, place: Place) -> float:
        """Return how many epochs lie before a place; blocks count alike, whatever their rows."""
        return self._num_begun(place) - place.unread

    def _num_begun(self, place: Place) -> float:
        """Return the number of a place's epoch and the share of it that lies before."""
        key = (place.epoch, place.block, place.phase)
        if key not in self._lengths:
            self.plan(*key)
        share = place.block + place.position / self._lengths[key]
        return place.epoch + share / self.phases[place.phase].num_blocks

    def take(self, place: Place, count: int) -> tuple[list[Part], Place]:
        """Return the next `count` >= 1 rows from a place, as parts of blocks, and the place after.

        The length of a plan, as a position, means the start of the next block.
        """
        epoch, block, position, phase, unread = place
        parts: list[Part] = []
        while count > 0:
            plan = self.plan(epoch, block, phase)
            self._begin(*self._after(epoch, block, phase), phase)
            rows = np.arange(position, min(position + count, len(plan)))
            if len(rows):
                parts.append((epoch, first_row(block) + rows, plan.take(rows)))
                position += len(rows)
                count -= len(rows)
            else:
                (epoch, block), position = self._after(epoch, block, phase), 0
        return parts, Place(epoch, block, position, phase, unread)

    def _after(self, epoch: int, block: int, phase: int) -> tuple[int, int]:
        """Return the epoch and the block that follow a block."""
        is_last = block + 1 == self.phases[phase].num_blocks
        return (epoch + 1, 0) if is_last else (epoch, block + 1)

    def _planner(self, epoch: int, block: int, phase: int) -> Callable[[], AnyPlan]:
        return self.phases[phase].planner(epoch, block)

    def _begin(self, epoch: int, block: int, phase: int) -> None:
        """Let a plan be made by another process, if that is worth it and not done."""
        key = (epoch, block, phase)
        is_worth_it = self.phases[phase].are_made_ahead
        if is_worth_it and key not in self._plans and key not in self._ahead:
            self._ahead = {key: begin_ahead(self._planner(*key))}


@dataclass(frozen=True)
class HeldOutRows(Generic[AnyPlan]):
    """The fixed rows of evaluation.

    Attributes:
        plan: their plan.
        rows: int64 (N,), those of its rows that are evaluated.
        collator: makes batches of them.
        facts: what the metrics of an evaluation say of them, beside what was measured.
        later_phases: the rows of each further phase of the run.
    """

    plan: AnyPlan
    rows: NDArray[np.int64]
    collator: Collator
    facts: dict[str, float] = field(default_factory=dict)
    later_phases: tuple[HeldOutRows[AnyPlan], ...] = ()

    def of_phase(self, phase: int) -> HeldOutRows[AnyPlan]:
        """Return the rows that are evaluated in a phase."""
        return (self, *self.later_phases)[phase]
