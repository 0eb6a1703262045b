"""The suite `nsp`: whether a model tells the next passage from another, and how sure it is.

The random B of an easy pair is of another document, as in pretraining; that of a hard pair is a
neighbouring passage of the same document. Half of either kind is random, both labels have the same
lengths, and nothing is masked.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.commands.suites.context import SOURCE_FLAGS, Evaluation, SuiteResult
from bert_pretrain.errors import InputError, spell
from bert_pretrain.evaluation.language_models import (
    load_next_sentence_model,
    load_word_tokenizer,
    longest_row,
)
from bert_pretrain.evaluation.next_sentence import (
    NUM_BINS,
    NextSentenceScores,
    balanced_rows,
    judge_next_sentences,
    random_probabilities,
)
from bert_pretrain.evaluation.statistics import format_interval
from bert_pretrain.models.positions import describe_excess
from bert_pretrain.publishing.hub import download_corpus
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.opening import open_corpus
from bert_pretrain.text.pairs import EpochPlan, plan_epoch, plan_neighbours
from bert_pretrain.text.prepared import PreparedCorpus, TokenStore


class _Text(NamedTuple):
    corpus: PreparedCorpus
    documents: NDArray[np.int64]
    description: str


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
    refuse_untrained_head(evaluation)
    model = load_next_sentence_model(evaluation.model)
    tokenizer = load_word_tokenizer(evaluation.model)
    length = _max_seq_length(evaluation, model, tokenizer)
    text = _open_text(evaluation, tokenizer)
    store, seed = text.corpus.store, evaluation.seed
    hard, num_short = plan_neighbours(store, text.documents, max_seq_length=length, seed=seed)
    plans = {
        "easy": _plan_easy(store, text.documents, max_seq_length=length, seed=seed),
        "hard": hard,
    }
    chosen = {name: _balanced(plan, evaluation) for name, plan in plans.items()}
    if all(pairs is None for pairs in chosen.values()):
        raise InputError(
            f"{text.corpus.manifest['source']['description']} allows no pair of passages of "
            f"{length} tokens, neither of two documents nor within one",
            advice="give more text with `data_files`, or lower `max_seq_length`",
        )
    lines = [text.description, _HEADER]
    figures: dict[str, float] = {}
    details: dict[str, Any] = {"max_seq_length": length, "documents_without_hard_pair": num_short}
    for name, pairs in chosen.items():
        if pairs is None:
            lines.append(f"{name:<5} no pairs: too few documents of two passages")
            continue
        probabilities = random_probabilities(
            model, tokenizer, store, pairs, batch_size=evaluation.options.per_device_eval_batch_size
        )
        scores = judge_next_sentences(probabilities, pairs.next_sentence_label)
        lines.append(_line(name, scores, pairs))
        figures |= {
            f"nsp_{name}_{key}": getattr(scores, key)
            for key in ("accuracy", "confidence", "calibration_error", "brier")
        }
        details[name] = dataclasses.asdict(scores) | {
            "num_pairs": len(pairs),
            "mean_b_length": float(pairs.b_length.mean()),
            "bins": [found._asdict() for found in scores.bins],
        }
    lines += _notes(num_short, len(text.documents), length)
    return SuiteResult("\n".join(lines), figures, details)


def _max_seq_length(
    evaluation: Evaluation, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> int:
    """Return the tokens of a pair: as asked for, else as in the run, else at most 128."""
    longest = longest_row(model)
    asked = evaluation.text.max_seq_length or evaluation.run.get("max_seq_length")
    length = int(asked or min(128, longest, tokenizer.model_max_length))
    if length > longest:
        raise InputError(
            f"max_seq_length is {length} but {evaluation.options.model!r} takes {longest} tokens",
            advice="lower `max_seq_length`",
        )
    if excess := describe_excess(length, tokenizer):
        sys.stdout.write(f"WARNING: {spell(excess)}\n")
    return length


def _plan_easy(
    store: TokenStore, documents: NDArray[np.int64], *, max_seq_length: int, seed: int
) -> EpochPlan | None:
    """Return pairs whose random B is of another document; None if there is only one document."""
    try:
        return plan_epoch(
            store,
            documents,
            max_seq_length=max_seq_length,
            short_seq_prob=0.0,
            pair_mode="exact",
            seed=seed,
            epoch=0,
        )
    except InputError:  # of the documents, because the length has been checked
        return None


def _balanced(plan: EpochPlan | None, evaluation: Evaluation) -> EpochPlan | None:
    """Return at most as many pairs as asked for, half of either label; None if there are none."""
    if plan is None:
        return None
    rows = balanced_rows(
        plan.next_sentence_label, max_rows=evaluation.text.max_pairs, seed=evaluation.seed
    )
    return plan.take(rows) if len(rows) else None


def _open_text(evaluation: Evaluation, tokenizer: PreTrainedTokenizerFast) -> _Text:
    """Open the run's own corpus, or the named text, and choose the documents that are judged."""
    run, given = evaluation.run, evaluation.text
    settings = {name: value for name, value in run.items() if name not in SOURCE_FLAGS}
    settings |= evaluation.source
    for name in ("text_column", "document_boundary"):
        if getattr(given, name) is not None:
            settings[name] = getattr(given, name)
    if (share := evaluation.data.validation_share) is not None:
        if not 0 < share < 0.5:
            raise InputError.out_of_range("validation_share", share, "in (0, 0.5)")
        settings["validation_share"] = share
    fields = [field.name for field in dataclasses.fields(TextSource)]
    text = TextSource(**{name: settings[name] for name in fields if name in settings})
    is_runs_own = bool(run) and all(run.get(name) == getattr(text, name) for name in SOURCE_FLAGS)
    is_prepared = (
        bool(text.dataset_name) and (Path(str(text.dataset_name)) / "manifest.json").is_file()
    )
    is_divided = is_runs_own or is_prepared or evaluation.data.validation_share is not None
    # The run's seed, whatever is drawn here: it decides which documents were held out.
    seed = run.get("seed", evaluation.seed)
    corpus = open_corpus(
        text, tokenizer, seed=seed, download=download_corpus, needs_division=is_divided
    )
    what = corpus.manifest["source"]["description"]
    if is_divided:
        documents = corpus.validation_documents
        return _Text(corpus, documents, f"{what}: the {len(documents):,} held-out documents")
    documents = np.arange(corpus.store.num_documents, dtype=np.int64)
    return _Text(corpus, documents, f"{what}: all {len(documents):,} documents")


_HEADER = (
    f"{'pairs':<5} {'number':>7}  {'accuracy':<22}  confidence  calibration error   Brier  "
    "tokens of B"
)


def _line(name: str, scores: NextSentenceScores, plan: EpochPlan) -> str:
    return (
        f"{name:<5} {len(plan):>7,}  {format_interval(scores.accuracy, scores.interval):<22}  "
        f"{scores.confidence:>10.3f}  {scores.calibration_error:>17.3f}  {scores.brier:>6.3f}  "
        f"{plan.b_length.mean():>11.1f}"
    )


def _notes(num_short: int, num_documents: int, length: int) -> list[str]:
    short = f"{num_short:,} of {num_documents:,} documents are too short for two passages of "
    short += f"{length} tokens and have no hard pair"
    return [
        "easy: the random B is of another document; hard: a neighbouring passage of the same. Half "
        "of the pairs are random: guessing reaches 0.500",
        f"calibration error: expected, {NUM_BINS} equal bins of the confidence from 0.5 to 1; "
        "Brier of always saying 0.5: 0.250; intervals: 95 %, of the draw of these pairs alone",
        short + ("; a lower --max_seq_length makes more of them usable" if num_short else ""),
    ]
