"""The training loop: the only one, and the only place that calls `backward`.

Enters: a task, a model, optimisers and a schedule. Leaves: a trained model, and in the run
directory metrics.jsonl, checkpoints and what the task's monitor shows. Nothing here knows what is
learnt.

A run's numbers are the same on any layout because every loss is a sum over the rows of an update,
on whatever process and in whatever micro-batch they are, divided by the count of all of them. Where
a loss compares rows, it compares all of an update (`joint_loss`).
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from bert_pretrain.data.course import Course
from bert_pretrain.data.loader import (
    Window,
    copied_ahead,
    explaining_lost_workers,
    training_windows,
)
from bert_pretrain.data.processes import gather_on_hosts, sum_on_hosts
from bert_pretrain.data.random import Purpose, hash_uint64
from bert_pretrain.data.signals import StopRequest
from bert_pretrain.data.stream import Batch, Place
from bert_pretrain.errors import RunStoppedError
from bert_pretrain.objectives.interface import Coupling, Task
from bert_pretrain.training.checkpoint_state import LoopState
from bert_pretrain.training.checkpoint_writing import Retention
from bert_pretrain.training.compilation import (
    CompileChoice,
    check_compiled,
    compile_forward,
    uncompiled,
)
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.evaluating import evaluate, is_goal_reached
from bert_pretrain.training.finite import FiniteGuard, check_finite
from bert_pretrain.training.joint_loss import joint_gradients, mean_loss, stand_in
from bert_pretrain.training.journal import Journal
from bert_pretrain.training.layout import BatchLayout
from bert_pretrain.training.memory import collecting_new_garbage, explaining_out_of_memory
from bert_pretrain.training.metrics import CourseWatch, RunningSums
from bert_pretrain.training.profiling import StepProfiler
from bert_pretrain.training.resuming import go_on, has_gone_back, needed_step, state_of
from bert_pretrain.training.saving import CheckpointSaver
from bert_pretrain.training.schedule import Intervals, Schedule
from bert_pretrain.training.sharding import DistributedModel
from bert_pretrain.training.spikes import SPIKE_ADVICE, Rewinds
from bert_pretrain.training.watchdog import Watchdog


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
        skip_nonfinite: int = 0,
        goes_back_on_spike: bool = False,
        ema_decay: float = 0.0,
        peak_flops: float = math.inf,
        profile_steps: int = 0,
        is_compiled: bool = False,
        course: Course | None = None,
        stop: StopRequest | None = None,
        stuck_timeout: float = 0.0,
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
            skip_nonfinite: updates with a gradient that is not finite that a run may skip.
            goes_back_on_spike: whether the run goes back to a checkpoint where the loss jumps, and
                passes over the rows since; else it warns.
            ema_decay: of the average of the weights, in [0, 1); 0 = there is none.
            peak_flops: FLOP/s of one process's device, which utilisation is a share of.
            profile_steps: updates to profile.
            is_compiled: whether the model compiles itself when it is called; see `check_compiled`.
            course: what each update is; None = all are alike.
            stop: may ask any process to stop the run, which then saves; None = nothing does.
            stuck_timeout: seconds without progress after which a process ends; 0 = never.
        """
        assert accelerator.gradient_accumulation_steps == 1
        self.accelerator = accelerator
        self.objective, self.monitor, self.exporter = task.objective, task.monitor, task.exporter
        self.schedule = schedule
        self.intervals = intervals
        self.layout = layout
        self.course = course or Course(layout.global_batch_size)
        self.stop = stop or StopRequest()
        self.is_stopping = False
        self.watchdog = Watchdog(stuck_timeout)
        self.run_dir = run_dir
        self.seed = seed
        self.max_grad_norm = max_grad_norm
        self.fingerprint = fingerprint
        if is_compiled:
            compile_forward(model, num_row_lengths=len(self.course.phase_shares))
        self.distributed = DistributedModel(accelerator, model, optimizers)
        self.model, self.optimizers = self.distributed.module, self.distributed.optimizers
        self.average = WeightAverage(self.distributed, ema_decay) if ema_decay else None
        self.step = 0
        self.place = Place()
        self.held_out_loss: float | None = None  # of the weights as they are; None = not evaluated
        self.held_out_phase = 0  # whose held-out rows that is of
        self.goes_back_on_spike = goes_back_on_spike
        self.rewinds = Rewinds()
        self.sums = RunningSums(accelerator.device)
        self.watch = CourseWatch()
        self.guard = FiniteGuard(
            accelerator.device,
            num_allowed=skip_nonfinite,
            is_scaled=accelerator.scaler is not None,
        )
        self.profiler = StepProfiler(
            profile_steps if accelerator.is_main_process else 0,
            run_dir / "profile",
            accelerator.device,
        )
        self.journal = Journal(
            accelerator,
            self.guard,
            run_dir,
            unit=self.objective.training.collator.unit,
            shown_file=self.monitor.shown_file,
            peak_flops=peak_flops,
            spike_advice="" if goes_back_on_spike else SPIKE_ADVICE,
        )
        self.saver = CheckpointSaver(
            self.distributed,
            self.average,
            run_dir / "checkpoints",
            write_config=partial(self.exporter.write_config, self.distributed.outline),
            retention=Retention(intervals.save_total_limit, intervals.keep_every),
        )
        self.is_compiled = is_compiled

    def check_compiled(self, choice: CompileChoice) -> None:
        """Compile the model now rather than in the first update; all processes must call it.

        Args:
            choice: `on`, or `auto` = only if it works here.

        Raises:
            InputError: the model is to be compiled and cannot be.
        """
        with self._explaining_out_of_memory():
            self.is_compiled = check_compiled(self.try_pass, choice, self.journal.print)

    def load_checkpoint(self, checkpoint: Path, state: LoopState) -> None:
        """Continue from a checkpoint whose state `read_state` has verified."""
        go_on(self, checkpoint, state)

    @property
    def rows_at_once(self) -> int:
        """The most rows that a forward pass has."""
        num_passes: int = self.accelerator.num_processes * self.layout.num_micro_batches
        return -(-self.layout.global_batch_size // num_passes)

    def _explaining_out_of_memory(self) -> contextlib.AbstractContextManager[None]:
        return explaining_out_of_memory(
            self.accelerator.device,
            rows_at_once=self.rows_at_once,
            num_micro_batches=self.layout.num_micro_batches,
            global_batch_size=self.layout.global_batch_size,
        )

    def train(self, *, on_save: Callable[[Path], None] | None = None) -> None:
        """Run to the end of the schedule: evaluate, train, log, evaluate, save.

        Args:
            on_save: called with each checkpoint's folder once it is whole, some updates later; see
                `CheckpointSaver.on_written`.
        """
        self.saver.on_written = on_save
        with (
            explaining_lost_workers(),
            self.watchdog.explaining_lost_processes(),
            self.watchdog.watching(),
            self.saver.finishing(),
            collecting_new_garbage(),
        ):
            try:
                self._train()
            finally:
                with contextlib.suppress(Exception):  # what ends the run is to be said, not this
                    self._show_profile(self.profiler.close())

    def _train(self) -> None:
        self.journal.start(self.step)
        if self.step == 0:
            self.evaluate(is_last=False)
        windows = self._windows()
        elapsed = self.elapsed()
        is_over = self.schedule.is_over(self.step, elapsed) or is_goal_reached(self)
        progress = self.journal.progress_bar(num_steps=self.schedule.max_steps, step=self.step)
        is_on_cpu = self.accelerator.device.type == "cpu"
        with progress as bar, self._explaining_out_of_memory():
            while not is_over:
                if self.saver.has_written:
                    with self.journal.clock.paused():
                        self.saver.report()
                self.watchdog.beat(f"the rows of update {self.step + 1}")
                learning_rate = self.schedule.learning_rate(self.step, elapsed)
                with self.profiler.section("data wait"):
                    window = next(windows)
                # Each number of rows that a ramp passes through would have graphs of its own.
                is_rising = self.course.is_rising(self.step)
                with uncompiled(is_compiled=self.is_compiled and is_rising):
                    grad_norm = self._update(window, learning_rate)
                elapsed = self.elapsed()
                bar.total = self.schedule.foretold_length(self.step, elapsed)
                bar.update(1)
                is_over = self.schedule.is_over(self.step, elapsed)
                is_logged = is_over or _is_due(self.step, self.intervals.logging)
                with self.profiler.section("logging"):
                    if is_logged:
                        self._log(learning_rate, grad_norm)
                    is_judged = is_logged and self.goes_back_on_spike
                    self.journal.write_rows(wait=is_on_cpu or is_judged)
                self._show_profile(self.profiler.step())
                if is_over:
                    self._show_profile(self.profiler.close())
                if is_judged and not is_over and has_gone_back(self):
                    windows = self._windows()
                    continue
                if is_over or _is_due(self.step, self.intervals.evaluation):
                    is_over = self.evaluate(is_last=is_over)
                    if is_over and not is_logged:  # the loss has made this update the last one
                        self._log(learning_rate, grad_norm)
                if is_over or self.is_stopping or _is_due(self.step, self.intervals.checkpoint):
                    self.save()
                if self.is_stopping and not is_over:
                    self.saver.settle()
                    raise self._interruption()

    def _show_profile(self, table: str | None) -> None:
        if table:
            self.journal.print(table)

    def _update(self, window: Window, learning_rate: float) -> Tensor:
        """Make one update from a window of micro-batches and return the gradient norm.

        The device is only told what to do: nothing here waits for it.
        """
        self.model.train()
        counts = self._global_counts(window)
        last = len(window.micro_batches) - 1
        # A single micro-batch holds all rows that are to be compared.
        coupling = self.objective.coupling if last else None
        gradients = self._joint_gradients(coupling, window, counts) if coupling else []
        for i, batch in enumerate(window.micro_batches):
            self.watchdog.beat(f"micro-batch {i} of update {self.step + 1}")
            self._seed_dropout(i)
            with self.distributed.synchronized(is_last=i == last):
                with self.profiler.section("forward"):
                    if coupling is None:
                        terms = self.objective.loss_terms(self.model, batch)
                        self.sums.add(terms, window.targets[i])
                        loss = mean_loss(terms, counts)
                    else:
                        loss = stand_in(coupling.rows(self.model, batch), gradients[i])
                with self.profiler.section("backward"):
                    self.guard.note_loss(loss)
                    # Distributed training averages gradients over processes; the counts are already
                    # global.
                    self.accelerator.backward(loss * self.accelerator.num_processes)
        with self.profiler.section("optimizer"):
            grad_norm = self.distributed.clip_grad_norm(self.max_grad_norm)
            self._step_optimizers(learning_rate, grad_norm, end=window.next_place)
            if self.average is not None:
                self.average.update(self.step + 1)
        self.step += 1
        self.held_out_loss = None
        self.place = window.next_place
        return grad_norm

    def _joint_gradients(
        self, coupling: Coupling, window: Window, counts: dict[str, float]
    ) -> list[Tensor]:
        """Compare the rows of all micro-batches, and return the gradients of each one's rows."""
        rows = []
        for i, batch in enumerate(window.micro_batches):
            self.watchdog.beat(f"the rows of micro-batch {i} of update {self.step + 1}")
            self._seed_dropout(i)
            unsynchronized = self.distributed.synchronized(is_last=False)
            with torch.no_grad(), unsynchronized, self.profiler.section("forward"):
                rows.append(coupling.rows(self.model, batch))
        with self.profiler.section("joint loss"):
            terms, gradients = joint_gradients(coupling, rows, window.micro_batches, counts)
        totals = {name: sum(targets[name] for targets in window.targets) for name in terms}
        self.sums.add(terms, totals)
        return gradients

    def try_pass(self, num_rows: int = 0) -> None:
        """Make a forward and backward pass of the rows that take most, which changes nothing.

        Args:
            num_rows: how many; 0 = as many as a micro-batch has.
        """
        stream = self.objective.training
        heaviest = Place(phase=stream.heaviest_phase)
        parts, _ = stream.take(heaviest, num_rows or self.rows_at_once)
        batch = self._to_device(stream.collator.collate(parts, stream.heaviest_progress))
        self.model.train()
        coupling = self.objective.coupling if self.layout.num_micro_batches > 1 else None
        # Batch normalisation counts every pass in its running mean.
        kept = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        try:
            with self.distributed.synchronized(is_last=False):
                if coupling is not None:
                    with torch.no_grad():  # a graph of its own to a compiler
                        coupling.rows(self.model, batch)
                terms = self.objective.loss_terms(self.model, batch)
                self.accelerator.backward(sum(term.sum for term in terms.values()))
        finally:
            self.model.zero_grad()
            for buffer, value in kept:
                buffer.copy_(value)

    def _seed_dropout(self, micro_batch: int) -> None:
        """Make dropout a function of the place in the run, so that a resumed run draws the same.

        It is no function of the row: with dropout, other processes or micro-batches draw other
        masks for a row.
        """
        process = self.accelerator.process_index
        key = hash_uint64(self.seed, Purpose.DROPOUT, self.step, micro_batch, process)
        torch.manual_seed(int(key) >> 32)

    def _global_counts(self, window: Window) -> dict[str, float]:
        """Return what each term's sum is divided by, over the window and all processes, >= 1."""
        names = sorted({name for counts in window.targets for name in counts})
        local = [sum(counts.get(name, 0) for counts in window.targets) for name in names]
        # With them goes whether any process is to stop, so that all stop after the same update,
        # whether one knows of a reason why none can go on, and who has written its shards.
        is_asked = float(self.stop.number > 0)
        has_failed = float(self.saver.has_failed or self.journal.has_diverged)
        has_shards = float(self.saver.has_shards)
        num_units, flops, num_asked, num_failed, num_written, *counts = sum_on_hosts(
            [window.num_units, window.flops, is_asked, has_failed, has_shards, *local]
        )
        if num_failed:
            self.saver.settle()
            self.journal.write_rows(wait=True)
        elif num_written == self.accelerator.num_processes:
            self.saver.complete()
        self.is_stopping = num_asked > 0
        self.journal.count(int(num_units), flops)
        return {name: max(1.0, count) for name, count in zip(names, counts, strict=True)}

    def _step_optimizers(self, learning_rate: float, grad_norm: Tensor, *, end: Place) -> None:
        found_inf = self.guard.found_inf(grad_norm, self.step + 1, self.place, end)
        self.saver.before_update()
        for prepared in self.optimizers:
            optimizer = prepared.optimizer
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["rate_ratio"]
            # The hook by which torch's own gradient scaler makes fused optimisers skip an update on
            # the device. The scaler itself would decide for each optimiser by its own gradients.
            optimizer.found_inf = found_inf
            optimizer.step()
            optimizer.zero_grad()
        if self.accelerator.scaler is not None:  # float16: a lower scale where gradients overflow
            self.accelerator.scaler.update()

    def evaluate(self, *, is_last: bool) -> bool:
        """Evaluate, and return whether the run is over; see `evaluating.evaluate`."""
        return evaluate(self, is_last=is_last)

    def _interruption(self) -> RunStoppedError:
        """Return what says that the run has stopped, and how to go on; a collective."""
        number = max(gather_on_hosts(self.stop.number))
        name = signal.Signals(number).name
        return RunStoppedError(
            f"stopped by {name} after update {self.step}, which is saved; the same command with "
            "`resume_from_checkpoint` auto goes on from there",
            number=number,
        )

    def save(self) -> None:
        """Begin a checkpoint from which the run continues as if it had not been interrupted.

        Raises:
            TrainingError: the weights are not finite.
            MachineError: the checkpoint before could not be written.
        """
        self.watchdog.beat(f"the checkpoint of update {self.step}")
        self.journal.write_rows(wait=True)
        check_finite(self.distributed, self.step)
        with self.journal.clock.paused():
            self.saver.begin(state_of(self), needed=needed_step(self))

    def _log(self, learning_rate: float, grad_norm: Tensor) -> None:
        """Begin a training row of what was summed up since the last one."""
        sums, self.sums = self.sums.total(), RunningSums(self.accelerator.device)
        fields = self.row("train") | {"learning_rate": learning_rate}
        phase = self.course.phase(self.step - 1)
        self.journal.begin_row(fields, sums, grad_norm, phase=phase)

    def row(self, split: str) -> dict[str, Any]:
        """Return what every row of metrics.jsonl begins with."""
        epoch = self.objective.training.num_epochs(self.place)
        return {"split": split, "step": self.step, "epoch": round(epoch, 6)}

    def _windows(self) -> Iterator[Window]:
        """Yield this process's windows from the present place on, counted and on the device."""
        device = self.accelerator.device
        windows = training_windows(
            self.objective.training,
            self.place,
            course=self.course,
            first_step=self.step,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            num_micro_batches=self.layout.num_micro_batches,
            num_workers=self.layout.num_workers,
            pin_memory=device.type == "cuda",
        )
        counted = (self._counted(window) for window in windows)
        return copied_ahead(counted, device, self.profiler.section)

    def _counted(self, window: Window) -> Window:
        window.targets = [self.objective.target_counts(batch) for batch in window.micro_batches]
        window.flops = sum(self.objective.useful_flops(batch) for batch in window.micro_batches)
        return window

    def _to_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return {key: value.to(device, non_blocking=True) for key, value in batch.items()}

    @property
    def seconds(self) -> float:
        """Seconds of the whole run so far by this process's clock, interruptions left out."""
        return self.journal.clock.seconds

    def elapsed(self) -> float:
        """Return the seconds of the whole run; the first process's clock decides for all."""
        if self.schedule.max_seconds == 0:
            return self.seconds
        (elapsed,) = sum_on_hosts([self.seconds if self.accelerator.is_main_process else 0.0])
        return elapsed


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
