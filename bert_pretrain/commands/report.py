"""`bert-pretrain report RUN_DIR`: a run, finished or not, as one HTML page.

A run directory enters; report.html in it leaves, with its pictures inside, so that the one file can
be sent and kept.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Template

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.data.atomic import write_text
from bert_pretrain.data.run_folder import is_held, read_final, read_rows, read_run_json
from bert_pretrain.errors import InputError
from bert_pretrain.publishing.model_card import draw_curves

# Headings of the pictures of a run, by the names of their files, in the order of the page.
_PICTURES = {
    "reconstructions": "Reconstructions",
    "triplets": "Triplets",
    "views": "Views that are compared",
    "embeddings": "Map of the embeddings",
    "embeddings_tsne": "Map of the embeddings by t-SNE",
    "neighbours": "Nearest neighbours",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a run; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="bert-pretrain report",
        description="Show a run, finished or not, as one HTML page: RUN_DIR/report.html.",
        allow_abbrev=False,
    )
    help_text = "The --output_dir of a pretraining run."
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help=help_text)
    help_text = "Show the traceback of an input error."
    parser.add_argument("--debug", action="store_true", help=help_text)
    options = parser.parse_args(arguments)
    with reporting_input_errors(debug=options.debug):
        sys.stdout.write(f"the report is in {write_report(options.run_dir)}\n")
    return 0


def write_report(run_dir: Path) -> Path:
    """Write report.html, whose path is returned, and its curves.png into a run directory.

    Raises:
        InputError: the folder is no run, has evaluated nothing yet, or cannot be written to.
    """
    record = read_run_json(run_dir)
    metrics = read_rows(run_dir / "metrics.jsonl")
    if not metrics:
        raise InputError(
            f"{run_dir / 'metrics.jsonl'} has no row yet",
            advice="wait for the run's first evaluation",
        )
    page = run_dir / "report.html"
    read_final(run_dir)  # what is damaged is refused before anything is written
    _mask_tables(run_dir / "fill_mask.jsonl")
    try:
        draw_curves(metrics, run_dir / "curves.png")
        write_text(page, _render(run_dir, record, metrics))
    except OSError as error:
        raise InputError(
            f"the report cannot be written into {run_dir} ({error})",
            advice="make the folder writable",
        ) from error
    return page


def _render(run_dir: Path, record: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    config = record["config"]
    evaluations = [row for row in metrics if row.get("split") == "validation"]
    names = dict.fromkeys(name for row in evaluations for name in row)
    columns = [name for name in names if name not in ("split", "epoch")]
    words = record.get("command")
    template = resources.files("bert_pretrain.commands").joinpath("report.html")
    page: str = Template(template.read_text(encoding="utf-8"), autoescape=True).render(
        title=f"{run_dir.resolve().name}: {config.get('objective', 'a run')}",
        status=_status(run_dir, config.get("max_steps"), metrics[-1]["step"]),
        curves=_data_url(run_dir / "curves.png"),
        columns=[name.replace("_", " ") for name in columns],
        evaluations=[[_number(row.get(name)) for name in columns] for row in evaluations],
        warnings=[
            [_number(row["step"]), row.get("message", "")]
            for row in metrics
            if row.get("split") == "warning"
        ],
        masks=_mask_tables(run_dir / "fill_mask.jsonl"),
        pictures=_pictures(run_dir),
        config=_known(config),
        environment=_known(
            {
                "command": " ".join(map(str, words)) if words and isinstance(words, list) else None,
                "git revision": record.get("git_revision"),
                **(record.get("versions") or {}),
                **(record.get("hardware") or {}),
            }
        ),
    )
    return page


def _status(run_dir: Path, max_steps: int | None, step: int) -> str:
    final = read_final(run_dir)
    if final is not None and final.is_end:
        return f"Finished after {step:,} updates."
    of_all = f" of {max_steps:,}" if max_steps else ""
    status = f"Not finished: {step:,}{of_all} updates are recorded."
    if is_held(run_dir):
        status += " A process is at work on it."
    if final is not None:
        amount = "an earlier number of" if final.step is None else f"{final.step:,}"
        before = "from before the run was continued"
        status += f" final/ holds the model after {amount} updates, {before}."
    return status


def _mask_tables(path: Path) -> list[dict[str, Any]]:
    """Return a table for each [MASK], with a line for each evaluation."""
    masks: dict[Any, list[dict[str, Any]]] = {}
    for row in read_rows(path) if path.is_file() else []:
        masks.setdefault((row.get("sentence"), row.get("position")), []).append(row)
    return [
        {
            "caption": f"{sentence} (token {position})",
            "head": ["step", "entropy (nats)", f"p({rows[-1].get('original')})", "most probable"],
            "rows": [
                [
                    *(_number(row.get(name)) for name in ("step", "entropy", "probability")),
                    ", ".join(f"{word} {share:.3f}" for word, share in row.get("candidates", [])),
                ]
                for row in rows
            ],
        }
        for (sentence, position), rows in masks.items()
    ]


def _pictures(run_dir: Path) -> list[dict[str, Any]]:
    """Return the first and the last picture of each kind, which is one where there is one."""
    found = (run_dir / "pictures").glob("step-*/*.png")
    # Steps of more than six digits are longer names.
    oldest_first = sorted(found, key=lambda path: (len(path.parent.name), path))
    kinds: dict[str, list[Path]] = {}
    for path in oldest_first:
        kinds.setdefault(path.stem, []).append(path)
    return [
        {
            "title": _PICTURES.get(kind, kind),
            "shown": [
                {"moment": _moment(path), "source": _data_url(path)}
                for path in dict.fromkeys((paths[0], paths[-1]))
            ],
        }
        for kind, paths in sorted(kinds.items(), key=lambda item: _place(item[0]))
    ]


def _place(kind: str) -> int:
    order = list(_PICTURES)
    return order.index(kind) if kind in order else len(order)


def _moment(picture: Path) -> str:
    step = picture.parent.name.removeprefix("step-")
    if not step.isdecimal():
        return picture.parent.name
    return f"after {int(step):,} updates" if int(step) else "before any update"


def _known(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, f"{value}") for name, value in values.items() if value is not None]


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else ""


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
