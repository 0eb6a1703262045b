"""Optimisers, parameter groups and the learning-rate schedule.

Enters: a model's named parameters and the recipe's rates. Leaves: torch optimisers for the trainer,
which sets their rates at every step from a `Schedule`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from bert_pretrain.training.muon import Muon

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["linear", "stable_decay"]


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and its learning rate: a pure function, of which nothing is saved.

    Attributes:
        max_steps: updates; 0 = as many as `max_seconds` allows.
        max_seconds: wall-clock budget over all sessions of the run; 0 = none.
        peak: highest learning rate.
        warmup_steps: updates over which the rate rises linearly from peak / warmup_steps to peak.
        name: `linear` falls from the end of the warm-up to 0 at the end of the run (Devlin et al.
            2019); `stable_decay` stays at the peak and falls linearly over the last `decay_share`
            (Hagele et al. 2024).
        decay_share: share of the run that `stable_decay` spends falling, in (0, 1].
    """

    max_steps: int
    max_seconds: float
    peak: float
    warmup_steps: int
    name: ScheduleName
    decay_share: float

    def is_over(self, step: int, elapsed: float) -> bool:
        """Return whether no further update is to be made."""
        out_of_time = self.max_seconds > 0 and elapsed >= self.max_seconds
        return out_of_time or (self.max_steps > 0 and step >= self.max_steps)

    def learning_rate(self, step: int, elapsed: float) -> float:
        """Return the rate of the update that follows `step` others, in [0, peak]."""
        num_steps = self._num_steps(step, elapsed)
        decay_start = float(self.warmup_steps)
        if self.name == "stable_decay":
            decay_start = max(self.warmup_steps, num_steps * (1 - self.decay_share))
        warmup = (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0
        decay = 1.0
        if step > decay_start:
            decay = (num_steps - step) / max(num_steps - decay_start, 1e-9)
        return self.peak * max(0.0, min(warmup, decay, 1.0))

    def _num_steps(self, step: int, elapsed: float) -> float:
        """Return the run's length in updates, as `step` of them in `elapsed` seconds foretell."""
        length = float(self.max_steps) if self.max_steps else math.inf
        if self.max_seconds and elapsed > 0 and step:
            length = min(length, step * self.max_seconds / elapsed)
        return length


def build_optimizers(
    model: nn.Module,
    *,
    name: OptimizerName,
    weight_decay: float,
    adam_betas: tuple[float, float],
    adam_epsilon: float,
    adamw_rate_ratio: float = 1.0,
    iteration_dtype: torch.dtype = torch.float32,
    is_compiled: bool = False,
) -> list[torch.optim.Optimizer]:
    """Build the optimisers of a run; the trainer sets their learning rates.

    Weight decay applies to matrices only, that is to parameters with at least two dimensions: not
    to biases and normalisation gains, whatever their names are. With `muon` the hidden matrices go
    to Muon; embeddings, the output layer, vectors and everything that is no matrix stay with AdamW.

    Args:
        model: its parameters that require gradients are taken, each once.
        name: `adamw` or `muon`.
        weight_decay: decoupled decay of matrices, relative to the learning rate.
        adam_betas: decay rates of AdamW's moments.
        adam_epsilon: AdamW's epsilon.
        adamw_rate_ratio: AdamW's learning rate relative to Muon's.
        iteration_dtype: dtype of Muon's orthogonalisation.
        is_compiled: whether that is compiled.

    Returns:
        One or two torch optimisers; their groups carry `rate_ratio`, which the learning rate is
        multiplied by.
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    output_layer = getattr(model, "get_output_embeddings", lambda: None)()
    tables |= {id(p) for p in output_layer.parameters()} if output_layer is not None else set()
    # A head with a handful of rows has no spectrum worth equalising; 16 is far below any hidden
    # width.
    hidden, matrices, vectors = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif parameter.ndim == 2 and id(parameter) not in tables and min(parameter.shape) >= 16:
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    if name == "adamw":
        matrices, hidden = matrices + hidden, []
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "rate_ratio": adamw_rate_ratio},
        {"params": vectors, "weight_decay": 0.0, "rate_ratio": adamw_rate_ratio},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=adam_betas,
            eps=adam_epsilon,
            fused=True,
        )
    ]
    if hidden:
        group = {"params": hidden, "rate_ratio": 1.0}
        optimizers.append(
            Muon(
                [group],
                lr=0.0,
                weight_decay=weight_decay,
                iteration_dtype=iteration_dtype,
                is_compiled=is_compiled,
            )
        )
    return optimizers
