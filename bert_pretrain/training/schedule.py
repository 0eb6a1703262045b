"""How long a run is, how its learning rate goes, and when it logs, evaluates and saves.

Enters: what the flags say of that. Leaves: at every update the answer whether there is a next one,
and its rate; after every evaluation whether the run has reached what it was to reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["linear", "cosine", "stable_decay"]
DecayShape = Literal["linear", "sqrt"]


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and its learning rate: a pure function, of which nothing is saved.

    Attributes:
        max_steps: updates; 0 = as many as `max_seconds` allows.
        max_seconds: wall-clock budget over all sessions of the run; 0 = none.
        peak: highest learning rate.
        warmup_steps: updates over which the rate rises linearly from peak / warmup_steps to peak.
        name: `linear` falls from the end of the warm-up to 0 at the end of the run (Devlin et al.
            2019), `cosine` does so along half a cosine (Loshchilov & Hutter 2017, equation 5,
            without restarts); `stable_decay` stays at the peak and falls to 0 over the last
            `decay_share` (Hagele et al. 2024).
        decay_share: share of the run that `stable_decay` spends falling, in (0, 1].
        decay_shape: form of that fall: `linear`, or `sqrt`, by which the rate is
            peak * (1 - sqrt(x)) where the share x of the fall lies behind (also theirs).
        stop_at_loss: held-out loss at which a run ends before its time; 0 = none.
    """

    max_steps: int
    max_seconds: float
    peak: float
    warmup_steps: int
    name: ScheduleName
    decay_share: float
    decay_shape: DecayShape = "linear"
    stop_at_loss: float = 0.0

    def is_over(self, step: int, elapsed: float) -> bool:
        """Return whether no further update is to be made."""
        out_of_time = self.max_seconds > 0 and elapsed >= self.max_seconds
        return out_of_time or (self.max_steps > 0 and step >= self.max_steps)

    def is_reached(self, loss: float) -> bool:
        """Return whether a held-out loss ends the run; one that is not a number never does."""
        return self.stop_at_loss > 0 and loss <= self.stop_at_loss

    def learning_rate(self, step: int, elapsed: float) -> float:
        """Return the rate of the update that follows `step` others, in [0, peak]."""
        num_steps = self._num_steps(step, elapsed)
        decay_start = float(self.warmup_steps)
        if self.name == "stable_decay":
            decay_start = max(self.warmup_steps, num_steps * (1 - self.decay_share))
        warmup = (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0
        decay = 1.0
        if step > decay_start and math.isfinite(num_steps):
            left = (num_steps - step) / max(num_steps - decay_start, 1e-9)
            decay = self._decay(max(0.0, min(left, 1.0)))
        return self.peak * min(warmup, decay, 1.0)

    def _decay(self, left: float) -> float:
        """Return the rate, as a share of the peak, where a share of the fall lies ahead."""
        if self.name == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        if self.name == "stable_decay" and self.decay_shape == "sqrt":
            return 1 - math.sqrt(1 - left)
        return left

    def foretold_length(self, step: int, elapsed: float) -> int | None:
        """Return the run's length in whole updates, as it looks now; None = nothing tells yet."""
        length = self._num_steps(step, elapsed)
        return max(step, round(length)) if math.isfinite(length) else None

    def _num_steps(self, step: int, elapsed: float) -> float:
        """Return the run's length in updates, as `step` of them in `elapsed` seconds foretell."""
        length = float(self.max_steps) if self.max_steps else math.inf
        if self.max_seconds and elapsed > 0 and step:
            length = min(length, step * self.max_seconds / elapsed)
        return length


@dataclass(frozen=True)
class Intervals:
    """Updates between the loop's side activities; 0 = only where the loop begins or ends.

    Attributes:
        logging: between training rows, at least 1.
        evaluation: between evaluations.
        checkpoint: between checkpoints.
        save_total_limit: checkpoints kept; 0 = all.
        keep_every: updates between checkpoints that are kept as well; 0 = none.
    """

    logging: int
    evaluation: int
    checkpoint: int
    save_total_limit: int
    keep_every: int = 0
