"""Muon, whose matrices the processes of a run share out, so that each is iterated once.

Enters: matrices with gradients, whole on every process or sharded by rows. Leaves: the same
parameters that one process would get, equal on all processes to the last bit.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_pretrain.training.sharding import local

Iterate = Callable[[Tensor], Tensor]  # (N, R, C) -> (N, R, C)


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), in any precision and told on the device to skip updates.

    torch.optim.Muon always iterates in bfloat16, which a processor without such instructions
    emulates about a hundred times slower than float32, and it knows no `found_inf`, so an update
    could be left out only after waiting for the device. This subclass keeps torch's
    hyperparameters, state and arithmetic, and iterates over all matrices of one shape at once.

    In a distributed run each matrix has one owner, which iterates it and sends the result to the
    others. Where gradients are averaged over processes (DDP) every process has all momenta, so that
    a checkpoint does not depend on their number. Where parameters are sharded (FSDP2) the momenta
    are too, and the owner receives the rows that it lacks.
    """

    def __init__(
        self,
        params: Any,
        *,
        iteration_dtype: torch.dtype,
        is_compiled: bool = False,
        **kwargs: Any,
    ) -> None:
        """Take torch.optim.Muon's arguments and what concerns the Newton-Schulz iteration.

        Args:
            params: see torch.optim.Muon, as for `kwargs`.
            iteration_dtype: dtype of the iteration.
            is_compiled: whether it is compiled, once for every shape.
            kwargs: the other arguments.
        """
        super().__init__(params, **kwargs)
        self.iteration_dtype = iteration_dtype
        self._compiled: Callable[..., Tensor] | None = None
        if is_compiled:
            self._compiled = torch.compile(orthogonalize, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; `closure` is not supported.

        All processes must call it, with gradients for the same parameters.
        """
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(parameters, group)

    def _step_group(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                zeros = torch.zeros_like(parameter.grad)  # type: ignore[arg-type]  # it has one
                self.state[parameter]["momentum_buffer"] = zeros
        gradients = [_gradient(parameter) for parameter in parameters]
        buffers = [local(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        # The flag by which torch's fused optimisers are told, on the device, to leave the
        # parameters and their own state alone.
        is_skipped = getattr(self, "found_inf", None)
        is_made = None if is_skipped is None else (is_skipped <= 0).reshape(())
        if is_made is not None:  # else the momentum takes itself in, and stays as it is
            pairs = zip(gradients, buffers, strict=True)
            gradients = [torch.where(is_made, gradient, buffer) for gradient, buffer in pairs]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        directions = buffers
        if group["nesterov"]:
            directions = list(torch._foreach_lerp(gradients, buffers, group["momentum"]))
        directions = _cast(directions, self.iteration_dtype)

        def iterate(matrices: Tensor) -> Tensor:
            compute = self._compiled or orthogonalize
            return compute(
                matrices,
                coefficients=group["ns_coefficients"],
                num_iterations=group["ns_steps"],
                eps=group["eps"],
            )

        shapes = [parameter.shape for parameter in parameters]
        if isinstance(parameters[0], DTensor):
            results = iterate_sharded(directions.__getitem__, shapes, iterate, parameters[0])
        elif dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            results = iterate_shared(directions.__getitem__, shapes, iterate)
        else:
            numbers = range(len(shapes))
            results = _iterate_by_shape(directions.__getitem__, shapes, numbers, iterate)
        found = list(results)
        values = [local(parameters[index]) for index, _ in found]
        updates = _cast([update for _, update in found], values[0].dtype)
        # "match_rms_adamw" (Liu et al. 2025, section 2.2): updates as large as AdamW's, so one rate
        # serves both.
        rates = [group["lr"] * 0.2 * math.sqrt(max(shapes[index])) for index, _ in found]
        kept = 1 - group["lr"] * group["weight_decay"]
        updates = list(torch._foreach_mul(updates, rates))
        if is_made is None:
            torch._foreach_mul_(values, kept)
        else:
            torch._foreach_mul_(values, torch.where(is_made, kept, 1.0))
            torch._foreach_mul_(updates, is_made.to(values[0].dtype))
        torch._foreach_sub_(values, updates)


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return tensors in a dtype, all of them by one call to a device."""
    if tensors[0].dtype == dtype:
        return tensors
    found = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(found, tensors)
    return found


def orthogonalize(
    matrices: Tensor,
    *,
    coefficients: tuple[float, float, float],
    num_iterations: int,
    eps: float,
) -> Tensor:
    """Bring the singular values of each matrix near 1 by Newton-Schulz iteration.

    Args:
        matrices: float (N, R, C).
        coefficients: a, b, c of the quintic a x + b x^3 + c x^5.
        num_iterations: how often it is applied.
        eps: lower bound of the norm that the matrices are divided by.

    Returns:
        (N, R, C) in the same dtype: U S V^T with the singular values S in about [0.7, 1.2].
    """
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # spectral norm at most 1
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def assign_owners(shapes: Sequence[torch.Size], num_processes: int) -> list[int]:
    """Return the process that iterates each matrix; the same on every process.

    The most expensive matrices are handed out first, each to the process with least to do.

    Args:
        shapes: (R, C) of each matrix.
        num_processes: at least 1.

    Returns:
        The owner of each matrix, in [0, num_processes).
    """
    costs = []
    for shape in shapes:
        short, long = sorted(shape)
        costs.append(short * short * (2 * long + short))  # the three products of an iteration
    owners = [0] * len(shapes)
    loads = [(0, process) for process in range(num_processes)]
    for index in sorted(range(len(shapes)), key=lambda i: (-costs[i], i)):
        load, process = heapq.heappop(loads)
        owners[index] = process
        heapq.heappush(loads, (load + costs[index], process))
    return owners


def iterate_shared(
    direction: Callable[[int], Tensor], shapes: Sequence[torch.Size], iterate: Iterate
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number and the result of every matrix; one collective brings them all together.

    Args:
        direction: returns a whole matrix (R, C), the same on every process, by its number.
        shapes: (R, C) of each.
        iterate: what each is to go through; called with the matrices of this process alone.
    """
    rank, num_processes = dist.get_rank(), dist.get_world_size()
    owners = assign_owners(shapes, num_processes)
    owned = [[i for i, owner in enumerate(owners) if owner == p] for p in range(num_processes)]
    longest = max(sum(shapes[i].numel() for i in indices) for indices in owned)
    # Collectives want equal sizes, so shorter shares are padded. A process without matrices asks
    # the first one for dtype and device.
    share = direction(0).new_zeros(longest)
    offsets = _offsets(shapes, owned[rank])
    for index, result in _iterate_by_shape(direction, shapes, owned[rank], iterate):
        share[offsets[index] :][: result.numel()].view(result.shape).copy_(result)
    gathered = [torch.empty_like(share) for _ in range(num_processes)]
    dist.all_gather(gathered, share)
    for indices, part in zip(owned, gathered, strict=True):
        for index, offset in _offsets(shapes, indices).items():
            yield index, part[offset : offset + shapes[index].numel()].view(shapes[index])


def iterate_sharded(
    direction: Callable[[int], Tensor],
    shapes: Sequence[torch.Size],
    iterate: Iterate,
    like: DTensor,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number and this process's rows of the result of every matrix.

    Two collectives: rows go to the owners of their matrices, and results come back by rows.

    Args:
        direction: returns this process's rows of a matrix by its number.
        shapes: (R, C) of each whole matrix.
        iterate: what each whole matrix is to go through, called with those of this process alone.
        like: a matrix that is sharded as all are, by rows over a mesh of one dimension.
    """
    assert like.device_mesh.ndim == 1 and like.placements[0].is_shard(dim=0)
    mesh = like.device_mesh
    rank, num_processes = mesh.get_local_rank(), mesh.size()
    owners = assign_owners(shapes, num_processes)
    owned = [[i for i, owner in enumerate(owners) if owner == p] for p in range(num_processes)]
    # Shards are those of torch.chunk: equal, the last ones shorter or empty.
    num_rows = [
        [
            min(-(-rows // num_processes), max(0, rows - p * -(-rows // num_processes)))
            for rows, _ in shapes
        ]
        for p in range(num_processes)
    ]

    def length(process: int, indices: list[int]) -> int:
        return sum(num_rows[process][i] * shapes[i][1] for i in indices)

    to_owners = [length(rank, indices) for indices in owned]
    from_processes = [length(process, owned[rank]) for process in range(num_processes)]
    group = mesh.get_group()
    sent = torch.cat([direction(i).flatten() for indices in owned for i in indices])
    received = sent.new_empty(sum(from_processes))
    dist.all_to_all_single(received, sent, from_processes, to_owners, group=group)

    pieces: dict[int, list[Tensor]] = defaultdict(list)
    for process, part in enumerate(torch.split(received, from_processes)):
        offset = 0
        for i in owned[rank]:
            size = num_rows[process][i] * shapes[i][1]
            pieces[i].append(part[offset : offset + size].view(-1, shapes[i][1]))
            offset += size
    results = dict(_iterate_by_shape(lambda i: torch.cat(pieces[i]), shapes, owned[rank], iterate))
    by_process = {
        i: torch.split(result, [rows[i] for rows in num_rows]) for i, result in results.items()
    }
    returned = [
        by_process[i][process].flatten() for process in range(num_processes) for i in owned[rank]
    ]
    back = torch.cat(returned) if returned else received.new_empty(0)
    dist.all_to_all_single(sent, back, to_owners, from_processes, group=group)
    for indices, part in zip(owned, torch.split(sent, to_owners), strict=True):
        offset = 0
        for i in indices:
            size = num_rows[rank][i] * shapes[i][1]
            yield i, part[offset : offset + size].view(-1, shapes[i][1])
            offset += size


def _iterate_by_shape(
    direction: Callable[[int], Tensor],
    shapes: Sequence[torch.Size],
    indices: Sequence[int],
    iterate: Iterate,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the results of some matrices, all of one shape at once."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index in indices:
        by_shape[shapes[index]].append(index)
    for same in by_shape.values():
        yield from zip(same, iterate(torch.stack([direction(i) for i in same])), strict=True)


def _offsets(shapes: Sequence[torch.Size], indices: list[int]) -> dict[int, int]:
    """Return where each matrix begins when they lie one after the other."""
    offsets, end = {}, 0
    for index in indices:
        offsets[index] = end
        end += shapes[index].numel()
    return offsets


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return local(parameter.grad)
