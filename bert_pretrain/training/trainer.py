"""The training loop: the only one, and the only place that calls `backward`.

Enters: a task, a model, optimisers and a schedule. Leaves: a trained model, and in the run
directory metrics.jsonl, checkpoints and what the task's monitor shows. Nothing here knows what is
learnt.

A run's numbers are the same on any layout because every loss is a sum over the rows of an update,
on whatever process and in whatever micro-batch they are, divided by the count of all of them.
"""

from __future__ import annotations

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

from bert_pretrain.data.loader import Batch, Place, Window, evaluation_batches, training_windows
from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.errors import TrainingError, spell
from bert_pretrain.objectives.interface import Task
from bert_pretrain.training.checkpoint import load_tensors, save_checkpoint
from bert_pretrain.training.layout import BatchLayout
from bert_pretrain.training.metrics import Clock, CourseWatch, JsonLines, RunningSums
from bert_pretrain.training.optimizers import Schedule
from bert_pretrain.training.sharding import DistributedModel, spreading_failure


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
    """Trains a model for a task, from any place, on any layout."""

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        model: PreTrainedModel,
        optimizers: list[torch.optim.Optimizer],
        schedule: Schedule,
        intervals: Intervals,
        layout: BatchLayout,
        *,
        run_dir: Path,
        seed: int,
        max_grad_norm: float,
        fingerprint: dict[str, Any],
    ) -> None:
        """Prepare model and optimisers for the accelerator's processes.

        Args:
            accelerator: with `gradient_accumulation_steps` 1; windows are this class's business.
            task: what is learnt, measured and written.
            model: as the objective built it; the same on every process.
            optimizers: their learning rates are set at every step.
            schedule: length and learning rate.
            intervals: how often to log, evaluate and save.
            layout: how rows are divided up.
            run_dir: where metrics and checkpoints go.
            seed: of dropout; the data have theirs already.
            max_grad_norm: gradients are scaled to at most this norm; infinite = never.
            fingerprint: what a checkpoint must agree with to be continued; kept in each.
        """
        assert accelerator.gradient_accumulation_steps == 1
        self.accelerator = accelerator
        self.objective, self.monitor, self.exporter = task
        self.schedule = schedule
        self.intervals = intervals
        self.layout = layout
        self.run_dir = run_dir
        self.seed = seed
        self.max_grad_norm = max_grad_norm
        self.fingerprint = fingerprint
        self.distributed = DistributedModel(accelerator, model, optimizers)
        self.model, self.optimizers = self.distributed.module, self.distributed.optimizers
        self.metrics = JsonLines(run_dir / "metrics.jsonl")
        self.shown = JsonLines(run_dir / self.monitor.shown_file)
        self.step = 0
        self.place = Place(0, 0)
        self.num_units = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self.sums = RunningSums(accelerator.device)
        self.watch = CourseWatch()
        self._clock = Clock()
        self._units_last_logged = 0
        # On the device and sticky, so that no step waits for it: 0 while every gradient norm was
        # finite, else the number of the first update that was not made.
        self._bad_step = torch.zeros((), device=accelerator.device)

    def load_checkpoint(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Continue from a checkpoint whose state `read_state` has verified."""
        load_tensors(checkpoint, self.distributed)
        self.step = state["step"]
        self.place = Place(*state["place"])
        self.num_units = self.num_units + state["num_units"]
        self._units_last_logged = state["num_units"]
        self._clock.seconds_before = state["elapsed"]
        self.watch.load_state_dict(state["watch"])
        # The sums were saved over all processes: one of them takes them up, the others start from
        # zero.
        self.sums.load_state_dict(state["sums"], share=float(self.accelerator.is_main_process))

    def train(self, *, on_save: Callable[[Path], None] | None = None) -> None:
        """Run to the end of the schedule: evaluate, train, log, evaluate, save.

        Args:
            on_save: called with each checkpoint's folder once it is complete, on the first process
                alone, so it must not communicate with the others; a later save may remove it.
        """
        self._clock.start()
        if self.accelerator.is_main_process:  # which alone writes
            # A run that was ended before its first checkpoint starts over and keeps no row.
            for file in (self.metrics, self.shown):
                file.cut_back(keep_until_step=self.step or -1)
        if self.step == 0:
            self.evaluate(is_last=False)
        windows = self._windows()
        elapsed = self._elapsed()
        is_over = self.schedule.is_over(self.step, elapsed)
        with self._progress_bar() as progress:
            while not is_over:
                learning_rate = self.schedule.learning_rate(self.step, elapsed)
                grad_norm = self._update(next(windows), learning_rate)
                progress.update(1)
                elapsed = self._elapsed()
                is_over = self.schedule.is_over(self.step, elapsed)
                if is_over or _is_due(self.step, self.intervals.logging):
                    progress.set_postfix_str(self._log(learning_rate, grad_norm), refresh=False)
                if is_over or _is_due(self.step, self.intervals.evaluation):
                    self.evaluate(is_last=is_over)
                if is_over or _is_due(self.step, self.intervals.checkpoint):
                    self.save(on_save)

    def _update(self, window: Window, learning_rate: float) -> Tensor:
        """Make one update from a window of micro-batches and return the gradient norm."""
        self.model.train()
        targets = [self.objective.target_counts(batch) for batch in window.micro_batches]
        counts = self._global_counts(targets, window.num_units)
        last = len(window.micro_batches) - 1
        for i, batch in enumerate(window.micro_batches):
            self._seed_dropout(i)
            with self.distributed.synchronized(is_last=i == last):
                terms = self.objective.loss_terms(self.model, self._to_device(batch))
                parts = [term.weight * term.sum / counts[name] for name, term in terms.items()]
                loss = spreading_failure(torch.stack(parts).sum())
                # Distributed training averages gradients over processes; the counts are already
                # global.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            self.sums.add(terms, targets[i])
        grad_norm = self.distributed.clip_grad_norm(self.max_grad_norm)
        self._step_optimizers(learning_rate, grad_norm)
        self.step += 1
        self.place = window.next_place
        return grad_norm

    def _seed_dropout(self, micro_batch: int) -> None:
        """Make dropout a function of the place in the run, so that a resumed run draws the same.

        It is no function of the row: with dropout, other processes or micro-batches draw other
        masks for a row.
        """
        process = self.accelerator.process_index
        key = hash_uint64(self.seed, Purpose.DROPOUT, self.step, micro_batch, process)
        set_seed(int(key) >> 32)

    def _global_counts(self, targets: list[dict[str, int]], num_units: int) -> dict[str, Tensor]:
        """Return what each term's sum is divided by, over the window and all processes, >= 1."""
        names = sorted({name for counts in targets for name in counts})
        local = [sum(counts.get(name, 0) for counts in targets) for name in names]
        numbers = torch.tensor([num_units, *local], device=self.accelerator.device)
        summed = self.accelerator.reduce(numbers, "sum")
        self.num_units = self.num_units + summed[0]
        return dict(zip(names, summed[1:].clamp(min=1), strict=True))

    def _step_optimizers(self, learning_rate: float, grad_norm: Tensor) -> None:
        scaler = self.accelerator.scaler
        if scaler is None:
            is_bad = ~torch.isfinite(grad_norm) & (self._bad_step == 0)
            self._bad_step = torch.where(is_bad, float(self.step + 1), self._bad_step)
        for prepared in self.optimizers:
            optimizer = prepared.optimizer
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["rate_ratio"]
            if scaler is None:
                # The hook by which torch's own gradient scaler makes fused optimisers skip an
                # update on the device.
                optimizer.found_inf = (self._bad_step > 0).float()
                optimizer.step()
            else:
                # Under float16 overflows are expected now and then: the scaler skips those updates.
                scaler.step(optimizer)
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()  # once for all optimisers: it forgets that gradients are unscaled
        if self.accelerator.device.type == "cpu":
            self._check_finite()

    def _check_finite(self) -> None:
        bad_step = int(self._bad_step)
        if bad_step:
            raise TrainingError(
                f"the gradient norm of update {bad_step} is not finite (epoch {self.place.epoch}, "
                f"rows up to {self.place.position}); it was not made, and no later one. Continue "
                "from the last checkpoint with `resume_from_checkpoint` latest and a lower "
                "`learning_rate`, or `mixed_precision` no"
            )

    @torch.no_grad()
    def evaluate(self, *, is_last: bool) -> None:
        """Evaluate on the fixed held-out rows and show what has been learnt."""
        self._check_finite()
        with self._clock.paused():
            model = self.distributed.plain().eval()
            sums = RunningSums(self.accelerator.device)
            for batch in evaluation_batches(
                self.objective.held_out,
                batch_size=self.layout.eval_batch_size,
                num_processes=self.accelerator.num_processes,
                process_index=self.accelerator.process_index,
            ):
                terms = self.objective.loss_terms(model, self._to_device(batch))
                sums.add(terms, self.objective.target_counts(batch))
            means = sums.means(self.accelerator)
            row = self._row("validation", means | self.monitor.measures(model, means))
            self._write(row)
            self._print(_summary(row))
            for message in self.watch.warnings(row) + self.monitor.warnings(row):
                self._print(f"WARNING: {spell(message)}")
            if self.accelerator.is_main_process:
                text, shown = self.monitor.show(
                    model, self.run_dir, step=self.step, is_last=is_last
                )
                self._print(text)
                for line in shown:
                    self.shown.write({"step": self.step} | line)

    def save(self, on_save: Callable[[Path], None] | None = None) -> None:
        """Write a checkpoint from which the run continues as if it had not been interrupted."""
        self._check_finite()
        with self._clock.paused():
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
                self.distributed,
                self.run_dir / "checkpoints",
                step=self.step,
                state=state,
                write_config=partial(self.exporter.write_config, self.distributed.outline),
                save_total_limit=self.intervals.save_total_limit,
            )
            if on_save is not None and self.accelerator.is_main_process:
                on_save(checkpoint)

    def _log(self, learning_rate: float, grad_norm: Tensor) -> str:
        """Write a training row and return what the progress bar says of it."""
        self._check_finite()
        means = self.sums.means(self.accelerator)
        self.sums = RunningSums(self.accelerator.device)
        unit, num_units = self.objective.training.collator.unit, int(self.num_units)
        rate = (num_units - self._units_last_logged) / self._clock.lap()
        self._units_last_logged = num_units
        row = self._row("train", means) | {
            "learning_rate": learning_rate,
            "grad_norm": float(grad_norm),
            unit: num_units,
            f"{unit}_per_second": round(rate, 1),
        }
        self._write(row)
        return f"loss {row['loss']:.3f}, {rate:,.0f} {unit}/s"

    def _row(self, split: str, means: dict[str, float]) -> dict[str, Any]:
        num_rows = len(self.objective.training.plan(self.place.epoch))
        epoch = self.place.epoch + self.place.position / num_rows
        return {"split": split, "step": self.step, "epoch": round(epoch, 6)} | means

    def _write(self, row: dict[str, Any]) -> None:
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        self.accelerator.log(
            {f"{row['split']}/{key}": value for key, value in numbers.items() if key != "step"},
            step=self.step,
        )
        if self.accelerator.is_main_process:
            self.metrics.write(row)

    def _windows(self) -> Iterator[Window]:
        return training_windows(
            self.objective.training,
            self.place,
            global_batch_size=self.layout.global_batch_size,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            num_micro_batches=self.layout.num_micro_batches,
            num_workers=self.layout.num_workers,
        )

    def _to_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return {key: value.to(device, non_blocking=True) for key, value in batch.items()}

    @property
    def seconds(self) -> float:
        """Seconds of the whole run so far by this process's clock, interruptions left out."""
        return self._clock.seconds

    def _elapsed(self) -> float:
        """Return the seconds of the whole run; the first process's clock decides for all."""
        elapsed = self.seconds
        if self.schedule.max_seconds == 0 or self.accelerator.num_processes == 1:
            return elapsed
        seconds = torch.tensor(elapsed, device=self.accelerator.device)
        torch.distributed.broadcast(seconds, src=0)
        return float(seconds)

    def _progress_bar(self) -> Any:
        return tqdm(
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_local_main_process,
            total=self.schedule.max_steps or None,
            initial=self.step,
        )

    def _print(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)  # above the progress bar


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _summary(row: dict[str, Any]) -> str:
    numbers = [f"{k} {v:.4g}" for k, v in row.items() if k not in ("split", "step", "epoch")]
    return f"step {row['step']} (epoch {row['epoch']:.2f}), held-out: {', '.join(numbers)}"
