"""The pretraining program: parse, build, train, export.

run_pretraining.py and `bert-pretrain pretrain` call `main`. The exit status speaks of the training:
0 = `final/` is complete, 1 = it diverged, 2 = something given cannot be used and nothing was
written. If the Hub refuses an upload, the run does not fail, since a launcher might then start it
again: the program says so and keeps the files, and `bert-pretrain hub push RUN_DIR` uploads them
later, with an exit status of its own.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from transformers.utils import logging as transformers_logging

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.commands.tasks import build_task
from bert_pretrain.config.pretraining import PretrainingConfig, flags_to_compare, parse_config
from bert_pretrain.data.atomic import make_folder
from bert_pretrain.data.run_folder import checkpoint_path, held
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import cpu_threads, native_precision
from bert_pretrain.objectives.interface import Task
from bert_pretrain.publishing.hub import download_checkpoint, is_hub_checkpoint
from bert_pretrain.publishing.publication import Publisher, write_publication
from bert_pretrain.training.checkpoint import load_model, read_state
from bert_pretrain.training.layout import (
    BatchLayout,
    divide_rows,
    launched_accumulation,
    launched_precision,
)
from bert_pretrain.training.optimizers import Schedule, build_optimizers
from bert_pretrain.training.run_directory import (
    claim_run_dir,
    confirm_claim,
    fingerprint,
    resume,
    write_run_json,
)
from bert_pretrain.training.sharding import (
    DDP_OPTIONS,
    check_launcher,
    is_sharding_asked_for,
    without_accelerates_fsdp,
)
from bert_pretrain.training.trainer import Intervals, Trainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Pretrain as the command line says; returns the exit status."""
    # run_pretraining.py gives no arguments, `bert-pretrain pretrain` does.
    prog = "run_pretraining.py" if arguments is None else "bert-pretrain pretrain"
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    reporting = reporting_input_errors(debug="--debug" in arguments)
    with reporting, contextlib.ExitStack() as stack:
        config = parse_config(arguments, prog=prog)
        run_dir, resume_from = Path(config.run.output_dir), config.run.resume_from_checkpoint
        fetch = download_checkpoint if is_hub_checkpoint(resume_from or "") else None
        checkpoint = claim_run_dir(run_dir, resume_from, fetch=fetch)
        accelerator = build_accelerator(config)
        layout = batch_layout(config, accelerator.num_processes)
        task = build_task(config, accelerator)
        if accelerator.is_main_process and checkpoint is None:
            print(task.exporter.data_card)  # noqa: T201
        trainer = build_trainer(config, accelerator, task, layout, run_dir)
        if checkpoint is not None:
            resume(trainer, checkpoint)
        if accelerator.is_main_process:  # only when nothing can be refused any more
            make_folder(run_dir, parameter="output_dir")
            stack.enter_context(held(run_dir))
            confirm_claim(run_dir, resume_from, checkpoint)
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
        trainer.distributed.plain()  # which the first process writes
        accelerator.end_training()
        return

    def write(
        directory: Path, checkpoint: Path | None = None, *, are_all_here: bool = False
    ) -> None:
        if checkpoint is None and trainer.distributed.is_sharded and not are_all_here:
            # The others go on training, so the model is not gathered but read where it has just
            # been saved.
            checkpoint = checkpoint_path(run_dir / "checkpoints", trainer.step)
        if checkpoint is None:
            model, step, seconds = trainer.distributed.plain(), trainer.step, trainer.seconds
        else:
            state = read_state(checkpoint)
            model = load_model(checkpoint, type(trainer.distributed.outline))
            step, seconds = state["step"], state["elapsed"]
        write_publication(model, trainer.exporter, run_dir, directory, step=step, seconds=seconds)

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
        trainer.train(on_save=publisher.on_save if publisher else None)
        write(run_dir / "final", are_all_here=True)
        accelerator.print(f"the model is in {run_dir / 'final'}")
        accelerator.end_training()  # the other processes have no part in the wait for the Hub
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
        mixed_precision = launched_precision() or native_precision()
    check_launcher(mixed_precision=mixed_precision)
    with without_accelerates_fsdp():  # sharding is this package's business too
        accelerator = Accelerator(
            cpu=use_cpu,
            mixed_precision=mixed_precision,
            # Windows of micro-batches are the trainer's business, whatever the environment says.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=None if config.run.report_to == "none" else config.run.report_to,
            project_dir=config.run.output_dir,
            kwargs_handlers=[DDP_OPTIONS],
        )
    transformers_logging.disable_progress_bar()  # its bars for writing one file would break ours
    # Tied weights are saved once; that is meant.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if not accelerator.is_main_process:
        transformers_logging.set_verbosity_error()
        logging.disable(logging.WARNING)
    threads = f", {torch.get_num_threads()} threads each" if use_cpu else ""
    is_sharded = is_sharding_asked_for() and accelerator.num_processes > 1
    sharded = ", the model sharded among them (FSDP2)" if is_sharded else ""
    accelerator.print(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}{threads}{sharded}, "
        f"mixed precision: {mixed_precision}"
    )
    return accelerator


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
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rate = optimization.learning_rate
    optimizers = build_optimizers(
        model,
        name=optimization.optimizer,
        weight_decay=optimization.weight_decay,
        adam_betas=(optimization.adam_beta1, optimization.adam_beta2),
        adam_epsilon=optimization.adam_epsilon,
        adamw_rate_ratio=(optimization.adamw_learning_rate or rate) / rate,
        iteration_dtype=torch.bfloat16 if native_precision() == "bf16" else torch.float32,
    )
    max_steps = optimization.max_steps
    if optimization.num_train_epochs:
        num_rows = len(task.objective.training.plan(0))
        num_updates = optimization.num_train_epochs * num_rows / layout.global_batch_size
        max_steps = max(1, round(num_updates))
    # Every process has looked at the folder before anything is written into it.
    accelerator.wait_for_everyone()
    length = f"{max_steps:,} updates" if max_steps else "as many updates as fit"
    if optimization.max_hours:
        length += (
            f", at most {optimization.max_hours:g} hours (the clock decides: not reproducible)"
        )
    accelerator.print(
        f"{model.num_parameters():,} parameters; {layout.global_batch_size} rows an update "
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
        ),
        Intervals(
            logging=run.logging_steps,
            evaluation=run.eval_steps,
            checkpoint=run.save_steps,
            save_total_limit=run.save_total_limit,
        ),
        layout,
        run_dir=run_dir,
        seed=run.seed,
        max_grad_norm=optimization.max_grad_norm or float("inf"),
        fingerprint=fingerprint(*what_must_agree(config, task, layout), model.config),
    )


def what_must_agree(
    config: PretrainingConfig, task: Task, layout: BatchLayout
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what must be equal to continue a checkpoint, and what may change with a note."""
    defining, noted = flags_to_compare(config.to_dict())
    defining |= task.objective.training.identity
    defining["global_batch_size"] = layout.global_batch_size
    if config.run.objective == "contrastive":  # whose loss compares the rows of a forward pass
        noted |= {
            "rows compared in training": layout.global_batch_size // layout.num_micro_batches,
            "rows compared in evaluation": layout.eval_batch_size,
        }
    return defining, noted


def batch_layout(config: PretrainingConfig, num_processes: int) -> BatchLayout:
    """Return how rows are divided up, of what the flags and the launcher ask for."""
    optimization = config.optimization
    global_batch_size, num_micro_batches = divide_rows(
        global_batch_size=optimization.global_batch_size,
        per_device=optimization.per_device_train_batch_size,
        accumulation=optimization.gradient_accumulation_steps or launched_accumulation(),
        num_processes=num_processes,
    )
    if config.run.objective == "contrastive" and global_batch_size // num_micro_batches < 2:
        raise InputError(
            "each forward pass has a single row, but contrastive learning compares images",
            advice="raise `per_device_train_batch_size` or `global_batch_size`",
        )
    return BatchLayout(
        global_batch_size=global_batch_size,
        num_micro_batches=num_micro_batches,
        eval_batch_size=optimization.per_device_eval_batch_size,
        num_workers=config.data.dataloader_num_workers,
    )
