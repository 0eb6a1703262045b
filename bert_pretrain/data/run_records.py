"""What a run has written about itself, finished or not: run.json and files of one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bert_pretrain.errors import InputError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl file; a last line that is still being written is left out.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    try:
        # Not splitlines: a word may be a line separator of Unicode, which JSON leaves as it is.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({error})", advice="pass the folder of a run"
        ) from error
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}, is not JSON", advice="the file is damaged"
            ) from error
        if not isinstance(rows[-1], dict) or "step" not in rows[-1]:
            raise InputError(
                f"{path}, line {number}, has no step", advice="the file is damaged, or not a run's"
            )
    return rows


def read_run_json(run_dir: Path, *, name: str = "run.json") -> dict[str, Any]:
    """Return the record of a run: `config`, `command`, `versions`, `hardware`.

    Args:
        run_dir: its folder.
        name: of the file; that of fine-tuning has another one.

    Raises:
        InputError: the folder is no run.
    """
    path = run_dir / name
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{run_dir} is no run (it has no readable {name})",
            advice="pass an `output_dir` of pretraining",
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error})", advice="pass the folder of another run"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(f"{path} has no 'config'", advice="pass an `output_dir` of pretraining")
    return record
