"""The interface between the training loop, which knows no modality, and what is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

Batch = dict[str, Tensor]


class Place(NamedTuple):
    """Where the training data continues: a pass over the data and a row of it."""

    epoch: int
    position: int


@dataclass
class Window:
    """The share of one update that a process computes.

    Attributes:
        micro_batches: batches on the CPU, one forward and backward pass each.
        next_place: where the following window begins.
        num_units: what the throughput counts (tokens, images), over this process's share.
    """

    micro_batches: list[Batch]
    next_place: Place
    num_units: int


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


class Objective(Protocol):
    """What a training loop needs to know about a task.

    Attributes:
        unit: what the throughput counts: "tokens", "images".
        shown_file: name of the file in the run directory that keeps the rows of `show`.
        data_card: what the data are, as text to print and for the model card.
    """

    unit: str
    shown_file: str
    data_card: str

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the training data: a checkpoint continues only on the same."""
        ...

    def build_model(self) -> PreTrainedModel:
        """Return the model to train, initialised by the global seed or loaded."""
        ...

    def num_rows(self, epoch: int) -> int:
        """Return the number of training rows of a pass over the data."""
        ...

    def training_windows(
        self,
        place: Place,
        *,
        global_batch_size: int,
        num_processes: int,
        process_index: int,
        num_micro_batches: int,
    ) -> Iterator[Window]:
        """Yield this process's share of window after window, from `place` on, without end.

        All processes together get the same rows in a window whatever their number and that of the
        micro-batches.
        """
        ...

    def evaluation_batches(
        self, *, batch_size: int, num_processes: int, process_index: int
    ) -> Iterator[Batch]:
        """Yield this process's share of the fixed held-out rows: over all processes each exactly once."""
        ...

    def target_counts(self, batch: Batch) -> dict[str, int]:
        """Return for each loss term what its sum is divided by; known before any forward pass."""
        ...

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Run `model` once on a batch and return its loss terms by name."""
        ...

    def measures(self, model: PreTrainedModel, means: dict[str, float]) -> dict[str, float]:
        """Return the numbers of an evaluation that are no means over rows.

        Args:
            model: evaluated, without the wrapper of distributed training.
            means: what the loss terms came to.

        Returns:
            What follows from `means`, baselines to compare them with, and properties of the model
            as a whole.
        """
        ...

    def warnings(self, row: dict[str, Any]) -> list[str]:
        """Return what is wrong with a run whose latest evaluation is `row`; each names a cause and a flag."""
        ...

    def show(
        self, model: PreTrainedModel, run_dir: Path, *, step: int
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return what has been learnt so far, as text to print and as rows to keep; pictures go to `run_dir`."""
        ...

    def write_config(self, model: PreTrainedModel, directory: Path) -> None:
        """Write everything of an export but the weights into an existing folder."""
        ...

    def export(self, model: PreTrainedModel, directory: Path) -> None:
        """Write the model and what it needs to be used, loadable by stock transformers."""
        ...

    def card_fields(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the model card says of the exported model; see `bert_pretrain.publishing.model_card`."""
        ...
