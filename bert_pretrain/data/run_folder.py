"""A run directory: its records, checkpoints and `final/`, and the lock of whoever writes there.

The system frees the lock when the process ends, also when it is killed. The lock file stays: if
each holder removed it, two processes could hold two files of the same name.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from bert_pretrain.data.json_files import parse_json
from bert_pretrain.errors import InputError

LOCK_FILE = ".lock"  # in the folder; it is not part of the folder's content
# The workers of a process that was killed may live on for five seconds and keep its lock.
TIMEOUT_SECONDS = 10.0
_DAMAGED = "restore the file, or pass the folder of another run"
_CHECKPOINT_NAME = re.compile(r"step-(\d{6,})")


class FinalModel(NamedTuple):
    """What lies in `final/` of a run.

    Attributes:
        step: updates of the model; None if its record does not say.
        is_end: whether the run ended with it; False once the run has been continued.
    """

    step: int | None
    is_end: bool


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl file, without a last line that is still being written.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    return list(iterate_rows(path))


def iterate_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what `read_rows` returns, a row at a time."""
    try:
        # Not splitlines: it also splits at Unicode's line separators, which JSON leaves in words.
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith("\n"):
                    yield _parse_row(line, f"{path}, line {number},")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({error})", advice="pass the folder of a run"
        ) from error


def _parse_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON", advice=_DAMAGED) from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise InputError(f"{place} has no step", advice=_DAMAGED)
    return row


def thinned(rows: Iterable[dict[str, Any]], *, most: int = 2000) -> list[dict[str, Any]]:
    """Return some of the training rows, evenly spread, and all others: a picture needs no more.

    Memory does not grow with the number of training rows.

    Args:
        rows: of metrics.jsonl in their order.
        most: training rows beside the last one; of more, between half of it and all of it stay.
    """
    last: tuple[int, dict[str, Any]] | None = None
    trained, others = [], []
    stride, num_trained = 1, 0
    for place, row in enumerate(rows):
        if row.get("split") != "train":
            others.append((place, row))
            continue
        last = place, row
        if num_trained % stride == 0:
            trained.append(last)
        num_trained += 1
        if len(trained) > most:
            trained, stride = trained[::2], 2 * stride
    if last is not None and trained[-1] is not last:
        trained.append(last)
    return [row for _, row in sorted([*others, *trained], key=itemgetter(0))]


def read_run_json(run_dir: Path, *, name: str = "run.json") -> dict[str, Any]:
    """Return the record of a run: `config`, `started`, `command`, `versions`, `hardware`.

    Fine-tuning writes it under another `name`.

    Raises:
        InputError: the folder holds no run.
    """
    path = run_dir / name
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{run_dir} is no run (it has no readable {name})",
            advice="pass the folder of a run",
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error})", advice="pass the folder of another run"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(f"{path} has no 'config'", advice="pass the folder of a run")
    for part in ("versions", "hardware"):
        if not isinstance(record.get(part, {}), dict):
            raise InputError(
                f"{path} is damaged ({part!r} is no object)",
                advice="pass the folder of another run",
            )
    return record


def read_final(run_dir: Path) -> FinalModel | None:
    """Return what lies in `final/`; None if there is none, or none that pretraining wrote.

    `final/run.json` keeps the start that wrote it. A later start in the run's own run.json means
    that the run has been continued.

    Raises:
        InputError: a record is damaged.
    """
    if not (run_dir / "final/run.json").is_file():
        return None
    record = read_run_json(run_dir / "final")
    is_end = record.get("started") == read_run_json(run_dir).get("started")
    return FinalModel(record.get("step"), is_end)


def model_in(name: str) -> str:
    """Return the model that a name means: of a run its `final/`, else its newest checkpoint.

    Every other name, such as a Hub id, stays as it is.
    """
    folder = Path(name)
    if (folder / "config.json").is_file() or not folder.is_dir():
        return name
    if (folder / "final/config.json").is_file():
        return str(folder / "final")
    checkpoints = list_checkpoints(folder / "checkpoints")
    return str(checkpoints[-1]) if checkpoints else name


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """Return where the checkpoint of a step is, or would be, in a run's checkpoint folder."""
    return checkpoints / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Return the updates after which a checkpoint was written, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints of a run's checkpoint folder, oldest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(filter(_is_filled, found), key=step_of)


def _is_filled(folder: Path) -> bool:
    """Return whether a folder holds anything: an empty one never was a checkpoint."""
    try:
        return any(folder.iterdir())
    except OSError:  # a run has just rotated it away
        return False


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder until the end of the block or of this process.

    Where no lock can be made (a read-only folder, some network file systems), a warning says so and
    the block runs unprotected.

    Raises:
        InputError: another process holds the folder, still after `TIMEOUT_SECONDS`.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=TIMEOUT_SECONDS)
    except Timeout:
        raise InputError(
            f"another process is at work in {folder}: it trains or publishes there",
            advice="wait until it has ended",
        ) from None
    except (OSError, NotImplementedError) as error:
        warnings.warn(
            f"{folder} cannot be locked ({error}): start no second process that writes there",
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Return whether a process holds a folder, as far as its file system can tell."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
