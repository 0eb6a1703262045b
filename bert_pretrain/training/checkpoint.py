"""Checkpoints that are on disk: which one a run goes on from, whether it is whole, what it holds.

Enters: `checkpoints/step-000100/` with the model (loadable by stock transformers), the optimisers,
the average of the weights where there is one, and the state of the loop, as `checkpoint_writing`
has written them. Leaves: the same in the model and the optimisers of all processes. A checkpoint is
the same on any layout: what is sharded was written whole, and each process takes its shard of it
again, so that a run continues on another layout.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from bert_pretrain.data.run_folder import list_checkpoints, step_of
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.training.checkpoint_state import (
    STATE_FILE,
    LoopState,
    OtherVersionError,
    read_state_file,
)
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.sharding import DistributedModel, like

WEIGHTS_FILE = "model.safetensors"
SCALER_FILE = "scaler.pt"
AVERAGE_FILE = "ema.safetensors"


def find_checkpoint(resume_from: str, folder: Path) -> Path | None:
    """Return the checkpoint that a run continues from.

    Args:
        resume_from: `latest`, or the path of a checkpoint.
        folder: the run's checkpoint folder, searched for `latest`.

    Returns:
        Its folder, with `latest` the newest one that is whole; None if there is none at all, as
        when the run was ended before its first checkpoint.

    Raises:
        InputError: the path is no checkpoint, all that there are are damaged, or `latest` is of
            another version.
    """
    if resume_from == "latest":
        return _newest_whole(list_checkpoints(folder))
    path = Path(resume_from)
    if not (path / STATE_FILE).is_file():
        raise InputError(
            f"{resume_from} is not a checkpoint (it has no {STATE_FILE})",
            advice="pass `resume_from_checkpoint` latest, a folder checkpoints/step-NNNNNN, or "
            "owner/name@revision of the Hub",
        )
    return path


def read_state(checkpoint: Path) -> LoopState:
    """Return a checkpoint's loop state after checking that every file is what was written.

    Raises:
        InputError: a file is missing or damaged.
    """
    state, files = read_state_file(checkpoint / STATE_FILE)
    for name, digest in files.items():
        path = checkpoint / name
        if not path.is_file() or digest_of(path) != digest:
            raise InputError(
                f"{path} is missing or damaged (its digest is not the one written)",
                advice="pass an older checkpoint to `resume_from_checkpoint`",
            )
    return state


def _newest_whole(checkpoints: list[Path]) -> Path | None:
    """Return the newest checkpoint that is what was written; None if the list is empty.

    Raises:
        InputError: none of them is, or a newer one is of another version: to pass over it would
            give up what another program has done.
    """
    damages = []
    for checkpoint in reversed(checkpoints):
        try:
            read_state(checkpoint)
        except OtherVersionError:
            raise
        except InputError as error:
            damages.append(error.problem)
        else:
            return checkpoint
    if damages:
        raise InputError(
            f"no checkpoint in {checkpoints[0].parent} is whole: {'; '.join(damages)}",
            advice="restore one, or begin anew in another `output_dir`",
        )
    return None


def set_newer_aside(checkpoint: Path) -> dict[str, str]:
    """Rename the checkpoints after one that a run goes on from: they are no longer part of it.

    Left where they are, they would be taken for the newest ones: by rotation, which would then
    remove what the run writes, and by whoever continues from `latest`.

    Returns:
        Why the run does not go on from them, by their new names.
    """
    found = {}
    for newer in list_checkpoints(checkpoint.parent):
        if step_of(newer) > step_of(checkpoint):
            try:
                read_state(newer)
            except InputError as error:
                reason = f"It cannot be continued: {error.problem}"
            else:
                reason = "It is whole, but an older one was asked for"
            aside = next(path for path in _names_aside(newer) if not path.exists())
            os.replace(newer, aside)
            found[aside.name] = reason
    return found


def _names_aside(checkpoint: Path) -> Iterator[Path]:
    for number in itertools.count(1):
        yield checkpoint.with_name(f"{checkpoint.name}.aside-{number}")


def load_model(checkpoint: Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Return the model of a checkpoint, on the CPU and in float32."""
    model: PreTrainedModel = model_class.from_pretrained(str(checkpoint), dtype=torch.float32)
    return model


@torch.no_grad()
def load_average(checkpoint: Path, model: PreTrainedModel) -> None:
    """Give a plain model the averaged weights of a checkpoint.

    Raises:
        InputError: the checkpoint has none.
    """
    path = checkpoint / AVERAGE_FILE
    if not path.is_file():
        raise InputError(
            f"{checkpoint} holds no average of the weights",
            advice="leave `export_ema` out, or pass `ema_decay` to the run that makes it",
        )
    parameters = dict(model.named_parameters())
    for name, value in load_file(path).items():
        parameters[name].copy_(value)


@torch.no_grad()
def load_tensors(
    checkpoint: Path, model: DistributedModel, average: WeightAverage | None = None
) -> None:
    """Take up weights and optimiser states from a checkpoint of any layout, in place.

    No state of a random generator is among them: what is drawn in training is a function of the
    place in the run. An average begins with the weights if the checkpoint has none.

    Raises:
        InputError: the weights are those of another model, or a file holds more than numbers.
    """
    saved = load_file(checkpoint / WEIGHTS_FILE)
    targets = without_ties(model.trained)
    if saved.keys() != targets.keys():
        raise InputError(
            f"{checkpoint / WEIGHTS_FILE} holds another model "
            f"({', '.join(sorted(saved.keys() ^ targets.keys())[:3])})",
            advice="pass another checkpoint to `resume_from_checkpoint`",
        )
    for name, target in targets.items():
        target.copy_(like(saved.pop(name), target))
    if average is not None:
        average.restart()
        path = checkpoint / AVERAGE_FILE
        for name, value in load_file(path).items() if path.is_file() else ():
            average.values[name].copy_(like(value, average.values[name]))
    for index, prepared in enumerate(model.optimizers):
        optimizer = prepared.optimizer
        state = _load_state(checkpoint / optimizer_file(index))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for number, values in state["state"].items():
            for key, value in values.items():
                # Beside moments there are counts, which every process has whole.
                if torch.is_tensor(value) and value.shape == parameters[number].shape:
                    values[key] = like(value, parameters[number])
        # Decay, betas and the like are the flags' of now, which the run has said it takes.
        for group, kept in zip(state["param_groups"], optimizer.param_groups, strict=True):
            group |= {key: value for key, value in kept.items() if key != "params"}
        optimizer.load_state_dict(state)
    if model.accelerator.scaler is not None:
        model.accelerator.scaler.load_state_dict(_load_state(checkpoint / SCALER_FILE))


def _load_state(path: Path) -> dict[str, Any]:
    """Return what torch saved: tensors, numbers and containers of them; nothing else is made.

    Raises:
        InputError: the file holds anything else, or cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its reader raises whatever it stumbles over
        raise InputError(
            f"{path} cannot be read ({first_line(error)})",
            advice="pass another checkpoint to `resume_from_checkpoint`",
        ) from error
    return state


def without_ties(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, those with several names under the first, as saved."""
    named: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def optimizer_file(index: int) -> str:
    """Return the name of the file with the state of an optimiser, by its number."""
    return f"optimizer_{index}.bin" if index else "optimizer.bin"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    stat = path.stat()
    return _digest_as_of(path, stat.st_size, stat.st_mtime_ns)


@functools.cache  # a run that resumes looks several times at files that nobody changes
def _digest_as_of(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
