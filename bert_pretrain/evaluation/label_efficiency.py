"""Accuracy against the number of labels: what pretraining is worth to someone with few of them.

Labels and arms (ways to learn from some rows) enter; accuracies and the points of the curve leave:
means, intervals and paired differences. Test labels are only read to count hits. Each training that
is finished is kept in a folder, so that a measurement can be continued.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.atomic import check_creatable, make_folder, write_json, write_text
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.data.run_folder import LOCK_FILE, held
from bert_pretrain.errors import InputError, without_secrets
from bert_pretrain.evaluation.features import Labels
from bert_pretrain.evaluation.statistics import Interval, t_interval

# Learns from these rows, int64 (n,), with this seed; predicts the class of every test row, (M,).
Arm: TypeAlias = Callable[[NDArray[np.int64], int], Labels]

ALL = 0  # as a number of labels per class: every row there is
# What to call a setting that is only the digest of something.
_SETTING_NAMES = {
    "model_sha256": "model",
    "model_revision": "revision of the model",
    "train_rows_sha256": "set of training rows",
    "test_rows_sha256": "set of test rows",
    "unlabelled": "set of texts without labels, or other minutes of them",
}


@dataclass(frozen=True)
class Measurement:
    """One training: `num_per_class` labels (0 = all) and the accuracy on the test rows."""

    arm: str
    num_per_class: int
    num_rows: int
    seed: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Point:
    """An arm at a number of labels: its mean over seeds, and the difference to another arm.

    Attributes:
        num_per_class: 0 = all.
        num_rows: of all classes together.
        mean: of the accuracy.
        interval: its 95 % t-interval over seeds, which draw the rows, the head and the order; None
            for one seed.
        versus: the arm compared with; None for that arm itself.
        difference: mean over seeds of this arm's accuracy less the other's on the same rows.
        difference_interval: its 95 % t-interval.
    """

    arm: str
    num_per_class: int
    num_rows: int
    num_seeds: int
    mean: float
    interval: Interval | None
    versus: str | None
    difference: float | None
    difference_interval: Interval | None


def nested_subset(labels: Labels, num_per_class: int, *, seed: int) -> NDArray[np.int64]:
    """Return the rows that are labelled, int64, sorted: so many of each class, at random.

    With the same seed, the rows of a smaller number are among those of a larger one. A smaller
    class gives all its rows; 0 means all rows.
    """
    assert num_per_class >= 0
    if num_per_class == ALL:
        return np.arange(len(labels))
    chosen = []
    for number, label in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == label)
        order = permutation(len(members), seed, Purpose.SPLIT, number)
        chosen.append(members[order[:num_per_class]])
    return np.sort(np.concatenate(chosen))


def default_counts(labels: Labels) -> list[int]:
    """Return 1, 4, 16, ... labels per class as long as the smallest class has more, then all."""
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    return [4**power for power in range(10) if 4**power < smallest] + [ALL]


def measure_curve(
    arms: dict[str, Arm],
    labels: Labels,
    test_labels: Labels,
    *,
    counts: Sequence[int],
    seeds: Sequence[int],
    finished: Iterable[Measurement] = (),
    on_measurement: Callable[[Measurement], None] = lambda measurement: None,
) -> list[Measurement]:
    """Train every arm on every number of labels with every seed.

    Args:
        arms: by name.
        labels: int (N,) of the rows that may be learnt from.
        test_labels: int (M,).
        counts: of labels per class; 0 = all.
        seeds: of the draw of rows and of training; all arms get the same rows.
        finished: what was measured before; not done again.
        on_measurement: called with each new measurement at once.

    Returns:
        All measurements asked for, old and new, by number of labels (all comes last), seed and arm.
    """
    known = {(row.arm, row.num_per_class, row.seed): row for row in finished}
    measured = []
    for count in sorted(set(counts), key=lambda count: count or math.inf):
        for seed in seeds:
            places = nested_subset(labels, count, seed=seed)
            for name, arm in arms.items():
                row = known.get((name, count, seed))
                if row is None:
                    start = time.perf_counter()
                    accuracy = float((arm(places, seed) == test_labels).mean())
                    seconds = time.perf_counter() - start
                    row = Measurement(name, count, len(places), seed, accuracy, seconds)
                    on_measurement(row)
                measured.append(row)
    return measured


def summarize(measurements: Sequence[Measurement], *, reference: str) -> list[Point]:
    """Return the points of the curve, each compared, seed by seed, with the arm `reference`."""
    groups: dict[tuple[int, str], dict[int, Measurement]] = {}
    for row in measurements:
        groups.setdefault((row.num_per_class, row.arm), {})[row.seed] = row
    points = []
    for (count, arm), rows in groups.items():
        other = groups.get((count, reference), {}) if arm != reference else {}
        differences = [
            row.accuracy - other[seed].accuracy for seed, row in rows.items() if seed in other
        ]
        mean, interval = t_interval([row.accuracy for row in rows.values()])
        gain, gain_interval = t_interval(differences) if differences else (None, None)
        point = Point(
            arm=arm,
            num_per_class=count,
            num_rows=max(row.num_rows for row in rows.values()),
            num_seeds=len(rows),
            mean=mean,
            interval=interval,
            versus=reference if differences else None,
            difference=gain,
            difference_interval=gain_interval,
        )
        points.append(point)
    return points


class MeasurementLog:
    """The folder of a measurement: a line of rows.jsonl for each finished training.

    Attributes:
        folder: where it lies.
        settings: what all measurements of the folder have in common.
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
            try:
                settings = parse_json(known.read_text())
            except ValueError as error:
                raise InputError(
                    f"{known} is damaged ({error})", advice="pass a new `output_dir`"
                ) from error
            self._earlier = settings if isinstance(settings, dict) else {}
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
        as_read = without_secrets(settings)
        earlier = as_read if self._earlier is None else self._earlier
        changed = [name for name in settings if earlier.get(name) != as_read[name]]
        if changed:
            listed = ", ".join(dict.fromkeys(_SETTING_NAMES.get(name, name) for name in changed))
            raise InputError(
                f"{self.folder} holds a measurement with another {listed}",
                advice="pass a new `output_dir`",
            )
        self.settings |= settings

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the folder for this process, and read once more what was measured there.

        Raises:
            InputError: another process is at work in it, or has measured something else there in
                the meantime.
        """
        make_folder(self.folder, parameter="output_dir")
        with held(self.folder):
            self._read()
            self.require(self.settings)
            write_json(self.folder / "settings.json", self.settings)
            # A line that was cut off when the process ended is dropped before the next one.
            write_text(self.folder / "rows.jsonl", "".join(_line(row) for row in self.finished))
            yield

    def add(self, row: Measurement) -> None:
        """Write a training that is finished."""
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(_line(row))


def _line(row: Measurement) -> str:
    return json.dumps(dataclasses.asdict(row)) + "\n"


def _read_measurements(path: Path) -> list[Measurement]:
    """Return the lines that are complete."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            found.append(Measurement(**parse_json(line)))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}, is no measurement",
                advice="remove the line, or pass a new `output_dir`",
            ) from error
    return found
