"""`bert-pretrain evaluate`: judge a finished model by one or several suites.

A model of this package or of anyone else enters, as a folder or Hub id that transformers loads;
tables on standard output and figures in a JSON file leave. A suite is one function in `SUITES`,
which is given an `Evaluation`.
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
from bert_pretrain.commands.suites.fill_mask import check_fill_mask_flags, evaluate_fill_mask
from bert_pretrain.commands.suites.images import (
    check_image_flags,
    evaluate_knn,
    evaluate_linear_probe,
    open_labelled_images,
)
from bert_pretrain.commands.suites.label_efficiency import (
    parse_options,
    run_label_efficiency,
)
from bert_pretrain.commands.suites.minimal_pairs import (
    check_minimal_pairs_flags,
    evaluate_minimal_pairs,
)
from bert_pretrain.commands.suites.nsp import check_nsp_flags, evaluate_nsp, refuse_untrained_head
from bert_pretrain.config.flags import parse_flags
from bert_pretrain.data.whole_files import write_json
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import describe_run

SUITES: dict[str, Callable[[Evaluation], SuiteResult]] = {
    "fill_mask": evaluate_fill_mask,
    "minimal_pairs": evaluate_minimal_pairs,
    "nsp": evaluate_nsp,
    "knn": evaluate_knn,
    "linear_probe": evaluate_linear_probe,
}
# What a suite refuses before any suite begins: what takes little to find out, or is kept and used
# again.
_PRECONDITIONS: dict[str, Callable[[Evaluation], object]] = {
    "nsp": refuse_untrained_head,
    "knn": open_labelled_images,
    "linear_probe": open_labelled_images,
}

LABEL_EFFICIENCY = "label_efficiency"  # which trains, has flags of its own, and so is run alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(
        debug="--debug" in arguments, model_name_or_path="--model", tokenizer_name="--model"
    ):
        check_one_process()
        suites = _suites_in(arguments)
        if LABEL_EFFICIENCY in suites:
            _measure_curve(arguments, suites)
        else:
            _judge(arguments)
    return 0


def _write_results(
    path: str | None, results: dict[str, SuiteResult], missing: Sequence[str] = ()
) -> None:
    """Write what suites found, and the names of those that did not get so far; None = no file is asked for."""
    if path is None:
        return
    record: dict[str, object] = {
        "figures": {
            key: value for result in results.values() for key, value in result.figures.items()
        },
        "details": {name: result.details for name, result in results.items()},
        "runs": 1,
    }
    if missing:
        record["missing"] = list(missing)
        sys.stdout.write(f"\n{path} has what was found before {missing[0]}\n")
    write_json(Path(path), record | describe_run())


def _judge(arguments: Sequence[str]) -> None:
    """Run suites that judge a model as it is, and write what each one found, also if a later one fails."""
    parser = HfArgumentParser(
        FLAG_GROUPS,
        prog="bert-pretrain evaluate",
        description="Judge a model: what it expects behind [MASK], which of two sentences it finds "
        "more likely, "
        "whether it can tell the next passage from another, or how good its frozen image features "
        "are beside "
        "pixels, their principal components and the same encoder untrained. --suite "
        "label_efficiency, accuracy against "
        "the number of labels, has flags of its own: add --help.",
        allow_abbrev=False,
    )
    evaluation = Evaluation(*parse_flags(parser, arguments))
    check_flags(evaluation)
    # What does not fit is refused below with a message; transformers' own report would only be a
    # second one.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
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


def _measure_curve(arguments: Sequence[str], suites: list[str]) -> None:
    """Measure the label-efficiency curve, and write it as `_judge` does."""
    if suites != [LABEL_EFFICIENCY]:
        raise InputError(
            f"suites are {' '.join(suites)} but {LABEL_EFFICIENCY} runs alone",
            advice="change `suite`",
        )
    place = (
        arguments.index("--suite")
        if "--suite" in arguments
        else arguments.index(f"--suite={LABEL_EFFICIENCY}")
    )
    num_words = 2 if arguments[place] == "--suite" else 1
    options = parse_options([*arguments[:place], *arguments[place + num_words :]])
    check_json_target(options.curve.json)
    result = run_label_efficiency(options)
    sys.stdout.write(f"{result.text}\n")
    _write_results(options.curve.json, {LABEL_EFFICIENCY: result})


def _suites_in(arguments: Sequence[str]) -> list[str]:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--suite", nargs="*", default=[])
    found: list[str] = finder.parse_known_args(arguments)[0].suite
    return found


def check_flags(evaluation: Evaluation) -> None:
    """Check what can be checked before anything is opened.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    options, data = evaluation.options, evaluation.data
    for name in options.suite:
        if name not in SUITES:
            allowed = f"one or more of {', '.join(SUITES)}, or {LABEL_EFFICIENCY}"
            raise InputError(f"suite is {name!r} but must be {allowed}", advice="change `suite`")
    check_image_flags(evaluation.images)
    check_fill_mask_flags(evaluation.text)
    check_minimal_pairs_flags(evaluation.text)
    check_nsp_flags(evaluation.text)
    if options.per_device_eval_batch_size < 1:
        raise InputError(
            f"per_device_eval_batch_size is {options.per_device_eval_batch_size} but must be at "
            "least 1",
            advice="change `per_device_eval_batch_size`",
        )
    if data.data_files and data.dataset_name:
        raise InputError(
            f"`data_files` and `dataset_name` {data.dataset_name!r} both name the data",
            advice="pass one",
        )
    check_json_target(options.json)


def check_one_process() -> None:
    """Raise `InputError` if a launcher started several processes, each of which would do and write all there is."""
    num_processes = os.environ.get("WORLD_SIZE", "1")
    if num_processes != "1":
        raise InputError(
            f"{num_processes} processes were started but evaluation is done by one process",
            advice="start it without torchrun or accelerate launch",
        )


def check_json_target(path: str | None) -> None:
    """Raise `InputError` unless a file can be written there; None = none is asked for."""
    if path is None:
        return
    target = Path(path).absolute()
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(
            f"{path} cannot be written: no such folder", advice="pass a file as `json`"
        )
