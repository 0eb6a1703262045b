"""`python -m bert_pretrain.evaluate`: judge a finished model by one or several suites.

A model of this package or of anyone else enters, as a folder or Hub id that transformers loads; tables on standard
output and figures in a JSON file leave. A suite is one function in `SUITES`, which is given an `Evaluation`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.command_line import parse_flags, reporting_input_errors
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.suites.context import FLAG_GROUPS, Evaluation, SuiteResult
from bert_pretrain.evaluation.suites.fill_mask import check_fill_mask_flags, evaluate_fill_mask
from bert_pretrain.evaluation.suites.images import check_image_flags, evaluate_knn, evaluate_linear_probe
from bert_pretrain.evaluation.suites.minimal_pairs import check_minimal_pairs_flags, evaluate_minimal_pairs
from bert_pretrain.evaluation.suites.nsp import check_nsp_flags, evaluate_nsp
from bert_pretrain.hardware import describe_run

SUITES: dict[str, Callable[[Evaluation], SuiteResult]] = {
    "fill_mask": evaluate_fill_mask,
    "minimal_pairs": evaluate_minimal_pairs,
    "nsp": evaluate_nsp,
    "knn": evaluate_knn,
    "linear_probe": evaluate_linear_probe,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments):
        parser = HfArgumentParser(
            FLAG_GROUPS,
            prog="bert-pretrain evaluate",
            description="Judge a model: what it expects behind [MASK], which of two sentences it finds more likely, "
            "whether it can tell the next passage from another, or how good its frozen image features are beside "
            "pixels, their principal components and the same encoder untrained.",
            allow_abbrev=False,
        )
        evaluation = Evaluation(*parse_flags(parser, arguments))
        check_flags(evaluation)
        # What does not fit is refused below with a message; transformers' own report would only be a second one.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        figures: dict[str, float] = {}
        details: dict[str, Any] = {}
        for name in dict.fromkeys(evaluation.options.suite):
            result = SUITES[name](evaluation)
            sys.stdout.write(f"\n{name}\n{result.text}\n")
            sys.stdout.flush()
            figures |= result.figures
            details[name] = result.details
        if evaluation.options.json:
            content = {"figures": figures, "details": details, "runs": 1} | describe_run()
            write_json(Path(evaluation.options.json), content)
    return 0


def check_flags(evaluation: Evaluation) -> None:
    """Check what can be checked before anything is opened.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    options, data = evaluation.options, evaluation.data
    for name in options.suite:
        if name not in SUITES:
            raise InputError(f"suite is {name!r} but must be one or more of {', '.join(SUITES)}; change --suite")
    check_image_flags(evaluation.images)
    check_fill_mask_flags(evaluation.text)
    check_minimal_pairs_flags(evaluation.text)
    check_nsp_flags(evaluation.text)
    if options.per_device_eval_batch_size < 1:
        raise InputError(
            f"per_device_eval_batch_size is {options.per_device_eval_batch_size} but must be at least 1; "
            "change --per_device_eval_batch_size"
        )
    if data.data_files and data.dataset_name:
        raise InputError(f"--data_files and --dataset_name {data.dataset_name!r} both name the data; pass one")
    if options.json:
        target = Path(options.json).absolute()
        if target.is_dir() or not target.parent.is_dir():
            raise InputError(f"{options.json} cannot be written: no such folder; pass a file as --json")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main())
