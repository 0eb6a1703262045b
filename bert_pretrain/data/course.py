"""What an update of a run is: its rows, the phase it is in, and how much of the run lies before it.

A `Course` is a pure function of the number of updates done, so a run that goes on from a checkpoint
needs nothing of it but that number. The loop and the loader ask it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from bert_pretrain.errors import InputError


@dataclass(frozen=True)
class Course:
    """The updates of a run.

    Attributes:
        global_batch_size: rows of an update over all processes, once it has risen.
        max_steps: updates; 0 = unknown, so that no update differs from another.
        ramp_start: rows of the first update, and steps in which they rise; 0 = they do not.
        ramp_share: share of the updates over which they rise, in (0, 1].
        phase_shares: share of the updates of each phase, in order; they add up to 1.
    """

    global_batch_size: int
    max_steps: int = 0
    ramp_start: int = 0
    ramp_share: float = 0.0
    phase_shares: tuple[float, ...] = (1.0,)

    def rows(self, step: int) -> int:
        """Return the rows of the update that follows `step` others, over all processes.

        They rise linearly from `ramp_start` over the first updates, in whole multiples of it, so
        that few shapes occur; after these they are `global_batch_size`, a multiple or not.
        """
        num_rising = round(self.ramp_share * self.max_steps)
        if not self.ramp_start or step >= num_rising:
            return self.global_batch_size
        added = (self.global_batch_size - self.ramp_start) * step // (num_rising * self.ramp_start)
        return self.ramp_start * (1 + added)

    def is_rising(self, step: int) -> bool:
        """Return whether the update that follows `step` others has fewer rows than the last."""
        return self.rows(step) < self.global_batch_size

    def describe_rows(self) -> str:
        """Return the rows of an update in words."""
        return f"{f'{self.ramp_start} to ' if self.ramp_start else ''}{self.global_batch_size}"

    def micro_batches(self, step: int, *, num_processes: int, num_micro_batches: int) -> int:
        """Return the forward passes of an update on each process.

        Args:
            step: updates before it.
            num_processes: how many share the rows.
            num_micro_batches: forward passes of a full update; fewer rows take fewer, none with
                more rows than that one's.
        """
        rows = self.rows(step)
        if rows == self.global_batch_size:
            return num_micro_batches
        rows_at_once = -(-self.global_batch_size // (num_processes * num_micro_batches))
        return -(-rows // (num_processes * rows_at_once))

    def progress(self, step: int) -> float:
        """Return the share of the run that lies before the update after `step` others, in [0, 1].

        It is 1 at the end of the run only, and 0 where its length is unknown.
        """
        return min(step / self.max_steps, 1.0) if self.max_steps else 0.0

    def phase(self, step: int) -> int:
        """Return the phase of the update that follows `step` others; at the end, the last one."""
        ends = self.phase_ends
        return min(sum(step >= end for end in ends), len(ends) - 1)

    @property
    def phase_ends(self) -> list[int]:
        """How many updates lie before the end of each phase."""
        return [round(total * self.max_steps) for total in itertools.accumulate(self.phase_shares)]

    def check_phases(self, names: list[str], parameter: str) -> None:
        """Raise `InputError` if a phase has no update.

        Args:
            names: of the phases, for the message.
            parameter: that sets their shares.
        """
        lengths = [end - begin for begin, end in itertools.pairwise([0, *self.phase_ends])]
        for name, share, length in zip(names, self.phase_shares, lengths, strict=True):
            if not length and len(names) > 1:
                raise InputError(
                    f"`{parameter}` gives {name} a share of {share:g}, but of {self.max_steps} "
                    "updates that is none",
                    advice="raise that share, or the number of updates (`max_steps`)",
                )

    def check_rows(self, *, num_processes: int, num_micro_batches: int) -> None:
        """Raise `InputError` if rows do not rise, or some forward pass would have no row."""
        if not self.ramp_start:
            return
        if self.ramp_start > self.global_batch_size:
            raise InputError(
                f"`batch_size_ramp` begins with {self.ramp_start} rows but an update has "
                f"{self.global_batch_size}",
                advice="begin with fewer, or raise `global_batch_size`",
                parameter="batch_size_ramp",
            )
        rows_at_once = -(-self.global_batch_size // (num_processes * num_micro_batches))
        for rows in range(self.ramp_start, self.global_batch_size, self.ramp_start):
            if rows // num_processes < -(-rows // (num_processes * rows_at_once)):
                raise InputError(
                    f"`batch_size_ramp` begins with {self.ramp_start} row(s), which "
                    f"{num_processes} processes with {rows_at_once} row(s) a forward pass cannot "
                    "share without one that has none",
                    advice=f"begin with a multiple of {num_processes}",
                    parameter="batch_size_ramp",
                )
