"""What a run says of itself: the rows of metrics.jsonl, trackers, the progress bar, the clock.

The trainer hands over numbers that a device may not have computed yet; a row is written when its
numbers have arrived, so that no update waits for them. The first process alone writes files.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from bert_pretrain.data.run_folder import list_checkpoints
from bert_pretrain.errors import spell
from bert_pretrain.training.finite import FiniteGuard
from bert_pretrain.training.memory import peak_gib
from bert_pretrain.training.metrics import Clock, JsonLines, ToHost, TotalSums
from bert_pretrain.training.spikes import Spike, SpikeWatch

_NAMED_LINES = 5  # of those that are damaged


@dataclass
class _Row:
    """A training row on its way."""

    fields: dict[str, Any]
    phase: int
    num_units: int
    flops: float
    sums: TotalSums
    others: ToHost  # the gradient norm, then what the guard is to see

    @property
    def is_ready(self) -> bool:
        return self.sums.is_ready and self.others.is_ready

    @property
    def has_diverged(self) -> bool:
        """Whether the guard will end the run; it waits for the row."""
        return self.others.read()[2] > 0


class Journal:
    """The rows of one run.

    Attributes:
        clock: of the run, and of training since the last row.
        num_units: what the throughput counts, over all processes, since the run began.
        has_diverged: whether the guard is to end the run, at the next `write_rows` that waits.
        spikes: judges the rows.
        spike: the jump of the loss that it has found last; None = none, or it was dealt with.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        guard: FiniteGuard,
        run_dir: Path,
        *,
        unit: str,
        shown_file: str,
        peak_flops: float,
        spike_advice: str = "",
    ) -> None:
        """Name the files; nothing is written yet.

        Args:
            accelerator: of the run.
            guard: sees the gradient norms that arrive.
            run_dir: where metrics.jsonl and `shown_file` lie.
            unit: what the throughput counts.
            shown_file: name of the file of what the monitor shows.
            peak_flops: FLOP/s of one process's device, which utilisation is a share of.
            spike_advice: ends the warning of a jump of the loss.
        """
        self.clock = Clock()
        self.num_units = 0
        self.has_diverged = False
        self.spikes = SpikeWatch()
        self.spike: Spike | None = None
        self._accelerator = accelerator
        self._guard = guard
        self._metrics = JsonLines(run_dir / "metrics.jsonl")
        self._shown = JsonLines(run_dir / shown_file)
        self._unit = unit
        self._spike_advice = spell(spike_advice)
        self._peak_flops = peak_flops * accelerator.num_processes
        self._flops = 0.0
        self._last_units, self._last_flops = 0, 0.0  # when the last training row was written
        self._on_their_way: deque[_Row] = deque()
        self._bar: tqdm[Any] | None = None

    def load(self, *, num_units: int, seconds: float) -> None:
        """Continue a run that has counted so many units in so many seconds."""
        self.num_units = self._last_units = num_units
        self.clock.seconds_before = seconds

    def start(self, step: int) -> None:
        """Start the clock; remove rows past `step` updates, and all if the run begins.

        Say which of its rows a run that goes on has lost.
        """
        self.clock.start()
        if not self._accelerator.is_main_process:
            return
        folder = self._metrics.path.parent
        is_lost = not self._metrics.path.exists() and bool(list_checkpoints(folder / "checkpoints"))
        # A run that was ended before its first checkpoint starts over and keeps no row.
        damaged, _ = (
            file.cut_back(keep_until_step=step or -1) for file in (self._metrics, self._shown)
        )
        if step and is_lost:
            self.warn(f"metrics.jsonl is lost, with all rows up to update {step}", step=step)
        if step and damaged:
            listed = ", ".join(map(str, damaged[:_NAMED_LINES])) + ", ..." * (
                len(damaged) > _NAMED_LINES
            )
            self.warn(
                f"metrics.jsonl was damaged: what was line {listed} is no row and is left out",
                step=step,
            )

    def go_back(self, *, step: int, num_units: int) -> None:
        """Continue from an earlier update that had counted so many units; the clock goes on.

        No row may be on its way.
        """
        self.num_units = self._last_units = num_units
        self._last_flops = self._flops
        self.clock.lap()
        if self._accelerator.is_main_process:
            for file in (self._metrics, self._shown):
                file.cut_back(keep_until_step=step)
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    @contextlib.contextmanager
    def progress_bar(self, *, num_steps: int, step: int) -> Iterator[tqdm[Any]]:
        """Show a bar that begins at `step`; 0 updates = their number is not known."""
        with tqdm(
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not self._accelerator.is_local_main_process,
            total=num_steps or None,
            initial=step,
        ) as self._bar:
            yield self._bar

    def count(self, num_units: int, flops: float) -> None:
        """Count an update's units and useful FLOPs, over all processes."""
        self.num_units += num_units
        self._flops += flops

    def begin_row(
        self, fields: dict[str, Any], sums: TotalSums, grad_norm: Tensor, *, phase: int = 0
    ) -> None:
        """Keep a training row, of a phase of the run, until its numbers are there."""
        others = ToHost(torch.cat([grad_norm.detach()[None], self._guard.numbers]))
        row = _Row(fields, phase, self.num_units, self._flops, sums, others)
        self._on_their_way.append(row)

    def write_rows(self, *, wait: bool = False) -> None:
        """Write the training rows whose numbers have arrived; wait for all of them if asked.

        Raises:
            TrainingError: the run has diverged. All processes raise it, so they must all wait.
        """
        arrived = []
        while self._on_their_way and (wait or self._on_their_way[0].is_ready):
            if not wait and self._on_their_way[0].has_diverged:
                self.has_diverged = True
                break
            arrived.append(self._on_their_way.popleft())
        for row in arrived:
            row.others.read()  # waits
        # Rows that arrive together share the time since those before them.
        seconds = self.clock.lap() / len(arrived) if arrived else 0.0
        for row in arrived:
            self._write_row(row, seconds)
        if wait:
            self._guard.see(*self._guard.numbers.tolist())

    def _write_row(self, row: _Row, seconds: float) -> None:
        grad_norm, num_skipped, fatal = row.others.read()
        self._guard.see(num_skipped, fatal, step=row.fields["step"])
        rate = (row.num_units - self._last_units) / seconds
        utilisation = (row.flops - self._last_flops) / seconds / self._peak_flops
        self._last_units, self._last_flops = row.num_units, row.flops
        means = row.sums.means()
        measured = {
            "grad_norm": grad_norm,
            "skipped_updates": int(num_skipped),
            self._unit: row.num_units,
            f"{self._unit}_per_second": round(rate, 1),
            "mfu": round(utilisation, 4),
            "peak_memory_gib": round(peak_gib(self._accelerator.device), 3),
        }
        self.write(row.fields | means | measured)
        if spike := self.spikes.judge(means["loss"], phase=row.phase):
            self.spike = spike
            self.warn(f"{spike}{self._spike_advice}", step=row.fields["step"])
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {means['loss']:.3f}, {rate:,.0f} {self._unit}/s, MFU {utilisation:.0%}",
                refresh=False,
            )

    def write(self, row: dict[str, Any]) -> None:
        """Write a row, with its split and step, to trackers and metrics.jsonl."""
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        self._accelerator.log(
            {f"{row['split']}/{key}": value for key, value in numbers.items() if key != "step"},
            step=row["step"],
        )
        if self._accelerator.is_main_process:
            self._metrics.write(row)

    def warn(self, message: str, *, step: int) -> None:
        """Print a warning, and keep it as a row of metrics.jsonl for report and card."""
        self.print(f"WARNING: {message}")
        if self._accelerator.is_main_process:
            self._metrics.write({"split": "warning", "step": step, "message": message})

    def show(self, text: str, lines: list[dict[str, Any]], *, step: int) -> None:
        """Print what has been learnt, and keep it."""
        self.print(text)
        for line in lines:
            self._shown.write({"step": step} | line)

    def print(self, text: str) -> None:
        """Print on the first process, above the progress bar."""
        if self._accelerator.is_main_process:
            tqdm.write(text)
