"""The suite `minimal_pairs`: which of two sentences a masked language model finds more likely."""

from __future__ import annotations

import glob
import math
from pathlib import Path
from typing import Any

from bert_pretrain.commands.suites.context import (
    Evaluation,
    EvaluationText,
    SuiteResult,
)
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.masked_language_model import load_masked_language_model
from bert_pretrain.evaluation.minimal_pairs import (
    VARIANTS,
    GroupAccuracy,
    MinimalPair,
    PairScores,
    accuracies,
    read_pairs,
    score_pairs,
)
from bert_pretrain.evaluation.pair_templates import template_pairs
from bert_pretrain.hardware import native_precision


def check_minimal_pairs_flags(text: EvaluationText) -> None:
    """Check what can be checked before anything is opened.

    Raises:
        InputError: a file of pairs is not there.
    """
    for pattern in text.pairs_file or []:
        if not Path(pattern).is_file() and not glob.glob(pattern):
            raise InputError(f"{pattern} is no file", advice="change `pairs_file`")


def evaluate_minimal_pairs(evaluation: Evaluation) -> SuiteResult:
    """Judge every pair by pseudo-log-likelihood, token by token and within words, and count by group."""
    pairs = _open_pairs(evaluation.text.pairs_file)
    model, tokenizer = load_masked_language_model(evaluation.model)
    bf16 = evaluation.text.mixed_precision == "bf16" or (
        evaluation.text.mixed_precision == "auto" and native_precision() == "bf16"
    )
    scores = score_pairs(model, tokenizer, pairs, bf16=bf16)
    groups = [pair.group for pair in pairs]
    (token, token_groups), (word, word_groups) = (
        accuracies(groups, good, bad) for good, bad in zip(scores.good, scores.bad, strict=True)
    )
    lines = [
        _HEADER,
        *(_line(*both) for both in zip(token_groups, word_groups, strict=True)),
        _line(token, word),
    ]
    mean = float(scores.good[0].sum() / scores.num_tokens[0].sum())
    lines += [
        f"pseudo-log-likelihood of the good sentences {mean:.3f} nats a token, "
        f"of the bad {float(scores.bad[0].sum() / scores.num_tokens[1].sum()):.3f} "
        f"(pseudo-perplexity of the good {math.exp(min(-mean, 700)):,.1f})",
        *_notes(scores, evaluation.text.pairs_file is None, bf16=bf16),
    ]
    figures = {
        "minimal_pairs_accuracy": token.accuracy,
        "minimal_pairs_within_word_accuracy": word.accuracy,
        "minimal_pairs_mean_token_log_likelihood": mean,
        "minimal_pairs_tie_share": token.num_ties / token.num_pairs,
    }
    details = {
        variant: {"all": overall._asdict(), "groups": [group._asdict() for group in by_group]}
        for variant, overall, by_group in zip(
            VARIANTS, (token, word), (token_groups, word_groups), strict=True
        )
    }
    details["pairs"] = _pair_details(pairs, scores)  # type: ignore[assignment]
    return SuiteResult("\n".join(lines), figures, details)


def _open_pairs(patterns: list[str] | None) -> list[MinimalPair]:
    if patterns is None:
        return template_pairs()
    paths = [
        path
        for pattern in patterns
        for path in ([pattern] if Path(pattern).is_file() else glob.glob(pattern))
    ]
    return [pair for path in sorted(set(paths)) for pair in read_pairs(Path(path))]


_HEADER = f"{'group':<42} {'pairs':>7}  {'token by token':<22}  {'within words':<22}  ties"


def _line(token: GroupAccuracy, word: GroupAccuracy) -> str:
    accuracy = [
        f"{found.accuracy:.3f} [{found.interval[0]:.3f}, {found.interval[1]:.3f}]"
        for found in (token, word)
    ]
    return f"{token.group:<42} {token.num_pairs:>7,}  {accuracy[0]:<22}  {accuracy[1]:<22}  {token.num_ties:,}"


def _notes(scores: PairScores, is_ours: bool, *, bf16: bool) -> list[str]:
    notes = ["intervals: 95 %, of the draw of these pairs alone; a tie counts half"]
    if bf16:
        notes.append(
            f"computed in bfloat16 (good - bad off by {scores.error:.3f} nats, standard "
            "deviation); the "
            f"{scores.is_rescored.sum():,} pairs too close for that in float32"
        )
    if is_ours:
        notes.append(
            "these pairs are templates of this package, not BLiMP; pass others as --pairs_file"
        )
    return notes


def _pair_details(pairs: list[MinimalPair], scores: PairScores) -> list[dict[str, Any]]:
    return [
        {"good": pair.good, "bad": pair.bad, "group": pair.group}
        | {
            f"{variant}_{side}": round(float(values[number]), 5)
            for variant, good, bad in zip(VARIANTS, scores.good, scores.bad, strict=True)
            for side, values in (("good", good), ("bad", bad))
        }
        for number, pair in enumerate(pairs)
    ]
