"""The training loop: the only one, and the only place that calls `backward`.

Enters: an objective, a model, optimisers and a schedule. Leaves: a trained model, and in the run
directory metrics.jsonl, checkpoints and what the objective shows. Nothing here knows what is
learnt.

A run's numbers are the same on any layout because every loss is a sum over the rows of an update,
on whatever process and in whatever micro-batch they are, divided by the count of all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.errors import TrainingError
from bert_pretrain.objectives.interface import Batch, Objective, Place, Window
from bert_pretrain.training.checkpoint import save_checkpoint
from bert_pretrain.training.metrics import CourseWatch, JsonLines, RunningSums
from bert_pretrain.training.optimizers import Schedule


@dataclass(frozen=True)
class Intervals:
    """Updates between the loop's side activities; 0 = only where the loop begins or ends.

    Attributes:
        logging: between training rows, at least 1.
        evaluation: between evaluations.
        checkpoint: between checkpoints.
        save_total_limit: checkpoints kept; 0 = all.
    """

    logging: int
    evaluation: int
    checkpoint: int
    save_total_limit: int


class Trainer:
    """Trains a model for an objective, from any place, on any layout."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        model: PreTrainedModel,
        optimizers: list[torch.optim.Optimizer],
        schedule: Schedule,
        intervals: Intervals,
        *,
        run_dir: Path,
        seed: int,
        global_batch_size: int,
        num_micro_batches: int,
        eval_batch_size: int,
        max_grad_norm: float,
        fingerprint: dict[str, Any],
    ) -> None:
        """Prepare model and optimisers for the accelerator's layout.

        Args:
            accelerator: with `gradient_accumulation_steps` 1; the window is this class's business.
            objective: what is learnt.
            model: as the objective built it; the same on every process.
            optimizers: their learning rates are set at every step.
            schedule: length and learning rate.
            intervals: how often to log, evaluate and save.
            run_dir: where metrics and checkpoints go.
            seed: of dropout; the data have theirs already.
            global_batch_size: rows of an update over all processes.
            num_micro_batches: forward passes per update and process.
            eval_batch_size: rows of an evaluation batch.
            max_grad_norm: gradients are scaled to at most this norm; infinite = never.
            fingerprint: what a checkpoint must agree with to be continued; kept in each.
        """
        assert accelerator.gradient_accumulation_steps == 1
        self.accelerator = accelerator
        self.objective = objective
        self.schedule = schedule
        self.intervals = intervals
        self.run_dir = run_dir
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.num_micro_batches = num_micro_batches
        self.eval_batch_size = eval_batch_size
        self.max_grad_norm = max_grad_norm
        self.fingerprint = fingerprint
        # Called with each checkpoint's folder once it is complete, on the main process alone, so it
        # must not communicate with the others; a later save may remove the folder.
        self.on_save: Callable[[Path], None] | None = None
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        self.step = 0
        self.place = Place(0, 0)
        self.num_units = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self.sums = RunningSums(accelerator.device)
        self.watch = CourseWatch()
        self.elapsed_before = 0.0
        self._started = self._last_logged = time.perf_counter()
        self._units_last_logged = 0
        # On the device and sticky, so that no step waits for it: 0 while every gradient norm was
        # finite, else the number of the first update that was not made.
        self._bad_step = torch.zeros((), device=accelerator.device)

    def load_checkpoint(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Continue from a checkpoint whose state `read_state` has verified."""
        self.accelerator.load_state(str(checkpoint))
        self.step = state["step"]
        self.place = Place(*state["place"])
        self.num_units = self.num_units + state["num_units"]
        self._units_last_logged = state["num_units"]
        self.elapsed_before = state["elapsed"]
        self.watch.load_state_dict(state["watch"])
        # The sums were saved over all processes: one of them takes them up, the others start from
        # zero.
        self.sums.load_state_dict(state["sums"], share=float(self.accelerator.is_main_process))

    def train(self) -> None:
        """Run to the end of the schedule: evaluate, train, log, evaluate, save."""
        self._started = self._last_logged = time.perf_counter()
        if self.accelerator.is_main_process:  # which alone writes
            # A run that was ended before its first checkpoint starts over and keeps no row.
            keep_until_step = self.step or -1
            self.metrics = JsonLines(
                self.run_dir / "metrics.jsonl", keep_until_step=keep_until_step
            )
            self.shown = JsonLines(
                self.run_dir / self.objective.shown_file, keep_until_step=keep_until_step
            )
        with self._progress_bar() as self.progress:
            if self.step == 0:
                self.evaluate()
            windows = self._windows()
            is_over = self.schedule.is_over(self.step, self._elapsed())
            while not is_over:
                learning_rate = self.schedule.learning_rate(self.step, self._elapsed())
                grad_norm = self._update(next(windows), learning_rate)
                is_over = self.schedule.is_over(self.step, self._elapsed())
                if is_over or _is_due(self.step, self.intervals.logging):
                    self._log(learning_rate, grad_norm)
                if is_over or _is_due(self.step, self.intervals.evaluation):
                    self.evaluate()
                if is_over or _is_due(self.step, self.intervals.checkpoint):
                    self.save()

    def _update(self, window: Window, learning_rate: float) -> Tensor:
        """Make one update from a window of micro-batches and return the gradient norm."""
        self.model.train()
        counts = self._global_counts(window)
        last = len(window.micro_batches) - 1
        for i, batch in enumerate(window.micro_batches):
            self._seed_dropout(i)
            is_last = i == last
            sync = contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model)
            with sync:
                terms = self.objective.loss_terms(self.model, self._to_device(batch))
                loss = sum(term.weight * term.sum / counts[name] for name, term in terms.items())
                # Distributed training averages gradients over processes; the counts are already
                # global.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            self.sums.add(terms, self.objective.target_counts(batch))
        grad_norm: Tensor = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.max_grad_norm
        )
        self._step_optimizers(learning_rate, grad_norm)
        self.step += 1
        self.place = window.next_place
        self.progress.update(1)
        return grad_norm

    def _seed_dropout(self, micro_batch: int) -> None:
        """Make dropout a function of the place in the run, so that a resumed run draws what it would have drawn."""
        key = hash_uint64(
            self.seed, Purpose.DROPOUT, self.step, micro_batch, self.accelerator.process_index
        )
        set_seed(int(key) >> 32)

    def _global_counts(self, window: Window) -> dict[str, Tensor]:
        """Return what each term's sum is divided by: its count over the window and all processes, at least 1."""
        local: dict[str, int] = {}
        for batch in window.micro_batches:
            for name, count in self.objective.target_counts(batch).items():
                local[name] = local.get(name, 0) + count
        names = sorted(local)
        values = [window.num_units, *(local[name] for name in names)]
        summed = self.accelerator.reduce(
            torch.tensor(values, device=self.accelerator.device), "sum"
        )
        self.num_units = self.num_units + summed[0]
        return dict(zip(names, summed[1:].clamp(min=1), strict=True))

    def _step_optimizers(self, learning_rate: float, grad_norm: Tensor) -> None:
        # Under float16 the gradient scaler expects overflows now and then, and skips those updates
        # itself.
        is_bad = ~torch.isfinite(grad_norm) & (self.accelerator.scaler is None)
        first_bad = is_bad & (self._bad_step == 0)
        self._bad_step = torch.where(first_bad, float(self.step + 1), self._bad_step)
        for optimizer in self.optimizers:
            if self.accelerator.scaler is None:
                # The hook by which torch's own gradient scaler makes fused optimisers skip an
                # update on the device.
                optimizer.optimizer.found_inf = (self._bad_step > 0).float()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["rate_ratio"]
            optimizer.step()
            optimizer.zero_grad()
        if self.accelerator.device.type == "cpu":
            self._check_finite()

    def _check_finite(self) -> None:
        bad_step = int(self._bad_step)
        if bad_step:
            raise TrainingError(
                f"the gradient norm of update {bad_step} is not finite (epoch {self.place.epoch}, "
                "rows up to "
                f"{self.place.position}); it was not made, and no later one. Continue from the "
                "last checkpoint with "
                "`resume_from_checkpoint` latest and a lower `learning_rate`, or `mixed_precision` "
                "no"
            )

    @torch.no_grad()
    def evaluate(self) -> None:
        """Evaluate on the fixed held-out rows and show what has been learnt."""
        self._check_finite()
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        sums = RunningSums(self.accelerator.device)
        for batch in self.objective.evaluation_batches(
            batch_size=self.eval_batch_size,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
        ):
            sums.add(
                self.objective.loss_terms(model, self._to_device(batch)),
                self.objective.target_counts(batch),
            )
        means = sums.means(self.accelerator)
        row = self._row("validation", means | self.objective.measures(model, means))
        self._write(row)
        self._print(_summary(row))
        for message in self.watch.warnings(row) + self.objective.warnings(row):
            self._print(f"WARNING: {message}")
        if self.accelerator.is_main_process:
            text, shown = self.objective.show(model, self.run_dir, step=self.step)
            self._print(text)
            for line in shown:
                self.shown.write({"step": self.step} | line)

    def save(self) -> None:
        """Write a checkpoint from which the run continues as if it had not been interrupted."""
        self._check_finite()
        state = {
            "step": self.step,
            "place": list(self.place),
            "num_units": int(self.num_units),
            "elapsed": self._elapsed(),
            "watch": self.watch.state_dict(),
            "sums": self.sums.global_state_dict(self.accelerator),
            "fingerprint": self.fingerprint,
        }
        checkpoint = save_checkpoint(
            self.accelerator,
            self.run_dir / "checkpoints",
            step=self.step,
            state=state,
            write_config=partial(
                self.objective.write_config, self.accelerator.unwrap_model(self.model)
            ),
            save_total_limit=self.intervals.save_total_limit,
        )
        if self.on_save is not None and self.accelerator.is_main_process:
            self.on_save(checkpoint)

    def _log(self, learning_rate: float, grad_norm: Tensor) -> None:
        self._check_finite()
        means = self.sums.means(self.accelerator)
        self.sums = RunningSums(self.accelerator.device)
        unit, num_units = self.objective.unit, int(self.num_units)
        seconds = time.perf_counter() - self._last_logged
        row = self._row("train", means)
        row |= {
            "learning_rate": learning_rate,
            "grad_norm": float(grad_norm),
            unit: num_units,
            f"{unit}_per_second": round((num_units - self._units_last_logged) / seconds, 1),
        }
        self._last_logged, self._units_last_logged = time.perf_counter(), num_units
        self._write(row)
        rate = f"{row[f'{unit}_per_second']:,.0f} {unit}/s"
        self.progress.set_postfix_str(f"loss {row['loss']:.3f}, {rate}", refresh=False)

    def _row(self, split: str, means: dict[str, float]) -> dict[str, Any]:
        num_rows = self.objective.num_rows(self.place.epoch)
        epoch = self.place.epoch + self.place.position / num_rows
        return {"split": split, "step": self.step, "epoch": round(epoch, 6)} | means

    def _write(self, row: dict[str, Any]) -> None:
        self.accelerator.log(
            {
                f"{row['split']}/{k}": v
                for k, v in row.items()
                if isinstance(v, int | float) and k != "step"
            },
            step=self.step,
        )
        if self.accelerator.is_main_process:
            self.metrics.write(row)

    def _windows(self) -> Iterator[Window]:
        return self.objective.training_windows(
            self.place,
            global_batch_size=self.global_batch_size,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            num_micro_batches=self.num_micro_batches,
        )

    def _to_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return {key: value.to(device, non_blocking=True) for key, value in batch.items()}

    @property
    def seconds(self) -> float:
        """Seconds of the whole run so far by this process's clock, interruptions left out."""
        return self.elapsed_before + time.perf_counter() - self._started

    def _elapsed(self) -> float:
        """Return the seconds of the whole run; the first process's clock decides for all."""
        elapsed = self.seconds
        if self.schedule.max_seconds == 0 or self.accelerator.num_processes == 1:
            return elapsed
        seconds = torch.tensor(elapsed, device=self.accelerator.device)
        torch.distributed.broadcast(seconds, src=0)
        return float(seconds)

    def _progress_bar(self) -> Any:
        disable = not self.accelerator.is_local_main_process
        total = self.schedule.max_steps or None
        bar = partial(tqdm, desc="training", unit="step", dynamic_ncols=True, disable=disable)
        return bar(total=total, initial=self.step)

    def _print(self, text: str) -> None:
        if self.accelerator.is_main_process:
            self.progress.write(text)


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _summary(row: dict[str, Any]) -> str:
    numbers = ", ".join(
        f"{key} {value:.4g}" for key, value in row.items() if key not in ("split", "step", "epoch")
    )
    return f"step {row['step']} (epoch {row['epoch']:.2f}), held-out: {numbers}"
