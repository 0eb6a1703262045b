"""The folder of a label-efficiency measurement: what it was made with, and every training as soon as it is finished.

A measurement that was ended is continued: what an earlier process wrote is read, and refused if it
was made otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_pretrain.data.atomic import check_creatable, make_folder, write_json, write_text
from bert_pretrain.data.locks import LOCK_FILE, held
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.label_efficiency import Measurement
from bert_pretrain.hardware import describe_run

# What to call a setting that is only the digest of something.
_NAMES = {
    "model_sha256": "model",
    "model_revision": "revision of the model",
    "train_rows_sha256": "set of training rows",
    "test_rows_sha256": "set of test rows",
}


class MeasurementLog:
    """What has been measured into a folder, and what is added to it: a line of rows.jsonl for each finished training.

    Attributes:
        folder: where it lies.
        settings: what all its measurements have in common.
        finished: what earlier processes measured; final once the folder is opened.
    """

    def __init__(self, folder: Path) -> None:
        """Read what was measured before; writes nothing.

        Raises:
            InputError: the folder cannot be used, or holds something else.
        """
        check_creatable(folder, parameter="output_dir")
        self.folder, self.settings = folder, dict[str, Any]()
        self.finished: list[Measurement] = []
        self._earlier: dict[str, Any] | None = None
        self._read()

    def _read(self) -> None:
        known = self.folder / "settings.json"
        if known.exists():
            self._earlier = _read_settings(known)
            self.finished = _read_measurements(self.folder / "rows.jsonl")
        elif self.folder.is_dir() and any(path.name != LOCK_FILE for path in self.folder.iterdir()):
            raise InputError(
                f"{self.folder} is not an empty folder", advice="pass a new one as `output_dir`"
            )

    def require(self, settings: dict[str, Any]) -> None:
        """Add settings that all measurements of the folder must share.

        Raises:
            InputError: what was measured before had others.
        """
        earlier = self._earlier
        if earlier is not None:
            changed = [
                name
                for name, value in settings.items()
                if earlier.get(name) != json.loads(json.dumps(value))
            ]
            if changed:
                listed = ", ".join(dict.fromkeys(_NAMES.get(name, name) for name in changed))
                raise InputError(
                    f"{self.folder} holds a measurement with another {listed}",
                    advice="pass a new `output_dir`",
                )
        self.settings |= settings

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the folder, ready to be added to, for this process; what was measured there is read once more.

        Raises:
            InputError: another process is at work in it, or has measured something else there in
                the meantime.
        """
        make_folder(self.folder, parameter="output_dir")
        with held(self.folder):
            self._read()
            self.require(self.settings)
            write_json(self.folder / "settings.json", self.settings)
            # A line that was cut off when the process ended is dropped before another one is added
            # to it.
            write_text(self.folder / "rows.jsonl", "".join(_line(row) for row in self.finished))
            yield

    def add(self, row: Measurement) -> None:
        """Write and print a training that is finished."""
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(_line(row))
        count = row.num_per_class or "all"
        sys.stdout.write(
            f"{count:>6} {row.arm:<12} seed {row.seed}: {row.accuracy:.4f}  {row.seconds:6.1f} s\n"
        )
        sys.stdout.flush()

    def write_results(self, results: dict[str, Any]) -> None:
        """Write label_efficiency.json."""
        write_json(
            self.folder / "label_efficiency.json",
            results | {"settings": self.settings} | describe_run(),
        )


def _line(row: Measurement) -> str:
    return json.dumps(dataclasses.asdict(row)) + "\n"


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error})", advice="pass a new `output_dir`"
        ) from error
    return settings if isinstance(settings, dict) else {}


def _read_measurements(path: Path) -> list[Measurement]:
    """Return the lines that are complete."""
    found = []
    for number, line in enumerate(
        path.read_text().splitlines(keepends=True) if path.exists() else [], start=1
    ):
        if not line.endswith("\n"):
            break
        try:
            found.append(Measurement(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}, is no measurement",
                advice="remove the line, or pass a new `output_dir`",
            ) from error
    return found
