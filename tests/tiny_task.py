"""A task that takes milliseconds: fit a line to numbers; the rows are the numbers 0, 1, 2, ..."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from bert_pretrain.data.stream import Batch, HeldOutRows, Part, TrainingStream, WholeEpochs
from bert_pretrain.objectives.interface import LossTerm, Task
from bert_pretrain.training.checkpoint_state import LoopState
from bert_pretrain.training.layout import BatchLayout
from bert_pretrain.training.schedule import Intervals, Schedule
from bert_pretrain.training.trainer import Trainer


class Numbers(np.ndarray):
    def take(self, rows: np.ndarray) -> Numbers:  # type: ignore[override]
        return self[rows].view(Numbers)


class NumberCollator:
    unit = "numbers"

    def collate(self, parts: list[Part], progress: float = 0.0) -> Batch:
        rows = np.concatenate([np.asarray(plan) for _, _, plan in parts])
        return {"x": torch.from_numpy(rows.astype(np.float32))[:, None]}

    def num_units(self, batch: Batch) -> int:
        return len(batch["x"])


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5]]))
        self.bias = nn.Parameter(torch.tensor([0.1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class LineObjective:
    """Squared distance of the line from 2 x; the sum is infinite at the rows of `infinite_at`."""

    coupling = None

    def __init__(self, *, infinite_at: tuple[int, ...] = ()) -> None:
        plan = np.arange(40).view(Numbers)
        self.training = TrainingStream(
            WholeEpochs(lambda _epoch: plan), NumberCollator(), identity={}
        )
        self.held_out = HeldOutRows(plan, np.arange(4), NumberCollator())
        self.infinite_at = infinite_at

    def build_model(self) -> Any:
        return Line()

    def target_counts(self, batch: Batch) -> dict[str, int]:
        return {"line": len(batch["x"])}

    def useful_flops(self, batch: Batch) -> float:
        return 6.0 * len(batch["x"])

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        loss = ((model(batch["x"] / 40) - batch["x"] / 20) ** 2).sum()
        if model.training and set(self.infinite_at) & set(batch["x"].flatten().int().tolist()):
            loss = loss * float("inf")
        return {"line": LossTerm(loss)}


def loop_state(step: int = 0) -> LoopState:
    """Return the state of a loop that has made so many updates and nothing else."""
    return {
        "step": step,
        "place": [0, 0, 8 * step, 0, 0.0],
        "num_units": 8 * step,
        "num_skipped": 0,
        "elapsed": 0.5 * step,
        "held_out_loss": None,
        "held_out_phase": 0,
        "spikes": {"losses": [], "phase": 0, "is_high": False},
        "rewinds": {"step": 0, "number": 0},
        "watch": {},
        "sums": {"sums": {}, "counts": {}, "weights": {}},
        "fingerprint": {"defining": {}, "noted": {}, "model": {}},
    }


class Silence:
    shown_file = "shown.jsonl"
    data_card = ""

    def measures(self, model: Any, means: dict[str, float], **_: Any) -> dict[str, float]:
        return {}

    def warnings(self, row: dict[str, Any]) -> list[str]:
        return []

    def show(self, model: Any, run_dir: Path, *, step: int, is_last: bool) -> tuple[str, list]:
        return "", [{"is_last": is_last}]

    def write_config(self, model: Any, directory: Path) -> None:
        pass

    def export(self, model: Any, directory: Path) -> None:
        pass

    def card_fields(self, model: Any) -> dict[str, Any]:
        return {}


def line_trainer(
    accelerator: Accelerator,
    run_dir: Path,
    *,
    max_steps: int = 4,
    infinite_at: tuple[int, ...] = (),
    save_steps: int = 0,
    save_total_limit: int = 0,
    keep_every: int = 0,
    objective: LineObjective | None = None,
    **options: Any,
) -> Trainer:
    """Return a trainer of the line with an optimiser for each of its two parameters."""
    objective = objective or LineObjective(infinite_at=infinite_at)
    model = objective.build_model()
    optimizers = [
        # Fused ones can be told on the device to skip an update.
        torch.optim.SGD([{"params": [parameter], "rate_ratio": 1.0}], lr=0.0, fused=True)
        for parameter in model.parameters()
    ]
    run_dir.mkdir(exist_ok=True)
    return Trainer(
        accelerator,
        Task(objective, Silence(), Silence()),
        model,
        optimizers,
        Schedule(
            max_steps=max_steps,
            max_seconds=0,
            peak=0.1,
            warmup_steps=0,
            name="stable_decay",
            decay_share=0.5,
        ),
        Intervals(
            logging=1,
            evaluation=2,
            checkpoint=save_steps,
            save_total_limit=save_total_limit,
            keep_every=keep_every,
        ),
        BatchLayout(global_batch_size=8, num_micro_batches=2, eval_batch_size=4),
        run_dir=run_dir,
        seed=0,
        max_grad_norm=float("inf"),
        fingerprint={},
        **options,
    )
