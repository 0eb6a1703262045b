"""The suite `perplexity`: how well a masked language model predicts hidden tokens of any text.

Rows are single segments, masked as the held-out rows of a run are: 15 % of the tokens, 80 % of them
[MASK], 10 % another token and 10 % themselves, always the same. Tokens of different tokenizers do
not compare, so the loss is given for a byte and for a character of the text too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from bert_pretrain.commands.suites.context import Evaluation, SuiteResult, load_language_model
from bert_pretrain.commands.suites.text_source import open_text, row_length
from bert_pretrain.evaluation.perplexity import MaskedSums, masked_sums
from bert_pretrain.evaluation.statistics import Interval, format_interval, ratio_interval
from bert_pretrain.text.blocks import evaluation_rows
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.layout import read_layouts
from bert_pretrain.text.literal_text import protected_token_ids
from bert_pretrain.text.masking import MaskingRule, ordinary_token_ids
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.unread import document_runs

Measure: TypeAlias = tuple[float, Interval | None]

_MLM_PROBABILITY = 0.15  # whatever the run had, so that models compare

_LARGEST_EXPONENT = 709.0  # of e, in float64


def evaluate_perplexity(evaluation: Evaluation) -> SuiteResult:
    """Judge the held-out documents of the model's run, or the named text."""
    model, tokenizer = load_language_model(evaluation.model, "masked-LM")
    length, seed = row_length(evaluation, model, tokenizer), evaluation.seed
    corpus, documents, which = open_text(evaluation, tokenizer)
    plan, rows = evaluation_rows(
        corpus.store,
        documents,
        max_seq_length=length,
        pair_mode="none",
        seed=seed,
        num_special_tokens=read_layouts(tokenizer).num_special_tokens,
        max_rows=evaluation.text.max_eval_rows,
    )
    sums = masked_sums(
        model,
        _masking_collator(corpus, tokenizer, seed),
        plan,
        rows,
        batch_size=evaluation.options.per_device_eval_batch_size,
    )
    runs = document_runs(corpus.store, documents)
    document = np.searchsorted(runs.stop, plan.a_start[rows], side="right")
    is_whole = len(documents) == corpus.store.num_documents
    measures = _measures(sums, document, _tokens_per_unit(corpus, is_whole=is_whole))
    num_masked, num_documents = int(sums.num_masked.sum()), len(np.unique(document))
    unknown_rate = corpus.manifest["unknown_rate"]
    lines = [
        f"{corpus.manifest['source']['description']}: {which}, {len(rows):,} of {len(plan):,} rows "
        f"of up to {length} tokens",
        *(f"{name:<19} {format_interval(*measure)}" for name, measure in measures.items()),
        f"loss: nats a masked token, {num_masked:,} of them; bytes and characters are the text's, "
        "so that models of different tokenizers compare, but one to which more is unknown (here "
        f"{100 * unknown_rate:.3f} % of the tokens) has it easier",
        f"intervals: 95 %, of the draw of these {num_documents:,} documents",
    ]
    figures = {f"perplexity_{name}": value for name, (value, _) in measures.items()}
    details = {
        "intervals": {name: interval for name, (_, interval) in measures.items()},
        "num_documents": num_documents,
        "num_rows": len(rows),
        "num_masked": num_masked,
        "max_seq_length": length,
        "mlm_probability": _MLM_PROBABILITY,
        "unknown_rate": unknown_rate,
    }
    return SuiteResult("\n".join(lines), figures, details)


def _masking_collator(
    corpus: PreparedCorpus, tokenizer: PreTrainedTokenizerFast, seed: int
) -> PretrainingCollator:
    rule = MaskingRule(
        mlm_probability=_MLM_PROBABILITY,
        mask_token_id=tokenizer.mask_token_id,
        ordinary_ids=ordinary_token_ids(tokenizer),
        protected_ids=protected_token_ids(tokenizer),
    )
    return PretrainingCollator(
        corpus.store,
        rule,
        layouts=read_layouts(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        seed=seed,
        evaluation=True,
    )


def _measures(
    sums: MaskedSums, document: NDArray[np.int64], tokens_per: dict[str, float]
) -> dict[str, Measure]:
    """Return each measure with its interval over documents.

    Args:
        sums: of N rows.
        document: (N,), number of the document that each is of.
        tokens_per: tokens per unit of text, by its name.
    """
    nats, correct, masked = (
        np.bincount(document, weights=column)
        for column in (sums.nats, sums.num_correct, sums.num_masked)
    )
    loss = ratio_interval(nats, masked)
    found = {
        "loss": loss,
        "perplexity": _mapped(loss, lambda nats: math.exp(min(nats, _LARGEST_EXPONENT))),
        "accuracy": _mapped(ratio_interval(correct, masked), lambda share: min(max(share, 0), 1)),
    }
    for unit, rate in tokens_per.items():
        found[f"nats_per_{unit}"] = _mapped(loss, partial(operator.mul, rate))
    return found


def _tokens_per_unit(corpus: PreparedCorpus, *, is_whole: bool) -> dict[str, float]:
    """Return the tokens per byte and per character of the whole corpus or of what is held out."""
    prefix = "" if is_whole else "validation_"
    counts = {
        name: corpus.manifest["counts"][prefix + name] for name in ("tokens", "bytes", "characters")
    }
    return {
        "byte": counts["tokens"] / counts["bytes"],
        "character": counts["tokens"] / counts["characters"],
    }


def _mapped(measure: Measure, change: Callable[[float], float]) -> Measure:
    """Return a rising function of a measure, and its interval."""
    value, interval = measure
    return change(value), interval and (change(interval[0]), change(interval[1]))
