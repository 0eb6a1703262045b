"""The pretraining program: parse, build, train, export. run_pretraining.py and `bert-pretrain pretrain` call `main`."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils import logging as transformers_logging

from bert_pretrain.checkpoint import find_checkpoint, read_state
from bert_pretrain.command_line import reporting_input_errors
from bert_pretrain.config import PretrainingConfig, parse_config
from bert_pretrain.data.masking import MaskingRule, ordinary_token_ids
from bert_pretrain.data.tokenizers import load_tokenizer
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import cpu_threads, describe_run, native_precision
from bert_pretrain.models.loading import build_bert
from bert_pretrain.objectives.bert import BertObjective
from bert_pretrain.optim import build_optimizers
from bert_pretrain.prepare import data_card, open_corpus, pair_mode_for
from bert_pretrain.trainer import Intervals, Schedule, Trainer

# Flags that determine a run's numbers: a checkpoint continues only under the same values.
_DEFINING_FLAGS = (
    "objective",
    "seed",
    "max_seq_length",
    "short_seq_prob",
    "pair_mode",
    "mlm_probability",
    "mask_replace_prob",
    "random_replace_prob",
    "masking",
    "optimizer",
    "dropout",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Pretrain as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments):
        config = parse_config(arguments, prog="run_pretraining.py")
        run_dir = Path(config.run.output_dir)
        checkpoint = claim_run_dir(run_dir, config.run.resume_from_checkpoint)
        accelerator = build_accelerator(config)
        objective = build_objective(config, accelerator)
        trainer = build_trainer(config, accelerator, objective, run_dir)
        if checkpoint is not None:
            resume(trainer, checkpoint)
        if accelerator.is_main_process:  # only when nothing can be refused any more
            write_run_json(config, run_dir, trainer)
        trainer.train()
        if accelerator.is_main_process:
            objective.export(accelerator.unwrap_model(trainer.model), run_dir / "final")
            accelerator.print(f"the model is in {run_dir / 'final'}")
        accelerator.end_training()
    return 0


def claim_run_dir(run_dir: Path, resume_from: str | None) -> Path | None:
    """Check that a run may write into a folder, and find the checkpoint it continues from. Writes nothing.

    Raises:
        InputError: the folder is in use, or there is no run to continue.
    """
    holds_run = (run_dir / "run.json").is_file()
    if resume_from is None:
        if run_dir.is_file() or (run_dir.is_dir() and any(run_dir.iterdir())):
            what = "holds another run" if holds_run else "is not an empty folder"
            raise InputError(
                f"{run_dir} {what}; pass another --output_dir, or continue it with --resume_from_checkpoint latest"
            )
        return None
    if resume_from == "latest" and not holds_run:
        raise InputError(
            f"--resume_from_checkpoint is 'latest' but {run_dir} holds no run; "
            "pass the run's --output_dir, or leave --resume_from_checkpoint out"
        )
    return find_checkpoint(resume_from, run_dir / "checkpoints")


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
    if not accelerator.is_main_process:
        transformers_logging.set_verbosity_error()
        logging.disable(logging.WARNING)
    threads = f", {torch.get_num_threads()} threads each" if use_cpu else ""
    accelerator.print(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}{threads}, "
        f"mixed precision: {mixed_precision}"
    )
    return accelerator


def build_objective(config: PretrainingConfig, accelerator: Accelerator) -> BertObjective:
    """Prepare the text, print its data card, and return what is learnt from it."""
    data, model = config.data, config.model
    tokenizer = load_tokenizer(data.tokenizer_name or model.model_name_or_path)
    corpus = open_corpus(data, tokenizer, seed=config.run.seed, show_progress=accelerator.is_local_main_process)
    rule = MaskingRule(
        mlm_probability=data.mlm_probability,
        mask_replace_prob=data.mask_replace_prob,
        random_replace_prob=data.random_replace_prob,
        unit=data.masking,
        mask_token_id=tokenizer.mask_token_id,
        ordinary_ids=ordinary_token_ids(tokenizer),
    )

    def make_model() -> Any:
        return build_bert(
            config_name=model.config_name,
            model_name_or_path=model.model_name_or_path,
            tokenizer=tokenizer,
            max_seq_length=data.max_seq_length,
            dropout=model.dropout,
        )

    objective = BertObjective(
        corpus,
        tokenizer,
        make_model,
        rule,
        pair_mode=pair_mode_for(config.run.objective, data.pair_mode),
        max_seq_length=data.max_seq_length,
        short_seq_prob=data.short_seq_prob,
        seed=config.run.seed,
        max_eval_rows=data.max_eval_rows,
        num_workers=data.dataloader_num_workers,
    )
    plan = objective.stream.plan(0)
    accelerator.print(data_card(corpus, plan, max_seq_length=data.max_seq_length))
    return objective


def build_trainer(
    config: PretrainingConfig, accelerator: Accelerator, objective: BertObjective, run_dir: Path
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
        iteration_dtype=torch.bfloat16 if native_precision() == "bf16" else torch.float32,
    )
    global_batch_size, num_micro_batches = batch_layout(config, accelerator.num_processes)
    max_steps = optimization.max_steps
    if optimization.num_train_epochs:
        max_steps = max(1, round(optimization.num_train_epochs * objective.num_rows(0) / global_batch_size))
    fingerprint = {name: config.to_dict()[name] for name in _DEFINING_FLAGS} | {
        "global_batch_size": global_batch_size,
        "corpus": objective.corpus.manifest["key"],
        "model": json.loads(model.config.to_json_string(use_diff=False)),
    }
    accelerator.wait_for_everyone()  # every process has looked at the folder before anything is written into it
    if run.report_to != "none":
        accelerator.init_trackers("bert_pretrain")
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
        fingerprint=fingerprint,
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
            f"global_batch_size is {global_batch_size} but must be at least "
            f"{accumulation} micro-batches x {num_processes} processes = {accumulation * num_processes}; "
            "raise --global_batch_size or lower --gradient_accumulation_steps"
        )
    return global_batch_size, accumulation


def write_run_json(config: PretrainingConfig, run_dir: Path, trainer: Trainer) -> None:
    """Record what was asked for, what it came to, and on what it ran."""
    run_dir.mkdir(parents=True, exist_ok=True)
    accelerator = trainer.accelerator
    effective = {
        "global_batch_size": trainer.global_batch_size,
        "gradient_accumulation_steps": trainer.num_micro_batches,
        "max_steps": trainer.schedule.max_steps,
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        "num_cpu_threads": torch.get_num_threads(),
    }
    record = {"config": config.to_dict() | effective} | describe_run()
    aside = run_dir / "run.json.tmp"
    aside.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(aside, run_dir / "run.json")


def resume(trainer: Trainer, checkpoint: Path) -> None:
    """Continue from a checkpoint.

    Raises:
        InputError: the checkpoint is damaged, of another model, or of a run with other defining flags.
    """
    state = read_state(checkpoint)
    theirs, ours = state["fingerprint"], trainer.fingerprint
    differing = [name for name in ours if theirs.get(name) != ours[name]]
    if differing:
        details = "; ".join(
            f"{name} was {theirs.get(name)!r}, is {ours[name]!r}" for name in differing if name != "model"
        )
        if "model" in differing:
            details += (
                "; " if details else ""
            ) + f"it is a checkpoint of another model ({_model_difference(theirs['model'], ours['model'])})"
        raise InputError(
            f"{checkpoint} cannot be continued with these flags: {details}. "
            "Pass the flags of that run (its run.json has them), or another --resume_from_checkpoint"
        )
    trainer.load_checkpoint(checkpoint, state)
    trainer.accelerator.print(f"continuing from {checkpoint} after {trainer.step:,} updates")


def _model_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    names = [name for name in ours if theirs.get(name) != ours[name]]
    return ", ".join(f"{name} {theirs.get(name)!r} there, {ours[name]!r} here" for name in names)
