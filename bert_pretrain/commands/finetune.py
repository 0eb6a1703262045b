"""`bert-pretrain finetune`: train a classifier on any encoder with transformers' Trainer.

A model folder or Hub id and labelled rows enter. A folder leaves: for each seed the predictions and
the course of training, results.json, and in final/ the plain model of the seed that validated best,
with its tokenizer or image processor.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.finetuning import (
    AdaptationArguments,
    FinetuneArguments,
    RecipeArguments,
    TaskDataArguments,
)
from bert_pretrain.config.flags import parse_flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(
        debug="--debug" in arguments, model_name_or_path="--model", tokenizer_name="--model"
    ):
        parser = HfArgumentParser(
            (FinetuneArguments, TaskDataArguments, AdaptationArguments, RecipeArguments),
            prog="bert-pretrain finetune",
            allow_abbrev=False,
        )
        options, data, adaptation, recipe = parse_flags(parser, arguments)
        # Our messages say what does not fit; transformers' own reports would say it twice.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        # torch takes seconds to import: help and refused flags need not wait for it.
        from bert_pretrain.commands.finetuning import run

        run(options, data, adaptation, recipe)
    return 0
