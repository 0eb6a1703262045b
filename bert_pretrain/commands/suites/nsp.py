"""The suite `nsp`: whether a model tells the next passage from another, and how sure it is.

The random B of an easy pair is of another document, as in pretraining; that of a hard pair is a
neighbouring passage of the same document. Half of either kind is random, both labels have the same
lengths, and nothing is masked. A model whose run had `pair_mode` sop is judged by what its head was
trained for instead: half of the pairs are neighbours in order, half are swapped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.commands.suites.context import Evaluation, SuiteResult, load_language_model
from bert_pretrain.commands.suites.text_source import open_text, row_length
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.next_sentence import (
    NUM_BINS,
    balanced_rows,
    judge_next_sentences,
    random_probabilities,
)
from bert_pretrain.evaluation.statistics import format_interval
from bert_pretrain.text.layout import read_layouts
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch, plan_neighbours
from bert_pretrain.text.prepared import TokenStore


def refuse_untrained_head(evaluation: Evaluation) -> None:
    """Raise `InputError` if the run that wrote the model trained no next-sentence head."""
    if evaluation.run.get("objective") == "mlm":
        raise InputError(
            f"{evaluation.options.model!r} was trained by the objective mlm, so its next-sentence "
            "head is untrained",
            advice="pass another `model`, or leave nsp out of `suite`",
        )


def evaluate_nsp(evaluation: Evaluation) -> SuiteResult:
    """Judge easy and hard pairs of held-out documents."""
    model, tokenizer = load_language_model(evaluation.model, "next-sentence")
    length, seed = row_length(evaluation, model, tokenizer), evaluation.seed
    corpus, documents, which = open_text(evaluation, tokenizer)
    store, source = corpus.store, corpus.manifest["source"]["description"]
    is_of_order = evaluation.run.get("pair_mode") == "sop"
    num_short = 0
    settings: dict[str, Any] = {
        "max_seq_length": length,
        "seed": seed,
        "num_special_tokens": read_layouts(tokenizer).num_special_tokens,
    }
    if is_of_order:
        plans = {"order": _plan(store, documents, pair_mode="sop", **settings)}
    else:
        hard, num_short = plan_neighbours(store, documents, **settings)
        plans = {"easy": _plan(store, documents, pair_mode="exact", **settings), "hard": hard}
    lines = [
        f"{source}: {which}",
        f"{'pairs':<5} {'number':>7}  {'accuracy':<22}  confidence  calibration error   Brier  "
        "tokens of B",
    ]
    figures: dict[str, float] = {}
    details: dict[str, Any] = {"max_seq_length": length}
    if not is_of_order:
        details["documents_without_hard_pair"] = num_short
    for name, plan in plans.items():
        max_rows = evaluation.text.max_pairs
        if plan is None or not len(
            rows := balanced_rows(plan.next_sentence_label, max_rows=max_rows, seed=seed)
        ):
            lines.append(f"{name:<5} no pairs: too few documents of two passages")
            continue
        pairs = plan.take(rows)
        probabilities = random_probabilities(
            model, tokenizer, store, pairs, batch_size=evaluation.options.per_device_eval_batch_size
        )
        scores = judge_next_sentences(probabilities, pairs.next_sentence_label)
        mean_b_length = float(pairs.b_length.mean())
        lines.append(
            f"{name:<5} {len(pairs):>7,}  {format_interval(scores.accuracy, scores.interval):<22}  "
            f"{scores.confidence:>10.3f}  {scores.calibration_error:>17.3f}  {scores.brier:>6.3f}  "
            f"{mean_b_length:>11.1f}"
        )
        keys = ("accuracy", "confidence", "calibration_error", "brier")
        figures |= {f"nsp_{name}_{key}": getattr(scores, key) for key in keys}
        details[name] = dataclasses.asdict(scores) | {
            "num_pairs": len(pairs),
            "mean_b_length": mean_b_length,
            "bins": [found._asdict() for found in scores.bins],
        }
    if not figures:
        raise InputError(
            f"{source} allows no pair of passages of {length} tokens, neither of two documents nor "
            "within one",
            advice="give more text with `data_files`, or lower `max_seq_length`",
        )
    lines += _notes(num_short, len(documents), length, is_of_order=is_of_order)
    return SuiteResult("\n".join(lines), figures, details)


def _plan(
    store: TokenStore, documents: NDArray[np.int64], *, pair_mode: PairMode, **settings: Any
) -> EpochPlan | None:
    """Return pairs as in pretraining; None if the documents allow none."""
    try:
        return plan_epoch(
            store, documents, short_seq_prob=0.0, pair_mode=pair_mode, epoch=0, **settings
        )
    except InputError:  # of the documents, because the length has been checked
        return None


def _notes(num_short: int, num_documents: int, length: int, *, is_of_order: bool) -> list[str]:
    scores = (
        f"calibration error: expected, {NUM_BINS} equal bins of the confidence from 0.5 to 1; "
        "Brier of always saying 0.5: 0.250; intervals: 95 %, of the draw of these pairs alone"
    )
    if is_of_order:
        return [
            "order: two neighbouring passages of one document, half of them swapped, which is what "
            "this model's head was trained to tell (--pair_mode sop): guessing reaches 0.500",
            scores,
        ]
    short = f"{num_short:,} of {num_documents:,} documents are too short for two passages of "
    short += f"{length} tokens and have no hard pair"
    return [
        "easy: the random B is of another document; hard: a neighbouring passage of the same. Half "
        "of the pairs are random: guessing reaches 0.500",
        scores,
        short + ("; a lower --max_seq_length makes more of them usable" if num_short else ""),
    ]
