"""Next-sentence prediction: whether a model tells the next passage from another.

A model and pairs of passages enter; probabilities, accuracy and calibration leave.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.data.random import permutation
from bert_pretrain.evaluation.statistics import Interval, wilson_interval
from bert_pretrain.text.layout import read_layouts
from bert_pretrain.text.pairs import EpochPlan
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.windows import IS_NEXT, IS_RANDOM

NUM_BINS = 10


class CalibrationBin(NamedTuple):
    """Pairs whose confidence lies in [lower, upper), of the last bin in [lower, upper].

    `confidence` is their mean, `accuracy` the share judged right; None where there is no pair.
    """

    lower: float
    upper: float
    num_pairs: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class NextSentenceScores:
    """How well a model tells the next passage from another.

    Attributes:
        accuracy: share of pairs judged right.
        interval: its Wilson 95 % interval.
        confidence: mean probability of what was judged, in [0.5, 1].
        calibration_error: expected calibration error (Guo et al. 2017, equation 3): the distance
            between accuracy and confidence of a bin, averaged over the pairs.
        brier: mean square of the distance between P(random) and the label.
        bins: `NUM_BINS` bins of equal width, from 0.5 to 1.
    """

    accuracy: float
    interval: Interval
    confidence: float
    calibration_error: float
    brier: float
    bins: list[CalibrationBin]


def balanced_rows(labels: NDArray[np.int8], *, max_rows: int, seed: int) -> NDArray[np.int64]:
    """Return a random subset of at most `max_rows` rows, half of either label, ascending, int64."""
    order = permutation(len(labels), seed)
    of_each = [order[labels[order] == label] for label in (IS_NEXT, IS_RANDOM)]
    size = min(max_rows // 2, *(len(rows) for rows in of_each))
    return np.sort(np.concatenate([rows[:size] for rows in of_each]))


@torch.inference_mode()
def random_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    store: TokenStore,
    plan: EpochPlan,
    *,
    batch_size: int,
) -> NDArray[np.float64]:
    """Return P(B is random) of every row of a plan, float64 (N,); nothing is masked.

    Args:
        model: returns `logits` or `sop_logits` (N, 2): is next, is random.
        tokenizer: the model's.
        store: the prepared corpus.
        plan: its pairs of two segments.
        batch_size: rows of one forward pass; rows of like length go together.
    """
    layout = read_layouts(tokenizer).pair
    lengths = plan.a_length + plan.b_length
    found = np.zeros(len(plan))
    by_length = np.argsort(lengths, kind="stable")
    for start in range(0, len(plan), batch_size):
        rows = by_length[start : start + batch_size]
        pairs = []
        for row in rows:
            first = store.read(int(plan.a_start[row]), int(plan.a_length[row])).tolist()
            second = store.read(int(plan.b_start[row]), int(plan.b_length[row])).tolist()
            input_ids, types = layout.lay_out(first, second)
            pairs.append({"input_ids": input_ids, "token_type_ids": types})
        batch = tokenizer.pad(
            pairs, padding_side="right", return_attention_mask=True, return_tensors="pt"
        )
        output = model(**batch.to(model.device))
        logits = output["logits" if "logits" in output else "sop_logits"]
        probabilities = logits.float().softmax(-1)
        found[rows] = probabilities[:, IS_RANDOM].double().cpu().numpy()
    return found


def judge_next_sentences(
    probabilities: NDArray[np.float64], labels: NDArray[np.int8]
) -> NextSentenceScores:
    """Return accuracy and calibration.

    Args:
        probabilities: P(B is random), float64 (N,).
        labels: (N,), 0 = B follows A, 1 = B is random.
    """
    judged = (probabilities > 0.5).astype(np.int64)
    confidence = np.where(judged == IS_RANDOM, probabilities, 1 - probabilities)
    is_right = judged == labels
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, NUM_BINS - 1)
    bins = []
    error = 0.0
    for number, (lower, upper) in enumerate(itertools.pairwise(edges.tolist())):
        rows = bin_of == number
        means: tuple[float, float] | tuple[None, None] = (None, None)
        if rows.any():
            means = float(confidence[rows].mean()), float(is_right[rows].mean())
            error += rows.sum() * abs(means[1] - means[0])
        bins.append(CalibrationBin(lower, upper, int(rows.sum()), *means))
    return NextSentenceScores(
        accuracy=float(is_right.mean()),
        interval=wilson_interval(int(is_right.sum()), len(labels)),
        confidence=float(confidence.mean()),
        calibration_error=float(error / len(labels)),
        brier=float(np.square(probabilities - labels).mean()),
        bins=bins,
    )
