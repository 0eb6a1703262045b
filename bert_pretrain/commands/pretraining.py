"""A run of pretraining from its flags to its model: build, train, export, publish."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from bert_pretrain.commands.machine import (
    batch_layout,
    build_accelerator,
    check_batch_norm,
    compiles,
    plan_course,
    product_dtype,
    settle_layout,
)
from bert_pretrain.commands.tasks import build_task, sources_of
from bert_pretrain.config.combinations import changing_flags
from bert_pretrain.config.continuing import flags_to_compare
from bert_pretrain.config.pretraining import PretrainingConfig
from bert_pretrain.data.atomic import make_folder
from bert_pretrain.data.run_folder import held
from bert_pretrain.data.signals import StopRequest
from bert_pretrain.errors import InputError, RunStoppedError, spell
from bert_pretrain.hardware import peak_flops
from bert_pretrain.objectives.interface import Task
from bert_pretrain.publishing.hub import download_checkpoint, is_hub_checkpoint
from bert_pretrain.publishing.publication import Publisher, write_publication
from bert_pretrain.training.checkpoint import load_average, load_model, read_state
from bert_pretrain.training.layout import BatchLayout
from bert_pretrain.training.optimizers import build_optimizers
from bert_pretrain.training.run_directory import (
    claim_run_dir,
    confirm_claim,
    fingerprint,
    leave_newer_aside,
    refuse_other_places,
    resume,
    write_run_json,
)
from bert_pretrain.training.schedule import Intervals, Schedule
from bert_pretrain.training.trainer import Trainer


def pretrain(config: PretrainingConfig) -> None:
    """Pretrain as the flags say, from the run directory's claim to `final/` and the Hub.

    Raises:
        InputError: something given cannot be used; nothing has been written then.
        TrainingError: the run diverged.
        MachineError: the machine failed it.
        RunStoppedError: a signal has stopped it, and it has saved.
    """
    run_dir, resume_from = Path(config.run.output_dir), config.run.resume_from_checkpoint
    with contextlib.ExitStack() as stack:
        checkpoint = claim_run_dir(run_dir, resume_from, fetch=_fetched)
        accelerator = build_accelerator(config)
        layout = batch_layout(config, accelerator)
        task = build_task(config, accelerator)
        if accelerator.is_main_process and checkpoint is None:
            print(spell(task.exporter.data_card))  # noqa: T201
        trainer = build_trainer(config, accelerator, task, layout, run_dir)
        check_batch_norm(config, trainer)
        settle_layout(config, trainer)
        if checkpoint is not None:
            resume(trainer, checkpoint)
        refuse_other_places(trainer)
        if accelerator.is_main_process:  # only when nothing can be refused any more
            make_folder(run_dir, parameter="output_dir")
            stack.enter_context(held(run_dir))
            confirm_claim(run_dir, resume_from, checkpoint)
            if checkpoint is not None:
                leave_newer_aside(checkpoint, run_dir, accelerator.print)
            sources = sources_of(config, task)
            write_run_json(config.to_dict(), run_dir, trainer, sources, checkpoint=checkpoint)
        if config.run.report_to != "none":
            # Rows that a killed run has written after its checkpoint, or without one, come again.
            first_row = 0 if checkpoint is None else trainer.step + 1
            again = {"tensorboard": {"purge_step": first_row}}
            accelerator.init_trackers("bert_pretrain", init_kwargs=again)
        try:
            train_and_publish(config, trainer, run_dir)
        except RunStoppedError:  # on all processes after the same update
            accelerator.end_training()
            raise


def _fetched(name: str) -> Path | None:
    return download_checkpoint(name) if is_hub_checkpoint(name) else None


def train_and_publish(config: PretrainingConfig, trainer: Trainer, run_dir: Path) -> None:
    """Train to the end, write `final/`, and publish as the flags of the Hub say."""
    accelerator = trainer.accelerator
    average = trainer.average if config.optimization.export_ema else None

    def model_in_training() -> contextlib.AbstractContextManager[PreTrainedModel]:
        if average is not None:
            return average.applied()
        return contextlib.nullcontext(trainer.distributed.plain())

    if not accelerator.is_main_process:
        with trainer.stop.taken():
            trainer.train()
        with model_in_training():  # which the first process writes
            pass
        accelerator.end_training()
        return

    def write(directory: Path, checkpoint: Path | None = None) -> None:
        # A checkpoint is read while all processes go on training; without one, all are here.
        if checkpoint is None:
            lent, step, seconds = model_in_training(), trainer.step, trainer.seconds
        else:
            state = read_state(checkpoint)
            model = load_model(checkpoint, type(trainer.distributed.outline))
            if average is not None:
                load_average(checkpoint, model)
            lent, step, seconds = contextlib.nullcontext(model), state["step"], state["elapsed"]
        with lent as exported:
            write_publication(
                exported, trainer.exporter, run_dir, directory, step=step, seconds=seconds
            )

    with contextlib.ExitStack() as stack:
        publisher = None
        if config.hub.push_to_hub:
            publisher = Publisher(
                run_dir,
                write,
                repo_id=config.hub.hub_model_id,
                is_private=config.hub.hub_private_repo,
                strategy=config.hub.hub_strategy,
                with_state=config.hub.hub_push_state,
                max_wait_seconds=config.hub.hub_max_wait,
            )
            stack.enter_context(publisher.pusher)
            publisher.submit_missed(until_step=trainer.step)
        with trainer.stop.taken():
            trainer.train(on_save=publisher.on_save if publisher else None)
        _warn_of_an_early_end(config, trainer)
        write(run_dir / "final")
        accelerator.print(f"the model is in {run_dir / 'final'}")
        accelerator.end_training()  # the other processes have no part in the wait for the Hub
        if publisher is not None:
            publisher.finish()


def _warn_of_an_early_end(config: PretrainingConfig, trainer: Trainer) -> None:
    """Say it if a run has ended before what was to change in its course had come to its end."""
    num_steps = trainer.course.max_steps
    changing = ", ".join(changing_flags(config.text, config.optimization))
    if changing and trainer.step < num_steps:
        trainer.accelerator.print(
            f"WARNING: the run ended after {trainer.step:,} of {num_steps:,} updates, so that what "
            f"{spell(changing)} was to come to at the end was not reached; without --max_hours "
            "(0), or with fewer --max_steps, it is"
        )


def build_trainer(
    config: PretrainingConfig,
    accelerator: Accelerator,
    task: Task,
    layout: BatchLayout,
    run_dir: Path,
) -> Trainer:
    """Build model, optimisers and loop."""
    run, optimization = config.run, config.optimization
    set_seed(run.seed)
    model = task.objective.build_model()
    if optimization.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise InputError(
                f"`gradient_checkpointing` is on, which {type(model).__name__} of transformers "
                "does not support",
                advice="leave it out; `gradient_accumulation_steps` saves memory too",
            )
        # transformers 5.24 has another name for it; the older one goes with version 6.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    rate = optimization.learning_rate
    optimizers = build_optimizers(
        model,
        name=optimization.optimizer,
        weight_decay=optimization.weight_decay,
        adam_betas=(optimization.adam_beta1, optimization.adam_beta2),
        adam_epsilon=optimization.adam_epsilon,
        adamw_rate_ratio=(optimization.adamw_learning_rate or rate) / rate,
        # In float16 the iteration would overflow.
        iteration_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32,
        is_compiled=compiles(config, accelerator),
    )
    course = plan_course(config, task.objective.training, layout)
    max_steps = course.max_steps
    # Every process has looked at the folder before anything is written into it.
    accelerator.wait_for_everyone()
    length = f"{max_steps:,} updates" if max_steps else "as many updates as fit"
    if optimization.max_hours:
        length += (
            f", at most {optimization.max_hours:g} hours (the clock decides: not reproducible)"
        )
    if 0 < max_steps <= optimization.warmup_steps:
        accelerator.print(
            f"NOTE: --warmup_steps {optimization.warmup_steps} is as long as the run, whose rate "
            "rises to its end and never falls"
        )
    accelerator.print(
        f"{model.num_parameters():,} parameters; {course.describe_rows()} rows an update "
        f"({accelerator.num_processes} process(es) x {layout.num_micro_batches} micro-batch(es)); "
        f"{length}"
    )
    return Trainer(
        accelerator,
        task,
        model,
        optimizers,
        Schedule(
            max_steps=max_steps,
            max_seconds=3600 * optimization.max_hours,
            peak=rate,
            warmup_steps=optimization.warmup_steps,
            name=optimization.schedule,
            decay_share=optimization.decay_share,
            decay_shape=optimization.decay_shape,
            stop_at_loss=optimization.stop_at_loss,
        ),
        Intervals(
            logging=run.logging_steps,
            evaluation=run.eval_steps,
            checkpoint=run.save_steps,
            save_total_limit=run.save_total_limit,
            keep_every=run.keep_every,
        ),
        layout,
        run_dir=run_dir,
        seed=run.seed,
        max_grad_norm=optimization.max_grad_norm or float("inf"),
        fingerprint=fingerprint(
            *what_must_agree(config, task, layout, accelerator.num_processes), model.config
        ),
        skip_nonfinite=optimization.skip_nonfinite,
        goes_back_on_spike=optimization.on_spike == "rewind",
        ema_decay=optimization.ema_decay,
        peak_flops=peak_flops(accelerator.device, product_dtype(accelerator.mixed_precision)),
        profile_steps=run.profile,
        is_compiled=compiles(config, accelerator),
        course=course,
        stop=StopRequest(grace_seconds=run.signal_grace),
        stuck_timeout=run.stuck_timeout,
    )


def what_must_agree(
    config: PretrainingConfig, task: Task, layout: BatchLayout, num_processes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what must be equal to continue a checkpoint, and what may change with a note."""
    defining, noted = flags_to_compare(config.to_dict())
    defining |= task.objective.training.identity
    defining["global_batch_size"] = layout.global_batch_size
    if config.run.objective == "contrastive":  # whose loss compares held-out rows of a batch
        noted["rows compared in evaluation"] = layout.eval_batch_size
    if config.model.dropout:  # whose units are drawn by process and forward pass
        noted |= {"processes": num_processes, "forward passes": layout.num_micro_batches}
    if config.optimization.stop_at_loss:  # which only an evaluation can find reached
        noted["eval_steps"] = config.run.eval_steps
    if config.optimization.on_spike == "rewind":  # whose rows are judged, whose checkpoints serve
        intervals = {"logging_steps": config.run.logging_steps, "save_steps": config.run.save_steps}
        noted |= intervals
    return defining, noted
