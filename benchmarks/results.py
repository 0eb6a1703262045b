"""What every benchmark writes for `--json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A rented machine may have nothing of the project but this checkout.
sys.path.insert(0, str(Path(__file__).parents[1]))

from bert_pretrain.hardware import describe_run


def read_runs(path: Path | None) -> list[dict[str, Any]]:
    """Return the runs that a results file holds already, none if there is no such file.

    Scripts whose runs take hours are called in pieces; each piece adds to the file.
    """
    return json.loads(path.read_text())["runs"] if path is not None and path.is_file() else []


def write_results(path: Path | None, figures: Mapping[str, float], *, runs: Any) -> None:
    """Write figures with the hardware and versions that they hold for.

    Args:
        path: of the JSON file; None = none was asked for.
        figures: numbers by name; those that are ratios end in `_ratio`.
        runs: how many rounds the figures are medians of, or what each run gave.
    """
    if path is None:
        return
    record = describe_run()
    result = {
        "figures": figures,
        "hardware": record["hardware"],
        "versions": record["versions"],
        "runs": runs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def replace_marked(document: str, name: str, content: str) -> str:
    """Return a document with other content between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: it has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin not in document or end not in document:
        raise ValueError(f"there are no marks {begin.strip()} and {end}")
    before, _, rest = document.partition(begin)
    return before + begin + content + end + rest.partition(end)[2]
