"""Keeps updates that are not finite from being made, without waiting for the device, or saved."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from bert_pretrain.data.processes import gather_on_hosts, sum_on_hosts
from bert_pretrain.data.stream import Place
from bert_pretrain.errors import TrainingError
from bert_pretrain.training.sharding import DistributedModel

# The scale begins at 2^16 and is halved each time: at 2^-34 nothing overflows that is finite.
_MOST_OVERFLOWS = 50
_MOST_UNSEEN = 10_000  # updates; a host is a few ahead of its device, or a row of metrics


class FiniteGuard:
    """Skips updates with a gradient that is not finite, and all updates after too many of those.

    The norm is that of the gradients summed over processes, so all of them decide alike. Whether
    the run is to stop is known on the device at once and on the host when it asks, so the updates
    that it has asked for meanwhile are not made either.
    """

    def __init__(self, device: torch.device, *, num_allowed: int, is_scaled: bool = False) -> None:
        """Begin a run.

        Args:
            device: of the gradients.
            num_allowed: updates that the whole run may skip.
            is_scaled: whether losses are scaled for float16. Then gradients overflow now and then,
                until the scale fits, and only very many skipped updates in a row are too many.
        """
        self.num_allowed = max(num_allowed, _MOST_OVERFLOWS) if is_scaled else num_allowed
        self._is_scaled = is_scaled
        self._in_a_row = torch.zeros((), device=device)
        # On the device: updates skipped so far, and the number of the first one too many, else 0.
        self._num_skipped = torch.zeros((), device=device)
        self._fatal = torch.zeros((), device=device)
        self._losses: list[Tensor] = []  # of this process's forward passes since the last update
        # Rows and losses of the latest updates, of which the host may not know yet.
        self._unseen: deque[tuple[int, Place, Place, Tensor | None]] = deque(maxlen=_MOST_UNSEEN)

    @property
    def numbers(self) -> Tensor:
        """What the host is to see, float (2,)."""
        return torch.stack([self._num_skipped, self._fatal])

    def load(self, num_skipped: int) -> None:
        """Continue a run in which so many updates were skipped."""
        self._num_skipped = torch.full_like(self._num_skipped, num_skipped)

    def note_loss(self, loss: Tensor) -> None:
        """Keep the loss of a forward pass, 0-dim, for the message if its update is not finite."""
        self._losses.append(loss.detach())

    def found_inf(self, grad_norm: Tensor, step: int, begin: Place, end: Place) -> Tensor:
        """Return 1.0 if an update must not be made, else 0.0, as torch's fused optimisers ask.

        Args:
            grad_norm: 0-dim, of the gradients summed over processes.
            step: number of the update, from 1.
            begin: where its rows begin.
            end: where they end.
        """
        losses = torch.stack(self._losses) if self._losses else None
        self._losses = []
        self._unseen.append((step, begin, end, losses))
        is_bad = ~torch.isfinite(grad_norm)
        self._num_skipped = self._num_skipped + is_bad
        self._in_a_row = torch.where(is_bad, self._in_a_row + 1, 0.0)
        num_counted = self._in_a_row if self._is_scaled else self._num_skipped
        is_fatal = is_bad & (num_counted > self.num_allowed) & (self._fatal == 0)
        self._fatal = torch.where(is_fatal, float(step), self._fatal)
        return (is_bad | (self._fatal > 0)).float()

    @property
    def num_unseen(self) -> int:
        """Updates of which the host does not know whether they were finite."""
        return len(self._unseen)

    def see(self, num_skipped: float, fatal: float, *, step: float = math.inf) -> None:
        """Look at `numbers` as they were after some update; a collective where `fatal` is not 0.

        Args:
            num_skipped: updates skipped.
            fatal: the first one too many, else 0.
            step: the update; infinite = the latest.

        Raises:
            TrainingError: too many updates were not finite.
        """
        if not fatal:
            while self._unseen and self._unseen[0][0] <= step:
                self._unseen.popleft()
            return
        # A run that has gone back has made some updates before: the last time counts.
        found = [entry for entry in self._unseen if entry[0] == fatal][-1:]
        rows = [f"from {begin} to {end}" for _, begin, end, _ in found]
        own = [losses.isfinite().tolist() for *_, losses in found if losses is not None]
        causes = gather_on_hosts(own[0] if own else [])
        raise TrainingError(_explain(int(fatal), rows, int(num_skipped), causes))


def check_finite(model: DistributedModel, step: int, *, held_out_loss: float = 0.0) -> None:
    """Check a model before it is measured further or saved; a collective.

    Args:
        model: in training.
        step: updates done.
        held_out_loss: of it.

    Raises:
        TrainingError: a weight of any process, or the loss, is not finite.
    """
    (num_bad,) = sum_on_hosts([float(not model.is_finite())])
    if num_bad or not math.isfinite(held_out_loss):
        what = "weights are" if num_bad else "the held-out loss is"
        raise TrainingError(
            f"after update {step} {what} not finite: the run has diverged, and this update is not "
            "saved. Continue from an earlier checkpoint with `resume_from_checkpoint` and a lower "
            "`learning_rate`"
        )


def _explain(step: int, rows: list[str], num_skipped: int, are_finite: list[list[bool]]) -> str:
    """Return what has happened and what helps.

    Args:
        step: the update.
        rows: where its rows begin and end, if that is known.
        num_skipped: updates left out so far, with it.
        are_finite: of each process's forward passes, whether their losses are.
    """
    where = f" ({rows[0]})" if rows else ""
    places = [
        f"process {process} in forward pass {number}"
        for process, losses in enumerate(are_finite)
        for number, is_finite in enumerate(losses)
        if not is_finite
    ]
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    cause = ""
    if places:
        cause = f", nor is the loss of {', '.join(places[:3])}{more} (counted from 0)"
    elif any(are_finite):
        cause = ", though all losses are: a gradient has overflowed"
    before = f" ({num_skipped - 1} such updates were skipped before it)" if num_skipped > 1 else ""
    return (
        f"the gradient norm of update {step} is not finite{where}{before}{cause}; it was not made, "
        "and no later one. Continue from the last checkpoint with `resume_from_checkpoint` latest "
        "and a lower `learning_rate`, or `mixed_precision` no; `skip_nonfinite` N skips up to N "
        "such updates"
    )
