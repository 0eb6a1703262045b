"""Checkpoints that are whole or not there: written aside, listed with their digests, then renamed.

Enters: the trainer's objects through Accelerate. Leaves: `checkpoints/step-000100/` with the model
(loadable by stock transformers), the optimisers, and `trainer_state.json`, which also names every
file and its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from bert_pretrain.data.atomic import replace_folder
from bert_pretrain.data.run_folder import checkpoint_path, list_checkpoints
from bert_pretrain.errors import InputError

STATE_FILE = "trainer_state.json"


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    *,
    step: int,
    state: dict[str, Any],
    write_config: Callable[[Path], None],
    save_total_limit: int,
) -> Path:
    """Write the checkpoint of a step and remove the oldest beyond the limit.

    Args:
        accelerator: holds model and optimisers; all processes must call this function.
        folder: the run's checkpoint folder.
        step: updates done.
        state: JSON-able state of the loop, the same on every process.
        write_config: writes what transformers needs beside the weights into a folder.
        save_total_limit: checkpoints kept, the newest; 0 = all.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoint_path(folder, step)
    aside = folder / f"{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_config(aside)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        listing = {str(path.relative_to(aside)): _digest(path) for path in files}
        (aside / STATE_FILE).write_text(json.dumps(state | {"files": listing}, indent=1))
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
        Its folder; None if `latest` finds none, as when the run was ended before its first
        checkpoint.

    Raises:
        InputError: the path is no checkpoint.
    """
    if resume_from == "latest":
        checkpoints = list_checkpoints(folder)
        return checkpoints[-1] if checkpoints else None
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
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text())
        listing = state.pop("files")
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise InputError(
            f"{checkpoint / STATE_FILE} cannot be read ({error})",
            advice="pass another checkpoint to `resume_from_checkpoint`",
        ) from error
    for name, digest in listing.items():
        path = checkpoint / name
        if not path.is_file() or _digest(path) != digest:
            raise InputError(
                f"{path} is missing or damaged (its digest is not the one written)",
                advice="pass an older checkpoint to `resume_from_checkpoint`",
            )
    return state


def load_model(checkpoint: Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Return the model of a checkpoint, on the CPU and in float32."""
    model: PreTrainedModel = model_class.from_pretrained(str(checkpoint), dtype=torch.float32)
    return model


def _rotate(folder: Path, save_total_limit: int) -> None:
    for stale in (*folder.glob("step-*.tmp"), *folder.glob("step-*.old")):
        shutil.rmtree(stale)
    if save_total_limit:
        for path in list_checkpoints(folder)[:-save_total_limit]:
            # Renamed first, so that an interruption never leaves half a checkpoint under a valid
            # name.
            doomed = path.with_name(path.name + ".tmp")
            os.replace(path, doomed)
            shutil.rmtree(doomed)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_to_disk(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
