"""Train a classifier with transformers' `Trainer`, by one recipe for all tasks.

A model of `ClassifierSource`, data sets of `data` and a `FinetuningRecipe` enter; the trained model
and its logits leave.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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

from bert_pretrain.downstream.data import LabelledDataset, LengthSampler
from bert_pretrain.downstream.models import default_learning_rate
from bert_pretrain.errors import TrainingError
from bert_pretrain.hardware import native_precision


@dataclass(frozen=True)
class FinetuningRecipe:
    """How a classifier is trained: AdamW with warm-up and linear decay.

    Attributes:
        learning_rate: peak; 0 = by the encoder's width, see `default_learning_rate`.
        max_steps: updates at most, even if `min_steps` is larger; 0 = no limit.
        warmup_ratio: share of the updates over which the rate rises, in [0, 1).
        max_grad_norm: largest norm of the gradients; 0 = any.
        num_evaluations: on validation rows, at most; the last one comes after the last update.
        mixed_precision: `bf16`, `no`, or `auto` = bf16 where it is native.
    """

    learning_rate: float
    num_train_epochs: float
    min_steps: int
    max_steps: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    per_device_eval_batch_size: int
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    num_evaluations: int
    mixed_precision: str

    def num_updates(self, num_rows: int) -> int:
        """Return the length of training on so many rows."""
        rows_of_update = self.per_device_train_batch_size * self.gradient_accumulation_steps
        rows_of_update *= int(os.environ.get("WORLD_SIZE", "1"))
        of_epochs = math.ceil(self.num_train_epochs * math.ceil(num_rows / rows_of_update))
        wanted = max(self.min_steps, of_epochs)
        return min(wanted, self.max_steps) if self.max_steps else wanted


@dataclass(frozen=True)
class Validation:
    """What chooses the checkpoint: `measure` returns numbers, one of which is decisive.

    Attributes:
        measure: of logits (N, num_labels) and labels.
    """

    rows: LabelledDataset
    measure: Callable[[NDArray[Any], NDArray[Any]], dict[str, float]]
    decisive: str
    greater_is_better: bool


class OneDeviceArguments(TrainingArguments):  # type: ignore[misc]
    """Arguments of `Trainer` without DataParallel, which divides the loss by other counts.

    `Trainer` would use it where there are several GPUs and no launcher.
    """

    @property
    def n_gpu(self) -> int:
        """Return the GPUs that this process uses: 0 or 1."""
        return min(int(super().n_gpu), 1)


class ClassifierTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` whose batches hold rows of like length; seed and epoch decide their order."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nothing shows the sum, and counting parameters at each step takes time."""
        return 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader, in which an update has the same rows however they are cut."""
        args = self.args
        rows_of_update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        lengths, batch_size = self.train_dataset.lengths, args.train_batch_size
        sampler = LengthSampler(lengths, batch_size=rows_of_update, seed=args.seed)
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset, batch_size=batch_size, sampler=sampler, collate_fn=as_is
        )
        return cast("DataLoader[Any]", self.accelerator.prepare(loader))


def as_is(batch: Any) -> Any:
    """Return what a data set of `data` gives: a batch already."""
    return batch


def window_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Return the loss of a micro-batch as its share of the mean over the whole update.

    `Trainer` expects that a class with `**kwargs` in its signature divides its loss by
    `num_items_in_batch`. The stock classifiers do not, so that their gradient is multiplied by
    accumulation steps and processes (transformers#47688). Here an update does not depend on how its
    rows are cut, even into uneven pieces.

    Args:
        outputs: of the model, with logits (B, num_labels).
        labels: int64 (B,) classes; float (B,) values; or float (B, num_labels) of 0 and 1.
        num_items_in_batch: labels of the update in all processes; None = those given.
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
    recipe: FinetuningRecipe, model: PreTrainedModel, folder: Path, *, num_updates: int, seed: int
) -> OneDeviceArguments:
    """Return the arguments of `Trainer` that a recipe means; `folder` takes checkpoints."""
    precision = native_precision() if recipe.mixed_precision == "auto" else recipe.mixed_precision
    return OneDeviceArguments(
        output_dir=str(folder),
        max_steps=num_updates,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        per_device_eval_batch_size=recipe.per_device_eval_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate or default_learning_rate(model.config),
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_ratio,  # transformers 5 reads a number below 1 as a share
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


def train(
    model: PreTrainedModel,
    rows: LabelledDataset,
    recipe: FinetuningRecipe,
    *,
    seed: int,
    scratch_folder: Path,
    validation: Validation | None = None,
) -> ClassifierTrainer:
    """Train a model in place.

    Args:
        model: from `ClassifierSource.build`.
        rows: to train on.
        recipe: how it is trained.
        seed: of the order of rows and of dropout.
        scratch_folder: for checkpoints until training ends; it is removed.
        validation: chooses the checkpoint that is kept; None = the last state.

    Raises:
        TrainingError: it diverged, as the validation rows show.
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
        data_collator=as_is,
        compute_loss_func=window_loss,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=_logits_alone,
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
        # The other processes may still be reading the best checkpoint.
        trainer.accelerator.wait_for_everyone()
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(scratch_folder, ignore_errors=True)
    return trainer


def predict_logits(trainer: ClassifierTrainer, rows: LabelledDataset) -> NDArray[np.float32]:
    """Return the logits (N, num_labels) of rows; raise `TrainingError` if they are not finite."""
    ordered, order = _by_length(rows)
    found = _finite(trainer.predict(ordered).predictions, trainer.args)
    logits = np.empty_like(found, dtype=np.float32)
    logits[order] = found
    return logits


def _logits_alone(outputs: Any, _: Tensor) -> Tensor:
    """Return the logits alone; an encoder-decoder's outputs have its encoder's states as well."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits


def _finite(logits: NDArray[Any], arguments: Any) -> NDArray[Any]:
    if not np.isfinite(logits).all():
        raise TrainingError(
            f"the training of seed {arguments.seed} diverged: the model predicts NaN or infinity; "
            f"pass a lower `learning_rate` than {arguments.learning_rate:g}, and a new `output_dir`"
        )
    return logits


def _by_length(rows: LabelledDataset) -> tuple[LabelledDataset, NDArray[np.int64]]:
    """Return the rows from short to long, so that there is little padding, and their places."""
    order = np.argsort(rows.lengths, kind="stable")
    return rows.subset(order), order
