"""What a run computes on, from flags: processes, precision, rows at once, a compiler.

Called by `pretrain`, before and after it has built the trainer.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from transformers.utils import logging as transformers_logging

from bert_pretrain.config.flags import AUTO, ROWS_OF_UPDATE
from bert_pretrain.config.pretraining import PretrainingConfig
from bert_pretrain.data.course import Course
from bert_pretrain.data.processes import gather_on_hosts, meet_after_restart
from bert_pretrain.data.stream import TrainingStream
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import (
    cpu_threads,
    keep_freed_memory,
    loader_workers,
    native_precision,
)
from bert_pretrain.models.batch_norm import SharedBatchNorm2d, batch_norms
from bert_pretrain.training.compilation import uncompiled, wants_compilation
from bert_pretrain.training.layout import (
    BatchLayout,
    divide_rows,
    launched_accumulation,
    launched_precision,
)
from bert_pretrain.training.memory import largest_that_fits
from bert_pretrain.training.sharding import (
    DDP_OPTIONS,
    check_launcher,
    is_sharded,
    without_accelerates_fsdp,
)
from bert_pretrain.training.trainer import Trainer

_ROWS_WITHOUT_GPU = 32  # more at once are no faster there


def build_accelerator(config: PretrainingConfig) -> Accelerator:
    """Set up processes, threads, precision and trackers, and say which."""
    optimization = config.optimization
    use_cpu = not torch.accelerator.is_available()
    # Beside a GPU too: launchers allow one thread, by which evaluations would draw and compare.
    torch.set_num_threads(cpu_threads(optimization.num_cpu_threads))
    if use_cpu:
        keep_freed_memory()
    mixed_precision: str = optimization.mixed_precision
    if mixed_precision == "auto":
        mixed_precision = launched_precision() or native_precision()
    if mixed_precision == "bf16" and native_precision() == "no" and torch.cuda.is_available():
        raise InputError.out_of_range(
            "mixed_precision",
            "bf16",
            f"fp16 or no on {torch.cuda.get_device_name()}, which has no bfloat16",
        )
    if mixed_precision == "fp16" and use_cpu:
        # It would run, slower than float32 and with numbers that overflow.
        raise InputError.out_of_range("mixed_precision", "fp16", "bf16 or no on a processor")
    # With bfloat16 or float16 where they serve, TensorFloat-32 loses nothing elsewhere; without,
    # float32 is what was asked for.
    torch.set_float32_matmul_precision("highest" if mixed_precision == "no" else "high")
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = mixed_precision != "no"  # of convolutions
        # Its backward pass gives NaN under masks where scores are low (pytorch issue 196678: rows
        # of 64, 192, 320 ... tokens), and it prepares itself anew for every shape of batch.
        torch.backends.cuda.enable_cudnn_sdp(False)
    check_launcher(mixed_precision=mixed_precision)
    meet_after_restart()
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
    is_tf32 = accelerator.device.type == "cuda" and mixed_precision != "no"
    sharded = ", the model sharded among them (FSDP2)" if is_sharded(accelerator) else ""
    accelerator.print(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}{threads}{sharded}, "
        f"mixed precision: {mixed_precision}{', other products in TF32' if is_tf32 else ''}"
    )
    return accelerator


def product_dtype(mixed_precision: str) -> torch.dtype:
    """Return what a run computes its matrix products in."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return dtypes.get(mixed_precision, torch.float32)


def compiles(config: PretrainingConfig, accelerator: Accelerator) -> bool:
    """Return whether a run is to be compiled.

    Raises:
        InputError: it is to be, and cannot.
    """
    optimization = config.optimization
    is_wanted = wants_compilation(
        optimization.torch_compile,
        max_steps=optimization.max_steps,
        max_hours=optimization.max_hours,
        device=accelerator.device,
    )
    if not (is_wanted and is_sharded(accelerator)):
        return is_wanted
    if optimization.torch_compile == "on":
        raise InputError(
            "`torch_compile` is on, but a model that FSDP gathers layer by layer is not one graph",
            advice="pass `torch_compile` off, or leave FSDP to models that need it",
        )
    return False


def batch_layout(
    config: PretrainingConfig, accelerator: Accelerator, *, per_device: int = 0
) -> BatchLayout:
    """Return how rows are divided up, of what the flags and the launcher ask for.

    Args:
        config: of the run.
        accelerator: of its processes.
        per_device: most rows of a forward pass, where that is found out; 0 = what the flag says,
            and if it leaves that to the program, on a GPU all.
    """
    optimization, num_workers = config.optimization, config.data.dataloader_num_workers
    per_device = per_device or optimization.per_device_train_batch_size
    are_coupled = config.run.objective == "contrastive" and accelerator.num_processes > 1
    if per_device == AUTO and (is_sharded(accelerator) or are_coupled):
        because = "in contrastive learning" if are_coupled else "under FSDP"
        raise InputError(
            f"`per_device_train_batch_size` is auto, but {because} a process that runs out of "
            "memory while it tries would leave the others waiting",
            advice="pass a number",
        )
    if per_device == AUTO and not optimization.global_batch_size:
        raise InputError(
            "`per_device_train_batch_size` is auto and `global_batch_size` 0, so that nothing says "
            "how many rows an update has",
            advice="pass `global_batch_size` a number, or leave it out",
        )
    if per_device == AUTO:
        has_gpu = torch.accelerator.is_available()
        per_device = optimization.global_batch_size if has_gpu else _ROWS_WITHOUT_GPU
    global_batch_size, num_micro_batches = divide_rows(
        global_batch_size=optimization.global_batch_size,
        per_device=per_device,
        accumulation=optimization.gradient_accumulation_steps or launched_accumulation(),
        num_processes=accelerator.num_processes,
    )
    if global_batch_size not in ROWS_OF_UPDATE:  # a product of flags
        raise InputError(
            f"an update has {global_batch_size:,} rows but may have {ROWS_OF_UPDATE.high:,} at "
            "most",
            advice="lower `per_device_train_batch_size` or `gradient_accumulation_steps`",
        )
    course = _course(config, global_batch_size)
    course.check_rows(num_processes=accelerator.num_processes, num_micro_batches=num_micro_batches)
    if config.run.objective == "contrastive" and global_batch_size < 2:
        raise InputError(
            "an update has a single row, but contrastive learning compares images",
            advice="raise `per_device_train_batch_size` or `global_batch_size`",
        )
    is_streamed = config.images.image_reading == "stream"
    automatic = loader_workers(accelerator.device, decodes_images=is_streamed)
    return BatchLayout(
        global_batch_size=global_batch_size,
        num_micro_batches=num_micro_batches,
        eval_batch_size=optimization.per_device_eval_batch_size,
        num_workers=automatic if num_workers == AUTO else num_workers,
    )


def plan_course(
    config: PretrainingConfig, training: TrainingStream[Any], layout: BatchLayout
) -> Course:
    """Return what each update of a run is.

    Raises:
        InputError: a phase has no update.
    """
    course = _course(config, layout.global_batch_size)
    if config.optimization.num_train_epochs:
        # Exact, so that a single phase has what its rows divide into.
        epochs_per_update = sum(
            Fraction(share) * layout.global_batch_size / training.rows_per_epoch(phase)
            for phase, share in enumerate(course.phase_shares)
        )
        num_updates = Fraction(config.optimization.num_train_epochs) / epochs_per_update
        course = replace(course, max_steps=max(1, round(num_updates)))
    names = [f"rows of {length} tokens" for length in config.text.max_seq_length.numbers]
    course.check_phases(names, "max_seq_length")
    return course


def _course(config: PretrainingConfig, global_batch_size: int) -> Course:
    """Return the course of a run whose updates are given, not its epochs."""
    ramp = config.optimization.batch_size_ramp
    return Course(
        global_batch_size,
        config.optimization.max_steps,
        ramp_start=ramp.start if ramp else 0,
        ramp_share=ramp.share if ramp else 0.0,
        phase_shares=config.text.max_seq_length.shares,
    )


def check_batch_norm(config: PretrainingConfig, trainer: Trainer) -> None:
    """Refuse layouts on which a model with batch normalisation would learn something else.

    Over processes its statistics are brought together (`models.batch_norm`), over micro-batches,
    which come one after the other, they cannot be.

    Raises:
        InputError: the run is such a one.
    """
    accelerator, norms = trainer.accelerator, batch_norms(trainer.distributed.outline)
    if not norms:
        return
    because = "this encoder's batch normalisation looks at all rows of an update together, "
    other = "`config_name` an encoder without it, such as convnextv2-tiny"
    is_auto = config.optimization.per_device_train_batch_size == AUTO
    if is_auto and accelerator.device.type == "cuda":
        raise InputError(
            f"{because}but `per_device_train_batch_size` is auto, which may divide them",
            advice=f"pass a number, or {other}",
        )
    layout = trainer.layout
    if layout.num_micro_batches > 1:
        share = -(-layout.global_batch_size // accelerator.num_processes)
        raise InputError(
            f"{because}but they are divided into {layout.num_micro_batches} micro-batches",
            advice=f"pass `per_device_train_batch_size` {share}, a smaller `global_batch_size`, "
            f"or {other}",
        )
    if accelerator.num_processes > 1 and not all(isinstance(n, SharedBatchNorm2d) for n in norms):
        raise InputError(
            f"{because}of a kind that is not brought together over processes",
            advice=f"train on one process, or pass {other}",
        )
    if trainer.distributed.is_sharded:
        raise InputError(
            f"{because}whose running means FSDP does not keep",
            advice=f"leave FSDP out, which a model of this size does not need, or pass {other}",
        )


def settle_layout(config: PretrainingConfig, trainer: Trainer) -> None:
    """Find out how many rows fit on a GPU, if that is wanted, then compile the model, likewise."""
    accelerator = trainer.accelerator
    if config.optimization.per_device_train_batch_size == AUTO and (
        accelerator.device.type == "cuda"
    ):
        share = -(-trainer.layout.global_batch_size // accelerator.num_processes)
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        with uncompiled(is_compiled=trainer.is_compiled):
            rows = largest_that_fits(
                trainer.try_pass,
                most=share,
                device=accelerator.device,
                reserved=sum(8 * parameter.numel() for parameter in trained),  # AdamW's moments
            )
        rows = min(gather_on_hosts(rows))
        trainer.layout = batch_layout(config, accelerator, per_device=rows)
        accelerator.print(
            f"at most {rows} rows fit at once: {trainer.layout.num_micro_batches} micro-batch(es)"
        )
    if trainer.is_compiled:
        accelerator.print("compiling the model, which takes a minute or two")
        trainer.check_compiled(config.optimization.torch_compile)
