"""Batch normalisation by the statistics of the rows of all processes.

Enters: an encoder with torch's batch normalisation, such as a ResNet. It leaves with the same
parameters and buffers under the same names, and trains on any number of processes as on one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bert_pretrain.data.processes import gather_rows, num_processes

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """torch's batch normalisation, whose mean and variance are those of all processes' rows.

    Alone, and in evaluation, it is the parent to the last bit. torch's own `SyncBatchNorm` does the
    same, but not on processors. A training step is a collective, forwards and backwards.

    Source: Ioffe and Szegedy 2015, algorithm 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise float (B, C, H, W); B may differ between processes."""
        if not self.training or num_processes() == 1:
            alone: Tensor = super().forward(input)
            return alone
        rows = input.float()
        variance, mean = torch.var_mean(rows, dim=(0, 2, 3), correction=0)
        count = mean.new_full((1,), rows.numel() / rows.shape[1])
        parts = gather_rows(
            torch.cat([count, mean, variance])[None], num_rows_per_rank=[1] * num_processes()
        )
        counts, means, variances = torch.split(parts, [1, len(mean), len(mean)], dim=1)
        total = counts.sum()
        shares = counts / total  # (number of processes, 1)
        mean = (shares * means).sum(dim=0)
        # Of each process around its own mean, and of those means around the common one: no
        # difference of large squares.
        variance = (shares * (variances + (means - mean).square())).sum(dim=0)
        self._remember(mean.detach(), variance.detach() * total / (total - 1))
        factor = torch.rsqrt(variance + self.eps) * self.weight
        shape = (1, -1, 1, 1)
        normal: Tensor = (rows - mean.view(shape)) * factor.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def share_batch_statistics(model: nn.Module) -> None:
    """Let all 2-D batch normalisations of a model see the rows of all processes; in place."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if not isinstance(module, nn.BatchNorm2d) or type(module) is not nn.BatchNorm2d:
                continue
            if module.affine and module.track_running_stats and module.momentum is not None:
                setattr(parent, name, _shared(module))


def _shared(norm: nn.BatchNorm2d) -> SharedBatchNorm2d:
    """Return one that has the parameters and the buffers of `norm`."""
    found = SharedBatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
    found.load_state_dict(norm.state_dict(keep_vars=True), assign=True)
    return found.train(norm.training)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return what makes the rows of a forward pass of a model in training depend on each other."""
    return [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
