"""What a model comes to on the held-out rows of a run; its loop calls it at every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from bert_pretrain.data.loader import evaluation_batches
from bert_pretrain.data.stream import HeldOutRows
from bert_pretrain.objectives.interface import Objective
from bert_pretrain.training.metrics import RunningSums


def held_out_means(
    objective: Objective,
    held_out: HeldOutRows[Any],
    model: PreTrainedModel,
    accelerator: Accelerator,
    *,
    batch_size: int,
    beat: Callable[[str], None] = lambda place: None,
) -> dict[str, float]:
    """Return the means of the loss terms over held-out rows of all processes; a collective.

    Args:
        objective: what is measured.
        held_out: the rows.
        model: plain; it is left in evaluation mode.
        accelerator: of the run.
        batch_size: rows of a forward pass.
        beat: is told of every batch, see `Watchdog.beat`.
    """
    device = accelerator.device
    model.eval()
    sums = RunningSums(device)
    for batch in evaluation_batches(
        held_out,
        batch_size=batch_size,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        are_compared=objective.coupling is not None,
    ):
        beat("a batch of held-out rows")
        there = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        sums.add(objective.loss_terms(model, there), objective.target_counts(batch))
    return sums.total().means()
