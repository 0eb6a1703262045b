"""LAMB: Adam whose updates are as large as the weights they are for, for batches of thousands.

Enters: parameters with gradients, whole on every process or sharded by rows. Leaves: the same
parameters that one process would get.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_pretrain.training.sharding import local


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning", algorithm 2).

    With bias-corrected moments m and v the update of a parameter w is u = m / (sqrt(v) + eps) +
    weight_decay * w, and w falls by lr * ||w|| / ||u|| * u; phi of the paper is the identity. Where
    one of the norms is 0 the ratio is 1. Vectors (biases and the gains of normalisation) have no
    ratio, and are to be given no weight decay: the norm of a bias that begins at 0 says nothing of
    how far it should move. The authors' code and, unless asked otherwise, NVIDIA's exclude the same
    parameters from both, by their names and by their weight decay.

    By `found_inf` it is told on the device to skip an update, as torch's fused optimisers are; a
    skipped one does not count in the bias correction either.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        """Keep parameters and rates.

        Args:
            params: parameters or groups of them, float32.
            lr: learning rate.
            betas: decay rates of the moments, in [0, 1).
            eps: added to the root of the second moment.
            weight_decay: factor of the parameter in its update.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; `closure` is not supported.

        Where parameters are sharded, all processes must call it, with gradients for the same ones.
        """
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(parameters, group)

    def _step_group(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        # The flag by which torch's fused optimisers are told, on the device, to leave parameters
        # and their own state alone. Gradients are then taken for 0 and every factor below for one
        # that changes nothing, so that nobody waits to know.
        is_made = torch.ones((), device=local(parameters[0]).device)
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:
            is_made = (found_inf == 0).float()
        values, gradients, firsts, seconds, counts = [], [], [], [], []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
                # Not "step", which torch would leave on the host when it loads a state.
                state["num_updates"] = torch.zeros_like(is_made)
            values.append(local(parameter))
            gradients.append(torch.where(is_made > 0, local(parameter.grad), 0.0))
            firsts.append(local(state["exp_avg"]))
            seconds.append(local(state["exp_avg_sq"]))
            counts.append(state["num_updates"])
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(firsts, torch.where(is_made > 0, beta1, 1.0))
        torch._foreach_add_(firsts, gradients, alpha=1 - beta1)
        torch._foreach_mul_(seconds, torch.where(is_made > 0, beta2, 1.0))
        torch._foreach_addcmul_(seconds, gradients, gradients, value=1 - beta2)
        torch._foreach_add_(counts, [is_made] * len(counts))
        roots = torch._foreach_sqrt(torch._foreach_div(seconds, _bias_corrections(counts, beta2)))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(firsts, _bias_corrections(counts, beta1))
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, values, alpha=group["weight_decay"])
        rate = group["lr"] * is_made
        factors = [rate] * len(parameters)
        adapted = [i for i, parameter in enumerate(parameters) if parameter.ndim >= 2]
        if adapted:
            ratios = _trust_ratios(
                [values[i] for i in adapted],
                [updates[i] for i in adapted],
                sharded_like=parameters[0],
            )
            for i, factor in zip(adapted, (rate * ratios).unbind(), strict=True):
                factors[i] = factor
        torch._foreach_mul_(updates, factors)
        torch._foreach_sub_(values, updates)


def _bias_corrections(counts: list[Tensor], beta: float) -> tuple[Tensor, ...]:
    """Return 1 - beta^t for each 0-dim count t, precise in float32 where beta is near 1."""
    # Before the first update that is made, t is 0 and so are the moments that this divides.
    exponents = torch._foreach_mul(
        torch._foreach_clamp_min(counts, 1.0), math.log(beta) if beta > 0 else -math.inf
    )
    return torch._foreach_neg(torch._foreach_expm1(exponents))


def _trust_ratios(
    values: list[Tensor], updates: list[Tensor], *, sharded_like: nn.Parameter
) -> Tensor:
    """Return ||w|| / ||u|| of each whole parameter and update, (N,), 1 where either norm is 0.

    Args:
        values: what of the parameters lies on this process, N tensors.
        updates: likewise.
        sharded_like: tells whether they are shards, and among whom.
    """
    # On a processor torch adds squares one after the other in float32, and comes out the lower the
    # longer a tensor is; see `sharding._sum_of_squares`.
    dtype = torch.float64 if values[0].device.type == "cpu" else torch.float32
    norms = torch.stack(
        [
            torch.stack(torch._foreach_norm(values, 2, dtype=dtype)),
            torch.stack(torch._foreach_norm(updates, 2, dtype=dtype)),
        ]
    )
    if isinstance(sharded_like, DTensor):
        squares = norms.square()
        dist.all_reduce(squares, group=sharded_like.device_mesh.get_group())
        norms = squares.sqrt()
    of_values, of_updates = norms
    has_ratio = (of_values > 0) & (of_updates > 0)
    return torch.where(has_ratio, of_values / of_updates, 1.0).float()
