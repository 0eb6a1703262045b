"""What is published of a run: the export with its card, curves and public record, and when it goes to the Hub."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from bert_pretrain.arguments import HubArguments
from bert_pretrain.checkpoint import list_checkpoints
from bert_pretrain.evaluation.curves import draw_curves
from bert_pretrain.evaluation.run_records import read_rows, read_run_json
from bert_pretrain.objectives.base import Objective
from bert_pretrain.publishing.model_card import hub_sources, model_card, read_emissions
from bert_pretrain.publishing.pusher import OUTBOX, HubPusher, link_tree
from bert_pretrain.publishing.scrub import scrub
from bert_pretrain.publishing.upload import STATE_FOLDER
from bert_pretrain.whole_files import replace_folder, write_json

MAIN = "main"


def write_publication(
    model: PreTrainedModel, objective: Objective, run_dir: Path, directory: Path, *, step: int, seconds: float
) -> None:
    """Write what a run has to show: model, tokenizer or image processor, card, curves and public run.json.

    Args:
        model: as trained so far, without the wrapper of distributed training.
        objective: exports it.
        run_dir: with run.json and, if it has trained anything, metrics.jsonl.
        directory: target; replaced if it exists. It appears whole or not at all.
        step: updates done.
        seconds: of the run so far.
    """
    aside = directory.with_name(directory.name + ".new")
    objective.export(model, aside)
    metrics = run_dir / "metrics.jsonl"
    # A finished run that is continued in a new folder has nothing left to measure.
    rows = read_rows(metrics) if metrics.is_file() else []
    if rows:
        draw_curves(metrics, aside / "curves.png")
    record = read_run_json(run_dir)
    sources = hub_sources(record["config"])
    names = [record["config"].get("hub_model_id"), *sources.values()]
    record = scrub(record, keep=[name for name in names if name])
    write_json(aside / "run.json", record)
    card = model_card(
        objective.card_fields(model),
        record=record,
        data_card=scrub(objective.data_card),
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

    def __init__(self, hub: HubArguments, run_dir: Path, write: Callable[[Path], None]) -> None:
        """Begin in the background.

        Args:
            hub: the flags.
            run_dir: the run's folder.
            write: writes what is to be published now, as `write_publication` does, into a folder.
        """
        self.pusher = open_pusher(run_dir, hub.hub_model_id or run_dir.resolve().name, is_private=hub.hub_private_repo)
        self._hub = hub
        self._run_dir = run_dir
        self._write = write

    def on_save(self, checkpoint: Path) -> None:
        """Publish the state that a checkpoint has just been written of, if the strategy says so."""
        if self._hub.hub_strategy == "end":
            return

        def fill(folder: Path) -> None:
            self._write(folder)
            if self._hub.hub_push_state:
                link_tree(checkpoint, folder / STATE_FOLDER)

        own_branch = [checkpoint.name] if self._hub.hub_strategy == "all_checkpoints" else []
        self.pusher.submit(fill, *own_branch, MAIN)

    def finish(self) -> None:
        """Publish the final export, wait for what is under way, and say what was and was not published."""
        submit_final(self.pusher, self._run_dir, with_state=self._hub.hub_push_state)
        self.pusher.finish(self._hub.hub_max_wait)


def open_pusher(run_dir: Path, repo_id: str, *, is_private: bool, flags: Sequence[str] = ()) -> HubPusher:
    """Return a pusher of a run's outbox.

    Args:
        run_dir: the folder of a run, or of a fine-tuned model.
        repo_id: as for `HubPusher`.
        is_private: as for `HubPusher`.
        flags: that the command to finish later needs, because the folder's own record does not have them.
    """
    command = f"python -m bert_pretrain.hub {shlex.join(['push', str(run_dir), *flags])}"
    return HubPusher(run_dir / OUTBOX, repo_id, is_private=is_private, finish_command=command)


def submit_final(pusher: HubPusher, run_dir: Path, *, with_state: bool) -> None:
    """Put a finished run's export into the outbox, with its last checkpoint if asked."""

    def fill(folder: Path) -> None:
        link_tree(run_dir / "final", folder)
        if with_state:
            for newest in list_checkpoints(run_dir / "checkpoints")[-1:]:
                link_tree(newest, folder / STATE_FOLDER)

    pusher.submit(fill, MAIN)
