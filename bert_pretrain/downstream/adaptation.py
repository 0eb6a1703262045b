"""Masked words before labels: an encoder goes on learning from unlabelled texts of its task.

A text encoder and texts enter; the folder of an encoder that has learnt from them leaves. It is
`bert-pretrain pretrain --objective mlm` in a process of its own, with all that a run has.

Source: Gururangan et al. 2020, "Don't Stop Pretraining", section 4 (task-adaptive pretraining).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from bert_pretrain.data.atomic import atomic_file
from bert_pretrain.data.programs import environment, run_program
from bert_pretrain.data.run_folder import read_rows
from bert_pretrain.downstream.models import default_learning_rate
from bert_pretrain.downstream.sources import Splits
from bert_pretrain.downstream.tables import Texts
from bert_pretrain.errors import InputError
from bert_pretrain.text.file_search import find_files

ADAPTED = "adapted"  # the run's folder in the output folder
_OWN_TEXTS = "unlabelled.jsonl"
# Muon's rate is known for encoders that are narrow; of others the rate of fine-tuning is.
_WIDEST_FOR_MUON, _MUON_RATE = 512, 7e-4
_ROWS_OF_UPDATE = 128  # rows of a task are short
# What a launcher says to a process, which would make a process of the adaptation wait for others.
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


@dataclass(frozen=True)
class Adaptation:
    """How an encoder learns from unlabelled texts.

    Attributes:
        minutes: of learning, more than 0.
        files: of text, as pretraining reads them; none = the training rows' own texts.
        text_column: of the files that are tables.
    """

    minutes: float
    files: tuple[str, ...]
    text_column: str | None

    def check(self) -> None:
        """Raise `InputError` if a file of text is missing, empty or of an unknown kind."""
        find_files(self.files, parameter="unlabelled_files")

    def command(
        self, model: str, config: PreTrainedConfig, folder: Path, *, max_seq_length: int, seed: int
    ) -> list[str]:
        """Return the command line of the run, which begins it or goes on with it."""
        flags: dict[str, Any] = {
            "objective": "mlm",
            "recipe": "hours",
            "model_name_or_path": model,
            "max_seq_length": max_seq_length,
            "max_hours": self.minutes / 60,
            "global_batch_size": _ROWS_OF_UPDATE,
            "warmup_steps": 50,
            "seed": seed,
            "output_dir": folder,
            "resume_from_checkpoint": "auto",
        }
        if getattr(config, "hidden_size", _WIDEST_FOR_MUON + 1) <= _WIDEST_FOR_MUON:
            flags["learning_rate"] = _MUON_RATE
        else:
            flags |= {"optimizer": "adamw", "learning_rate": default_learning_rate(config)}
        if self.text_column and self.files:
            flags["text_column"] = self.text_column
        flags["data_files"] = self.files or (folder.parent / _OWN_TEXTS,)
        words = []
        for name, value in flags.items():
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
        return [sys.executable, "-m", "bert_pretrain", "pretrain", *words]


def adapt(
    adaptation: Adaptation,
    model: str,
    splits: Splits,
    output_dir: Path,
    *,
    seed: int,
) -> tuple[str, dict[str, Any]]:
    """Let an encoder learn, or go on learning, from unlabelled texts.

    Args:
        adaptation: from which texts and how long.
        model: folder or Hub id of the encoder.
        splits: of the task; its training texts are learnt from where no files are given, and no row
            is longer than its rows.
        output_dir: gets the folder `adapted`, a run directory.
        seed: of masks and order.

    Returns:
        The folder of the adapted encoder, and what results say of it.

    Raises:
        InputError: the run refused its input; it has said why. Nothing has been written then.
    """
    folder = output_dir / ADAPTED
    final = folder / "final"
    if not final.is_dir():
        if not adaptation.files:
            _write_texts(splits.texts["train"], output_dir / _OWN_TEXTS)
        command = adaptation.command(
            model, splits.config, folder, max_seq_length=splits.max_seq_length, seed=seed
        )
        own = {name: value for name, value in environment().items() if name not in _OF_LAUNCHERS}
        status = run_program(command, own)
        if status > 2 or status < 0:  # a signal, or an error
            raise SystemExit(abs(status) + 128 * (status < 0))
        if status:
            (output_dir / _OWN_TEXTS).unlink(missing_ok=True)
            raise InputError(
                f"the encoder could not learn from the unlabelled texts (status {status}; the "
                "message above says why, and calls them data_files)",
                advice="change `unlabelled_files`, or leave the minutes out",
            )
    return str(final), _described(adaptation, read_rows(folder / "metrics.jsonl"))


def _write_texts(texts: Texts, path: Path) -> None:
    """Write a document for each row; the second text of a pair is its second paragraph."""
    pairs = [texts.first] if texts.second is None else [texts.first, texts.second]
    with atomic_file(path) as aside:
        lines = (json.dumps({"text": "\n".join(row)}) for row in zip(*pairs, strict=True))
        aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _described(adaptation: Adaptation, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    measured = [row for row in rows if row["split"] == "validation"]
    return {
        "minutes": adaptation.minutes,
        "texts": list(adaptation.files) or "the training rows' own",
        "updates": measured[-1]["step"],
        "mlm_loss_before": measured[0]["mlm_loss"],
        "mlm_loss_after": measured[-1]["mlm_loss"],
    }
