"""The text that a suite judges a model on, and how long its rows are."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.commands.suites.context import DIVIDED_OTHERWISE, SOURCE_FLAGS, Evaluation
from bert_pretrain.config.schedules import Lengths
from bert_pretrain.errors import InputError, spell
from bert_pretrain.evaluation.pseudo_likelihood import longest_row
from bert_pretrain.models.loading import describe_excess
from bert_pretrain.publishing.hub import download_corpus
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.opening import find_prepared, open_corpus
from bert_pretrain.text.prepared import PreparedCorpus

_READING = ("text_column", "document_boundary", "newline", "tsv_quotes")


def row_length(
    evaluation: Evaluation, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> int:
    """Return the tokens of a row: as asked for, else as in the run, else at most 128."""
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


def open_text(
    evaluation: Evaluation, tokenizer: PreTrainedTokenizerFast
) -> tuple[PreparedCorpus, NDArray[np.int64], str]:
    """Open the run's own corpus, or the named text; say which documents of it are judged."""
    run, given = evaluation.run, evaluation.text
    settings = {name: value for name, value in run.items() if name not in SOURCE_FLAGS}
    settings |= evaluation.source
    if (share := evaluation.data.validation_share) is not None and not 0 < share < 0.5:
        raise InputError.out_of_range("validation_share", share, "in (0, 0.5)")
    reading = {flag: getattr(given, flag) for flag in _READING} | {"validation_share": share}
    reading = {flag: value for flag, value in reading.items() if value is not None}
    settings |= reading
    fields = {field.name for field in dataclasses.fields(TextSource)}
    text = TextSource(**{name: settings[name] for name in fields & settings.keys()})
    is_runs_own = bool(run) and all(run.get(flag) == getattr(text, flag) for flag in SOURCE_FLAGS)
    if not is_runs_own or share is not None:  # what the run held out says nothing of this text
        text = dataclasses.replace(text, validation_files=None, validation_split=None)
    prepared = find_prepared(text, download_corpus)
    if prepared is not None:  # which is read already, however the run read its own text
        text = TextSource(dataset_name=str(prepared), **reading)
    is_divided = is_runs_own or prepared is not None or share is not None
    # The run's seed, whatever is drawn here: it decides which documents were held out.
    seed = run.get("seed", evaluation.seed)
    corpus = open_corpus(
        text, tokenizer, seed=seed, download=download_corpus, needs_division=is_divided
    )
    if (
        is_runs_own
        and evaluation.data_then.get("key", corpus.manifest["key"]) != corpus.manifest["key"]
    ):
        sys.stdout.write(DIVIDED_OTHERWISE)
    if is_divided:
        documents = corpus.validation_documents
        return corpus, documents, f"the {len(documents):,} held-out documents"
    documents = np.arange(corpus.store.num_documents)
    return corpus, documents, f"all {len(documents):,} documents"
