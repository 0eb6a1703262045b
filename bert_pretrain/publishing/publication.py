"""What is published of a run: the export with its card, curves and public record, and when it goes to the Hub."""

from __future__ import annotations

import contextlib
import json
import shlex
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from bert_pretrain.config.arguments import HubArguments
from bert_pretrain.data.atomic import replace_folder, write_json
from bert_pretrain.data.run_folder import (
    checkpoint_path,
    list_checkpoints,
    read_final,
    read_rows,
    read_run_json,
    step_of,
)
from bert_pretrain.objectives.interface import Exporter
from bert_pretrain.publishing.curves import draw_curves
from bert_pretrain.publishing.model_card import hub_sources, model_card, read_emissions
from bert_pretrain.publishing.pusher import OUTBOX, HubPusher, link_tree
from bert_pretrain.publishing.scrub import scrub
from bert_pretrain.publishing.upload import STATE_FOLDER

MAIN = "main"
_SUBMITTED = "submitted_to"  # file of a checkpoint that names the repository it was submitted for


def write_publication(
    model: PreTrainedModel,
    exporter: Exporter,
    run_dir: Path,
    directory: Path,
    *,
    step: int,
    seconds: float,
) -> None:
    """Write what a run has to show: model, tokenizer or image processor, card, curves and public run.json.

    Args:
        model: as trained so far, without the wrapper of distributed training.
        exporter: exports it.
        run_dir: with run.json and, if it has trained anything, metrics.jsonl.
        directory: target; replaced if it exists. It appears whole or not at all.
        step: updates done.
        seconds: of the run so far.
    """
    aside = directory.with_name(directory.name + ".new")
    exporter.export(model, aside)
    metrics = run_dir / "metrics.jsonl"
    # A finished run that is continued in a new folder has nothing left to measure.
    rows = [row for row in read_rows(metrics) if row["step"] <= step] if metrics.is_file() else []
    if rows:
        with tempfile.TemporaryDirectory() as folder:
            shown = Path(folder) / metrics.name
            shown.write_text("".join(json.dumps(row) + "\n" for row in rows))
            draw_curves(shown, aside / "curves.png")
    record = read_run_json(run_dir) | {"step": step}
    sources = hub_sources(record["config"])
    names = [record["config"].get("hub_model_id"), *sources.values()]
    record = scrub(record, keep=[name for name in names if name])
    write_json(aside / "run.json", record)
    card = model_card(
        exporter.card_fields(model),
        record=record,
        data_card=scrub(exporter.data_card),
        metrics_rows=rows,
        step=step,
        seconds=seconds,
        **sources,
        emissions_grams=read_emissions(run_dir),
    )
    card.save(aside / "README.md")
    replace_folder(aside, directory)


class Publisher:
    """Brings a run to the Hub while it trains: what goes up when, and to which branch."""

    def __init__(self, hub: HubArguments, run_dir: Path, write: Callable[..., None]) -> None:
        """Begin in the background.

        Args:
            hub: the flags.
            run_dir: the run's folder.
            write: writes what is to be published now, as `write_publication` does, into a folder;
                or of a checkpoint that is its second argument.
        """
        self.pusher = open_pusher(
            run_dir, hub.hub_model_id or run_dir.resolve().name, is_private=hub.hub_private_repo
        )
        self._hub = hub
        self._run_dir = run_dir
        self._write = write

    def on_save(self, checkpoint: Path) -> None:
        """Publish the state that a checkpoint has just been written of, if the strategy says so."""
        if self._hub.hub_strategy != "end":
            self._submit(checkpoint, self._write, is_newest=True)

    def submit_missed(self, *, until_step: int) -> None:
        """Publish the checkpoints that were never submitted: the run was killed before, or did not push then.

        Args:
            until_step: of the checkpoint that the run continues from; later ones are written anew.
        """
        strategy = self._hub.hub_strategy
        present = [
            path
            for path in list_checkpoints(self._run_dir / "checkpoints")
            if step_of(path) <= until_step
        ]
        for checkpoint in present[-1 if strategy == "every_save" else 0 :]:
            if strategy != "end" and not is_submitted(checkpoint, self.pusher.repo_id):
                self.pusher.say(f"{checkpoint.name} has not been published yet; it is now")
                is_newest = checkpoint == present[-1]
                self._submit(
                    checkpoint, partial(self._write, checkpoint=checkpoint), is_newest=is_newest
                )

    def _submit(self, checkpoint: Path, write: Callable[[Path], None], *, is_newest: bool) -> None:
        def fill(folder: Path) -> None:
            write(folder)
            if self._hub.hub_push_state:
                _link_state(checkpoint, folder)

        branches = [checkpoint.name] if self._hub.hub_strategy == "all_checkpoints" else []
        if self.pusher.submit(fill, *branches, *([MAIN] if is_newest else [])):
            with contextlib.suppress(
                OSError
            ):  # a full disk; the checkpoint is then submitted once more
                (checkpoint / _SUBMITTED).write_text(self.pusher.repo_id)

    def finish(self) -> None:
        """Publish the final export, wait for what is under way, and say what was and was not published."""
        submit_final(self.pusher, self._run_dir, with_state=self._hub.hub_push_state)
        self.pusher.finish(self._hub.hub_max_wait)


def open_pusher(
    run_dir: Path, repo_id: str, *, is_private: bool, flags: Sequence[str] = ()
) -> HubPusher:
    """Return a pusher of a run's outbox.

    Args:
        run_dir: the folder of a run, or of a fine-tuned model.
        repo_id: as for `HubPusher`.
        is_private: as for `HubPusher`.
        flags: that the command to finish later needs, because the folder's own record does not have
            them.
    """
    command = f"bert-pretrain hub {shlex.join(['push', str(run_dir), *flags])}"
    return HubPusher(run_dir / OUTBOX, repo_id, is_private=is_private, finish_command=command)


def submit_final(pusher: HubPusher, run_dir: Path, *, with_state: bool) -> None:
    """Put a finished run's export into the outbox, with the checkpoint of the same step if asked."""
    checkpoint = None
    if with_state:
        final = read_final(run_dir)
        if final is not None and final.step is not None:
            checkpoint = checkpoint_path(run_dir / "checkpoints", final.step)
        if checkpoint is None or not checkpoint.is_dir():
            pusher.say(
                f"WARNING: {run_dir / 'final'} is published without training state: the checkpoint "
                "that belongs to it "
                f"is not in {run_dir / 'checkpoints'}"
            )
            checkpoint = None

    def fill(folder: Path) -> None:
        link_tree(run_dir / "final", folder)
        if checkpoint is not None:
            _link_state(checkpoint, folder)

    pusher.submit(fill, MAIN)


def is_submitted(checkpoint: Path, repo_id: str) -> bool:
    """Return whether a checkpoint was put into the outbox for a repository, whether or not it has arrived there."""
    mark = checkpoint / _SUBMITTED
    return mark.is_file() and mark.read_text() == repo_id


def _link_state(checkpoint: Path, folder: Path) -> None:
    link_tree(checkpoint, folder / STATE_FOLDER)
    (folder / STATE_FOLDER / _SUBMITTED).unlink(missing_ok=True)
