"""Writes checkpoints that are whole or not there, and removes the ones that need not stay.

Enters: the model and the optimisers of all processes. `take_snapshot` leaves a copy of them in the
memory of the first process, which later updates do not touch; `write_checkpoint` makes a folder of
it aside, lists every file with its digest, and renames it, whenever that is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_pretrain.data.atomic import replace_folder
from bert_pretrain.data.run_folder import checkpoint_path, list_checkpoints, step_of
from bert_pretrain.errors import InputError
from bert_pretrain.training.checkpoint import (
    AVERAGE_FILE,
    SCALER_FILE,
    WEIGHTS_FILE,
    digest_of,
    optimizer_file,
    without_ties,
)
from bert_pretrain.training.checkpoint_state import (
    STATE_FILE,
    LoopState,
    read_state_file,
    write_state,
)
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.sharding import DistributedModel, whole


@dataclass(frozen=True)
class Retention:
    """Which checkpoints of a run stay.

    Attributes:
        save_total_limit: the newest so many; 0 = all.
        keep_every: those after a multiple of so many updates as well; 0 = none.
    """

    save_total_limit: int
    keep_every: int = 0

    def stale(self, checkpoints: list[Path], *, needed: int | None) -> list[Path]:
        """Return those that may be removed.

        Args:
            checkpoints: of the run, oldest first.
            needed: updates of one that the run may go back to; None = it needs none.
        """
        if not self.save_total_limit:
            return []
        best = _best(checkpoints)
        return [
            path
            for path in checkpoints[: -self.save_total_limit]
            if path != best and step_of(path) != needed and not self._is_kept(step_of(path))
        ]

    def _is_kept(self, step: int) -> bool:
        return self.keep_every > 0 and step % self.keep_every == 0


@dataclass
class Snapshot:
    """What the files of a checkpoint are to hold, in host memory.

    Attributes:
        tensors: of each safetensors file, by name.
        states: what torch is to save, by file.
        arrival: on a GPU, when all is there; it must be waited for before anything is read.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    arrival: torch.cuda.Event | None = None


@torch.no_grad()
def take_snapshot(model: DistributedModel, average: WeightAverage | None) -> Snapshot | None:
    """Copy weights, their average and optimiser states into host memory; a collective.

    On a GPU the copies are only begun: they run beside the next forward and backward pass, and
    `Snapshot.arrival` must come before the next update, which changes what is copied.

    Returns:
        The copy on the first process, None on the others.
    """
    copies = _HostCopies(model.accelerator.device)
    is_writing = model.accelerator.is_main_process

    def copied(value: Any, *, at_once: bool = False) -> Any:
        is_sharded = isinstance(value, DTensor)
        value = whole(value)
        if not is_writing:  # they keep nothing, so that no two tensors are whole there at once
            return None
        if not torch.is_tensor(value):
            return value
        return value.cpu().contiguous() if is_sharded else copies.make(value, at_once=at_once)

    snapshot = Snapshot()
    snapshot.tensors[WEIGHTS_FILE] = {
        # A forward pass changes buffers, such as running statistics, but no parameters.
        name: copied(value, at_once=not isinstance(value, nn.Parameter))
        for name, value in without_ties(model.trained).items()
    }
    if average is not None:
        values = average.values.items()
        snapshot.tensors[AVERAGE_FILE] = {name: copied(value) for name, value in values}
    for index, prepared in enumerate(model.optimizers):
        state = prepared.optimizer.state_dict()
        state["state"] = {
            number: {key: copied(value) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        snapshot.states[optimizer_file(index)] = state
    if model.accelerator.scaler is not None:
        snapshot.states[SCALER_FILE] = model.accelerator.scaler.state_dict()
    snapshot.arrival = copies.begun()
    return snapshot if is_writing else None


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


def read_config_files(write_config: Callable[[Path], None], folder: Path) -> dict[str, bytes]:
    """Return what an exporter writes beside the weights, by file name.

    Args:
        write_config: writes it into an existing folder.
        folder: the run's checkpoint folder, where it is written for a moment.
    """
    aside = folder / "config.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write_config(aside)
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    contents = {str(path.relative_to(aside)): path.read_bytes() for path in files}
    shutil.rmtree(aside)
    return contents


def write_checkpoint(
    snapshot: Snapshot,
    folder: Path,
    *,
    state: LoopState,
    config_files: Mapping[str, bytes],
    retention: Retention,
    needed: int | None,
) -> Path:
    """Write a checkpoint and then remove the ones that need not stay.

    Args:
        snapshot: of the tensors.
        folder: the run's checkpoint folder.
        state: of the loop.
        config_files: what transformers needs beside the weights, by file name.
        retention: which checkpoints stay.
        needed: updates of one that the run may go back to; None = it needs none.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoint_path(folder, state["step"])
    aside = folder / f"{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, content in config_files.items():
        path = aside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if snapshot.arrival is not None:
        snapshot.arrival.synchronize()
    for name, tensors in snapshot.tensors.items():
        save_file(tensors, aside / name, metadata={"format": "pt"})
    for name, content in snapshot.states.items():
        # If torch opens the file itself, it tells a full disk in three ways of its own.
        with (aside / name).open("wb") as file:
            torch.save(content, file)
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    write_state(
        aside / STATE_FILE,
        state,
        {str(path.relative_to(aside)): digest_of(path) for path in files},
    )
    _flush_to_disk([*files, aside / STATE_FILE])
    replace_folder(aside, final)
    _rotate(folder, retention, needed=needed)
    return final


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint so that an interruption leaves no half of it under a valid name."""
    doomed = path.with_name(path.name + ".tmp")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def remove_newer(checkpoint: Path) -> None:
    """Remove the checkpoints after one that a run has gone back to, and will make anew."""
    for path in reversed(list_checkpoints(checkpoint.parent)):
        if step_of(path) > step_of(checkpoint):
            remove_checkpoint(path)


def _rotate(folder: Path, retention: Retention, *, needed: int | None) -> None:
    for leftover in (*folder.glob("*.tmp"), *folder.glob("step-*.old")):
        shutil.rmtree(leftover)
    for path in retention.stale(list_checkpoints(folder), needed=needed):
        remove_checkpoint(path)


def _best(checkpoints: list[Path]) -> Path | None:
    """Return the checkpoint with the lowest held-out loss, the newest of equals; None if none has.

    A run that has diverged goes on from it, when all that were kept as the newest are worthless.
    """
    losses: dict[Path, float] = {}
    for checkpoint in reversed(checkpoints):
        with contextlib.suppress(InputError):
            loss = read_state_file(checkpoint / STATE_FILE)[0].get("held_out_loss")
            if loss is not None:
                losses[checkpoint] = loss
    return min(losses, key=losses.__getitem__, default=None)


def _flush_to_disk(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
