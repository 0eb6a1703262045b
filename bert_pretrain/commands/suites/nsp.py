"""The suite `nsp`: whether a model tells the next passage from another, and how sure it is.

The random B of an easy pair is of another document, as in pretraining; that of a hard pair is a
neighbouring passage of the same document. Half of either kind is random, both labels have the same
lengths, and nothing is masked. A model whose run had `pair_mode` sop is judged by what its head was
trained for instead: half of the pairs are neighbours in order, half are swapped.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.commands.suites.context import (
    SOURCE_FLAGS,
    Evaluation,
    SuiteResult,
    load_language_model,
)
from bert_pretrain.config.schedules import Lengths
from bert_pretrain.errors import InputError, spell
from bert_pretrain.evaluation.next_sentence import (
    NUM_BINS,
    balanced_rows,
    judge_next_sentences,
    random_probabilities,
)
from bert_pretrain.evaluation.pseudo_likelihood import longest_row
from bert_pretrain.evaluation.statistics import format_interval
from bert_pretrain.models.loading import describe_excess
from bert_pretrain.publishing.hub import download_corpus
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.opening import open_corpus
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch, plan_neighbours
from bert_pretrain.text.prepared import PreparedCorpus, TokenStore


def refuse_untrained_head(evaluation: Evaluation) -> None:
    """Raise `InputError` if the run that wrote the model trained no next-sentence head."""
    if evaluation.run.get("objective") == "mlm":
        raise InputError(
            f"the run that wrote {evaluation.options.model!r} had `objective` mlm, so its "
            "next-sentence head is untrained",
            advice="pass another `model`, or leave nsp out of `suite`",
        )


def evaluate_nsp(evaluation: Evaluation) -> SuiteResult:
    """Judge easy and hard pairs of held-out documents."""
    model, tokenizer = load_language_model(evaluation.model, "next-sentence")
    length, seed = _max_seq_length(evaluation, model, tokenizer), evaluation.seed
    corpus, documents, which = _open_text(evaluation, tokenizer)
    store, source = corpus.store, corpus.manifest["source"]["description"]
    is_of_order = evaluation.run.get("pair_mode") == "sop"
    num_short = 0
    if is_of_order:
        plans = {"order": _plan(store, documents, length, seed, pair_mode="sop")}
    else:
        hard, num_short = plan_neighbours(store, documents, max_seq_length=length, seed=seed)
        plans = {"easy": _plan(store, documents, length, seed, pair_mode="exact"), "hard": hard}
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


def _max_seq_length(
    evaluation: Evaluation, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> int:
    """Return the tokens of a pair: as asked for, else as in the run, else at most 128."""
    longest = longest_row(model)
    # Of a run with phases: the longest row.
    of_run = Lengths(evaluation.run.get("max_seq_length", 0))
    length = int(
        evaluation.text.max_seq_length or of_run or min(128, longest, tokenizer.model_max_length)
    )
    if length > longest:
        raise InputError(
            f"`max_seq_length` is {length} but {evaluation.options.model!r} takes {longest} tokens",
            advice="lower `max_seq_length`",
        )
    if excess := describe_excess(length, tokenizer):
        sys.stdout.write(f"WARNING: {spell(excess)}\n")
    return length


def _plan(
    store: TokenStore,
    documents: NDArray[np.int64],
    max_seq_length: int,
    seed: int,
    *,
    pair_mode: PairMode,
) -> EpochPlan | None:
    """Return pairs as in pretraining; None if the documents allow none."""
    try:
        return plan_epoch(
            store,
            documents,
            max_seq_length=max_seq_length,
            short_seq_prob=0.0,
            pair_mode=pair_mode,
            seed=seed,
            epoch=0,
        )
    except InputError:  # of the documents, because the length has been checked
        return None


def _open_text(
    evaluation: Evaluation, tokenizer: PreTrainedTokenizerFast
) -> tuple[PreparedCorpus, NDArray[np.int64], str]:
    """Open the run's own corpus, or the named text; say which documents of it are judged."""
    run, given = evaluation.run, evaluation.text
    settings = {name: value for name, value in run.items() if name not in SOURCE_FLAGS}
    settings |= evaluation.source
    for flag in ("text_column", "document_boundary", "newline", "tsv_quotes"):
        if getattr(given, flag) is not None:
            settings[flag] = getattr(given, flag)
    if (share := evaluation.data.validation_share) is not None:
        if not 0 < share < 0.5:
            raise InputError.out_of_range("validation_share", share, "in (0, 0.5)")
        settings["validation_share"] = share
    fields = {field.name for field in dataclasses.fields(TextSource)}
    text = TextSource(**{name: settings[name] for name in fields & settings.keys()})
    is_runs_own = bool(run) and all(run.get(flag) == getattr(text, flag) for flag in SOURCE_FLAGS)
    name = text.dataset_name
    is_prepared = name is not None and (Path(name) / "manifest.json").is_file()
    is_divided = is_runs_own or is_prepared or evaluation.data.validation_share is not None
    # The run's seed, whatever is drawn here: it decides which documents were held out.
    seed = run.get("seed", evaluation.seed)
    corpus = open_corpus(
        text, tokenizer, seed=seed, download=download_corpus, needs_division=is_divided
    )
    if is_divided:
        documents = corpus.validation_documents
        return corpus, documents, f"the {len(documents):,} held-out documents"
    documents = np.arange(corpus.store.num_documents)
    return corpus, documents, f"all {len(documents):,} documents"


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
