"""Checkpoints that are whole or not there: written aside, listed with their digests, then renamed.

Enters: the model and the optimisers of all processes. Leaves: `checkpoints/step-000100/` with the
model (loadable by stock transformers), the optimisers, the average of the weights where there is
one, and `trainer_state.json`, which also names every file and its digest. A checkpoint is the same
on any layout: what is sharded is written whole, and each process takes its shard of it again, so
that a run continues on another layout.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from bert_pretrain.data.atomic import replace_folder
from bert_pretrain.data.run_folder import checkpoint_path, list_checkpoints
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.sharding import DistributedModel, like, whole

STATE_FILE = "trainer_state.json"
WEIGHTS_FILE = "model.safetensors"
SCALER_FILE = "scaler.pt"
AVERAGE_FILE = "ema.safetensors"
FORMAT_VERSION = 1  # of the state file; raised whenever what it holds changes


def save_checkpoint(
    model: DistributedModel,
    average: WeightAverage | None,
    folder: Path,
    *,
    step: int,
    state: dict[str, Any],
    write_config: Callable[[Path], None],
    save_total_limit: int,
) -> Path:
    """Write the checkpoint of a step and remove the oldest beyond the limit.

    Args:
        model: with its optimisers; all processes must call this function.
        average: of its weights; None = there is none.
        folder: the run's checkpoint folder.
        step: updates done.
        state: JSON-able state of the loop, the same on every process.
        write_config: writes what transformers needs beside the weights into a folder.
        save_total_limit: checkpoints kept, the newest, and beside them the best by its held-out
            loss; 0 = all.

    Returns:
        The checkpoint's folder.
    """
    accelerator = model.accelerator
    final = checkpoint_path(folder, step)
    aside = folder / f"{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    _write_tensors(model, average, aside)
    if accelerator.is_main_process:
        write_config(aside)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        listing = {str(path.relative_to(aside)): _digest(path) for path in files}
        _write_state(aside / STATE_FILE, state | {"files": listing})
        _flush_to_disk([*files, aside / STATE_FILE])
        replace_folder(aside, final)
        _rotate(folder, save_total_limit)
    accelerator.wait_for_everyone()
    return final


def find_checkpoint(resume_from: str, folder: Path) -> Path | None:
    """Return the checkpoint that a run continues from.

    Args:
        resume_from: `latest`, or the path of a checkpoint.
        folder: the run's checkpoint folder, searched for `latest`.

    Returns:
        Its folder, with `latest` the newest one that is whole; None if there is none at all, as
        when the run was ended before its first checkpoint.

    Raises:
        InputError: the path is no checkpoint, or all that there are are damaged.
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


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's loop state after checking that every file is what was written.

    Raises:
        InputError: a file is missing or damaged.
    """
    state = _read_state_file(checkpoint / STATE_FILE)
    listing = state.pop("files")
    for name, digest in listing.items():
        path = checkpoint / name
        if not path.is_file() or _digest(path) != digest:
            raise InputError(
                f"{path} is missing or damaged (its digest is not the one written)",
                advice="pass an older checkpoint to `resume_from_checkpoint`",
            )
    return state


def _newest_whole(checkpoints: list[Path]) -> Path | None:
    """Return the newest checkpoint that is what was written; None if the list is empty.

    Raises:
        InputError: none of them is.
    """
    damages = []
    for checkpoint in reversed(checkpoints):
        try:
            read_state(checkpoint)
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


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write the loop's state, with the version of its form and a digest of it all."""
    content = {"format_version": FORMAT_VERSION} | state
    path.write_text(json.dumps(content | {"digest": _digest_of_state(content)}, indent=1))


def _read_state_file(path: Path) -> dict[str, Any]:
    """Return the content of a state file.

    Raises:
        InputError: it cannot be read, is damaged, or is of another version.
    """
    advice = "pass another checkpoint to `resume_from_checkpoint`"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})", advice=advice) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} is of version {version} but must be of {FORMAT_VERSION}",
            advice=f"{advice}, or continue the run with the version of this program that began it",
        )
    if content.pop("digest", None) != _digest_of_state(content):
        raise InputError(f"{path} is damaged (its digest is not the one written)", advice=advice)
    del content["format_version"]
    state: dict[str, Any] = content
    return state


def _digest_of_state(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    targets = _without_ties(model.trained)
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
        state = _load_state(checkpoint / _optimizer_file(index))
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


@torch.no_grad()
def _write_tensors(model: DistributedModel, average: WeightAverage | None, folder: Path) -> None:
    """Write weights, their average and optimiser states on the first process; all must call it."""
    is_writing = model.accelerator.is_main_process

    def gather(value: Any) -> Any:
        value = whole(value)
        if not is_writing:  # they keep nothing, so that no two tensors are whole there at once
            return None
        return value.cpu().contiguous() if torch.is_tensor(value) else value

    files = {WEIGHTS_FILE: _without_ties(model.trained)}
    if average is not None:
        files[AVERAGE_FILE] = average.values
    for file, tensors in files.items():
        gathered = {name: gather(value) for name, value in tensors.items()}
        if is_writing:
            save_file(gathered, folder / file, metadata={"format": "pt"})
        del gathered
    for index, prepared in enumerate(model.optimizers):
        state = prepared.optimizer.state_dict()
        state["state"] = {
            number: {key: gather(value) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        if is_writing:
            torch.save(state, folder / _optimizer_file(index))
    if model.accelerator.scaler is not None and is_writing:
        torch.save(model.accelerator.scaler.state_dict(), folder / SCALER_FILE)


def _without_ties(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, those with several names under the first, as saved."""
    named: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def _optimizer_file(index: int) -> str:
    return f"optimizer_{index}.bin" if index else "optimizer.bin"


def _rotate(folder: Path, save_total_limit: int) -> None:
    for stale in (*folder.glob("step-*.tmp"), *folder.glob("step-*.old")):
        shutil.rmtree(stale)
    if save_total_limit:
        checkpoints = list_checkpoints(folder)
        best = _best(checkpoints)
        for path in checkpoints[:-save_total_limit]:
            if path == best:
                continue
            # Renamed first, so that an interruption never leaves half a checkpoint under a valid
            # name.
            doomed = path.with_name(path.name + ".tmp")
            os.replace(path, doomed)
            shutil.rmtree(doomed)


def _best(checkpoints: list[Path]) -> Path | None:
    """Return the checkpoint with the lowest held-out loss, the newest of equals; None if none has.

    A run that has diverged goes on from it, when all that were kept as the newest are worthless.
    """
    losses: dict[Path, float] = {}
    for checkpoint in reversed(checkpoints):
        with contextlib.suppress(InputError):
            loss = _read_state_file(checkpoint / STATE_FILE)["held_out_loss"]
            if loss is not None:
                losses[checkpoint] = loss
    return min(losses, key=losses.__getitem__, default=None)


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_as_of(path, stat.st_size, stat.st_mtime_ns)


@functools.cache  # a run that resumes looks several times at files that nobody changes
def _digest_as_of(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_to_disk(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
