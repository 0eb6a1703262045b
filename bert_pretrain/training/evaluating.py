"""An evaluation of a run: on the fixed held-out rows, between two updates.

`Trainer` calls this at every evaluation; it is the only one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bert_pretrain.data.processes import sum_on_hosts
from bert_pretrain.errors import spell
from bert_pretrain.training.compilation import uncompiled
from bert_pretrain.training.finite import check_finite
from bert_pretrain.training.held_out import held_out_means
from bert_pretrain.training.memory import explaining_out_of_memory

if TYPE_CHECKING:
    from bert_pretrain.training.trainer import Trainer


@torch.no_grad()
def evaluate(trainer: Trainer, *, is_last: bool) -> bool:
    """Evaluate on the held-out rows, and show what has been learnt; a collective.

    Args:
        trainer: between two updates.
        is_last: whether the run is over.

    Returns:
        Whether it is over, as it also is where the loss is what it was to reach.
    """
    journal = trainer.journal
    journal.write_rows(wait=True)
    explaining = explaining_out_of_memory(
        trainer.accelerator.device,
        rows_at_once=trainer.layout.eval_batch_size,
        parameter="per_device_eval_batch_size",
    )
    compiler = uncompiled(is_compiled=trainer.is_compiled)
    with journal.clock.paused(), compiler, explaining:
        phase = trainer.course.phase(trainer.step)
        held_out = trainer.objective.held_out.of_phase(phase)
        measure = partial(
            held_out_means,
            trainer.objective,
            held_out,
            accelerator=trainer.accelerator,
            batch_size=trainer.layout.eval_batch_size,
            beat=trainer.watchdog.beat,
        )
        averaged = {} if trainer.average is None else trainer.average.means(measure)
        model = trainer.distributed.plain()
        means = measure(model)
        check_finite(trainer.distributed, trainer.step, held_out_loss=means["loss"])
        trainer.held_out_loss, trainer.held_out_phase = means["loss"], phase
        is_last = is_last or is_goal_reached(trainer)
        measured = trainer.monitor.measures(
            model,
            means,
            batch_size=trainer.layout.eval_batch_size,
            beat=trainer.watchdog.beat,
        )
        row = trainer.row("validation") | means | measured | held_out.facts
        worse = trainer.watch.warnings(row, phase, is_last=is_last)
        for message in worse + trainer.monitor.warnings(row):
            journal.warn(spell(message), step=trainer.step)
        journal.write(row | averaged)
        journal.print(_summary(row | averaged))
        if trainer.accelerator.is_main_process:
            shown = trainer.monitor.show(model, trainer.run_dir, step=trainer.step, is_last=is_last)
            journal.show(*shown, step=trainer.step)
    return is_last


def is_goal_reached(trainer: Trainer) -> bool:
    """Return whether the held-out loss after the latest update ends the run; a collective."""
    schedule, loss = trainer.schedule, trainer.held_out_loss
    if schedule.stop_at_loss == 0 or loss is None or trainer.step == 0:
        return False
    # The first process decides for all, as it does of the clock.
    is_first = trainer.accelerator.is_main_process
    (decision,) = sum_on_hosts([float(schedule.is_reached(loss) and is_first)])
    if decision:
        goal = f"`stop_at_loss` {schedule.stop_at_loss:g}"
        trainer.journal.print(spell(f"the held-out loss is {loss:.4g}, {goal} is reached"))
    return decision > 0


def _summary(row: dict[str, Any]) -> str:
    numbers = [f"{k} {v:.4g}" for k, v in row.items() if k not in ("split", "step", "epoch")]
    return f"step {row['step']} (epoch {row['epoch']:.2f}), held-out: {', '.join(numbers)}"
