"""What a run leaves in a checkpoint beside its tensors, and takes up from one: later, or at once.

A run goes on from a checkpoint when it is started again, and goes back to one when its loss has
jumped. `Trainer` calls this; it is the only one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bert_pretrain.data.processes import sum_on_hosts
from bert_pretrain.data.run_folder import checkpoint_path
from bert_pretrain.data.stream import Place
from bert_pretrain.errors import TrainingError
from bert_pretrain.training.checkpoint import load_tensors, read_state
from bert_pretrain.training.checkpoint_state import LoopState
from bert_pretrain.training.checkpoint_writing import remove_newer
from bert_pretrain.training.spikes import MOST_REWINDS, Rewinds, rewind_target

if TYPE_CHECKING:
    from bert_pretrain.training.trainer import Trainer


def state_of(trainer: Trainer) -> LoopState:
    """Return the state of the loop, the same on every process; a collective."""
    return {
        "step": trainer.step,
        "place": list(trainer.place),
        "num_units": trainer.journal.num_units,
        "num_skipped": int(trainer.guard.numbers[0]),
        "elapsed": trainer.elapsed(),
        "held_out_loss": trainer.held_out_loss,
        "held_out_phase": trainer.held_out_phase,
        "watch": trainer.watch.state_dict(),
        "spikes": trainer.journal.spikes.state_dict(),
        "rewinds": trainer.rewinds.state_dict(),
        "sums": trainer.sums.total().state_dict(),
        "fingerprint": trainer.fingerprint,
    }


def go_on(trainer: Trainer, checkpoint: Path, state: LoopState) -> None:
    """Let a trainer that has not begun continue from a checkpoint; `read_state` gave its state."""
    _restore(trainer, checkpoint, state)
    trainer.journal.load(num_units=state["num_units"], seconds=state["elapsed"])
    trainer.rewinds = Rewinds(**state["rewinds"])


def needed_step(trainer: Trainer) -> int | None:
    """Return the updates of the checkpoint that the next row may send the run back to, if any."""
    # That row ends with the next update at the earliest.
    return _target(trainer, trainer.step + 1) if trainer.goes_back_on_spike else None


def has_gone_back(trainer: Trainer) -> bool:
    """Go back to a checkpoint if the loss has jumped, and return whether it has; a collective.

    The weights are then those of the checkpoint, and the rows are those that follow, so that none
    that was trained on since is met again (Chowdhery et al. 2022, section 5.1, pass over those
    before and during a jump too).

    Raises:
        TrainingError: it has jumped again and again after the same checkpoint.
    """
    journal, spike = trainer.journal, trainer.journal.spike
    journal.spike = None
    # The first process decides for all.
    is_first = trainer.accelerator.is_main_process
    (is_found,) = sum_on_hosts([float(is_first and spike is not None)])
    if not is_found:
        return False
    trainer.saver.settle()
    target = _target(trainer, trainer.step)
    checkpoint = checkpoint_path(trainer.run_dir / "checkpoints", target)
    (is_there,) = sum_on_hosts([float(is_first and target > 0 and checkpoint.is_dir())])
    if not is_there:
        journal.warn("there is no checkpoint from before it to go back to", step=trainer.step)
        return False
    trainer.rewinds = trainer.rewinds.another(target)
    if trainer.rewinds.number > MOST_REWINDS:
        raise TrainingError(
            f"{spike}, as it has {MOST_REWINDS} times before, always after update {target}, "
            "whatever the rows. Continue from there with `resume_from_checkpoint` latest and a "
            "lower `learning_rate` or `max_grad_norm`"
        )
    state, end = read_state(checkpoint), trainer.place
    if is_first:
        remove_newer(checkpoint)
    _restore(trainer, checkpoint, state)
    begin, trainer.place = trainer.place, end
    journal.go_back(step=target, num_units=state["num_units"])
    message = (
        f"{spike}; the run has gone back to update {target} and passes over the rows from {begin} "
        f"to {end} ({trainer.rewinds.number} of at most {MOST_REWINDS} times)"
    )
    journal.warn(message, step=target + 1)  # so that it goes when the run is here once more
    return True


def _restore(trainer: Trainer, checkpoint: Path, state: LoopState) -> None:
    """Take up all of a checkpoint but what a run does not lose by going back."""
    load_tensors(checkpoint, trainer.distributed, trainer.average)
    trainer.step = state["step"]
    trainer.place = Place.of(state["place"])
    trainer.watch.load_state_dict(state["watch"])
    trainer.guard.load(state["num_skipped"])
    trainer.held_out_loss = state["held_out_loss"]
    trainer.held_out_phase = state["held_out_phase"]
    trainer.journal.spikes.load_state_dict(state["spikes"])
    # The sums were saved over all processes: one of them takes them up, the others start from zero.
    is_first = trainer.accelerator.is_main_process
    trainer.sums.load_state_dict(state["sums"], share=float(is_first))


def _target(trainer: Trainer, step: int) -> int:
    intervals = trainer.intervals
    return rewind_target(step, row_interval=intervals.logging, save_interval=intervals.checkpoint)
