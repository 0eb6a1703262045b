"""Optimisers and their parameter groups.

Enters: a model's parameters and the recipe's rates. Leaves: torch optimisers for the trainer, which
sets their rates at every step from a `Schedule`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from bert_pretrain.training.lamb import Lamb
from bert_pretrain.training.muon import Muon

OptimizerName = Literal["adamw", "muon", "lamb"]


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
    `adamw` and `lamb` train all of them, in the same two groups.

    Args:
        model: its parameters that require gradients are taken, each once.
        name: `adamw`, `muon` or `lamb`.
        weight_decay: decoupled decay of matrices, relative to the learning rate.
        adam_betas: decay rates of AdamW's or LAMB's moments.
        adam_epsilon: epsilon of AdamW or LAMB.
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
    if name != "muon":
        matrices, hidden = matrices + hidden, []
    # A model may have no vectors, or none but hidden matrices.
    groups = [
        {"params": parameters, "weight_decay": decay, "rate_ratio": adamw_rate_ratio}
        for parameters, decay in ((matrices, weight_decay), (vectors, 0.0))
        if parameters
    ]
    if name == "lamb":
        return [Lamb(groups, lr=0.0, betas=adam_betas, eps=adam_epsilon)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=0.0, betas=adam_betas, eps=adam_epsilon, fused=True)
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
