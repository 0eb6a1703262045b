"""Sums over micro-batches and processes, the rows of metrics.jsonl, their course, and the clock.

Enters: loss terms with their counts. Leaves: means that do not depend on how the rows were divided
up.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.data.atomic import naming_disk, write_text
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.data.processes import gather_on_hosts, sum_over_processes
from bert_pretrain.objectives.interface import LossTerm
from bert_pretrain.training.checkpoint_state import SumsState

# Endings of the numbers in metrics.jsonl that the machine decides: all others are a run's own.
OF_THE_MACHINE = ("_per_second", "mfu", "peak_memory_gib")


class RunningSums:
    """Sums of losses, metrics and counts of the loss terms; they are divided only at the end.

    Sums stay on the device in float64 (float32 where the device has none) and counts on the host,
    so adding to them never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        """Start empty on `device`."""
        self.device = device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, terms: Mapping[str, LossTerm], counts: Mapping[str, int]) -> None:
        """Add the terms of one batch of this process and what their sums are divided by."""
        for name, term in terms.items():
            self._weights[name] = term.weight
            self._counts[name] = self._counts.get(name, 0) + counts[name]
            self._add(f"{name}/loss", term.sum.detach())
            for metric, value in term.metrics.items():
                self._add(f"{name}/{metric}", value)

    def _add(self, key: str, value: Tensor) -> None:
        previous = self._sums.get(key)
        value = value.to(self.dtype)
        self._sums[key] = value if previous is None else previous + value

    def total(self) -> TotalSums:
        """Begin to bring together the sums of all processes; a collective.

        Nothing waits for the device: what it holds is on its way in the result.
        """
        # A process may have seen no batch, or no batch with some term: the others tell it the
        # names.
        known = gather_on_hosts((self._weights, self._counts, list(self._sums)))
        weights: dict[str, float] = {}
        counts: dict[str, float] = {}
        keys: set[str] = set()
        for their_weights, their_counts, their_keys in known:
            weights |= their_weights
            keys.update(their_keys)
            for name, count in their_counts.items():
                counts[name] = counts.get(name, 0) + count
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        held = [self._sums.get(key, zero) for key in sorted(keys)]
        summed = sum_over_processes(torch.stack(held)) if held else None
        return TotalSums(sorted(keys), summed, counts, weights)

    def load_state_dict(self, state: SumsState, *, share: float) -> None:
        """Continue from `TotalSums.state_dict()`; `share` is this process's part, in [0, 1]."""
        self._weights = dict(state["weights"])
        self._counts = {name: share * count for name, count in state["counts"].items()}
        for key, value in state["sums"].items():
            self._sums[key] = torch.tensor(share * value, dtype=self.dtype, device=self.device)


class TotalSums:
    """Sums over all processes, on their way from the device to the host."""

    def __init__(
        self,
        keys: list[str],
        sums: Tensor | None,
        counts: dict[str, float],
        weights: dict[str, float],
    ) -> None:
        """Begin to fetch the sums.

        Args:
            keys: `<term>/<quantity>` of each sum.
            sums: float (number of keys,); None = there are none.
            counts: by term, what its sums are divided by.
            weights: by term, its factor in the total.
        """
        self._keys = keys
        self._sums = None if sums is None else ToHost(sums)
        self._counts = counts
        self._weights = weights

    @property
    def is_ready(self) -> bool:
        """Whether reading them would not wait."""
        return self._sums is None or self._sums.is_ready

    def means(self) -> dict[str, float]:
        """Return `loss`, and `<term>_loss` and `<term>_<metric>` of every term.

        A term that nothing was counted for is left out.
        """
        row: dict[str, float] = {"loss": 0.0}
        for key, value in self._read().items():
            name, quantity = key.split("/")
            count = self._counts[name]
            if count == 0:
                continue
            row[f"{name}_{quantity}"] = value / count
            if quantity == "loss":
                row["loss"] += self._weights[name] * value / count
        return row

    def state_dict(self) -> SumsState:
        """Return plain numbers, for `RunningSums.load_state_dict`."""
        return {"sums": self._read(), "counts": self._counts, "weights": self._weights}

    def _read(self) -> dict[str, float]:
        values = [] if self._sums is None else self._sums.read()
        return dict(zip(self._keys, values, strict=True))


class ToHost:
    """Numbers on their way from a device to the host, which goes on meanwhile."""

    def __init__(self, numbers: Tensor) -> None:
        """Begin to copy a tensor (N,); what the device does later does not change the copy."""
        self._arrival: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrival = torch.cuda.current_stream(numbers.device).record_event()
        else:
            self._numbers = numbers.clone()

    @property
    def is_ready(self) -> bool:
        """Whether they have arrived."""
        return self._arrival is None or bool(self._arrival.query())  # type: ignore[no-untyped-call]

    def read(self) -> list[float]:
        """Return them, after waiting for them if need be."""
        if self._arrival is not None:
            self._arrival.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers


class JsonLines:
    """A file with one JSON object a line, which a resumed run cuts back to its checkpoint."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path

    def cut_back(self, *, keep_until_step: int) -> list[int]:
        """Remove rows past a step, a last line that is half-written, and lines that are no rows.

        Returns:
            The numbers of the latter, from 1 on: somebody or a disk has damaged them.
        """
        if not self.path.exists():
            return []
        # Not splitlines: a word may be a line separator of Unicode, which JSON leaves as it is.
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        steps = [_step_of(line) for line in lines]
        kept = [line for line, step in zip(lines, steps, strict=True) if step <= keep_until_step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        return [place for place, step in enumerate(steps[:-1], start=1) if step == math.inf]

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row and hand it to the operating system.

        A number that is not finite, as in an update that float16 skips, is null: JSON has no other
        word for it.
        """
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        with naming_disk(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class CourseWatch:
    """Warns of what gets worse over evaluations while the loss may hide it.

    A joint loss can fall while one of its heads dies: with too high a rate the masked-LM loss
    drifts back to the unigram entropy and the next-sentence loss pays for it. And images can be
    told apart ever better by what has nothing to do with what they show.
    """

    def __init__(self, *, tolerance: float = 0.02) -> None:
        """Allow a loss to lie `tolerance` (a share) above its best value, an accuracy below."""
        self.tolerance = tolerance
        self._best: dict[str, float] = {}

    def state_dict(self) -> dict[str, float]:
        """Return the best losses so far, and the first accuracy of neighbours."""
        return dict(self._best)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from `state_dict()`."""
        self._best = dict(state)

    def warnings(
        self, row: Mapping[str, Any], phase: int = 0, *, is_last: bool = False
    ) -> list[str]:
        """Return a message for every loss of a validation row that is worse than it has been.

        Losses of different phases of a run, over different rows, are not compared. The accuracy of
        nearest neighbours, of images with labels, often falls before it rises, so only the last row
        is compared with the first one.
        """
        messages = []
        for key, value in row.items():
            if not key.endswith("_loss"):
                continue
            name = f"{key} of phase {phase}" if phase else key
            best = self._best.setdefault(name, value)
            if value > best * (1 + self.tolerance):
                messages.append(
                    f"{key} is {value:.3f} on held-out data but was {best:.3f}: this head is "
                    "getting worse; a lower `learning_rate`, or `dropout` 0.1 on a small corpus, "
                    "usually cures it"
                )
            self._best[name] = min(best, value)
        accuracy = row.get("knn_accuracy")
        if accuracy is not None:
            first = self._best.setdefault("knn_accuracy", accuracy)
            if is_last and accuracy < first * (1 - self.tolerance):
                messages.append(
                    f"the k-NN accuracy of held-out images is {accuracy:.3f} at the end and "
                    f"{first:.3f} at the beginning: what was learnt is not what their labels are "
                    "about; more updates (`max_steps`) or a lower `learning_rate` may help, else "
                    "views or a task that suit these images better"
                )
        return messages


class Clock:
    """Seconds of a run, and of training since the last log."""

    def __init__(self) -> None:
        """Start it."""
        self.seconds_before = 0.0  # of earlier sessions of the run
        self.start()

    def start(self) -> None:
        """Start it anew."""
        self._started = self._lap_started = time.perf_counter()
        self._paused_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all sessions so far."""
        return self.seconds_before + time.perf_counter() - self._started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out of the lap."""
        begin = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - begin

    def lap(self) -> float:
        """Return the seconds since the last lap, without pauses, and begin the next one."""
        now = time.perf_counter()
        seconds = now - self._lap_started - self._paused_seconds
        self._lap_started, self._paused_seconds = now, 0.0
        return seconds
