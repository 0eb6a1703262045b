"""The suite `fill_mask`: what a masked language model expects behind [MASK]; of a run, how that sharpened over time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bert_pretrain.commands.suites.context import (
    Evaluation,
    EvaluationText,
    SuiteResult,
)
from bert_pretrain.data.run_records import read_rows
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.fill_mask import Probe, fill_mask, format_over_time, most_probable
from bert_pretrain.evaluation.masked_language_model import load_masked_language_model, longest_row
from bert_pretrain.training.checkpoint import list_checkpoints

DEFAULT_SENTENCES = [
    "The quick brown fox jumped over the lazy [MASK].",
    "The function returns a [MASK].",
    "If the file does not [MASK], an error is raised.",
]


def check_fill_mask_flags(text: EvaluationText) -> None:
    """Check what can be checked before anything is opened.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    if text.num_candidates < 1:
        raise InputError(
            f"num_candidates is {text.num_candidates} but must be at least 1",
            advice="change `num_candidates`",
        )


def evaluate_fill_mask(evaluation: Evaluation) -> SuiteResult:
    """Show what a model expects behind [MASK]; of a run directory, at every checkpoint that it kept and at its end.

    Every row carries the probability of the word that the last model finds most probable, so that
    one column tells when it was learnt. A run keeps few checkpoints, but has recorded the table of
    its own sentences at every evaluation: unless other sentences are given, that record is shown
    too.
    """
    models = models_over_time(evaluation.options.model)
    sentences = evaluation.text.sentences or DEFAULT_SENTENCES
    rows: list[dict[str, Any]] = []
    answers: list[list[int]] = []
    for label, name in reversed(models.items()):
        model, tokenizer = load_masked_language_model(name)
        _check_num_candidates(evaluation.text.num_candidates, model.config.vocab_size)
        probes = [_probe(sentence, tokenizer, longest_row(model)) for sentence in sentences]
        # What stood behind the masks is unknown: the last model's own answers stand in for it.
        answers = answers or [most_probable(model, probe) for probe in probes]
        probes = [
            replace(probe, original_ids=ids) for probe, ids in zip(probes, answers, strict=True)
        ]
        found = fill_mask(model, tokenizer, probes, num_candidates=evaluation.text.num_candidates)
        rows = [{"model": label} | row for row in found] + rows
    last = [row["entropy"] for row in rows if row["model"] == next(reversed(models))]
    tables = [format_over_time(rows)]
    recorded = [] if evaluation.text.sentences else recorded_rows(Path(evaluation.options.model))
    if recorded:
        tables = [
            "as recorded while training:",
            format_over_time(recorded),
            "at the checkpoints:",
            *tables,
        ]
    return SuiteResult(
        "\n".join(tables), {"fill_mask_entropy": sum(last) / len(last)}, rows + recorded
    )


def _check_num_candidates(num_candidates: int, vocab_size: int) -> None:
    if num_candidates > vocab_size:
        raise InputError(
            f"num_candidates is {num_candidates:,} but the model knows {vocab_size:,} tokens",
            advice="lower `num_candidates`",
        )


def models_over_time(model: str) -> dict[str, str]:
    """Return what to load by what to call it: of a run directory its checkpoints, oldest first, and its final model."""
    run = Path(model)
    is_run = (run / "checkpoints").is_dir() or (run / "run.json").is_file()
    if is_run and not (run / "config.json").is_file():
        found = [
            *list_checkpoints(run / "checkpoints"),
            *([run / "final"] if (run / "final").is_dir() else []),
        ]
        if found:
            return {folder.name: str(folder) for folder in found}
    return {run.name: model}  # a run that holds neither is refused when it cannot be loaded


def recorded_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's fill_mask.jsonl, named by step; none if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    path = run_dir / "fill_mask.jsonl"
    if not path.is_file():
        return []
    return [{"model": f"step-{row['step']:06d}"} | row for row in read_rows(path)]


def _probe(sentence: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Probe:
    input_ids = tokenizer(sentence.replace("[MASK]", tokenizer.mask_token))["input_ids"]
    positions = [
        place for place, token_id in enumerate(input_ids) if token_id == tokenizer.mask_token_id
    ]
    if not positions:
        raise InputError(
            f"the sentence {sentence!r} has no [MASK]", advice="put one into each of `sentences`"
        )
    if len(input_ids) > max_length:
        raise InputError(
            f"the sentence {sentence[:40]!r}... has {len(input_ids)} tokens but the model takes "
            f"{max_length}",
            advice="shorten `sentences`",
        )
    return Probe(input_ids, positions, [tokenizer.mask_token_id] * len(positions))
