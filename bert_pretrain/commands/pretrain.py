"""The pretraining program: parse, build, train, export. run_pretraining.py and `bert-pretrain pretrain` call `main`.

The exit status speaks of the training: 0 = `final/` is complete, 1 = it diverged, 2 = something
given cannot be used and nothing was written. What the Hub did not take fails no run, which a
launcher might start again: it is said, it is kept, and `bert-pretrain hub push RUN_DIR` brings it
there and has a status of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils import logging as transformers_logging

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.commands.tasks import build_objective
from bert_pretrain.config.pretraining import PretrainingConfig, parse_config
from bert_pretrain.data.atomic import make_folder
from bert_pretrain.data.locks import held
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import cpu_threads, native_precision
from bert_pretrain.objectives.interface import Objective
from bert_pretrain.publishing.publication import Publisher, write_publication
from bert_pretrain.training.checkpoint import load_model, read_state
from bert_pretrain.training.optimizers import Schedule, build_optimizers
from bert_pretrain.training.run_directory import (
    claim_run_dir,
    confirm_claim,
    fingerprint,
    resume,
    write_run_json,
)
from bert_pretrain.training.trainer import Intervals, Trainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Pretrain as the command line says; returns the exit status, 0 also where the Hub did not take everything."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    reporting = reporting_input_errors(debug="--debug" in arguments)
    with reporting, contextlib.ExitStack() as stack:
        config = parse_config(arguments, prog="run_pretraining.py")
        run_dir = Path(config.run.output_dir)
        checkpoint = claim_run_dir(run_dir, config.run.resume_from_checkpoint)
        accelerator = build_accelerator(config)
        objective = build_objective(config, accelerator)
        trainer = build_trainer(config, accelerator, objective, run_dir)
        if checkpoint is not None:
            resume(trainer, checkpoint)
        if accelerator.is_main_process:  # only when nothing can be refused any more
            make_folder(run_dir, parameter="output_dir")
            stack.enter_context(held(run_dir))
            confirm_claim(run_dir, config.run.resume_from_checkpoint, checkpoint)
            write_run_json(config.to_dict(), run_dir, trainer)
        if config.run.report_to != "none":
            accelerator.init_trackers("bert_pretrain")
        train_and_publish(config, trainer, run_dir)
    return 0


def train_and_publish(config: PretrainingConfig, trainer: Trainer, run_dir: Path) -> None:
    """Train to the end, write `final/`, and publish as the flags of the Hub say."""
    accelerator = trainer.accelerator
    if not accelerator.is_main_process:
        trainer.train()
        accelerator.end_training()
        return

    def write(directory: Path, checkpoint: Path | None = None) -> None:
        model, step, seconds = (
            accelerator.unwrap_model(trainer.model),
            trainer.step,
            trainer.seconds,
        )
        if checkpoint is not None:
            state = read_state(checkpoint)
            model, step, seconds = (
                load_model(checkpoint, type(model)),
                state["step"],
                state["elapsed"],
            )
        write_publication(model, trainer.objective, run_dir, directory, step=step, seconds=seconds)

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
            trainer.on_save = publisher.on_save
            publisher.submit_missed(until_step=trainer.step)
        trainer.train()
        write(run_dir / "final")
        accelerator.print(f"the model is in {run_dir / 'final'}")
        accelerator.end_training()  # before the wait for the Hub, which the other processes have no part in
        if publisher is not None:
            publisher.finish()


def build_accelerator(config: PretrainingConfig) -> Accelerator:
    """Set up processes, threads, precision and trackers, and say which."""
    optimization = config.optimization
    use_cpu = not torch.accelerator.is_available()
    if use_cpu:
        torch.set_num_threads(cpu_threads(optimization.num_cpu_threads))
    mixed_precision: str = optimization.mixed_precision
    if mixed_precision == "auto":
        # `accelerate launch --mixed_precision` speaks through the environment.
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        mixed_precision = launched if launched != "no" else native_precision()
    report_to = None if config.run.report_to == "none" else config.run.report_to
    accelerator = Accelerator(
        cpu=use_cpu,
        mixed_precision=mixed_precision,
        log_with=report_to,
        project_dir=config.run.output_dir,
    )
    transformers_logging.disable_progress_bar()  # its bars for writing one file would break ours
    logging.getLogger("accelerate.utils.other").setLevel(
        logging.ERROR
    )  # tied weights are saved once; that is meant
    if not accelerator.is_main_process:
        transformers_logging.set_verbosity_error()
        logging.disable(logging.WARNING)
    threads = f", {torch.get_num_threads()} threads each" if use_cpu else ""
    accelerator.print(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}{threads}, "
        f"mixed precision: {mixed_precision}"
    )
    return accelerator


def build_trainer(
    config: PretrainingConfig, accelerator: Accelerator, objective: Objective, run_dir: Path
) -> Trainer:
    """Build model, optimisers and loop."""
    run, optimization = config.run, config.optimization
    set_seed(run.seed)
    model = objective.build_model()
    if optimization.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizers = build_optimizers(
        model,
        name=optimization.optimizer,
        weight_decay=optimization.weight_decay,
        adam_betas=(optimization.adam_beta1, optimization.adam_beta2),
        adam_epsilon=optimization.adam_epsilon,
        adamw_rate_ratio=(optimization.adamw_learning_rate or optimization.learning_rate)
        / optimization.learning_rate,
        iteration_dtype=torch.bfloat16 if native_precision() == "bf16" else torch.float32,
    )
    global_batch_size, num_micro_batches = batch_layout(config, accelerator.num_processes)
    max_steps = optimization.max_steps
    if optimization.num_train_epochs:
        max_steps = max(
            1, round(optimization.num_train_epochs * objective.num_rows(0) / global_batch_size)
        )
    data = objective.fingerprint() | {"global_batch_size": global_batch_size}
    accelerator.wait_for_everyone()  # every process has looked at the folder before anything is written into it
    accelerator.print(
        f"{model.num_parameters():,} parameters; {global_batch_size} rows an update "
        f"({accelerator.num_processes} process(es) x {num_micro_batches} micro-batch(es)); "
        + (f"{max_steps:,} updates" if max_steps else "as many updates as fit")
        + (
            f", at most {optimization.max_hours:g} hours (the clock decides: not reproducible)"
            if optimization.max_hours
            else ""
        )
    )
    return Trainer(
        accelerator,
        objective,
        model,
        optimizers,
        Schedule(
            max_steps=max_steps,
            max_seconds=3600 * optimization.max_hours,
            peak=optimization.learning_rate,
            warmup_steps=optimization.warmup_steps,
            name=optimization.schedule,
            decay_share=optimization.decay_share,
        ),
        Intervals(
            logging=run.logging_steps,
            evaluation=run.eval_steps,
            checkpoint=run.save_steps,
            save_total_limit=run.save_total_limit,
        ),
        run_dir=run_dir,
        seed=run.seed,
        global_batch_size=global_batch_size,
        num_micro_batches=num_micro_batches,
        eval_batch_size=optimization.per_device_eval_batch_size,
        max_grad_norm=optimization.max_grad_norm or float("inf"),
        fingerprint=fingerprint(config.to_dict(), data, model.config),
    )


def batch_layout(config: PretrainingConfig, num_processes: int) -> tuple[int, int]:
    """Return the rows of an update over all processes, and the micro-batches of a process.

    Raises:
        InputError: the flags contradict each other, or there are fewer rows than forward passes.
    """
    optimization = config.optimization
    per_device = optimization.per_device_train_batch_size
    accumulation = optimization.gradient_accumulation_steps
    global_batch_size = optimization.global_batch_size
    if not global_batch_size:
        accumulation = accumulation or 1
        return per_device * accumulation * num_processes, accumulation
    if not accumulation:
        accumulation = -(-global_batch_size // (per_device * num_processes))
    if global_batch_size < accumulation * num_processes:
        raise InputError(
            f"global_batch_size is {global_batch_size} but must be at least {accumulation} "
            f"micro-batches x {num_processes} processes = {accumulation * num_processes}",
            advice="raise `global_batch_size` or lower `gradient_accumulation_steps`",
        )
    return global_batch_size, accumulation
