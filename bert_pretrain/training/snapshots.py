"""What of a run goes into a checkpoint, copied to host memory between two updates.

Enters: the model and the optimisers of all processes. Leaves: a copy that later updates do not
touch, on the first process alone, or, where the model is sharded, on each process of what it holds:
no tensor is ever gathered for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_pretrain.training.checkpoint import (
    AVERAGE_FILE,
    SCALER_FILE,
    WEIGHTS_FILE,
    moments_file,
    optimizer_file,
    without_ties,
)
from bert_pretrain.training.divided_files import DividedFile, Layout
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.sharding import DistributedModel, local


@dataclass
class Snapshot:
    """What this process is to write of a checkpoint, in host memory.

    Attributes:
        tensors: of each safetensors file that it writes alone, by name.
        states: what torch is to save, by file.
        divided: of the files that all processes write; none where the model is not sharded.
        arrival: on a GPU, when all is there; it must be waited for before anything is read.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    divided: dict[str, DividedFile] = field(default_factory=dict)
    arrival: torch.cuda.Event | None = None


@torch.no_grad()
def take_snapshot(model: DistributedModel, average: WeightAverage | None) -> Snapshot | None:
    """Copy weights, their average and optimiser states into host memory.

    On a GPU the copies are only begun: they run beside the next forward and backward pass, and
    `Snapshot.arrival` must come before the next update, which changes what is copied.

    Returns:
        The copy of what this process is to write; None if that is nothing.
    """
    is_first = model.accelerator.is_main_process
    if not (is_first or model.is_sharded):
        return None
    copies = _HostCopies(model.accelerator.device)
    snapshot = Snapshot()

    def take(file: str, tensors: Mapping[str, Tensor]) -> None:
        def copy(tensor: Tensor) -> Tensor:
            # A forward pass changes buffers, such as running statistics, but no parameters.
            is_buffer = file == WEIGHTS_FILE and not isinstance(tensor, nn.Parameter)
            return copies.make(local(tensor), at_once=is_buffer)

        if model.is_sharded:
            snapshot.divided[file] = _own_parts(tensors, copy, is_first=is_first)
        else:
            snapshot.tensors[file] = {name: copy(tensor) for name, tensor in tensors.items()}

    take(WEIGHTS_FILE, without_ties(model.trained))
    if average is not None:
        take(AVERAGE_FILE, average.values)
    for index, prepared in enumerate(model.optimizers):
        state = prepared.optimizer.state_dict()
        shards = {
            f"{number}.{key}": value
            for number, values in state["state"].items()
            for key, value in values.items()
            if isinstance(value, DTensor)
        }
        if shards:
            take(moments_file(index), shards)
        if is_first:
            state["state"] = {
                number: {
                    key: copies.make(value, at_once=False) if torch.is_tensor(value) else value
                    for key, value in values.items()
                    if not isinstance(value, DTensor)
                }
                for number, values in state["state"].items()
            }
            snapshot.states[optimizer_file(index)] = state
    if model.accelerator.scaler is not None:
        snapshot.states[SCALER_FILE] = model.accelerator.scaler.state_dict()
    snapshot.arrival = copies.begun()
    return snapshot


def _own_parts(
    tensors: Mapping[str, Tensor], copy: Callable[[Tensor], Tensor], *, is_first: bool
) -> DividedFile:
    """Return what a process writes of a file: its shards; the first one all that is not sharded."""
    layout = Layout(tensors)
    file = DividedFile(layout.size)
    if is_first:
        file.parts.append((0, torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)))
    for name, tensor in tensors.items():
        if (is_first or isinstance(tensor, DTensor)) and local(tensor).numel():
            file.parts.append((layout.offset(name, tensor), copy(tensor)))
    return file


class _HostCopies:
    """Copies of tensors in host memory; from a GPU they are made by a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def make(self, value: Tensor, *, at_once: bool) -> Tensor:
        """Return a copy, contiguous; from a GPU it is on its way.

        Args:
            value: to be copied.
            at_once: before anything else on the GPU, rather than before the next update.
        """
        if self._stream is None or value.device.type != "cuda":
            return value.detach().to("cpu", copy=True).contiguous()
        copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        with contextlib.nullcontext() if at_once else torch.cuda.stream(self._stream):
            copy.copy_(value.detach(), non_blocking=True)
        return copy

    def begun(self) -> torch.cuda.Event | None:
        """Return when all copies so far have arrived; None = they have."""
        if self._stream is None:
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        arrival: torch.cuda.Event = self._stream.record_event()
        return arrival
