"""`python -m bert_pretrain.finetune`: train a classifier on any encoder with transformers' Trainer.

A model folder or Hub id and labelled rows enter. A folder leaves: for each seed the predictions and the course of
training, results.json, and in final/ the plain model of the seed that validated best, with its tokenizer or image
processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.argument_checks import check_repo_id
from bert_pretrain.command_line import flag, flags, parse_flags, reporting_input_errors
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
from bert_pretrain.downstream.sources import Splits, TaskDataArguments, open_splits
from bert_pretrain.downstream.tasks import DEFAULT_METRICS, Task, find_task
from bert_pretrain.downstream.training import Recipe, Validation, predict_logits, train
from bert_pretrain.errors import InputError, TrainingError
from bert_pretrain.hardware import describe_run
from bert_pretrain.publishing.publication import open_pusher, submit_final
from bert_pretrain.publishing.pusher import HubPusher
from bert_pretrain.whole_files import check_creatable, make_folder, write_json

_PUSH_SECONDS = 600  # that the end waits for the Hub
CARD = """\
---
library_name: transformers
pipeline_tag: {pipeline_tag}
{base_model}---

# {title}

A classifier made with `bert_pretrain.finetune` and transformers' `Trainer`. It is a plain transformers model:

```python
from transformers import pipeline

classifier = pipeline("{pipeline_tag}", model=".")  # this folder or its Hub id
```

Labels: {labels}.

| split | metric | this model | mean of {num_seeds} seed{s} | standard deviation |
|---|---|---|---|---|
{rows}
"""


@dataclass
class FinetuneArguments:
    """What is trained and where it goes."""

    _argument_group_name: ClassVar[str] = "fine-tune"

    model: str = field(metadata={"help": "Folder or Hub id of any text or image encoder of transformers."})
    output_dir: str = field(metadata={"help": "New folder: results.json, final/, and a folder for each seed."})
    seeds: list[int] = field(
        default_factory=lambda: [42],
        metadata={"help": "Seeds of the head, of dropout and of the order of rows; one training for each."},
    )
    from_scratch: bool = flag(False, "Leave the weights of --model unread: the baseline of the same architecture.")
    freeze_encoder: bool = flag(False, "Train the head alone.")
    metrics: list[str] | None = flags(
        "accuracy, f1 (of class 1), f1_macro, f1_micro, matthews_correlation, pearson, spearman, mse, or any other "
        "name on the Hub. The first one chooses checkpoint and seed, on validation rows. Default: by the task."
    )
    push_to_hub: bool = flag(False, "Upload final/ when done.")
    hub_model_id: str | None = flag(None, "Repository to upload to, user/name.")
    hub_private_repo: bool = flag(False, "Make the repository private; one that is public is then refused.")
    debug: bool = flag(False, "Show the traceback of an input error.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments):
        parser = HfArgumentParser(
            (FinetuneArguments, TaskDataArguments, Recipe), prog="bert-pretrain finetune", allow_abbrev=False
        )
        options, data, recipe = parse_flags(parser, arguments)
        # What does not fit is refused with a message; transformers' own report would only be a second one.
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
        TrainingError: the model diverged; or it did not get to the Hub, and the folder is complete.
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
    make_folder(Path(options.output_dir), flag="--output_dir")
    with _open_pusher(options) as pusher:
        results = _train_all(options, data, recipe, source, splits, metrics)
        if pusher is not None:
            _push(pusher, Path(options.output_dir))
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
    _say(_card_of(splits))
    outcomes: dict[int, dict[str, Any]] = {}
    for seed in options.seeds:
        outcomes[seed] = _train_one(source, splits, recipe, metrics, seed=seed, output_dir=output_dir, earlier=outcomes)
        _say(f"seed {seed}: " + _listed(outcomes[seed]["metrics"]))
    results = _summary(outcomes, metrics)
    flags_given = dataclasses.asdict(options) | dataclasses.asdict(data) | dataclasses.asdict(recipe)
    if _is_main():
        card = _card(options, splits, results)
        (output_dir / "final.tmp/README.md").write_text(card, encoding="utf-8")
        os.replace(output_dir / "final.tmp", output_dir / "final")
        # A metric of the Hub may be no number, which is no reason to lose the others.
        write_json(output_dir / "results.json", results | {"config": flags_given} | describe_run(), allow_nan=True)
    _say(_table(results))
    _say(f"the model of seed {results['best_seed']} is in {output_dir / 'final'}")
    return results


def _check(options: FinetuneArguments, recipe: Recipe) -> None:
    recipe.check()
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0 or max(options.seeds) >= 2**32:
        raise InputError(f"seeds are {options.seeds} but must be different numbers in 0..{2**32 - 1}; change --seeds")
    folder = Path(options.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{options.output_dir} is not an empty folder; pass a new one as --output_dir")
    check_creatable(folder, flag="--output_dir")
    if options.push_to_hub and not options.hub_model_id:
        raise InputError("--push_to_hub needs a repository; pass --hub_model_id user/name")
    if options.push_to_hub:
        check_repo_id(str(options.hub_model_id), flag="--hub_model_id")
    elif options.hub_model_id or options.hub_private_repo:
        raise InputError("flags of the Hub without --push_to_hub would publish nothing; add it or leave them out")
    if options.from_scratch and options.freeze_encoder:
        raise InputError("--from_scratch with --freeze_encoder would train a head on random features; pass one of them")


def _metrics(options: FinetuneArguments, task: Task, labels: LabelSpace) -> dict[str, evaluate.Metric]:
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
    validation = Validation(splits.rows["validation"], measure, decisive, decisive not in SMALLER_IS_BETTER)
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
    is_best = all(is_better(outcome["metrics"]["validation"][decisive], score, decisive) for score in scores)
    if _is_main():
        aside.mkdir(parents=True, exist_ok=True)
        for name, logits in predictions.items():
            _write_predictions(aside / f"predictions_{name}.jsonl", logits, splits, name)
        _write_lines(aside / "evaluations.jsonl", [row for row in trainer.state.log_history if "eval_loss" in row])
        os.replace(aside, folder)
        if is_best:
            shutil.rmtree(output_dir / "final.tmp", ignore_errors=True)
            trainer.model.save_pretrained(output_dir / "final.tmp")
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


def _write_predictions(path: Path, logits: NDArray[np.float32], splits: Splits, name: str) -> None:
    """Write a line for each row: text, label where there is one, prediction, and probabilities by class name."""
    labels, rows, texts = splits.labels, splits.rows[name], splits.texts.get(name)
    is_classes = labels.problem_type == "single_label_classification"
    probabilities = softmax(logits, axis=1) if is_classes else expit(logits)
    predictions = predict(logits, labels.problem_type)
    lines = []
    for place in range(len(logits)):
        line: dict[str, Any] = {"row": place}
        if texts is not None:
            line |= {"text": texts.first[place]} | ({"text_pair": texts.second[place]} if texts.second else {})
        if rows.labels is not None:
            line["label"] = _named(rows.labels[place], labels)
        line["prediction"] = _named(predictions[place], labels)
        if labels.names:
            shares = (round(float(value), 6) for value in probabilities[place])
            line["probabilities"] = dict(zip(labels.names, shares, strict=True))
        lines.append(line)
    _write_lines(path, lines)


def _named(value: Any, labels: LabelSpace) -> Any:
    if labels.problem_type == "regression":
        return float(value)
    if labels.problem_type == "single_label_classification":
        return labels.names[int(value)]
    return [name for name, is_on in zip(labels.names, value, strict=True) if is_on]


def _summary(outcomes: dict[int, dict[str, Any]], metrics: dict[str, evaluate.Metric]) -> dict[str, Any]:
    first = next(iter(outcomes.values()))["metrics"]
    decisive = next(iter(first["validation"]))
    best, *others = outcomes
    for seed in others:
        scores = [outcomes[number]["metrics"]["validation"][decisive] for number in (seed, best)]
        best = seed if is_better(scores[0], scores[1], decisive) else best
    spread: dict[str, dict[str, dict[str, float | None]]] = {}
    for split, names in first.items():
        for name in names:
            values = [outcome["metrics"][split][name] for outcome in outcomes.values()]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            spread.setdefault(split, {})[name] = {"mean": statistics.fmean(values), "std": deviation}
    return {
        "best_seed": best,
        "chosen_by": f"validation {decisive}",
        "metrics": spread,
        "seeds": {str(seed): outcome for seed, outcome in outcomes.items()},
    }


def _table(results: dict[str, Any]) -> str:
    lines = [f"{'split':<11} {'metric':<21} {'mean':>8} {'std':>8}   over {len(results['seeds'])} seed(s)"]
    for split, metrics in results["metrics"].items():
        for name, values in metrics.items():
            deviation = "" if values["std"] is None else f"{values['std']:.4f}"
            lines.append(f"{split:<11} {name:<21} {values['mean']:>8.4f} {deviation:>8}")
    return "\n".join(lines)


def _card(options: FinetuneArguments, splits: Splits, results: dict[str, Any]) -> str:
    is_image = not splits.texts
    names = splits.labels.names
    best = results["seeds"][str(results["best_seed"])]["metrics"]
    rows = [
        f"| {split} | {name} | {best[split][name]:.4f} | {values['mean']:.4f} | "
        + ("" if values["std"] is None else f"{values['std']:.4f}")
        + " |"
        for split, metrics in results["metrics"].items()
        for name, values in metrics.items()
    ]
    # A path of this machine is nobody's business and leads nowhere on another one.
    is_on_hub = not Path(options.model).exists() and not options.from_scratch
    return CARD.format(
        pipeline_tag="image-classification" if is_image else "text-classification",
        base_model=f"base_model: {options.model}\n" if is_on_hub else "",
        title=Path(options.hub_model_id or options.output_dir).name,
        labels=", ".join(f"`{name}`" for name in names[:50]) if names else "a number (regression)",
        num_seeds=len(results["seeds"]),
        s="" if len(results["seeds"]) == 1 else "s",
        rows="\n".join(rows),
    )


def _card_of(splits: Splits) -> str:
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.rows.items())
    names = splits.labels.names
    classes = f"{len(names)} classes: {', '.join(names[:12])}{', ...' * (len(names) > 12)}" if names else "regression"
    return f"rows: {sizes}; {classes}"


def _listed(metrics: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{split} " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        for split, values in metrics.items()
    )


def _open_pusher(options: FinetuneArguments) -> AbstractContextManager[HubPusher | None]:
    """Return what pushes in the background, which finds out while training whether the repository can be written."""
    if not options.push_to_hub or not _is_main():
        return contextlib.nullcontext()
    repo_id = str(options.hub_model_id)
    return open_pusher(Path(options.output_dir), repo_id, is_private=options.hub_private_repo)


def _push(pusher: HubPusher, output_dir: Path) -> None:
    submit_final(pusher, output_dir, with_state=False)
    if not pusher.finish(_PUSH_SECONDS):
        raise TrainingError(
            f"the model is complete in {output_dir / 'final'} but not on the Hub; what is printed above says why, and "
            "which command finishes"
        )


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    if _is_main():
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
