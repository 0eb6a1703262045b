"""A model over the processes of a run: copied to all of them (DDP), or sharded among them (FSDP2).

Enters: what a launcher asks for (`accelerate launch --config_file configs/accelerate/fsdp2.yaml`
says it through the environment), a plain model and its optimisers. Leaves: the model to train, and
on demand a plain copy of it, which evaluation, monitors and exporters take.

torch's own `fully_shard` is applied here rather than by Accelerate, which leaves it out on
processors without a word, and which gives BERT's embeddings a unit of their own, though the output
layer shares their table; torch 2.13 refuses that.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from bert_pretrain.errors import InputError

# One all-reduce per bucket of gradients, each begun while the backward pass is still computing
# others; gradients are views of the buckets, which saves a copy of them. The buffers (positions)
# are the same on every process and need no broadcast.
DDP_OPTIONS = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)

# What Accelerate's launcher passes on for FSDP, and the values that this module carries out;
# `FSDP_RESHARD_AFTER_FORWARD` is a choice. Settings that FSDP2 does not know are not looked at.
_REQUIRED = {
    "FSDP_VERSION": ("2", "fsdp_version"),
    "FSDP_OFFLOAD_PARAMS": ("false", "fsdp_offload_params"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "fsdp_activation_checkpointing"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "fsdp_cpu_ram_efficient_loading"),
}


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether the launcher was asked for FSDP, for several processes."""
    return _is_sharding_asked_for() and accelerator.num_processes > 1


def _is_sharding_asked_for() -> bool:
    return _says_true("ACCELERATE_USE_FSDP")


def check_launcher(*, mixed_precision: str) -> None:
    """Refuse what a launcher asks for and this package does not carry out.

    Args:
        mixed_precision: of the run.

    Raises:
        InputError: it asks for DeepSpeed, or for another FSDP than the one here.
    """
    if _says_true("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "the launcher asks for DeepSpeed, whose ZeRO-2 engine this program's loop does not "
            "drive: it reduces gradients in every micro-batch, skips an update that is not finite "
            "and goes on, and takes one optimiser alone",
            advice="pass configs/accelerate/zero2.yaml to the launcher, which shards optimiser "
            "state and gradients as ZeRO-2 does, by torch's FSDP2",
        )
    if not _is_sharding_asked_for():
        return
    for name, (required, setting) in _REQUIRED.items():
        value = os.environ.get(name, required).lower()
        if value != required:
            more = "; pass `gradient_checkpointing` to this program" * ("CHECKPOINTING" in name)
            raise InputError(
                f"the launcher's {setting} is {value} but must be {required}{more}",
                advice="change the launcher's configuration; configs/accelerate/fsdp2.yaml works",
            )
    if mixed_precision == "fp16":
        raise InputError(
            "`mixed_precision` is fp16, which FSDP does not work with here: each process would "
            "find overflows in its own shards alone",
            advice="pass `mixed_precision` bf16 or no",
        )


@contextlib.contextmanager
def without_accelerates_fsdp() -> Iterator[None]:
    """Let an Accelerator be made that does not shard by itself, whatever the launcher asks for."""
    value = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if value is not None:
            os.environ["ACCELERATE_USE_FSDP"] = value


class DistributedModel:
    """A model in training on the processes of an accelerator.

    Attributes:
        module: what is called in training.
        trained: the same without the wrapper of DDP, whose parameters may be sharded.
        optimizers: prepared by Accelerate, over its parameters.
        outline: the plain model; if `module` is sharded its parameters are without values ("meta").
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        optimizers: list[torch.optim.Optimizer],
    ) -> None:
        """Copy or shard the model, as the launcher was asked, and let the optimisers follow.

        Args:
            accelerator: of the run.
            model: plain, the same on every process.
            optimizers: of its parameters, without state.
        """
        self.accelerator = accelerator
        self.is_sharded = is_sharded(accelerator)
        if self.is_sharded:
            # In evaluation mode Accelerate places the model and its autocast and wraps nothing.
            self.module = self.trained = accelerator.prepare_model(model, evaluation_mode=True)
            self.outline = _outline(model)
            _shard(model, accelerator, optimizers)
            self.optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
        else:
            with warnings.catch_warnings():
                # torch 2.13 has another word for it, which older ones and Accelerate do not know.
                warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
                self.module, *self.optimizers = accelerator.prepare(model, *optimizers)
            self.trained = self.outline = accelerator.unwrap_model(self.module)

    @contextlib.contextmanager
    def synchronized(self, *, is_last: bool) -> Iterator[None]:
        """Sum gradients over processes in the backward pass of the last micro-batch alone."""
        if self.is_sharded:
            self.module.set_requires_gradient_sync(is_last)
            yield
        elif is_last:
            yield
        else:
            with self.accelerator.no_sync(self.module):
                yield

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Return whether all weights that this process holds are finite."""
        held = (p.to_local() if isinstance(p, DTensor) else p for p in self.trained.parameters())
        return bool(torch.stack([torch.isfinite(part).all() for part in held]).all())

    @torch.no_grad()
    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale all gradients to at most a norm together, and return the norm before that.

        Returns:
            0-dim float, of the whole gradient and the same on every process.
        """
        if self.accelerator.device.type != "cpu":
            norm: Tensor = self.accelerator.clip_grad_norm_(self.module.parameters(), max_norm)
            return norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.accelerator.unscale_gradients()
        gradients = [local(p.grad) for p in self.trained.parameters() if p.grad is not None]
        squares = _sum_of_squares(gradients)
        if self.is_sharded:
            dist.all_reduce(squares)
        norm = squares.sqrt().float()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils has it
        for gradient in gradients:
            gradient.mul_(factor)
        return norm

    @torch.no_grad()
    def plain(self, values: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
        """Return the whole model as it was before it was wrapped; all processes must call it.

        Not sharded, it is the model in training itself. Sharded, it is a copy on the device of
        every process, which takes the memory of the parameters as long as it is kept.

        Args:
            values: shards to take in place of parameters, by their names, where it is sharded.
        """
        if not self.is_sharded:
            assert values is None
            return self.outline
        shards = dict(self.trained.named_parameters()) | dict(values or {})
        return _with_parameters(self.outline, {name: whole(s) for name, s in shards.items()})


def spreading_failure(loss: Tensor) -> Tensor:
    """Return a loss whose gradient is NaN if the loss is not finite, on whatever process.

    The gradient of an infinite loss may be finite, as that of a constant is, and other processes do
    not see the loss. They see its gradient: no norm is finite then, and none makes the update.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))


def whole(value: Any) -> Any:
    """Return a sharded tensor whole, which all processes must ask for; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(tensor: Tensor) -> Tensor:
    """Return what of a tensor lies on this process, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: DTensor) -> slice:
    """Return which rows of a tensor that is sharded by rows this process has; perhaps none."""
    assert tensor.device_mesh.ndim == 1 and tensor.placements[0].is_shard(dim=0)
    # As torch.chunk divides: equal shares, the last ones shorter or empty.
    share = -(-tensor.shape[0] // tensor.device_mesh.size())
    begin = min(share * tensor.device_mesh.get_local_rank(), tensor.shape[0])
    rows = slice(begin, min(begin + share, tensor.shape[0]))
    assert rows.stop - rows.start == tensor.to_local().shape[0]
    return rows


def like(value: Tensor, target: Tensor) -> Tensor:
    """Return a tensor that is whole on every process as `target` is: sharded or not."""
    if not isinstance(target, DTensor):
        return value.to(target.device)
    # A view would keep the whole in memory.
    return shard_of(value[own_rows(target)].clone(), target)


def shard_of(rows: Tensor, target: DTensor) -> DTensor:
    """Return a tensor that is divided as `target` is, of which this process has these rows."""
    return DTensor.from_local(
        rows.to(target.to_local().device),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )


def _shard(
    model: PreTrainedModel, accelerator: Accelerator, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Shard a model in place by rows, each layer a unit, and point the optimisers to the shards."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # true = gathered again for the backward pass; false = kept, more memory and less traffic.
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # No policy of precision: autocast does what it does on one process, layer normalisation and
    # sums of gradients in float32, so that the numbers are the same.
    for unit in sharding_units(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh)
    shards = dict(model.named_parameters())
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [shards[names[id(p)]] for p in group["params"]]


def _sum_of_squares(gradients: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements, float64, the same however rows are divided.

    On a processor torch adds the squares of a tensor one after the other in float32, and loses more
    the longer it is: a norm over 30,522 x 768 elements comes out 1.3e-3 too small, over two halves
    4.6e-4, so that clipping would depend on the layout. Row by row it is right to 1e-9.
    """
    total = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        if gradient.ndim > 1 and gradient.numel():
            total += torch.linalg.vector_norm(gradient.flatten(1), dim=1).double().square().sum()
        else:
            total += gradient.double().square().sum()
    return total


def sharding_units(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered one at a time, inner ones first.

    They are the blocks that transformers never divides between devices, but those that share a
    parameter with the rest of the model, as the embeddings do with BERT's output layer.
    """
    names: set[str] = set()
    for module in model.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    units = []
    for module in model.modules():
        is_block = module is not model and any(c.__name__ in names for c in type(module).__mro__)
        if is_block and all(uses[id(p)] == 1 for p in module.parameters()):
            units.append(module)
    return units[::-1]


def _outline(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model whose parameters have no values; ties and buffers are kept."""
    empty = {n: torch.empty_like(p, device="meta") for n, p in model.named_parameters()}
    return _with_parameters(model, empty)


def _with_parameters(model: PreTrainedModel, values: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a copy of a model with other parameters, tied where the model's are."""
    # What deepcopy is told to be copied already, by identity, is not copied.
    made = {
        id(parameter): nn.Parameter(values[name], requires_grad=parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }
    copied: PreTrainedModel = copy.deepcopy(model, made)
    return copied


def _says_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
