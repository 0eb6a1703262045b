"""The gradient of a loss that compares all rows of an update, a micro-batch at a time.

What is compared of a row, its embedding, is small; what a forward pass keeps for the gradient is
not. So the loop embeds each micro-batch without a graph first. The loss of all embeddings together
then gives the gradient with respect to each of them, and a second forward pass, with a graph,
carries it on to the weights. Loss and gradient are those of a single pass over all rows.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
(GradCache), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bert_pretrain.data.stream import Batch
from bert_pretrain.objectives.interface import Coupling, LossTerm
from bert_pretrain.training.sharding import spreading_failure


def mean_loss(terms: Mapping[str, LossTerm], counts: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of loss terms, each divided by its global count, 0-dim."""
    parts = [term.weight * term.sum / counts[name] for name, term in terms.items()]
    return spreading_failure(torch.stack(parts).sum())


def joint_gradients(
    coupling: Coupling,
    rows: Sequence[Tensor],
    batches: Sequence[Batch],
    counts: Mapping[str, float],
) -> tuple[dict[str, LossTerm], list[Tensor]]:
    """Compare the rows of all micro-batches; all processes must call it.

    Args:
        coupling: compares them.
        rows: float32 (B, ...) of each micro-batch, without graph.
        batches: that the rows are of.
        counts: what each term's sum is divided by.

    Returns:
        The terms of this process's rows, and the gradient of the loss, summed over processes, with
        respect to the rows of each micro-batch, in their shapes.
    """
    joined = torch.cat(list(rows)).requires_grad_()
    terms = coupling.joint_terms(joined, batches)
    (gradient,) = torch.autograd.grad(mean_loss(terms, counts), joined)
    return terms, list(torch.split(gradient, [len(part) for part in rows]))


def stand_in(rows: Tensor, gradient: Tensor) -> Tensor:
    """Return what has a given gradient with respect to rows, 0-dim; its value means nothing."""
    return (rows * gradient).sum()
