"""Sudden jumps of the training loss: how they are found, and where a run goes back to after one.

Enters: the loss of each training row. Leaves: at the row with which a jump begins, what it was. All
of it follows from the losses of the run and the numbers of its updates, so that a run that is
killed, and finds the jump once more, goes back to the same place.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from bert_pretrain.training.checkpoint_state import RewindState, SpikeState

MOST_REWINDS = 3  # to one checkpoint
SPIKE_ADVICE = (
    ". If it does not come down again, continue from the checkpoint before it with a lower "
    "`learning_rate`, or with `on_spike` rewind"
)
_MOST_ROWS = 32  # that a loss is compared with
_FEWEST_ROWS = 16  # while there are fewer, none is judged
# Robust standard deviations above the median. The loss of a row is a mean, nearly normal about a
# falling curve, so that none is this high by chance; one of 4 would be met in a run of 10,000 rows.
_THRESHOLD = 8.0
_DEVIATIONS_PER_MAD = 1.4826  # of a normal distribution
_LEAST_DEVIATION = 0.01  # as a share of the median, where losses hardly differ


@dataclass(frozen=True)
class Spike:
    """A jump of the loss.

    Attributes:
        loss: of the training row with which it begins.
        median: of the rows before it.
        deviations: between the two, in robust standard deviations.
    """

    loss: float
    median: float
    deviations: float

    def __str__(self) -> str:
        """Return it in words for a message."""
        return (
            f"the training loss has jumped to {self.loss:.3f}, {self.deviations:.0f} robust "
            f"standard deviations above {self.median:.3f}, the median of the rows before"
        )


class SpikeWatch:
    """Compares the loss of each training row with those before it.

    A row is judged by the modified z-score of Iglewicz & Hoaglin (1993, section 3.3): its distance
    from the median over the median distance from it, so that no jump hides the next one. Only a
    jump upwards counts, and only the row with which it begins. A jump that lasts becomes the rule.
    """

    def __init__(self) -> None:
        """Begin a run."""
        self._losses: deque[float] = deque(maxlen=_MOST_ROWS)
        self._phase = 0
        self._is_high = False

    def judge(self, loss: float, *, phase: int = 0) -> Spike | None:
        """Return the jump that begins with the next row, None if none does.

        Args:
            loss: of the row; one that is not finite is not judged.
            phase: of the run; losses of different phases, over different rows, are not compared.
        """
        if not math.isfinite(loss):
            return None
        if phase != self._phase:
            self._losses.clear()
            self._phase, self._is_high = phase, False
        spike, was_high = None, self._is_high
        if len(self._losses) >= _FEWEST_ROWS:
            median = statistics.median(self._losses)
            mad = statistics.median(abs(other - median) for other in self._losses)
            deviation = max(_DEVIATIONS_PER_MAD * mad, _LEAST_DEVIATION * abs(median))
            # A loss of 0 that stays 0 has no deviation at all.
            self._is_high = loss > median + _THRESHOLD * deviation
            if self._is_high and not was_high:
                spike = Spike(loss, median, (loss - median) / deviation if deviation else math.inf)
        self._losses.append(loss)
        return spike

    def state_dict(self) -> SpikeState:
        """Return what the next rows are judged by."""
        return {"losses": list(self._losses), "phase": self._phase, "is_high": self._is_high}

    def load_state_dict(self, state: SpikeState) -> None:
        """Continue from `state_dict()`."""
        self._losses = deque(state["losses"], maxlen=_MOST_ROWS)
        self._phase, self._is_high = state["phase"], state["is_high"]


@dataclass(frozen=True)
class Rewinds:
    """How often a run has gone back to one checkpoint.

    Attributes:
        step: updates of the checkpoint.
        number: how often.
    """

    step: int = 0
    number: int = 0

    def another(self, step: int) -> Rewinds:
        """Return this with one more, to the checkpoint of so many updates."""
        return Rewinds(step, self.number + 1 if step == self.step else 1)

    def state_dict(self) -> RewindState:
        """Return plain numbers."""
        return {"step": self.step, "number": self.number}


def rewind_target(step: int, *, row_interval: int, save_interval: int) -> int:
    """Return the updates of the checkpoint that a run goes back to after a jump, 0 if none is.

    It is the last one that was due by the end of the row before, since a jump may begin with any
    update of its row. Checkpoints that were not due, such as one that a signal asked for, do not
    count: a run that no signal met has none.

    Args:
        step: updates at the end of the row with which the jump begins.
        row_interval: updates of a training row.
        save_interval: updates between checkpoints, at least 1.
    """
    end_of_row_before = (step - 1) // row_interval * row_interval
    return end_of_row_before // save_interval * save_interval
