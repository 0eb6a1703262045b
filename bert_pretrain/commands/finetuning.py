"""A fine-tuning from its flags to its folder: rows, one training for each seed, results."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.config.finetuning import (
    AdaptationArguments,
    FinetuneArguments,
    RecipeArguments,
    TaskDataArguments,
)
from bert_pretrain.config.flags import pick
from bert_pretrain.data.atomic import (
    atomic_folder,
    check_creatable,
    make_folder,
    replace_folder,
    write_json,
)
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.data.names import is_hub_id
from bert_pretrain.data.run_folder import LOCK_FILE, held
from bert_pretrain.downstream.adaptation import Adaptation, adapt
from bert_pretrain.downstream.labelled_rows import LabelledSource
from bert_pretrain.downstream.metrics import (
    METRICS,
    SMALLER_IS_BETTER,
    compute_metrics,
    is_better,
    load_metrics,
    predict,
)
from bert_pretrain.downstream.models import ClassifierSource, is_image_config, read_model_config
from bert_pretrain.downstream.progress import PROGRESS_FILE, SeedProgress
from bert_pretrain.downstream.results import (
    describe_splits,
    format_metrics,
    format_results,
    majority_accuracies,
    model_card,
    summarize_seeds,
    write_lines,
    write_predictions,
)
from bert_pretrain.downstream.sources import (
    Splits,
    describe_overlap,
    labelled_rows_sha256,
    open_splits,
    overlap_with_training,
)
from bert_pretrain.downstream.tasks import DEFAULT_METRICS, find_task
from bert_pretrain.downstream.training import FinetuningRecipe, Validation, predict_logits, train
from bert_pretrain.errors import InputError, spell, without_secrets
from bert_pretrain.hardware import describe_run
from bert_pretrain.models.embedding import tensors_digest
from bert_pretrain.models.loading import describe_excess
from bert_pretrain.publishing.export import trained_length
from bert_pretrain.publishing.publication import open_pusher, submit_final
from bert_pretrain.publishing.tokenizer_files import save_tokenizer

if TYPE_CHECKING:
    import evaluate

# Flags that no seed's outcome depends on.
_FREE = {
    "output_dir",
    "seeds",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "resume",
    "debug",
    "per_device_eval_batch_size",
}
_PUSH_SECONDS = 600  # that the end waits for the Hub


def run(
    options: FinetuneArguments,
    data: TaskDataArguments,
    unlabelled: AdaptationArguments,
    recipe: RecipeArguments,
) -> dict[str, Any]:
    """Fine-tune once for each seed; return what results.json in the output folder holds.

    Raises:
        InputError: a flag, the model or the data cannot be used; nothing has been written then.
        TrainingError: the model diverged.
    """
    options.check()
    output_dir = Path(options.output_dir)
    flags: dict[str, Any] = {}
    for group in (options, data, unlabelled, recipe):
        flags |= dataclasses.asdict(group)
    is_resumed = options.resume and (output_dir / PROGRESS_FILE).is_file()
    if options.resume and not is_resumed and (finished := _finished(output_dir, flags)):
        _say(f"all seeds of {output_dir} are finished\n{format_results(finished)}")
        if options.push_to_hub:
            _say(f"what the Hub has not got yet, `bert-pretrain hub push {output_dir}` uploads")
        return finished
    if not is_resumed:
        _check_empty(output_dir)
    check_creatable(output_dir, parameter="output_dir")
    texts, splits, metrics = _open(options, data, unlabelled)
    open_source = partial(
        ClassifierSource,
        labels=splits.labels,
        from_scratch=options.from_scratch,
        freeze_encoder=options.freeze_encoder,
        max_seq_length=splits.max_seq_length,
        pad_token_id=getattr(splits.processor, "pad_token_id", None),
    )
    source = open_source(options.model)
    identity = {name: value for name, value in flags.items() if name not in _FREE}
    identity["rows"] = [labelled_rows_sha256(splits, name) for name in sorted(splits.rows)]
    identity["weights of the model"] = tensors_digest(source.state)
    progress = SeedProgress(output_dir, identity, seeds=options.seeds)
    outcomes = progress.read() if is_resumed else {}
    make_folder(output_dir, parameter="output_dir")
    with contextlib.ExitStack() as stack:
        pusher = None
        if _is_main():
            stack.enter_context(held(output_dir))
            # Another process may have gone on, or begun, there since then.
            if not is_resumed:
                _check_empty(output_dir)
            elif progress.read() != outcomes:
                raise InputError(
                    f"another process has gone on in {output_dir} in the meantime",
                    advice="repeat the command",
                )
            if options.push_to_hub:  # while training it checks the repository already
                repo_id, is_private = str(options.hub_model_id), options.hub_private_repo
                pusher = open_pusher(output_dir, repo_id, is_private=is_private)
                stack.enter_context(pusher)
            progress.write(outcomes)
        adaptation = None
        if texts.minutes:
            try:
                model, adaptation = adapt(
                    texts, options.model, splits, output_dir, seed=options.seeds[0]
                )
            except InputError:
                if not outcomes:
                    progress.remove()
                raise
            source = open_source(model)
        results = _train_all(
            options,
            flags | {"adaptation": adaptation},
            pick(FinetuningRecipe, recipe),
            source,
            splits,
            metrics,
            progress=progress,
            outcomes=outcomes,
        )
        if pusher is not None:
            submit_final(pusher, output_dir, with_state=False)
            pusher.finish(_PUSH_SECONDS)
    return results


def _open(
    options: FinetuneArguments, data: TaskDataArguments, unlabelled: AdaptationArguments
) -> tuple[Adaptation, Splits, dict[str, evaluate.Metric]]:
    """Open what is learnt from: texts without labels, if they are to be, and rows; and metrics."""
    task = find_task(data.task)
    is_image = is_image_config(read_model_config(options.model))
    data.check(is_image=is_image, has_dataset=task.dataset is not None)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    unlabelled.check(
        is_image=is_image, from_scratch=options.from_scratch, num_processes=num_processes
    )
    texts = Adaptation(
        unlabelled.adapt_minutes, tuple(unlabelled.unlabelled_files or ()), data.text_column
    )
    texts.check()
    splits = open_splits(
        options.model,
        pick(LabelledSource, data, pixel_range=data.pixel_range.ends),
        task,
        seed=options.seeds[0],
    )
    labels = splits.labels
    metrics = load_metrics(
        options.metrics or task.metrics or DEFAULT_METRICS[labels.problem_type],
        labels.problem_type,
        num_classes=len(labels.names),
    )
    return texts, splits, metrics


def _train_all(
    options: FinetuneArguments,
    flags: dict[str, Any],
    recipe: FinetuningRecipe,
    source: ClassifierSource,
    splits: Splits,
    metrics: dict[str, evaluate.Metric],
    *,
    progress: SeedProgress,
    outcomes: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    """Train with every seed but those of `outcomes`, and write the folder.

    Returns what results.json holds.
    """
    output_dir = Path(options.output_dir)
    overlap = overlap_with_training(splits)
    overlap_described = describe_overlap(splits, overlap)
    excess = describe_excess(splits.max_seq_length, splits.processor) if splits.texts else None
    warnings = [f"WARNING: {text}" for text in (excess, overlap_described) if text]
    _say(describe_splits(splits))
    for line in (*splits.notes, *warnings):
        _say(spell(line))
    for seed in options.seeds:
        if seed not in outcomes:
            outcomes[seed] = _train_one(
                source, splits, recipe, metrics, seed=seed, output_dir=output_dir, earlier=outcomes
            )
            if _is_main():
                progress.write(outcomes)
        _say(f"seed {seed}: " + format_metrics(outcomes[seed]["metrics"]))
    results = summarize_seeds(outcomes) | {
        "majority_accuracy": majority_accuracies(splits),
        "overlap_with_training": overlap,
    }
    if _is_main():
        card = model_card(
            splits,
            results,
            repo_id=options.hub_model_id or output_dir.name,
            # A path of this machine is private and leads nowhere on another one.
            model_id=options.model if is_hub_id(options.model) else None,
            from_scratch=options.from_scratch,
            freeze_encoder=options.freeze_encoder,
            adaptation=flags["adaptation"],
            overlap=overlap_described,
        )
        final, aside = output_dir / "final", output_dir / "final.tmp"
        if aside.is_dir():  # else it was renamed before the command was ended
            (aside / "README.md").write_text(card, encoding="utf-8")
            os.replace(aside, final)
        content = results | {"config": flags} | describe_run()
        # A metric of the Hub may be NaN, for which the others should not be lost.
        write_json(output_dir / "results.json", content, allow_nan=True)
        progress.remove()
    _say(format_results(results))
    _say(f"the model of seed {results['best_seed']} is in {output_dir / 'final'}")
    return results


def _finished(output_dir: Path, flags: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results of the same command, if it has ended in this folder."""
    try:
        results = parse_json((output_dir / "results.json").read_text(encoding="utf-8"))
        theirs = results["config"]
        is_same = all(
            theirs[name] == value
            for name, value in without_secrets(flags).items()
            if name not in _FREE - {"seeds"}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return results if is_same else None


def _check_empty(folder: Path) -> None:
    if folder.exists() and (
        not folder.is_dir()
        or any(path.name not in (LOCK_FILE, PROGRESS_FILE) for path in folder.iterdir())
    ):
        raise InputError(
            f"{folder} is not an empty folder", advice="pass a new one as `output_dir`"
        )


def _train_one(
    source: ClassifierSource,
    splits: Splits,
    recipe: FinetuningRecipe,
    metrics: dict[str, evaluate.Metric],
    *,
    seed: int,
    output_dir: Path,
    earlier: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    """Train with one seed and write its folder; keep its model if it validated best so far."""
    problem_type = splits.labels.problem_type

    def measure(logits: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
        return compute_metrics(metrics, predict(logits, problem_type), references)

    decisive, validation = next(iter(metrics)), splits.rows["validation"]
    if decisive not in METRICS:  # a metric of the Hub may give its number another name
        assert validation.labels is not None
        zeros = np.zeros((len(validation), splits.labels.num_outputs), np.float32)
        decisive = next(iter(measure(zeros, validation.labels)))
    is_greater_better = decisive not in SMALLER_IS_BETTER
    aside = output_dir / f"seed-{seed}.tmp"
    trainer = train(
        source.build(seed),
        splits.rows["train"],
        recipe,
        seed=seed,
        scratch_folder=aside,
        validation=Validation(validation, measure, decisive, is_greater_better),
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
    score = outcome["metrics"]["validation"][decisive]
    scores = [other["metrics"]["validation"][decisive] for other in earlier.values()]
    if _is_main():
        aside.mkdir(parents=True, exist_ok=True)
        for name, logits in predictions.items():
            write_predictions(aside / f"predictions_{name}.jsonl", logits, splits, name)
        evaluations = [row for row in trainer.state.log_history if "eval_loss" in row]
        write_lines(aside / "evaluations.jsonl", evaluations)
        replace_folder(aside, output_dir / f"seed-{seed}")
        if all(is_better(score, other, decisive) for other in scores):
            scratch = not source.state
            _save_model(trainer.model, splits, output_dir / "final.tmp", from_scratch=scratch)
    return outcome


def _save_model(model: Any, splits: Splits, folder: Path, *, from_scratch: bool) -> None:
    with atomic_folder(folder) as aside:
        model.save_pretrained(aside)
        if splits.texts:
            # Fine-tuning may have learnt from longer rows than the encoder was trained on.
            splits.processor.model_max_length = trained_length(
                splits.processor, splits.max_seq_length, is_from_scratch=from_scratch
            )
            save_tokenizer(splits.processor, aside)
        else:
            splits.processor.save_pretrained(aside)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    if _is_main():
        sys.stdout.write(text + "\n")
