"""Compiling the model: when it pays, and what happens where it cannot be done.

The forward pass of the whole model becomes one graph without a break, for the static shapes that
the collator makes. Evaluation, a small share of a run, is left as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from transformers import PreTrainedModel

from bert_pretrain.data.processes import sum_on_hosts
from bert_pretrain.errors import InputError
from bert_pretrain.training.memory import is_out_of_memory

CompileChoice: TypeAlias = Literal["auto", "on", "off"]

# A graph takes up to a minute, and there are a few.
_LONG_ENOUGH_STEPS, _LONG_ENOUGH_HOURS = 5_000, 0.5
# Of one function and row length; torch's own limit is 8, after which it stops compiling.
_MOST_GRAPHS = 64


def wants_compilation(
    choice: CompileChoice, *, max_steps: int, max_hours: float, device: torch.device
) -> bool:
    """Return whether a run is to be compiled.

    Args:
        choice: `auto` = on a GPU, where the run is long enough to repay it. On a CPU it gains 5 %
            (`benchmarks/training_speed.py --torch_compile`) and few runs are that long.
        max_steps: length of the run in updates; 0 = unknown.
        max_hours: length of the run in hours; 0 = not limited.
        device: of the model.
    """
    if choice != "auto":
        return choice == "on"
    is_long = max_hours == 0 or max_hours >= _LONG_ENOUGH_HOURS
    return device.type == "cuda" and is_long and not 0 < max_steps < _LONG_ENOUGH_STEPS


def compile_forward(model: PreTrainedModel, *, num_row_lengths: int = 1) -> None:
    """Let a model compile its forward pass when it is called; in place, before it is wrapped."""
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS * num_row_lengths
    model.forward = torch.compile(model.forward, fullgraph=True, dynamic=False)


def check_compiled(
    compute: Callable[[], None], choice: CompileChoice, say: Callable[[str], None]
) -> bool:
    """Compile now, and see whether it works on every process; a collective.

    Args:
        compute: makes a forward and backward pass, with no effect but that.
        choice: what was asked for, not `off`.
        say: prints why the run goes on without.

    Returns:
        Whether the model is compiled from here on.

    Raises:
        InputError: compilation was asked for and does not work.
    """
    problem = ""
    try:
        compute()
    except Exception as error:  # compilers raise whatever they please
        if is_out_of_memory(error):
            raise
        # The first line often says no more than which part of the compiler gave up.
        problem = " ".join([type(error).__name__, *str(error).split("\n")[:2]])
    (num_failed,) = sum_on_hosts([float(bool(problem))])
    if not num_failed:
        return True
    problem = problem or "another process failed"
    if choice == "on":
        raise InputError(
            f"`torch_compile` is 'on' but the model cannot be compiled here ({problem})",
            advice="pass `torch_compile` off",
            parameter="torch_compile",
            value=choice,
            allowed="'off', or 'auto'",
        )
    say(f"WARNING: the model cannot be compiled here and runs uncompiled ({problem})")
    torch.compiler.set_stance("force_eager")
    return False


def uncompiled(*, is_compiled: bool) -> contextlib.AbstractContextManager[object]:
    """Return a context in which a compiled model computes as it is written."""
    if not is_compiled:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return context
