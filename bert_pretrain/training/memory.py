"""Memory: its peak, what to change when a device's runs out, how many rows fit, and garbage."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import sys
from collections.abc import Callable, Iterator

import torch

from bert_pretrain.errors import TrainingError
from bert_pretrain.hardware import peak_resident_bytes

GIB = 2**30
# How the allocator of a CPU, a library of CUDA and CUDA itself say it in errors of no own type.
_WORDS = ("can't allocate memory", "STATUS_ALLOC_FAILED", "CUDA error: out of memory")
_SHARE_TO_USE = 0.9  # of a device's memory: fragments, and rows longer than those tried, need some


def peak_gib(device: torch.device) -> float:
    """Return the most memory in GiB that tensors took on a GPU, or that the process took on a CPU.

    On a GPU it is the peak since `torch.cuda.reset_peak_memory_stats`, else since the process
    began; NaN where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    peak = peak_resident_bytes()
    return math.nan if peak is None else peak / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@contextlib.contextmanager
def collecting_new_garbage() -> Iterator[None]:
    """Leave what there is before a block out of garbage collections while the block runs.

    A full collection, the only one that finds cycles which have lived for a while, waits until new
    objects are a quarter of those that it went through last. After torch and transformers are
    imported these are more than a million: pictures, whose figures are cycles, would pile up.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # so that the count of the last one is what is left
    try:
        yield
    finally:
        gc.unfreeze()


def return_freed_memory() -> None:
    """Give the system back what the C library keeps of freed memory; with glibc alone.

    Updates, checkpoints and exports take pieces of different sizes and return them in another
    order; what lies free between those in use adds up for hours. This takes milliseconds.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def explaining_out_of_memory(
    device: torch.device,
    *,
    rows_at_once: int,
    num_micro_batches: int = 1,
    global_batch_size: int = 0,
    parameter: str = "per_device_train_batch_size",
) -> Iterator[None]:
    """Turn running out of memory into an error that says what to change.

    Args:
        device: where the model is.
        rows_at_once: of a forward pass.
        num_micro_batches: forward passes of an update and process.
        global_batch_size: rows of an update.
        parameter: which says how many rows a forward pass has.

    Raises:
        TrainingError: memory ran out inside the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory{_memory_of(device)} with {rows_at_once} rows in a forward pass; "
            + _way_out(rows_at_once, num_micro_batches, global_batch_size, parameter)
        ) from error


def _memory_of(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    return f" ({peak_gib(device):.1f} of the device's {total:.1f} GiB were in use)"


def _way_out(
    rows_at_once: int, num_micro_batches: int, global_batch_size: int, parameter: str
) -> str:
    if parameter == "per_device_eval_batch_size" and rows_at_once > 1:
        return f"pass `{parameter}` {rows_at_once // 2}, which changes no number but the memory"
    more = "or `gradient_checkpointing`, or a shorter row, or `mixed_precision` bf16"
    if rows_at_once < 2:
        return f"a single row does not fit: pass a smaller model, {more}"
    return (
        f"pass `per_device_train_batch_size` {rows_at_once // 2} with `global_batch_size` "
        f"{global_batch_size} (an update then takes {2 * num_micro_batches} forward passes and "
        f"stays the same), {more}"
    )


def largest_that_fits(
    compute: Callable[[int], None], *, most: int, device: torch.device, reserved: int
) -> int:
    """Return the largest number of rows, halved from `most`, that one forward pass can take.

    Args:
        compute: makes a forward and backward pass of so many rows; it may run out of memory.
        most: rows that are wanted at most, at least 1.
        device: a GPU.
        reserved: bytes to leave free for what a pass does not hold, such as optimisers' states.

    Returns:
        `most`, or half of it rounded up, and so on; 1 where even that does not fit, so that the
        run itself explains it.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    rows = most
    while rows > 1:
        gc.collect()  # what a failed pass left
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            compute(rows)
            if torch.cuda.max_memory_reserved(device) + reserved <= _SHARE_TO_USE * total:
                break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        rows = -(-rows // 2)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return rows
