"""What of a run is published, and when: exports with card, curves and a record without secrets."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

from bert_pretrain.data.atomic import replace_folder, write_json
from bert_pretrain.data.digests import digests_of, seal
from bert_pretrain.data.run_folder import (
    checkpoint_path,
    iterate_rows,
    list_checkpoints,
    read_final,
    read_run_json,
    step_of,
    thinned,
)
from bert_pretrain.publishing.hub import STATE_FOLDER
from bert_pretrain.publishing.model_card import draw_curves, hub_sources, model_card, read_emissions
from bert_pretrain.publishing.pusher import MAIN, OUTBOX, HubPusher, link_tree
from bert_pretrain.publishing.scrub import paths_in, scrub

_SUBMITTED = "submitted_to"  # file of a checkpoint that names the repository it was submitted for


class Publishable(Protocol):
    """What is asked of a task to publish its model."""

    @property
    def data_card(self) -> str:
        """What the data are, as text for the model card."""

    def export(self, model: PreTrainedModel, directory: Path) -> None:
        """Write the model and what it needs to be used, loadable by stock transformers."""

    def card_fields(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the model card says of the model; see `publishing.model_card`."""


def write_publication(
    model: PreTrainedModel,
    exporter: Publishable,
    run_dir: Path,
    directory: Path,
    *,
    step: int,
    seconds: float,
) -> None:
    """Write a run's model, tokenizer or image processor, card, curves and public run.json.

    Args:
        model: as trained so far, without the wrapper of distributed training.
        exporter: of the run's objective.
        run_dir: with run.json and, if it has trained anything, metrics.jsonl.
        directory: replaced if it exists; it appears whole or not at all.
        step: updates done.
        seconds: of the run so far.
    """
    aside = directory.with_name(directory.name + ".new")
    exporter.export(model, aside)
    exported = [str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()]
    # Card, curves and this record are not among them: whoever publishes a model may edit its card.
    files = digests_of(aside, exported)
    metrics = run_dir / "metrics.jsonl"
    # A finished run that is continued in a new folder has nothing left to measure.
    read = iterate_rows(metrics) if metrics.is_file() else ()
    rows = thinned(row for row in read if row["step"] <= step)
    if rows:
        draw_curves(rows, aside / "curves.png")
    record = read_run_json(run_dir) | {"step": step, "files": files}
    sources = hub_sources(record["config"])
    public_names = [record["config"].get("hub_model_id"), *sources.values()]
    paths = paths_in(record, str(run_dir.absolute()))
    record = scrub(record, keep=[name for name in public_names if name], paths=paths)
    write_json(aside / "run.json", seal(record))
    card = model_card(
        exporter.card_fields(model),
        record=record,
        data_card=scrub(exporter.data_card, paths=paths),
        metrics_rows=rows,
        step=step,
        seconds=seconds,
        **sources,
        emissions_grams=read_emissions(run_dir),
    )
    card.save(aside / "README.md")
    replace_folder(aside, directory)


@dataclass
class Publisher:
    """Brings a run to the Hub while it trains: what goes up when, and to which branch.

    Attributes:
        write: writes into a folder, as `write_publication` does, the model of a checkpoint.
        repo_id: None = the folder's name.
        is_private: as for `HubPusher`.
        strategy: publish at the end, at every checkpoint too, or each also on its own branch.
        with_state: publish checkpoints beside their exports, to continue the run from.
        max_wait_seconds: how long `finish` waits for uploads.
    """

    run_dir: Path
    write: Callable[[Path, Path], None]
    repo_id: str | None
    is_private: bool
    strategy: Literal["end", "every_save", "all_checkpoints"]
    with_state: bool
    max_wait_seconds: float

    def __post_init__(self) -> None:
        self.pusher = open_pusher(self.run_dir, self.repo_id, is_private=self.is_private)

    def on_save(self, checkpoint: Path) -> None:
        """Publish a checkpoint, the newest that is whole, if asked for."""
        if self.strategy != "end":
            self._submit(checkpoint, is_newest=True)

    def submit_missed(self, *, until_step: int) -> None:
        """Publish the checkpoints that an earlier process of the run did not submit.

        Those after `until_step`, from which the run continues, are written anew.
        """
        if self.strategy == "end":
            return
        checkpoints = list_checkpoints(self.run_dir / "checkpoints")
        present = [path for path in checkpoints if step_of(path) <= until_step]
        for checkpoint in present[-1:] if self.strategy == "every_save" else present:
            if not is_submitted(checkpoint, self.pusher.repo_id):
                self.pusher.say(f"{checkpoint.name} has not been published yet; it is now")
                is_newest = checkpoint == present[-1]
                self._submit(checkpoint, is_newest=is_newest)

    def finish(self) -> None:
        """Publish the final export, wait for what is under way, and say how it ended."""
        submit_final(self.pusher, self.run_dir, with_state=self.with_state)
        self.pusher.finish(self.max_wait_seconds)

    def _submit(self, checkpoint: Path, *, is_newest: bool) -> None:
        def fill(folder: Path) -> None:
            self.write(folder, checkpoint)
            if self.with_state:
                _link_state(checkpoint, folder)

        branches = [checkpoint.name] if self.strategy == "all_checkpoints" else []
        if self.pusher.submit(fill, *branches, *([MAIN] if is_newest else [])):
            # On a full disk nothing is marked, and the checkpoint is submitted once more.
            with contextlib.suppress(OSError):
                (checkpoint / _SUBMITTED).write_text(self.pusher.repo_id)


def open_pusher(
    run_dir: Path,
    repo_id: str | None,
    *,
    is_private: bool,
    flags: Sequence[str] = (),
    outbox: Path | None = None,
) -> HubPusher:
    """Return a pusher of the outbox in a folder, by default to a repository of the folder's name.

    The command to finish later gets the `flags` that the folder's record lacks. `outbox` is another
    one than that of the folder's own repository.
    """
    return HubPusher(
        outbox or run_dir / OUTBOX,
        repo_id or run_dir.resolve().name,
        is_private=is_private,
        finish_command=f"bert-pretrain hub {shlex.join(['push', str(run_dir), *flags])}",
    )


def submit_final(pusher: HubPusher, run_dir: Path, *, with_state: bool) -> None:
    """Put `final/` into the outbox, with the checkpoint of the same step if asked for."""
    final = read_final(run_dir) if with_state else None
    step = None if final is None else final.step
    checkpoint = None if step is None else checkpoint_path(run_dir / "checkpoints", step)
    has_state = checkpoint is not None and checkpoint.is_dir()
    if with_state and not has_state:
        pusher.say(
            f"WARNING: {run_dir / 'final'} is published without training state: the checkpoint "
            f"that belongs to it is not in {run_dir / 'checkpoints'}"
        )

    def fill(folder: Path) -> None:
        link_tree(run_dir / "final", folder)
        if checkpoint is not None and has_state:
            _link_state(checkpoint, folder)

    pusher.submit(fill, MAIN)


def is_submitted(checkpoint: Path, repo_id: str) -> bool:
    """Return whether a checkpoint was put into the outbox for a repository."""
    mark = checkpoint / _SUBMITTED
    return mark.is_file() and mark.read_text() == repo_id


def _link_state(checkpoint: Path, folder: Path) -> None:
    link_tree(checkpoint, folder / STATE_FOLDER)
    (folder / STATE_FOLDER / _SUBMITTED).unlink(missing_ok=True)
