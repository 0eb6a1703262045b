"""`bert-pretrain worth-it`: does pretraining pay on your labels? It may say no.

Labelled rows, texts without labels and an encoder enter. A table of accuracies by cross-validation
leaves, from TF-IDF to the encoder after some minutes of your texts, and what it says of more
pretraining and of more labels.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.finetuning import RecipeArguments, TaskDataArguments
from bert_pretrain.config.flags import parse_flags, pick
from bert_pretrain.config.worth_it import WorthItArguments, WorthItData
from bert_pretrain.data.atomic import check_creatable, make_folder, write_json
from bert_pretrain.data.run_folder import LOCK_FILE, held
from bert_pretrain.downstream.adaptation import Adaptation, adapt
from bert_pretrain.downstream.labelled_rows import LabelledSource
from bert_pretrain.downstream.models import is_image_config, read_model_config
from bert_pretrain.downstream.sources import Splits, open_splits, row_digests
from bert_pretrain.downstream.tasks import find_task
from bert_pretrain.downstream.training import FinetuningRecipe
from bert_pretrain.errors import InputError, spell
from bert_pretrain.evaluation.probes import majority_accuracy
from bert_pretrain.evaluation.statistics import fold_interval, format_interval
from bert_pretrain.evaluation.worth_it import (
    ALL,
    HALF,
    Contestant,
    Fold,
    Scores,
    cross_validate,
    divide,
    gain,
    verdict,
)
from bert_pretrain.hardware import describe_run

_TFIDF, _SCRATCH = "TF-IDF + logistic regression", "from scratch"
_WIDTH = 44


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(
        debug="--debug" in arguments, model_name_or_path="--model", tokenizer_name="--model"
    ):
        parser = HfArgumentParser(
            (WorthItArguments, WorthItData, RecipeArguments),
            prog="bert-pretrain worth-it",
            description="Says by cross-validation on your labels what TF-IDF, training from "
            "scratch and a pretrained encoder reach, and what more would bring.",
            allow_abbrev=False,
        )
        options, data, recipe = parse_flags(parser, arguments)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        run(options, data, recipe)
    return 0


def run(options: WorthItArguments, data: WorthItData, recipe: RecipeArguments) -> dict[str, Any]:
    """Measure and print; return what worth_it.json in the output folder holds.

    Raises:
        InputError: a flag, the model or the rows cannot be used; nothing has been written then.
    """
    options.check()
    output_dir = Path(options.output_dir)
    check_creatable(output_dir, parameter="output_dir")
    _check_empty(output_dir)
    texts = Adaptation(options.minutes / 2, tuple(options.unlabelled_files or ()), data.text_column)
    texts.check()
    splits = _open_rows(options, data)
    labels = splits.rows["train"].labels
    assert labels is not None
    rows = list(row_digests(splits, "train"))
    folds = divide(labels, rows, splits.labels.names, seed=options.seed)
    make_folder(output_dir, parameter="output_dir")
    _print_head(splits, folds)
    if options.minutes and not options.unlabelled_files:
        _say(
            "note: the encoder learns masked words of all the rows, also of those that a fold "
            "predicts, without their labels; `--unlabelled_files` gives it other texts"
        )
    with held(output_dir):
        encoders = _encoders(options, texts, splits, output_dir)
        contestants = [
            Contestant(_TFIDF, "floor", options.model),
            Contestant(_SCRATCH, "from_scratch", options.model),
            Contestant("this encoder, frozen", "frozen_probe", options.model),
        ]
        contestants += [Contestant(title, "fine_tuned", model) for title, model in encoders.items()]
        scores = cross_validate(
            contestants,
            splits,
            folds,
            pick(FinetuningRecipe, recipe),
            seed=options.seed,
            scratch_folder=output_dir / "trainer.tmp",
            on_scores=_print_scores,
        )
        answers = answer(scores, num_rows=len(labels))
        _say("\n" + "\n".join(f"{question} {said}" for question, said in answers.items()))
        content: dict[str, Any] = {
            "accuracies": [dataclasses.asdict(score) for score in scores],
            "answers": answers,
            "rows": len(labels),
            "folds": len(folds),
        }
        write_json(output_dir / "worth_it.json", content | describe_run())
    if options.json:
        write_json(Path(options.json), {"figures": _figures(scores), **content, **describe_run()})
    return content


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise InputError(
            f"{folder} is not an empty folder", advice="pass a new one as `output_dir`"
        )


def _open_rows(options: WorthItArguments, data: WorthItData) -> Splits:
    """Return the labelled rows, all of them in `train`."""
    if is_image_config(read_model_config(options.model)):
        raise InputError(
            f"{options.model!r} encodes images, but `worth-it` compares ways to classify texts",
            advice="change `model`, or use `evaluate` with `suite` label_efficiency",
        )
    as_task = TaskDataArguments(train_file=options.train_file, **dataclasses.asdict(data))
    task = find_task("classification")
    return open_splits(
        options.model,
        pick(LabelledSource, as_task, pixel_range=None),
        task,
        seed=options.seed,
        measured_on=(),
    )


def _encoders(
    options: WorthItArguments, texts: Adaptation, splits: Splits, output_dir: Path
) -> dict[str, str]:
    """Return what is fine-tuned, by title: the encoder at hand, and after each half of the time."""
    encoders = {"this encoder, fine-tuned": options.model}
    model = options.model
    for number in (1, 2) if texts.minutes else ():
        folder = output_dir / f"half-{number}"
        folder.mkdir()
        try:
            model, _ = adapt(texts, model, splits, folder, seed=options.seed + number - 1)
        except InputError:
            folder.rmdir()
            raise
        encoders[f"after {texts.minutes * number:g} minutes of your texts, fine-tuned"] = model
    return encoders


def answer(scores: Sequence[Scores], *, num_rows: int) -> dict[str, str]:
    """Return the questions of someone with few labels, and what the accuracies say.

    The encoder judged is always the last one, so that none is chosen by its luck on these folds.
    """
    by_title = {score.contestant.title: score.by_share for score in scores}
    tuned = [score for score in scores if score.contestant.arm == "fine_tuned"]
    last = tuned[-1]
    name = last.contestant.title
    answers = {}
    for other in (_TFIDF, _SCRATCH):
        difference = gain(last.by_share[ALL], by_title[other][ALL])
        question = f"Is it better than {other}?"
        answers[question] = f"{name}, {verdict(*difference, num_rows=num_rows)}"
    if len(tuned) > 1:
        title = tuned[-2].contestant.title
        more = gain(last.by_share[ALL], tuned[-2].by_share[ALL])
        answers["Would more pretraining help?"] = (
            f"the second half of the minutes brought {format_interval(*more, sign='+')} over "
            f"{title}; as many again seldom bring more than that"
        )
    more = gain(last.by_share[ALL], last.by_share[HALF])
    answers["Would more labels help?"] = (
        f"the second half of the labels brought {format_interval(*more, sign='+')}; as many again "
        "as you have seldom bring more than that"
    )
    return answers


def _figures(scores: Sequence[Scores]) -> dict[str, float]:
    return {
        f"{score.contestant.title}, {share}": fold_interval(values)[0]
        for score in scores
        for share, values in score.by_share.items()
    }


def _print_head(splits: Splits, folds: Sequence[Fold]) -> None:
    labels = splits.rows["train"].labels
    assert labels is not None
    names = splits.labels.names
    _say(f"{len(labels):,} labelled rows of {len(names)} classes, {len(folds)} folds")
    for line in splits.notes:
        _say(spell(line))
    majority = majority_accuracy(labels, labels)
    _say(f"accuracy [95 %]{'':{_WIDTH - 15}}  {'half the labels':<22}  all labels")
    _say(f"{'always the largest class':<{_WIDTH}}  {'':<22}  {majority:.3f}")


def _print_scores(scores: Scores) -> None:
    cells = [format_interval(*fold_interval(values)) for values in scores.by_share.values()]
    _say(f"{scores.contestant.title:<{_WIDTH}}  {cells[0]:<22}  {cells[1]}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
