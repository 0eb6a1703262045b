"""What the training loop needs to know of a task, in three small interfaces.

The loop trains an `Objective`, asks a `Monitor` at every evaluation, and lets an `Exporter` write
what is kept. It knows no modality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.data.stream import Batch, HeldOutRows, TrainingStream


@dataclass
class LossTerm:
    """One loss of a batch, still a sum.

    Attributes:
        sum: 0-dim float32 with gradient; divided by the term's global count it is the loss.
        weight: its factor in the total.
        metrics: sums without gradient that are divided by the same count, such as numbers of
            correct predictions.
    """

    sum: Tensor
    weight: float = 1.0
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Coupling(Protocol):
    """A loss that compares the rows of an update with each other.

    Where an update has several micro-batches, the loop asks for the rows of each and then for the
    loss of all of them, which is that of a single forward pass.
    """

    def rows(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run `model` exactly once and return what is compared, float32 (B, ...)."""
        ...

    def joint_terms(self, rows: Tensor, batches: Sequence[Batch]) -> dict[str, LossTerm]:
        """Return the loss terms by name, sums over this process's rows.

        Args:
            rows: of all batches, one after the other; they are compared with those of all
                processes, and the terms have a gradient with respect to them.
            batches: that the rows are of.
        """
        ...


class Objective(Protocol):
    """What is learnt.

    Attributes:
        training: the rows to train on.
        held_out: the rows to evaluate on.
    """

    training: TrainingStream[Any]
    held_out: HeldOutRows[Any]

    @property
    def coupling(self) -> Coupling | None:
        """What compares rows of an update with each other; None = each row has its own loss."""
        ...

    def build_model(self) -> PreTrainedModel:
        """Return the model to train, initialised by the global seed or loaded."""
        ...

    def target_counts(self, batch: Batch) -> dict[str, int]:
        """Return what each loss term's sum is divided by; known on the host before any forward."""
        ...

    def useful_flops(self, batch: Batch) -> float:
        """Return the floating-point operations that learning from a batch needs, forward and back.

        They are those of matrix products, known on the host before any forward. What a model
        computes beyond need (padding, scores that no loss reads, recomputation) does not count.
        """
        ...

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Run `model` exactly once on a batch and return its loss terms by name."""
        ...


class Monitor(Protocol):
    """What an evaluation measures, warns of and shows, beside the losses.

    Attributes:
        shown_file: name of the file in the run directory that keeps the rows of `show`.
    """

    shown_file: str

    def measures(
        self,
        model: PreTrainedModel,
        means: dict[str, float],
        *,
        batch_size: int,
        beat: Callable[[str], None],
    ) -> dict[str, float]:
        """Return the numbers of an evaluation that are no means over rows; all processes call it.

        Args:
            model: evaluated, without the wrapper of distributed training.
            means: what the loss terms came to.
            batch_size: most rows of a forward pass.
            beat: is told of every one, see `Watchdog.beat`.

        Returns:
            What follows from `means`, baselines to compare them with, and properties of the model.
        """
        ...

    def warnings(self, row: dict[str, Any]) -> list[str]:
        """Return what is wrong with a run whose latest evaluation is `row`.

        Each message names a cause, and a parameter between backquotes.
        """
        ...

    def show(
        self, model: PreTrainedModel, run_dir: Path, *, step: int, is_last: bool
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return what has been learnt so far, as text to print and as rows to keep.

        Pictures go to `run_dir`; slow ones are drawn only where `is_last`. The first process alone
        calls it, right after `measures` of the same model.
        """
        ...


class Exporter(Protocol):
    """What is written so that stock transformers loads it."""

    @property
    def data_card(self) -> str:
        """What the data are, as text to print and for the model card; for the first process."""
        ...

    def write_config(self, model: PreTrainedModel, directory: Path) -> None:
        """Write everything of an export but the weights into an existing folder."""
        ...

    def export(self, model: PreTrainedModel, directory: Path) -> None:
        """Write the model and what it needs to be used, as a folder that appears whole."""
        ...

    def card_fields(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the model card says of the exported model."""
        ...


class Task(NamedTuple):
    """What a run is about.

    Attributes:
        sources: JSON-able, what tells data and tokenizer from others, for run.json.
    """

    objective: Objective
    monitor: Monitor
    exporter: Exporter
    sources: Mapping[str, Any] = MappingProxyType({})
