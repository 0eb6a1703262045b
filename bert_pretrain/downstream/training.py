"""Train a classifier with transformers' `Trainer`, at one fixed recipe for all tasks.

A model from `ClassifierSource` and data sets from `data` enter; the trained model and its logits
leave. Used by the command `finetune` and by the label-efficiency curve.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from bert_pretrain.config.flags import flag
from bert_pretrain.downstream.data import LabelledDataset, LengthSampler
from bert_pretrain.downstream.models import default_learning_rate
from bert_pretrain.errors import InputError, TrainingError
from bert_pretrain.hardware import native_precision


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: AdamW, warm-up and linear decay; the same for all tasks and models."""

    _argument_group_name: ClassVar[str] = "training"

    learning_rate: float = flag(
        0.0,
        "Peak; 0 = by the encoder's width: 5e-5 at 768, growing with the inverse square of the "
        "width up to 5e-4.",
    )
    num_train_epochs: float = flag(4.0, "Passes over the training rows, > 0.")
    min_steps: int = flag(200, "Updates at least, however few rows there are.")
    max_steps: int = flag(0, "Updates at most; 0 = no limit.")
    per_device_train_batch_size: int = flag(16, "Rows of a forward pass.")
    gradient_accumulation_steps: int = flag(
        1, "Forward passes of an update; a sum over all their rows, not a mean."
    )
    per_device_eval_batch_size: int = flag(64, "Rows of a forward pass without gradient.")
    weight_decay: float = flag(0.01, "Of matrices.")
    warmup_ratio: float = flag(0.1, "Share of the updates over which the rate rises, in [0, 1).")
    max_grad_norm: float = flag(1.0, "The gradient's norm is cut to it; 0 = not.")
    num_evaluations: int = flag(
        4,
        "Evaluations on validation rows at most, after every so many updates and after the last "
        "one; the best is kept.",
    )
    mixed_precision: Literal["auto", "bf16", "no"] = flag(
        "auto", "bf16, no, or auto = bf16 where it is native."
    )

    def check(self) -> None:
        """Raise `InputError` unless every value is in range."""
        for name, smallest in (
            ("min_steps", 0),
            ("max_steps", 0),
            ("per_device_train_batch_size", 1),
            ("gradient_accumulation_steps", 1),
            ("per_device_eval_batch_size", 1),
            ("num_evaluations", 1),
        ):
            if getattr(self, name) < smallest:
                raise InputError(
                    f"{name} is {getattr(self, name)} but must be at least {smallest}",
                    advice=f"change `{name}`",
                )
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} is {getattr(self, name)} but must be at least 0",
                    advice=f"change `{name}`",
                )
        if not 0 < self.num_train_epochs < math.inf:
            raise InputError(
                f"num_train_epochs is {self.num_train_epochs} but must be above 0",
                advice="change it",
            )
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(
                f"warmup_ratio is {self.warmup_ratio} but must lie in [0, 1)",
                advice="change `warmup_ratio`",
            )

    def num_updates(self, num_rows: int) -> int:
        """Return the length of training on so many rows."""
        rows_of_update = self.per_device_train_batch_size * self.gradient_accumulation_steps
        rows_of_update *= int(os.environ.get("WORLD_SIZE", "1"))
        wanted = max(
            self.min_steps, math.ceil(self.num_train_epochs * math.ceil(num_rows / rows_of_update))
        )
        return min(wanted, self.max_steps) if self.max_steps else wanted


@dataclass(frozen=True)
class Validation:
    """What chooses the checkpoint: rows, what to measure of their logits, and which of it decides."""

    rows: LabelledDataset
    measure: Callable[[NDArray[Any], NDArray[Any]], dict[str, float]]
    decisive: str
    greater_is_better: bool


class ClassifierTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` whose batches hold rows of like length, in an order that the seed and the epoch decide."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the sum is not shown, and to count all parameters again would slow small models down."""
        return 0

    @property
    def rows_of_update(self) -> int:
        """Return how many rows an update learns from, over accumulation steps and processes."""
        args = self.args
        return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the training rows; what an update learns from does not depend on how it is cut."""
        sampler = LengthSampler(
            self.train_dataset.lengths,
            batch_size=self.rows_of_update,
            seed=self.args.seed,
        )
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            sampler=sampler,
            collate_fn=_as_is,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared


def _as_is(batch: Any) -> Any:
    return batch


def window_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Return the loss of a micro-batch as its share of the mean over the whole update.

    `Trainer` believes that every class with `**kwargs` in its signature divides its loss by
    `num_items_in_batch`. The stock classifiers do not, so that their gradient is multiplied by
    accumulation steps and processes (transformers#47688). Here the sum is divided by the labels of
    all micro-batches and processes together, so that an update does not depend on how its rows are
    cut, also where the pieces are uneven.

    Args:
        outputs: of the model, with logits (B, num_labels).
        labels: int64 (B,) classes; float (B,) values; or float (B, num_labels) of 0 and 1.
        num_items_in_batch: labels of the update; None = those given.
    """
    logits = outputs["logits"].float()
    if not labels.is_floating_point():
        total = F.cross_entropy(logits, labels, reduction="sum")
    elif labels.ndim == 1:
        total = F.mse_loss(logits.squeeze(-1), labels, reduction="sum")
    else:
        total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def training_arguments(
    recipe: Recipe, model: PreTrainedModel, folder: Path, *, num_updates: int, seed: int
) -> Any:
    """Return the arguments of `Trainer` that the recipe means."""
    precision = native_precision() if recipe.mixed_precision == "auto" else recipe.mixed_precision
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=num_updates,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        per_device_eval_batch_size=recipe.per_device_eval_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate or default_learning_rate(model.config),
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_ratio,  # below 1 transformers 5 takes it for a share
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type="linear",
        seed=seed,
        bf16=precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # Several GPUs without a launcher would be used by DataParallel, which gathers logits and
    # divides by other counts.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def train(
    model: PreTrainedModel,
    rows: LabelledDataset,
    recipe: Recipe,
    *,
    seed: int,
    scratch_folder: Path,
    validation: Validation | None = None,
) -> ClassifierTrainer:
    """Train a model in place.

    Args:
        model: from `ClassifierSource.build`.
        rows: to train on.
        recipe: how.
        seed: of the order of rows and of dropout.
        scratch_folder: where checkpoints lie until training ends; removed.
        validation: chooses the checkpoint that the model is left at; None = the last state.

    Returns:
        The trainer, whose `predict` gives logits and whose `state.log_history` has the evaluations.

    Raises:
        TrainingError: it diverged, and there are validation rows to see it on.
    """
    num_updates = recipe.num_updates(len(rows))
    arguments = training_arguments(
        recipe, model, scratch_folder, num_updates=num_updates, seed=seed
    )
    compute_metrics = None
    if validation is not None:
        # `Trainer` evaluates after every so many updates and after the last one.
        interval = math.ceil(num_updates / recipe.num_evaluations)
        arguments.eval_strategy = arguments.save_strategy = "steps"
        arguments.eval_steps = arguments.save_steps = interval
        arguments.save_only_model, arguments.save_total_limit = True, 1
        arguments.load_best_model_at_end = True
        arguments.metric_for_best_model = validation.decisive
        arguments.greater_is_better = validation.greater_is_better
        measure = validation.measure

        def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
            logits = _finite(np.asarray(prediction.predictions), arguments)
            return measure(logits, np.asarray(prediction.label_ids))

    trainer = ClassifierTrainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=None if validation is None else _by_length(validation.rows)[0],
        data_collator=_as_is,
        compute_loss_func=window_loss,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=_logits_alone,
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
        trainer.accelerator.wait_for_everyone()  # the other processes may be reading the best checkpoint
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(scratch_folder, ignore_errors=True)
    return trainer


def predict_logits(trainer: ClassifierTrainer, rows: LabelledDataset) -> NDArray[np.float32]:
    """Return the logits (N, num_labels) of rows, in their order.

    Raises:
        TrainingError: they are no numbers: the training diverged.
    """
    ordered, order = _by_length(rows)
    found = _finite(trainer.predict(ordered).predictions, trainer.args)
    logits = np.empty_like(found, dtype=np.float32)
    logits[order] = found
    return logits


def _logits_alone(outputs: Any, _: Tensor) -> Tensor:
    """Return the logits of outputs that have more, as those of an encoder-decoder: its encoder's states."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits


def _finite(logits: NDArray[Any], arguments: Any) -> NDArray[Any]:
    if not np.isfinite(logits).all():
        raise TrainingError(
            f"the training of seed {arguments.seed} diverged: the model predicts what is no "
            "number; pass a lower "
            f"`learning_rate` than {arguments.learning_rate:g}, and a new `output_dir`"
        )
    return logits


def _by_length(rows: LabelledDataset) -> tuple[LabelledDataset, NDArray[np.int64]]:
    """Return the rows from short to long, which leaves little padding, and their places."""
    order = np.argsort(rows.lengths, kind="stable")
    return rows.subset(order), order
