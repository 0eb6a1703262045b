"""A run's folder: who may write there, what run.json records, what a checkpoint must agree with.

Called by the program before and after it has built the trainer.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from bert_pretrain.data.atomic import check_creatable, write_json
from bert_pretrain.data.digests import seal
from bert_pretrain.data.processes import gather_on_hosts
from bert_pretrain.data.run_folder import LOCK_FILE, list_checkpoints, read_run_json
from bert_pretrain.errors import InputError, spell, without_secrets
from bert_pretrain.hardware import describe_run
from bert_pretrain.training.changes import changes, table
from bert_pretrain.training.checkpoint import find_checkpoint, read_state, set_newer_aside
from bert_pretrain.training.trainer import Trainer

_UNFINISHED = "run.json.tmp"  # as `write_json` names it


def claim_run_dir(
    run_dir: Path,
    resume_from: str | None,
    *,
    fetch: Callable[[str], Path | None] = lambda name: None,
) -> Path | None:
    """Check that a run may write into a folder and find the checkpoint that it continues from.

    Nothing is written there. A run that began from a checkpoint of elsewhere goes on from there
    again if it was ended before its first own checkpoint, and from its own afterwards, whether that
    place or `latest` is asked for: the same command continues it.

    Args:
        run_dir: the run's folder.
        resume_from: None = a new run; `latest`; `auto` = as `latest` where there is a run, else a
            new one; the path of a checkpoint; or what `fetch` takes.
        fetch: brings the checkpoint of a name from elsewhere, such as the Hub; None if the name is
            none of there.

    Raises:
        InputError: the folder is in use, or there is no run to continue.
    """
    has_saved = bool(list_checkpoints(run_dir / "checkpoints"))
    # Whole checkpoints are a run, also if its run.json is lost.
    holds_run = (run_dir / "run.json").is_file() or has_saved
    if resume_from == "auto":
        resume_from = "latest" if holds_run else None
    check_creatable(run_dir, parameter="output_dir")
    if resume_from is None:
        # A run killed while it began leaves at most an unfinished run.json and its lock.
        leftovers = (_UNFINISHED, LOCK_FILE)
        if run_dir.is_dir() and any(path.name not in leftovers for path in run_dir.iterdir()):
            what = "holds another run" if holds_run else "is not an empty folder"
            raise InputError(
                f"{run_dir} {what}",
                advice="pass another `output_dir`, or continue it with `resume_from_checkpoint` "
                "latest",
            )
        return None
    if resume_from == "latest" and not holds_run:
        raise InputError(
            f"`resume_from_checkpoint` is 'latest' but {run_dir} holds no run",
            advice="pass the run's `output_dir`, or leave `resume_from_checkpoint` out",
        )
    origin = _origin(run_dir)
    if origin is not None and resume_from in (origin, "latest"):
        resume_from = "latest" if has_saved else origin
    fetched = fetch(resume_from)
    checkpoint = fetched or find_checkpoint(resume_from, run_dir / "checkpoints")
    if checkpoint is None and (run_dir / "final").is_dir():
        raise InputError(
            f"{run_dir} holds a finished run, but its checkpoints are gone",
            advice="to go on from its weights pass final/ as `model_name_or_path` and another "
            "`output_dir`; to train anew, another `output_dir`",
        )
    is_of_this_run = checkpoint is None or run_dir.resolve() in checkpoint.resolve().parents
    if holds_run and resume_from != origin and (fetched is not None or not is_of_this_run):
        raise InputError(
            f"{run_dir} holds a run that {resume_from} is no checkpoint of",
            advice="pass a new `output_dir` to continue from it there",
        )
    return checkpoint


def _origin(run_dir: Path) -> str | None:
    """Return the checkpoint of elsewhere that a run began from; None if there is none."""
    with contextlib.suppress(InputError):  # it is lost or damaged
        origin: str | None = read_run_json(run_dir).get("origin")
        return origin
    return None


def refuse_other_places(trainer: Trainer) -> None:
    """Check that all processes go on from the same checkpoint, or all begin; a collective.

    Raises:
        InputError: they do not. All of them raise it.
    """
    steps = gather_on_hosts(trainer.step)
    if len(set(steps)) > 1:
        listed = ", ".join(f"{step:,} in process {rank}" for rank, step in enumerate(steps))
        raise InputError(
            f"the processes do not go on from the same update ({listed}): they see other "
            "checkpoints",
            advice="let all hosts share the folder of `output_dir`, or name the checkpoint with "
            "`resume_from_checkpoint`",
        )


def confirm_claim(run_dir: Path, resume_from: str | None, checkpoint: Path | None) -> None:
    """Check again, once the folder is held, that nothing was written since `claim_run_dir`.

    Args:
        run_dir: the run's folder.
        resume_from: as for `claim_run_dir`.
        checkpoint: that `claim_run_dir` returned.

    Raises:
        InputError: another process has begun or continued a run there.
    """
    is_of_here = checkpoint is None or run_dir.resolve() in checkpoint.resolve().parents
    if is_of_here:
        has_changed = (
            resume_from in (None, "latest", "auto")
            and claim_run_dir(run_dir, resume_from) != checkpoint
        )
    else:  # the folder had no checkpoint of its own
        has_changed = bool(list_checkpoints(run_dir / "checkpoints"))
    if has_changed:
        raise InputError(
            f"another process has continued the run in {run_dir} in the meantime",
            advice="repeat the command",
        )


def write_run_json(
    flags: dict[str, Any],
    run_dir: Path,
    trainer: Trainer,
    sources: dict[str, Any],
    *,
    checkpoint: Path | None,
) -> None:
    """Record what was asked for, what it came to, of what and on what it ran and since when.

    `checkpoint` is that which `claim_run_dir` returned. Where it is of elsewhere, that is kept, as
    `origin`, for as long as the run goes on.
    """
    origin = _origin(run_dir)
    if checkpoint is not None and run_dir.resolve() not in checkpoint.resolve().parents:
        origin = origin or flags["resume_from_checkpoint"]
    accelerator = trainer.accelerator
    effective = {
        "global_batch_size": trainer.layout.global_batch_size,
        "gradient_accumulation_steps": trainer.layout.num_micro_batches,
        "per_device_train_batch_size": trainer.rows_at_once,
        "dataloader_num_workers": trainer.layout.num_workers,
        "torch_compile": "on" if trainer.is_compiled else "off",
        "max_steps": trainer.schedule.max_steps,
        "num_processes": accelerator.num_processes,
        "is_sharded": trainer.distributed.is_sharded,
        "mixed_precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        "num_cpu_threads": torch.get_num_threads(),
    }
    # Differs at every start, also of the same run, so that `final/` can be recognised as the result
    # of the latest start.
    started = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    record = {"config": flags | effective, "started": started, "sources": sources}
    record |= {} if origin is None else {"origin": origin}
    write_json(run_dir / "run.json", seal(without_secrets(record | describe_run())))


def fingerprint(
    defining: dict[str, Any], noted: dict[str, Any], model_config: PreTrainedConfig
) -> dict[str, Any]:
    """Return what a checkpoint keeps of its run, to be compared when it is continued.

    It is as JSON gives it back, and holds no secret of this environment.

    Args:
        defining: what must be equal, by name: flags, and what identifies the training rows.
        noted: what may change, but not in silence.
        model_config: of the model in training, which must be equal too.
    """
    model = _without_bookkeeping(json.loads(model_config.to_json_string(use_diff=False)))
    found: dict[str, Any] = without_secrets({"defining": defining, "noted": noted, "model": model})
    return found


# What a configuration says of its file, not of its model; a path is nobody else's business.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "transformers_version")


def _without_bookkeeping(config: Any) -> Any:
    """Return a configuration, and its parts, without what does not change the model."""
    if not isinstance(config, dict):
        return config
    return {
        name: _without_bookkeeping(value)
        for name, value in config.items()
        if name not in _BOOKKEEPING
    }


def resume(trainer: Trainer, checkpoint: Path) -> None:
    """Continue from a checkpoint, and say what has changed since.

    Raises:
        InputError: the checkpoint is damaged, of another model, or of a run with other defining
            flags or data.
    """
    state = read_state(checkpoint)
    found = changes(state["fingerprint"], trainer.fingerprint)
    if any(not change.is_allowed for change in found):
        raise InputError(
            f"{checkpoint} is of a run that cannot be continued with these flags, data or model",
            advice="pass those of that run (its run.json has the flags), or another "
            f"`resume_from_checkpoint`. What has changed:\n{table(found)}",
        )
    trainer.load_checkpoint(checkpoint, state)
    trainer.accelerator.print(f"continuing from {checkpoint} after {trainer.step:,} updates")
    if found:
        trainer.accelerator.print(
            f"NOTE: from here on the run differs from an uninterrupted one:\n{spell(table(found))}"
        )


def leave_newer_aside(checkpoint: Path, run_dir: Path, say: Callable[[str], None]) -> None:
    """Rename checkpoints of a run after the one that it is continued from, and say so.

    Args:
        checkpoint: that it is continued from, its own or another's.
        run_dir: the run's folder, held by this process.
        say: prints a line.
    """
    if checkpoint.resolve().parent != (run_dir / "checkpoints").resolve():
        return
    for name, reason in set_newer_aside(checkpoint).items():
        say(
            f"NOTE: a newer checkpoint is no longer part of the run and is called {name} now; "
            f"remove it if you need it no more. {reason}"
        )
