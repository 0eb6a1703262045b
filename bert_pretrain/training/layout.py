"""How the rows of an update are divided up, and what a launcher asks for.

A launcher's wishes for precision and accumulation come through the environment.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.errors import InputError


@dataclass(frozen=True)
class BatchLayout:
    """How the rows of an update are divided up.

    Attributes:
        global_batch_size: rows of an update over all processes.
        num_micro_batches: forward passes per update and process.
        eval_batch_size: rows of an evaluation batch.
        num_workers: worker processes that make batches ahead; 0 = none.
    """

    global_batch_size: int
    num_micro_batches: int
    eval_batch_size: int
    num_workers: int = 0


def divide_rows(
    *, global_batch_size: int, per_device: int, accumulation: int, num_processes: int
) -> tuple[int, int]:
    """Return the rows of an update over all processes, and the forward passes of a process.

    Args:
        global_batch_size: rows asked for; 0 = what the other numbers come to.
        per_device: most rows of a forward pass.
        accumulation: forward passes asked for; 0 = as many as needed.
        num_processes: processes that share the rows.

    Raises:
        InputError: the numbers contradict each other.
    """
    if not global_batch_size:
        accumulation = accumulation or 1
        return per_device * accumulation * num_processes, accumulation
    needed = -(-global_batch_size // (per_device * num_processes))
    accumulation = accumulation or needed
    if accumulation < needed:
        raise InputError(
            f"`gradient_accumulation_steps` (or the launcher's) is {accumulation}, so that each of "
            f"{num_processes} process(es) would compute "
            f"{-(-global_batch_size // (accumulation * num_processes))} rows at once, but "
            f"`per_device_train_batch_size` allows {per_device}",
            advice=f"pass `gradient_accumulation_steps` {needed} or leave it out, or raise "
            "`per_device_train_batch_size`",
            parameter="gradient_accumulation_steps",
            value=accumulation,
            allowed=f"at least {needed}",
        )
    least = accumulation * num_processes
    if global_batch_size < least:
        raise InputError.out_of_range(
            "global_batch_size",
            global_batch_size,
            f"at least {accumulation} micro-batches x {num_processes} processes = {least}",
            "raise `global_batch_size` or lower `gradient_accumulation_steps`",
        )
    return global_batch_size, accumulation


def launched_precision() -> str | None:
    """Return the mixed precision that the launcher was asked for; None if it was not asked.

    `accelerate launch` sets ACCELERATE_MIXED_PRECISION to "no" both where the user wrote
    `--mixed_precision no` and where nobody said anything, so its own command line decides. Where
    that cannot be read (elsewhere than on Linux) "no" counts as not asked.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision != "no" or _says_mixed_precision(_parent_command_line()):
        return precision
    return None


def launched_accumulation() -> int:
    """Return the accumulation that the launcher was asked for; 0 if it was not asked.

    Raises:
        InputError: it is not a whole number.
    """
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    value = os.environ.get(name, "0")
    if not value.isdecimal():
        raise InputError(
            f"{name} is {value!r} but must be a whole number",
            advice="pass `gradient_accumulation_steps` and leave the launcher's out",
        )
    # The launcher sets 1 where nobody said anything.
    return 0 if int(value) == 1 else int(value)


def _says_mixed_precision(words: Sequence[str]) -> bool:
    """Return whether a launcher's command line has the flag; those of the program come later."""
    program = {Path(sys.argv[0]).name, "bert_pretrain"}
    own = itertools.takewhile(lambda word: Path(word).name not in program, words)
    return any(word.replace("-", "_").startswith("__mixed_precision") for word in own)


def _parent_command_line() -> list[str]:
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    except OSError:
        return []
