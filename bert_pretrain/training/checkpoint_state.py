"""The state file of a checkpoint: what the loop needs to go on, beside weights and optimisers.

It carries the version of its form, the digest of every other file, and one of itself. Digests tell
damage; the form is checked too, since whoever writes a file can write its digest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict, cast

from bert_pretrain.data.digests import seal, unseal
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.data.json_forms import misfit
from bert_pretrain.errors import InputError

STATE_FILE = "trainer_state.json"
# Raised whenever an older program would misunderstand what is there. Of a sharded run, moments are
# in a file beside the optimiser's own; other checkpoints are as they have always been.
FORMAT_VERSION = 1
SHARDED_VERSION = 2


class OtherVersionError(InputError):
    """A state file is whole, but of another version of its form."""


class SumsState(TypedDict):
    """See `metrics.TotalSums.state_dict`."""

    sums: dict[str, float]
    counts: dict[str, float]
    weights: dict[str, float]


class SpikeState(TypedDict):
    """See `spikes.SpikeWatch.state_dict`."""

    losses: list[float]
    phase: int
    is_high: bool


class RewindState(TypedDict):
    """See `spikes.Rewinds`."""

    step: int
    number: int


class LoopState(TypedDict):
    """The state of the loop after an update, on every process and layout.

    It is the same but for `elapsed`, which is each process's own clock where that decides nothing.
    """

    step: int
    place: list[float]
    num_units: int
    num_skipped: int
    elapsed: float
    held_out_loss: float | None
    held_out_phase: int  # whose held-out rows that is of
    spikes: SpikeState
    rewinds: RewindState
    watch: dict[str, float]
    sums: SumsState
    fingerprint: dict[str, dict[str, Any]]


def write_state(
    path: Path, state: LoopState, files: dict[str, str], *, is_sharded: bool = False
) -> None:
    """Write a state file.

    Args:
        path: of the file.
        state: of the loop.
        files: digest of every other file of the checkpoint, by name.
        is_sharded: whether the processes of a sharded run have written some of them.
    """
    version = SHARDED_VERSION if is_sharded else FORMAT_VERSION
    content = {"format_version": version, **state, "files": files}
    path.write_text(json.dumps(seal(content), indent=1))


def read_state_file(path: Path) -> tuple[LoopState, dict[str, str]]:
    """Return the state of the loop, and the digest of every other file by name.

    Raises:
        OtherVersionError: it is of another version, and whole.
        InputError: it cannot be read, is damaged, or of no form of ours.
    """
    advice = "pass another checkpoint to `resume_from_checkpoint`"
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})", advice=advice) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no state of a run (it is no object)", advice=advice)
    version = content.get("format_version")
    is_damaged = False
    try:
        content = unseal(content)
    except ValueError:
        is_damaged = True
    if version not in (FORMAT_VERSION, SHARDED_VERSION):
        raise (InputError if is_damaged else OtherVersionError)(
            f"{path} is of version {version!r} but must be of {FORMAT_VERSION} or "
            f"{SHARDED_VERSION}",
            advice=f"{advice}, or continue the run with the version of this program that its "
            "run.json names",
        )
    if is_damaged:
        raise InputError(f"{path} is damaged (its digest is not the one written)", advice=advice)
    files = content.pop("files", None)
    wrong = misfit(files, dict[str, str], "files") or misfit(content, LoopState, "the state")
    if wrong or any(not _is_inside(name) for name in files):
        wrong = wrong or "files names one outside the checkpoint"
        raise InputError(f"{path} is no state of a run ({wrong})", advice=advice)
    del content["format_version"]
    return cast("LoopState", content), files


def _is_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts
