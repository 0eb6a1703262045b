"""`bert-pretrain finetune`: train a classifier on any encoder with transformers' Trainer.

A model folder or Hub id and labelled rows enter. A folder leaves: for each seed the predictions and
the course of training, results.json, and in final/ the plain model of the seed that validated best,
with its tokenizer or image processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import evaluate
import numpy as np
from numpy.typing import NDArray
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.checks import check_repo_id
from bert_pretrain.config.finetuning import TaskDataArguments
from bert_pretrain.config.flags import flag, flags, parse_flags
from bert_pretrain.data.atomic import check_creatable, make_folder, write_json
from bert_pretrain.data.locks import LOCK_FILE, held
from bert_pretrain.downstream.labels import LabelSpace
from bert_pretrain.downstream.metrics import (
    METRICS,
    SMALLER_IS_BETTER,
    compute_metrics,
    is_better,
    load_metrics,
    predict,
)
from bert_pretrain.downstream.models import ClassifierSource
from bert_pretrain.downstream.predictions import write_lines, write_predictions
from bert_pretrain.downstream.results import (
    describe_splits,
    format_metrics,
    format_results,
    model_card,
    summarize_seeds,
)
from bert_pretrain.downstream.row_digests import describe_overlap, overlap_with_training
from bert_pretrain.downstream.sources import Splits, open_splits
from bert_pretrain.downstream.tasks import DEFAULT_METRICS, Task, find_task
from bert_pretrain.downstream.training import Recipe, Validation, predict_logits, train
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import describe_run
from bert_pretrain.models.positions import describe_excess
from bert_pretrain.publishing.publication import open_pusher, submit_final
from bert_pretrain.publishing.pusher import HubPusher

_PUSH_SECONDS = 600  # that the end waits for the Hub


@dataclass
class FinetuneArguments:
    """What is trained and where it goes."""

    _argument_group_name: ClassVar[str] = "fine-tune"

    model: str = field(
        metadata={"help": "Folder or Hub id of any text or image encoder of transformers."}
    )
    output_dir: str = field(
        metadata={"help": "New folder: results.json, final/, and a folder for each seed."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [42],
        metadata={
            "help": "Seeds of the head, of dropout and of the order of rows; one training for each."
        },
    )
    from_scratch: bool = flag(
        False, "Leave the weights of --model unread: the baseline of the same architecture."
    )
    freeze_encoder: bool = flag(
        False,
        "Train the head alone; the encoder stays as it is, running means of normalisation "
        "included. Its dropout acts.",
    )
    metrics: list[str] | None = flags(
        "accuracy, f1 (of class 1), f1_macro, f1_micro, matthews_correlation, pearson, spearman, "
        "mse, or any other "
        "name on the Hub. The first one chooses checkpoint and seed, on validation rows. Default: "
        "by the task."
    )
    push_to_hub: bool = flag(
        False,
        "Upload final/ when done. What the Hub does not take is kept and said, and fails nothing "
        "(exit status 0); "
        "`bert-pretrain hub push OUTPUT_DIR` brings it there later (0 or 1).",
    )
    hub_model_id: str | None = flag(None, "Repository to upload to, user/name.")
    hub_private_repo: bool = flag(
        False, "Make the repository private; one that is public is then refused."
    )
    debug: bool = flag(False, "Show the traceback of an input error.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    groups = (FinetuneArguments, TaskDataArguments, Recipe)
    with reporting_input_errors(
        debug="--debug" in arguments, model_name_or_path="--model", tokenizer_name="--model"
    ):
        parser = HfArgumentParser(
            groups,
            prog="bert-pretrain finetune",
            allow_abbrev=False,
        )
        options, data, recipe = parse_flags(parser, arguments)
        # What does not fit is refused with a message; transformers' own report would only be a
        # second one.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        run(options, data, recipe)
    return 0


def run(options: FinetuneArguments, data: TaskDataArguments, recipe: Recipe) -> dict[str, Any]:
    """Fine-tune once for each seed, and write the output folder.

    Returns:
        What results.json holds.

    Raises:
        InputError: a flag, the model or the data cannot be used; nothing has been written then.
        TrainingError: the model diverged.
    """
    task = find_task(data.task)
    _check(options, recipe)
    splits = open_splits(options.model, data, task, seed=options.seeds[0])
    metrics = _metrics(options, task, splits.labels)
    source = ClassifierSource(
        options.model,
        splits.labels,
        from_scratch=options.from_scratch,
        freeze_encoder=options.freeze_encoder,
        max_seq_length=splits.max_seq_length,
        pad_token_id=getattr(splits.processor, "pad_token_id", None),
    )
    output_dir = Path(options.output_dir)
    make_folder(output_dir, parameter="output_dir")
    with contextlib.ExitStack() as stack:
        if _is_main():
            stack.enter_context(held(output_dir))
            _check_empty(output_dir)  # another process may have begun there since it was checked
        pusher = stack.enter_context(_open_pusher(options))
        results = _train_all(options, data, recipe, source, splits, metrics)
        if pusher is not None:
            _push(pusher, output_dir)
    return results


def _train_all(
    options: FinetuneArguments,
    data: TaskDataArguments,
    recipe: Recipe,
    source: ClassifierSource,
    splits: Splits,
    metrics: dict[str, evaluate.Metric],
) -> dict[str, Any]:
    """Train with every seed and write the folder; returns what results.json holds."""
    output_dir = Path(options.output_dir)
    for line in (describe_splits(splits), *splits.notes):
        _say(line)
    if splits.texts and (excess := describe_excess(splits.max_seq_length, splits.processor)):
        _say(f"WARNING: {excess}")
    overlap = overlap_with_training(splits)
    overlap_described = describe_overlap(splits, overlap)
    if overlap_described:
        _say(f"WARNING: {overlap_described}")
    outcomes: dict[int, dict[str, Any]] = {}
    for seed in options.seeds:
        outcomes[seed] = _train_one(
            source, splits, recipe, metrics, seed=seed, output_dir=output_dir, earlier=outcomes
        )
        _say(f"seed {seed}: " + format_metrics(outcomes[seed]["metrics"]))
    results = summarize_seeds(outcomes) | {"overlap_with_training": overlap}
    flags_given = (
        dataclasses.asdict(options) | dataclasses.asdict(data) | dataclasses.asdict(recipe)
    )
    if _is_main():
        # A path of this machine is nobody's business and leads nowhere on another one.
        card = model_card(
            splits,
            results,
            repo_id=options.hub_model_id or output_dir.name,
            model_id=None if Path(options.model).exists() else options.model,
            from_scratch=options.from_scratch,
            freeze_encoder=options.freeze_encoder,
            overlap=overlap_described,
        )
        (output_dir / "final.tmp/README.md").write_text(card, encoding="utf-8")
        os.replace(output_dir / "final.tmp", output_dir / "final")
        # A metric of the Hub may be no number, which is no reason to lose the others.
        write_json(
            output_dir / "results.json",
            results | {"config": flags_given} | describe_run(),
            allow_nan=True,
        )
    _say(format_results(results))
    _say(f"the model of seed {results['best_seed']} is in {output_dir / 'final'}")
    return results


def _check(options: FinetuneArguments, recipe: Recipe) -> None:
    recipe.check()
    if (
        len(set(options.seeds)) < len(options.seeds)
        or min(options.seeds) < 0
        or max(options.seeds) >= 2**32
    ):
        raise InputError(
            f"seeds are {options.seeds} but must be different numbers in 0..{2**32 - 1}",
            advice="change `seeds`",
        )
    _check_empty(Path(options.output_dir))
    check_creatable(Path(options.output_dir), parameter="output_dir")
    if options.push_to_hub and not options.hub_model_id:
        raise InputError("`push_to_hub` needs a repository", advice="pass `hub_model_id` user/name")
    if options.push_to_hub:
        check_repo_id(str(options.hub_model_id), parameter="hub_model_id")
    elif options.hub_model_id or options.hub_private_repo:
        raise InputError(
            "flags of the Hub without `push_to_hub` would publish nothing",
            advice="add it or leave them out",
        )
    if options.from_scratch and options.freeze_encoder:
        raise InputError(
            "`from_scratch` with `freeze_encoder` would train a head on random features",
            advice="pass one of them",
        )


def _check_empty(folder: Path) -> None:
    if folder.exists() and (
        not folder.is_dir() or any(path.name != LOCK_FILE for path in folder.iterdir())
    ):
        raise InputError(
            f"{folder} is not an empty folder", advice="pass a new one as `output_dir`"
        )


def _metrics(
    options: FinetuneArguments, task: Task, labels: LabelSpace
) -> dict[str, evaluate.Metric]:
    names = options.metrics or task.metrics or DEFAULT_METRICS[labels.problem_type]
    return load_metrics(names, labels.problem_type, num_classes=len(labels.names))


def _train_one(
    source: ClassifierSource,
    splits: Splits,
    recipe: Recipe,
    metrics: dict[str, evaluate.Metric],
    *,
    seed: int,
    output_dir: Path,
    earlier: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    """Train with one seed, write what it leaves, and keep its model if no earlier seed validated better."""
    problem_type = splits.labels.problem_type

    def measure(logits: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
        if problem_type == "multi_label_classification":
            references = references.astype(np.int64)
        return compute_metrics(metrics, predict(logits, problem_type), references)

    decisive = _decisive(metrics, measure, splits)
    validation = Validation(
        splits.rows["validation"], measure, decisive, decisive not in SMALLER_IS_BETTER
    )
    folder = output_dir / f"seed-{seed}"
    aside = output_dir / f"seed-{seed}.tmp"
    trainer = train(
        source.build(seed),
        splits.rows["train"],
        recipe,
        seed=seed,
        scratch_folder=aside,
        validation=validation,
    )
    outcome: dict[str, Any] = {
        "metrics": {},
        "num_updates": trainer.state.max_steps,
        "best_update": trainer.state.best_global_step,
        "learning_rate": trainer.args.learning_rate,
    }
    predictions = {}
    for name, rows in splits.rows.items():
        if name != "train":
            predictions[name] = predict_logits(trainer, rows)
            if rows.labels is not None:
                outcome["metrics"][name] = measure(predictions[name], rows.labels)
    scores = [other["metrics"]["validation"][decisive] for other in earlier.values()]
    is_best = all(
        is_better(outcome["metrics"]["validation"][decisive], score, decisive) for score in scores
    )
    if _is_main():
        aside.mkdir(parents=True, exist_ok=True)
        for name, logits in predictions.items():
            write_predictions(aside / f"predictions_{name}.jsonl", logits, splits, name)
        write_lines(
            aside / "evaluations.jsonl",
            [row for row in trainer.state.log_history if "eval_loss" in row],
        )
        os.replace(aside, folder)
        if is_best:
            shutil.rmtree(output_dir / "final.tmp", ignore_errors=True)
            trainer.model.save_pretrained(output_dir / "final.tmp")
            if (
                splits.texts
            ):  # longer rows than the encoder was trained on have been learnt from as well
                longest = max(splits.max_seq_length, splits.processor.model_max_length)
                splits.processor.model_max_length = longest
            splits.processor.save_pretrained(output_dir / "final.tmp")
    return outcome


def _decisive(metrics: dict[str, evaluate.Metric], measure: Any, splits: Splits) -> str:
    """Return the name of the number that chooses: the first metric's, whose own name a metric of the Hub may change."""
    first = next(iter(metrics))
    if first in METRICS:
        return first
    width = splits.labels.num_outputs
    references = splits.rows["validation"].labels
    assert references is not None
    names: dict[str, float] = measure(np.zeros((len(references), width), np.float32), references)
    return next(iter(names))


def _open_pusher(options: FinetuneArguments) -> AbstractContextManager[HubPusher | None]:
    """Return what pushes in the background, which finds out while training whether the repository can be written."""
    if not options.push_to_hub or not _is_main():
        return contextlib.nullcontext()
    repo_id = str(options.hub_model_id)
    return open_pusher(Path(options.output_dir), repo_id, is_private=options.hub_private_repo)


def _push(pusher: HubPusher, output_dir: Path) -> None:
    submit_final(pusher, output_dir, with_state=False)
    pusher.finish(_PUSH_SECONDS)  # says what was not pushed, and the command that brings it there


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    if _is_main():
        sys.stdout.write(text + "\n")
