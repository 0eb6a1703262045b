"""Checkpoints that are on disk: which one a run goes on from, whether it is whole, what it holds.

Enters: `checkpoints/step-000100/` with the model (loadable by stock transformers), the optimisers,
the average of the weights where there is one, and the state of the loop, as `checkpoint_writing`
has written them. Leaves: the same in the model and the optimisers of all processes. The files hold
whole tensors on any layout: the processes of a sharded run write the rows that they have into one
file, and each process reads those that it needs, so that a run continues on another layout.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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
from bert_pretrain.training.divided_files import read_like
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
    model: PreTrainedModel = model_class.from_pretrained(
        str(checkpoint), dtype=torch.float32, use_safetensors=True
    )
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
    with _opened(checkpoint / WEIGHTS_FILE) as saved:
        targets = without_ties(model.trained)
        if targets.keys() != set(saved.keys()):
            raise InputError(
                f"{checkpoint / WEIGHTS_FILE} holds another model "
                f"({', '.join(sorted(targets.keys() ^ set(saved.keys()))[:3])})",
                advice="pass another checkpoint to `resume_from_checkpoint`",
            )
        for name, target in targets.items():
            target.copy_(read_like(saved, name, target))
    if average is not None:
        average.restart()
        if (checkpoint / AVERAGE_FILE).is_file():
            with _opened(checkpoint / AVERAGE_FILE) as saved:
                for name in saved.keys():  # noqa: SIM118  # it is no mapping
                    average.values[name].copy_(read_like(saved, name, average.values[name]))
    for index, prepared in enumerate(model.optimizers):
        _load_optimizer(checkpoint, index, prepared.optimizer, is_sharded=model.is_sharded)
    if model.accelerator.scaler is not None:
        model.accelerator.scaler.load_state_dict(_load_state(checkpoint / SCALER_FILE))


def _load_optimizer(
    checkpoint: Path, index: int, optimizer: torch.optim.Optimizer, *, is_sharded: bool
) -> None:
    """Take up the state of an optimiser, by its number."""
    # Mapped, a process reads no more of what is whole there than its own rows.
    state = _load_state(checkpoint / optimizer_file(index), is_mapped=is_sharded)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        for key, value in values.items():
            # Beside moments there are counts, which every process has whole.
            if torch.is_tensor(value):
                is_moment = value.shape == parameters[number].shape
                values[key] = like(value, parameters[number]) if is_moment else value.clone()
    moments = checkpoint / moments_file(index)
    # Not any file that happens to lie there: a folder of the Hub may keep one of another layout.
    if moments.name in read_state_file(checkpoint / STATE_FILE)[1]:
        with _opened(moments) as saved:
            for name in saved.keys():  # noqa: SIM118
                number, _, key = name.partition(".")
                if not (number.isdecimal() and int(number) < len(parameters)):
                    raise InputError(
                        f"{moments} holds another optimiser ({name})",
                        advice="pass another checkpoint to `resume_from_checkpoint`",
                    )
                values = state["state"].setdefault(int(number), {})
                # What is read is mapped, and the file may be removed.
                values[key] = read_like(saved, name, parameters[int(number)]).clone()
    # Decay, betas and the like are the flags' of now, which the run has said it takes.
    for group, kept in zip(state["param_groups"], optimizer.param_groups, strict=True):
        group |= {key: value for key, value in kept.items() if key != "params"}
    optimizer.load_state_dict(state)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Lend a safetensors file, of which only what is asked for is read.

    Raises:
        InputError: it is none.
    """
    try:
        opened = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)})",
            advice="pass another checkpoint to `resume_from_checkpoint`",
        ) from error
    with opened as file:
        yield file


def _load_state(path: Path, *, is_mapped: bool = False) -> dict[str, Any]:
    """Return what torch saved: tensors, numbers and containers of them; nothing else is made.

    Args:
        path: of the file.
        is_mapped: whether tensors are read when they are used, as long as the file is there.

    Raises:
        InputError: the file holds anything else, or cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=is_mapped
        )
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


def moments_file(index: int) -> str:
    """Return the name of the file with what of an optimiser's state is sharded as parameters are.

    Its tensors are called by the number of the parameter and the name in its state: `3.exp_avg`.
    """
    return Path(optimizer_file(index)).with_suffix(".safetensors").name


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    stat = path.stat()
    return _digest_as_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)  # a run that resumes looks several times at a checkpoint's files
def _digest_as_of(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
