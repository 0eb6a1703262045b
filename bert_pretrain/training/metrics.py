"""Sums over micro-batches and ranks, the rows of metrics.jsonl, and alarms about their course.

Enters: loss terms with their counts. Leaves: means that do not depend on how the rows were divided
up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from bert_pretrain.data.atomic import write_text
from bert_pretrain.objectives.interface import LossTerm


class RunningSums:
    """Sums of losses, metrics and counts of the loss terms; only at the end are they divided.

    The sums stay on the device in float64 (float32 where the device has none), so adding to them
    never waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        """Start empty on `device`."""
        self.device = device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, terms: Mapping[str, LossTerm], counts: Mapping[str, int]) -> None:
        """Add the terms of one batch of this process and what their sums are divided by."""
        for name, term in terms.items():
            self._weights[name] = term.weight
            self._add(f"{name}/loss", term.sum.detach())
            self._add(f"{name}/count", torch.tensor(counts[name], device=self.device))
            for metric, value in term.metrics.items():
                self._add(f"{name}/{metric}", value)

    def _add(self, key: str, value: Tensor) -> None:
        previous = self._sums.get(key)
        value = value.to(self.dtype)
        self._sums[key] = value if previous is None else previous + value

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return `loss`, and `<term>_loss` and `<term>_<metric>` of every term, over all processes.

        A term that nothing was counted for is left out. All processes must call it.
        """
        state = self.global_state_dict(accelerator)
        sums, weights = state["sums"], state["weights"]
        row: dict[str, float] = {"loss": 0.0}
        for key in sorted(sums):
            name, quantity = key.split("/")
            count = sums[f"{name}/count"]
            if quantity == "count" or count == 0:
                continue
            row[f"{name}_{quantity}"] = sums[key] / count
            if quantity == "loss":
                row["loss"] += weights[name] * sums[key] / count
        return row

    def global_state_dict(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the sums over all processes as plain numbers. All processes must call it."""
        # A process may have seen no batch, or no batch with some term: the others tell it the
        # names.
        named = gather_object([(key, self._weights[key.split("/")[0]]) for key in self._sums])
        keys = sorted({key for key, _ in named})
        if not keys:
            return {"sums": {}, "weights": {}}
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        stacked = torch.stack([self._sums.get(key, zero) for key in keys])
        sums = accelerator.reduce(stacked, "sum").tolist()
        weights = {key.split("/")[0]: weight for key, weight in named}
        return {"sums": dict(zip(keys, sums, strict=True)), "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any], *, share: float) -> None:
        """Continue from `global_state_dict()`; `share` is this process's part of the sums, in [0, 1]."""
        self._weights = dict(state["weights"])
        self._sums = {
            key: torch.tensor(share * value, dtype=self.dtype, device=self.device)
            for key, value in state["sums"].items()
        }


class JsonLines:
    """A file with one JSON object a line, which a resumed run cuts back to its checkpoint."""

    def __init__(self, path: Path, *, keep_until_step: int) -> None:
        """Open `path` for appending; rows past `keep_until_step` and a half-written last line are removed."""
        self.path = path
        if path.exists():
            # Not splitlines: a word may be a line separator of Unicode, which JSON leaves as it is.
            lines = path.read_text(encoding="utf-8").split("\n")
            write_text(
                path, "".join(f"{line}\n" for line in lines if _step_of(line) <= keep_until_step)
            )

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row and hand it to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


class CourseWatch:
    """Warns when one loss gets worse over evaluations while the total may hide it.

    A joint loss can fall while one of its heads dies: with too high a rate the masked-LM loss
    drifts back to the unigram entropy and the next-sentence loss pays for it.
    """

    def __init__(self, *, tolerance: float = 0.02) -> None:
        """Allow a loss to lie `tolerance` (a share) above its best value."""
        self.tolerance = tolerance
        self._best: dict[str, float] = {}

    def state_dict(self) -> dict[str, float]:
        """Return the best losses so far."""
        return dict(self._best)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from `state_dict()`."""
        self._best = dict(state)

    def warnings(self, row: Mapping[str, Any]) -> list[str]:
        """Return a message for every loss of a validation row that is worse than it has been."""
        messages = []
        for key, value in row.items():
            if not key.endswith("_loss"):
                continue
            best = self._best.setdefault(key, value)
            if value > best * (1 + self.tolerance):
                messages.append(
                    f"{key} is {value:.3f} on held-out data but was {best:.3f}: this head is "
                    "getting worse; "
                    "a lower --learning_rate, or --dropout 0.1 on a small corpus, usually cures it"
                )
            self._best[key] = min(best, value)
        return messages
