"""What the processes of a run hold, brought together on each of them.

`gather_rows` carries gradients back, for losses that compare a row with others. `compute_shared`
divides work whose result every process needs. A process alone gets its rows back as they are.
`sum_on_hosts` and `gather_on_hosts` exchange what no device holds, such as counts of a batch.
`meet_after_restart` begins it all where a launcher starts the processes again.

The usual gathers give the right loss and a wrong gradient: `Accelerator.gather` and
`torch.distributed.all_gather` cut the graph, and pasting a process's own rows back in loses what
they contribute as negatives of other processes. `torch.distributed.nn.functional.all_gather` is
right but deprecated (torch 2.13) in favour of a private module, so the gradient is written out.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def meet_after_restart() -> None:
    """Let processes that torchrun has started again meet each other, not those before them.

    torch 2.13 keeps the addresses of all attempts in one store under the same names: whoever comes
    first finds that of a process that has ended, and gives up. To be called before Accelerate,
    which then takes the group that is there.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if attempt == "0" or not is_shared or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),  # type: ignore[attr-defined]
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def sum_on_hosts(numbers: Sequence[float]) -> list[float]:
    """Return the sums over processes of equally many numbers, exact below 2^53; a collective.

    Devices work behind their hosts. A number that goes from a host over its device to the other
    hosts and back comes only when the device has caught up; here it does not wait for that.
    """
    if not _is_distributed():
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total, group=_host_group())
    sums: list[float] = total.tolist()
    return sums


def gather_on_hosts(item: Any) -> list[Any]:
    """Return what every process gives, in rank order, without waiting for devices; a collective."""
    if not _is_distributed():
        return [item]
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item, group=_host_group())
    return items


@functools.cache
def _host_group() -> Any:
    """Return the processes as hosts, which talk over gloo; the first call is a collective."""
    if dist.get_backend() == dist.Backend.GLOO:
        return None  # the default group
    return dist.new_group(backend=dist.Backend.GLOO)


def gather_rows(rows: Tensor, *, num_rows_per_rank: Sequence[int] | None = None) -> Tensor:
    """Return the rows of all processes in rank order, (sum of b, ...), with gradient.

    Every process computes the loss terms of its own rows against all rows; the sum of these terms
    over processes is the loss. Since that sum depends on a row through every process, the gradient
    of a row is summed over processes. Where distributed training averages the gradients of
    parameters, and each process multiplies its loss by their number, the parameters get the
    gradient that one process would compute on the joint batch.

    It is a collective, forwards and backwards: all processes must call it in the same order, and on
    all of them the loss must depend on the result, or the others wait for ever. Gradients are
    summed in the dtype of the rows: cast bfloat16 rows to float32 before.

    Args:
        rows: (b, ...), any dtype; b may differ between processes and be 0, the other sizes must
            agree.
        num_rows_per_rank: b of every process, as `count_rows` returns it; else each call asks.
    """
    if not _is_distributed():
        return rows
    counts = count_rows(rows) if num_rows_per_rank is None else list(num_rows_per_rank)
    assert len(counts) == dist.get_world_size(), "one count for every process"
    assert counts[dist.get_rank()] == len(rows), (
        "a process holds another number of rows than announced"
    )
    gathered: Tensor = _GatherRows.apply(rows, counts)  # type: ignore[no-untyped-call]
    return gathered


def count_rows(rows: Tensor) -> list[int]:
    """Return how many rows each process holds, in rank order; a collective."""
    return gather_on_hosts(len(rows))


@torch.no_grad()
def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a tensor over processes, without gradient; a collective."""
    total = values.clone()
    if _is_distributed():
        dist.all_reduce(total)
    return total


def compute_shared(
    compute: Callable[[int, int], Tensor], num_rows: int, *, rows_per_block: int
) -> Tensor:
    """Return rows 0..N-1 of a result that each process computes a part of; a collective.

    Args:
        compute: returns the rows (end - begin, ...) from `begin` to before `end`, at least one.
        num_rows: N, at least 1.
        rows_per_block: parts begin at multiples of it. Where `compute` takes so many rows at once,
            the same rows are together on any number of processes, and the result is the same.
    """
    if not _is_distributed():
        return compute(0, num_rows)
    num_blocks, num_processes = -(-num_rows // rows_per_block), dist.get_world_size()
    blocks = (num_blocks * process // num_processes for process in range(num_processes + 1))
    bounds = [min(num_rows, rows_per_block * block) for block in blocks]
    counts = [end - begin for begin, end in itertools.pairwise(bounds)]
    begin, count = bounds[dist.get_rank()], counts[dist.get_rank()]
    # With fewer blocks than processes, one without rows still tells their shape and dtype.
    own = compute(begin, begin + count) if count else compute(0, 1)[:0]
    return gather_rows(own.detach(), num_rows_per_rank=counts)


def num_processes() -> int:
    """Return how many processes hold rows."""
    return dist.get_world_size() if _is_distributed() else 1


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _GatherRows(torch.autograd.Function):
    """Forward: all rows to all processes. Backward: sum over processes, then keep the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        begin = sum(counts[: dist.get_rank()])
        ctx.own = slice(begin, begin + len(rows))
        longest = max(counts)
        padded = rows.contiguous()
        # Collectives want equal sizes, so shorter shares are padded and cut again.
        if len(rows) < longest:
            padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        shares = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(shares, padded)
        return torch.cat([share[:count] for share, count in zip(shares, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gathered: Tensor) -> tuple[Tensor, None]:
        grad = grad_gathered.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[ctx.own], None
