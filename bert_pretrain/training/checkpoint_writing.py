"""Writes checkpoints that are whole or not there, and removes the ones that need not stay.

Enters: the copy of a run that `snapshots` has taken. The first process makes a folder aside, writes
what it holds, lists every file with its digest, and renames the folder, whenever that is. Where the
model is sharded, all processes have written their shards into its files before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from bert_pretrain.data.atomic import replace_folder
from bert_pretrain.data.run_folder import checkpoint_path, list_checkpoints, step_of
from bert_pretrain.errors import InputError
from bert_pretrain.training.checkpoint import digest_of
from bert_pretrain.training.checkpoint_state import (
    STATE_FILE,
    LoopState,
    read_state_file,
    write_state,
)
from bert_pretrain.training.divided_files import Written, create, digest_of_parts, write_parts
from bert_pretrain.training.snapshots import Snapshot


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


def open_folder(snapshot: Snapshot, folder: Path, *, step: int) -> Path:
    """Make the folder in which a checkpoint is written before it has its name, and return it.

    Args:
        snapshot: whose divided files are made too, for all processes to write into.
        folder: the run's checkpoint folder.
        step: updates of the checkpoint.
    """
    aside = path_aside(folder, step)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    create(aside, snapshot.divided)
    return aside


def path_aside(folder: Path, step: int) -> Path:
    """Return where a checkpoint is before it has its name."""
    final = checkpoint_path(folder, step)
    return final.with_name(f"{final.name}.tmp")


def write_shards(snapshot: Snapshot, folder: Path, *, step: int) -> dict[str, list[Written]]:
    """Write what this process holds of a sharded checkpoint, whose folder is open.

    Returns:
        What was written, by file, for `write_checkpoint` of the first process.
    """
    if snapshot.arrival is not None:
        snapshot.arrival.synchronize()
    return write_parts(path_aside(folder, step), snapshot.divided)


def write_checkpoint(
    snapshot: Snapshot,
    folder: Path,
    *,
    state: LoopState,
    config_files: Mapping[str, bytes],
    retention: Retention,
    needed: int | None,
    shards: Sequence[Mapping[str, list[Written]]] = (),
) -> Path:
    """Write a checkpoint and then remove the ones that need not stay.

    Args:
        snapshot: of the tensors.
        folder: the run's checkpoint folder.
        state: of the loop.
        config_files: what transformers needs beside the weights, by file name.
        retention: which checkpoints stay.
        needed: updates of one that the run may go back to; None = it needs none.
        shards: what every process has written into the divided files.

    Returns:
        The checkpoint's folder.

    Raises:
        MachineError: a file does not hold what the processes have written into it.
    """
    if snapshot.divided:
        aside = path_aside(folder, state["step"])
    else:
        aside = open_folder(snapshot, folder, step=state["step"])
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
    digests = {}
    for path in files:
        name = str(path.relative_to(aside))
        if name in snapshot.divided:
            parts = [part for written in shards for part in written[name]]
            digests[name] = digest_of_parts(path, parts)
        else:
            digests[name] = digest_of(path)
    write_state(aside / STATE_FILE, state, digests, is_sharded=bool(snapshot.divided))
    _flush_to_disk([*files, aside / STATE_FILE])
    final = checkpoint_path(folder, state["step"])
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
    Only those of the phase that was evaluated last are compared: each has held-out rows of its own.
    """
    losses: dict[Path, float] = {}
    newest_phase = None
    for checkpoint in reversed(checkpoints):
        with contextlib.suppress(InputError):
            state, _ = read_state_file(checkpoint / STATE_FILE)
            loss, phase = state["held_out_loss"], state["held_out_phase"]
            if loss is None:
                continue
            newest_phase = phase if newest_phase is None else newest_phase
            if phase == newest_phase:
                losses[checkpoint] = loss
    return min(losses, key=losses.__getitem__, default=None)


def _flush_to_disk(paths: list[Path]) -> None:
    for path in paths:
        with path.open("r+b") as file:  # Windows flushes what may be written to alone
            os.fsync(file.fileno())
