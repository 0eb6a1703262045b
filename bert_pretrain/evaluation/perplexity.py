"""How well a masked language model predicts hidden tokens of a text.

A model and rows of single segments enter; sums of each row leave. The masks are those of the
held-out rows of a run: functions of seed and row, so that all checkpoints see the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.pairs import EpochPlan

_MOST_SCORES = 2**27  # of one forward pass: 512 MiB in float32


@dataclass(frozen=True)
class MaskedSums:
    """What N rows come to.

    Attributes:
        nats: float64 (N,), cross entropy summed over the masked tokens of a row.
        num_masked: int64 (N,), these tokens.
        num_correct: int64 (N,), those of them that the model finds most probable.
    """

    nats: NDArray[np.float64]
    num_masked: NDArray[np.int64]
    num_correct: NDArray[np.int64]


@torch.inference_mode()
def masked_sums(
    model: PreTrainedModel,
    collator: PretrainingCollator,
    plan: EpochPlan,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
) -> MaskedSums:
    """Return what rows of single segments come to.

    Args:
        model: a masked language model of transformers in evaluation mode.
        collator: of evaluation; masks the rows.
        plan: of single segments.
        rows: int64 (N,), those of its rows that are judged.
        batch_size: most rows of one forward pass; fewer where the vocabulary is large.
    """
    most_rows = _MOST_SCORES // (plan.row_length * model.config.vocab_size)
    size = max(1, min(batch_size, most_rows))
    found = MaskedSums(np.zeros(len(rows)), *np.zeros((2, len(rows)), dtype=np.int64))
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        batch = collator.collate([(0, chunk, plan.take(chunk))])
        names = ("input_ids", "attention_mask")  # not every encoder takes token types
        logits = model(**{name: batch[name].to(model.device) for name in names}).logits
        place = batch["labels"] != -100
        labels = batch["labels"][place].to(model.device)
        scores = logits[place.to(model.device)].float()
        row = start + torch.nonzero(place)[:, 0].numpy()
        losses = F.cross_entropy(scores, labels, reduction="none").double().cpu().numpy()
        np.add.at(found.nats, row, losses)
        np.add.at(found.num_masked, row, 1)
        np.add.at(found.num_correct, row, (scores.argmax(-1) == labels).long().cpu().numpy())
    return found
