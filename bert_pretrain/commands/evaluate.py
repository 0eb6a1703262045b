"""`bert-pretrain evaluate`: judge a finished model by one or several suites.

A model enters, as a folder or Hub id that transformers loads; tables on standard output and figures
in a JSON file leave. A suite is one function in `SUITES`, which is given an `Evaluation`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.commands.suites.context import FLAG_GROUPS, Evaluation, SuiteResult
from bert_pretrain.commands.suites.images import (
    evaluate_knn,
    evaluate_linear_probe,
    open_labelled_images,
)
from bert_pretrain.commands.suites.label_efficiency import parse_options, run_label_efficiency
from bert_pretrain.commands.suites.masked_language_model import (
    evaluate_fill_mask,
    evaluate_minimal_pairs,
    find_pair_files,
)
from bert_pretrain.commands.suites.nsp import evaluate_nsp, refuse_untrained_head
from bert_pretrain.commands.suites.perplexity import evaluate_perplexity
from bert_pretrain.config.evaluating import check_evaluation
from bert_pretrain.config.flags import parse_flags
from bert_pretrain.data.atomic import write_json
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import describe_run

SUITES: dict[str, Callable[[Evaluation], SuiteResult]] = {
    "fill_mask": evaluate_fill_mask,
    "minimal_pairs": evaluate_minimal_pairs,
    "nsp": evaluate_nsp,
    "perplexity": evaluate_perplexity,
    "knn": evaluate_knn,
    "linear_probe": evaluate_linear_probe,
}
# What a suite checks before any suite begins: it is quick, or what it opens is used again.
_PRECONDITIONS: dict[str, Callable[[Evaluation], object]] = {
    "minimal_pairs": find_pair_files,
    "nsp": refuse_untrained_head,
    "knn": open_labelled_images,
    "linear_probe": open_labelled_images,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(
        debug="--debug" in arguments, model_name_or_path="--model", tokenizer_name="--model"
    ):
        if (num_processes := os.environ.get("WORLD_SIZE", "1")) != "1":
            raise InputError(
                f"{num_processes} processes were started but evaluation is done by one process",
                advice="start it without torchrun or accelerate launch",
            )
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--suite", nargs="*", default=[])
        named, others = finder.parse_known_args(arguments)
        # A model that does not fit is refused with one message; transformers would add a report.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        # label_efficiency trains and has flags of its own, so it runs alone.
        if "label_efficiency" in named.suite:
            _measure_curve(named.suite, others)
        else:
            _judge(arguments)
    return 0


def _write_results(
    path: str | None, results: dict[str, SuiteResult], missing: Sequence[str] = ()
) -> None:
    """Write what suites found, and which ones are missing; None = no file is asked for."""
    if path is None:
        return
    figures: dict[str, float] = {}
    for result in results.values():
        figures |= result.figures
    details = {name: result.details for name, result in results.items()}
    record: dict[str, object] = {"figures": figures, "details": details, "runs": 1}
    if missing:
        record["missing"] = list(missing)
        sys.stdout.write(f"\n{path} has what was found before {missing[0]}\n")
    try:
        write_json(Path(path), record | describe_run())
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror})", advice="pass another file as `json`"
        ) from error


def _judge(arguments: Sequence[str]) -> None:
    """Run suites that judge a model as it is; if one fails, the others' figures are written."""
    parser = HfArgumentParser(
        FLAG_GROUPS,
        prog="bert-pretrain evaluate",
        description="Judge a model: what it expects behind [MASK], which of two sentences it finds "
        "more likely, whether it can tell the next passage from another, how well it predicts "
        "hidden tokens of any text, or how good its frozen image features are beside pixels, their "
        "principal components and the same encoder untrained. --suite label_efficiency, accuracy "
        "against the number of labels, has flags of its own: add --help.",
        allow_abbrev=False,
    )
    groups = parse_flags(parser, arguments)
    evaluation = Evaluation(*groups)
    check_evaluation(evaluation.options, evaluation.data, evaluation.images, suites=SUITES)
    names = list(dict.fromkeys(evaluation.options.suite))
    for name in names:
        if name in _PRECONDITIONS:
            _PRECONDITIONS[name](evaluation)
    results: dict[str, SuiteResult] = {}
    try:
        for name in names:
            results[name] = SUITES[name](evaluation)
            sys.stdout.write(f"\n{name}\n{results[name].text}\n")
            sys.stdout.flush()
    finally:
        if results:
            _write_results(evaluation.options.json, results, missing=names[len(results) :])


def _measure_curve(suites: list[str], arguments: Sequence[str]) -> None:
    """Measure the label-efficiency curve and write its figures."""
    if suites != ["label_efficiency"]:
        raise InputError(
            f"suites are {' '.join(suites)} but label_efficiency runs alone",
            advice="change `suite`",
        )
    options = parse_options(arguments)
    result = run_label_efficiency(options)
    sys.stdout.write(f"{result.text}\n")
    _write_results(options.curve.json, {"label_efficiency": result})
