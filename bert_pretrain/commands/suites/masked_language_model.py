"""The suites of masked language models: `fill_mask` and `minimal_pairs`."""

from __future__ import annotations

import glob
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from bert_pretrain.commands.suites.context import Evaluation, SuiteResult, load_language_model
from bert_pretrain.data.run_folder import list_checkpoints, read_rows
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.fill_mask import (
    Probe,
    fill_mask,
    format_over_time,
    make_probe,
    most_probable,
)
from bert_pretrain.evaluation.minimal_pairs import (
    GroupAccuracy,
    PairScores,
    accuracies,
    leave_out_unscorable,
    score_pairs,
    template_pairs,
)
from bert_pretrain.evaluation.pair_files import (
    LeftOut,
    MinimalPair,
    describe_left_out,
    read_pairs,
    refuse_mostly_bad,
)
from bert_pretrain.evaluation.pseudo_likelihood import VARIANTS, longest_row
from bert_pretrain.evaluation.statistics import format_interval
from bert_pretrain.hardware import native_precision
from bert_pretrain.text.literal_text import encode_with_masks

DEFAULT_SENTENCES = [
    "The quick brown fox jumped over the lazy [MASK].",
    "The function returns a [MASK].",
    "If the file does not [MASK], an error is raised.",
]


def evaluate_fill_mask(evaluation: Evaluation) -> SuiteResult:
    """Show what a model expects behind [MASK]; of a run directory, at every checkpoint too.

    Every row carries the probability of the word that the last model finds most probable, so that
    one column tells when it was learnt. A run keeps few checkpoints, but has recorded the table of
    its own sentences at every evaluation. That record is shown too, unless other sentences are
    given.
    """
    run, given = Path(evaluation.options.model), evaluation.text
    models = _models_over_time(evaluation.options.model)
    rows: list[dict[str, Any]] = []
    answers: list[list[int]] = []
    for label, name in reversed(models.items()):
        model, tokenizer = load_language_model(name, "masked-LM")
        if given.num_candidates > model.config.vocab_size:
            raise InputError(
                f"`num_candidates` is {given.num_candidates:,} but the model knows "
                f"{model.config.vocab_size:,} tokens",
                advice="lower `num_candidates`",
            )
        probes = [
            _probe(sentence, tokenizer, longest_row(model))
            for sentence in given.sentences or DEFAULT_SENTENCES
        ]
        # The words behind the masks are unknown: the last model's own answers stand in for them.
        answers = answers or [most_probable(model, probe) for probe in probes]
        probes = [
            replace(probe, original_ids=ids) for probe, ids in zip(probes, answers, strict=True)
        ]
        found = fill_mask(model, tokenizer, probes, num_candidates=given.num_candidates)
        rows = [{"model": label} | row for row in found] + rows
    entropies = [row["entropy"] for row in rows if row["model"] == next(reversed(models))]
    text = format_over_time(rows)
    recorded: list[dict[str, Any]] = []
    if not given.sentences and (run / "fill_mask.jsonl").is_file():
        recorded = [
            {"model": f"step-{row['step']:06d}"} | row for row in read_rows(run / "fill_mask.jsonl")
        ]
    if recorded:
        earlier = format_over_time(recorded)
        text = f"as recorded while training:\n{earlier}\nat the checkpoints:\n{text}"
    figures = {"fill_mask_entropy": sum(entropies) / len(entropies)}
    return SuiteResult(text, figures, rows + recorded)


def _models_over_time(model: str) -> dict[str, str]:
    """Return what to load, by name; of a run directory its checkpoints and its final model."""
    run = Path(model)
    is_run = (run / "checkpoints").is_dir() or (run / "run.json").is_file()
    if is_run and not (run / "config.json").is_file():
        final = [run / "final"] if (run / "final").is_dir() else []
        if found := [*list_checkpoints(run / "checkpoints"), *final]:
            return {folder.name: str(folder) for folder in found}
    return {run.name: model}  # loading refuses a run without any model


def _probe(sentence: str, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Probe:
    mask = tokenizer.mask_token_id
    ids = encode_with_masks(tokenizer, sentence, marks=("[MASK]", tokenizer.mask_token))
    positions = [place for place, token_id in enumerate(ids) if token_id == mask]
    if not positions:
        raise InputError(
            f"the sentence {sentence!r} has no [MASK]", advice="put one into each of `sentences`"
        )
    probe = make_probe(tokenizer, ids, positions)
    if len(probe.input_ids) > max_length:
        raise InputError(
            f"the sentence {sentence[:40]!r}... has {len(probe.input_ids)} tokens but the model "
            f"takes {max_length}",
            advice="shorten `sentences`",
        )
    return probe


def find_pair_files(evaluation: Evaluation) -> list[Path]:
    """Return the files of pairs, sorted, or raise `InputError` if one is not there."""
    found = set()
    for pattern in evaluation.text.pairs_file or []:
        paths = [pattern] if Path(pattern).is_file() else glob.glob(pattern)
        if not paths:
            raise InputError(f"{pattern} is no file", advice="change `pairs_file`")
        found.update(paths)
    return [Path(path) for path in sorted(found)]


def evaluate_minimal_pairs(evaluation: Evaluation) -> SuiteResult:
    """Judge every pair by pseudo-log-likelihood, token by token and within words, by group."""
    files, precision = find_pair_files(evaluation), evaluation.text.mixed_precision
    pairs, left_out = _read_files(files) if files else (template_pairs(), [])
    model, tokenizer = load_language_model(evaluation.model, "masked-LM")
    pairs, unscorable = leave_out_unscorable(pairs, tokenizer, longest_row(model))
    refuse_mostly_bad(unscorable, len(pairs))
    left_out += unscorable
    bf16 = precision == "bf16" or (precision == "auto" and native_precision() == "bf16")
    scores = score_pairs(model, tokenizer, pairs, bf16=bf16)
    groups = [pair.group for pair in pairs]
    judged = [
        accuracies(groups, good, bad) for good, bad in zip(scores.good, scores.bad, strict=True)
    ]
    (token, token_groups), (word, word_groups) = judged
    mean, bad_mean = (
        float(sums[0].sum() / num_tokens.sum())
        for sums, num_tokens in zip((scores.good, scores.bad), scores.num_tokens, strict=True)
    )
    lines = [
        f"{'group':<42} {'pairs':>7}  {'token by token':<22}  {'within words':<22}  ties",
        *(_line(*both) for both in zip(token_groups, word_groups, strict=True)),
        _line(token, word),
        f"pseudo-log-likelihood of the good sentences {mean:.3f} nats a token, of the bad "
        f"{bad_mean:.3f} (pseudo-perplexity of the good {math.exp(min(-mean, 700)):,.1f})",
        "intervals: 95 %, of the draw of these pairs alone; a tie counts half",
    ]
    if bf16:
        lines.append(
            f"computed in bfloat16 (root mean square error of good - bad {scores.error:.3f} "
            f"nats); the {scores.is_rescored.sum():,} pairs too close for that in float32"
        )
    if left_out:
        lines.append(describe_left_out(left_out, len(pairs)))
    if not files:
        lines.append(
            "these pairs are templates of this package, not BLiMP; pass others as --pairs_file"
        )
    figures = {
        "minimal_pairs_accuracy": token.accuracy,
        "minimal_pairs_within_word_accuracy": word.accuracy,
        "minimal_pairs_mean_token_log_likelihood": mean,
        "minimal_pairs_tie_share": token.num_ties / token.num_pairs,
    }
    details: dict[str, Any] = {
        variant: {"all": overall._asdict(), "groups": [group._asdict() for group in by_group]}
        for variant, (overall, by_group) in zip(VARIANTS, judged, strict=True)
    }
    details["pairs"] = _pair_details(pairs, scores)
    details["left_out"] = [{"source": row.source, "reason": row.reason} for row in left_out]
    return SuiteResult("\n".join(lines), figures, details)


def _read_files(files: list[Path]) -> tuple[list[MinimalPair], list[LeftOut]]:
    read = [read_pairs(file) for file in files]
    return [pair for pairs, _ in read for pair in pairs], [row for _, rows in read for row in rows]


def _line(token: GroupAccuracy, word: GroupAccuracy) -> str:
    cells = [f"{format_interval(found.accuracy, found.interval):<22}" for found in (token, word)]
    return f"{token.group:<42} {token.num_pairs:>7,}  {cells[0]}  {cells[1]}  {token.num_ties:,}"


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
