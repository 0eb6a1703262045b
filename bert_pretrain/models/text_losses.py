"""What a text model in pretraining returns: losses as sums with their counts.

Enters: scores of the masked tokens and of the pairs, with their labels by the names of transformers
(-100 = not judged; next sentences: 0 = next, 1 = random). Leaves: a `PretrainingOutput`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from bert_pretrain.losses.cross_entropy import summed_cross_entropy


@dataclass
class PretrainingOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """Losses as sums, with the counts that turn them into means.

    Every field is a 0-dim tensor unless stated.

    Attributes:
        loss: what to minimise in a plain loop: mean MLM loss + mean NSP loss, float32, 0 where
            nothing is labelled.
        mlm_loss: cross entropy summed over the labelled positions, nats, float32.
        mlm_count: number of labelled positions, int64.
        mlm_correct: how many of them the most probable token gets right, int64.
        nsp_loss: cross entropy summed over the labelled pairs, nats, float32.
        nsp_count: number of labelled pairs, int64.
        nsp_correct: how many of them are classified right, int64.
        seq_relationship_logits: float (B, 2), [is next, is random]; absent, like the three before
            it, where the model has no head for pairs.
    """

    # A ModelOutput's fields need defaults.
    loss: Tensor = None  # type: ignore[assignment]
    mlm_loss: Tensor = None  # type: ignore[assignment]
    mlm_count: Tensor = None  # type: ignore[assignment]
    mlm_correct: Tensor = None  # type: ignore[assignment]
    nsp_loss: Tensor = None  # type: ignore[assignment]
    nsp_count: Tensor = None  # type: ignore[assignment]
    nsp_correct: Tensor = None  # type: ignore[assignment]
    seq_relationship_logits: Tensor = None  # type: ignore[assignment]


def pretraining_output(
    scores: Tensor,
    targets: Tensor,
    relationship: Tensor | None = None,
    next_sentence_label: Tensor | None = None,
) -> PretrainingOutput:
    """Return the losses of some scores.

    Args:
        scores: float (N, V), of the vocabulary at N positions.
        targets: int64 (N,), the original ids, -100 = not judged.
        relationship: float (B, 2), of the pairs; None = the model has no such head.
        next_sentence_label: int64 (B,), -100 = not judged; None = none is.
    """
    output = PretrainingOutput()
    output.mlm_loss, output.mlm_correct = summed_cross_entropy(scores, targets)
    output.mlm_count = (targets != -100).sum()
    output.loss = output.mlm_loss / output.mlm_count.clamp(min=1)
    if relationship is None:
        return output
    output.seq_relationship_logits = relationship
    logits = relationship.float()
    if next_sentence_label is None:
        next_sentence_label = torch.full(logits.shape[:1], -100, device=logits.device)
    labels = next_sentence_label.view(-1)
    output.nsp_loss = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    output.nsp_count = (labels != -100).sum()
    output.nsp_correct = (logits.detach().argmax(-1) == labels).sum()
    output.loss = output.loss + output.nsp_loss / output.nsp_count.clamp(min=1)
    return output
