"""`bert-pretrain report RUN_DIR`: a run as one HTML page, finished or not.

A run directory enters; report.html in it leaves, with its pictures inside, so that the one file can
be sent and kept.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.data.atomic import write_text
from bert_pretrain.data.locks import is_held
from bert_pretrain.data.run_folder import read_final, read_rows, read_run_json
from bert_pretrain.errors import InputError
from bert_pretrain.publishing.curves import draw_curves, read_metrics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h2 { font-weight: 600 } h2 { margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: 13px; margin: .5em 0 1.5em } caption { text-align: left; padding: .3em 0 }
th, td { padding: .15em .8em .15em 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #eee }
th:last-child, td:last-child, .left td, .left th { text-align: left } .left td { white-space: normal }
img { max-width: 100% } .wide { overflow-x: auto } code { overflow-wrap: anywhere }
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a run; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="bert-pretrain report",
        description="Show a run, finished or not, as one HTML page: RUN_DIR/report.html.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="The --output_dir of a pretraining run."
    )
    parser.add_argument(
        "--debug", action="store_true", help="Show the traceback of an input error."
    )
    options = parser.parse_args(arguments)
    with reporting_input_errors(debug=options.debug):
        sys.stdout.write(f"the report is in {write_report(options.run_dir)}\n")
    return 0


def write_report(run_dir: Path) -> Path:
    """Write report.html, and curves.png which it contains, into a run directory; each appears whole or not at all.

    Returns:
        The path of the page.

    Raises:
        InputError: the folder is no run, has evaluated nothing yet, or cannot be written to.
    """
    record = read_run_json(run_dir)
    metrics = read_metrics(run_dir / "metrics.jsonl")
    target = run_dir / "report.html"
    try:
        draw_curves(run_dir / "metrics.jsonl", run_dir / "curves.png")
        write_text(target, _page(run_dir, record, metrics))
    except OSError as error:
        raise InputError(
            f"the report cannot be written into {run_dir} ({error})",
            advice="make the folder writable",
        ) from error
    return target


def _page(run_dir: Path, record: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    config = record["config"]
    status = escape(_status(run_dir, config.get("max_steps"), metrics[-1]["step"]))
    title = f"{run_dir.resolve().name}: {config.get('objective', 'a run')}"
    sections = [
        ("Course", _image(run_dir / "curves.png", "curves of the run")),
        ("Held-out data", _evaluations(metrics)),
        ("What stands behind [MASK]", _mask_tables(run_dir / "fill_mask.jsonl")),
        ("Pictures", _pictures(run_dir)),
        ("Configuration", _pairs(config)),
        ("Made with", _pairs(_environment(record))),
    ]
    body = "".join(
        f"<h2>{escape(heading)}</h2>\n{content}\n" for heading, content in sections if content
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta '
        f'charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n<p>{status}</p>"
        f"\n{body}</body></html>\n"
    )


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
        status += (
            f" final/ holds the model after {amount} updates, from before the run was continued."
        )
    return status


def _evaluations(metrics: list[dict[str, Any]]) -> str:
    rows = [row for row in metrics if row.get("split") == "validation"]
    columns = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in ("split", "epoch")
    ]
    numbers = [[_number(row.get(column)) for column in columns] for row in rows]
    return _table([column.replace("_", " ") for column in columns], numbers) if rows else ""


def _mask_tables(path: Path) -> str:
    """Return a table per [MASK]: a line per evaluation, with the entropy and the most probable words."""
    rows = read_rows(path) if path.is_file() else []
    tables = []
    for sentence, position in dict.fromkeys(
        (row.get("sentence"), row.get("position")) for row in rows
    ):
        block = [
            row
            for row in rows
            if (row.get("sentence"), row.get("position")) == (sentence, position)
        ]
        lines = [
            [
                f"{row['step']:,}",
                _number(row.get("entropy")),
                _number(row.get("probability")),
                ", ".join(
                    f"{word} {probability:.3f}" for word, probability in row.get("candidates", [])
                ),
            ]
            for row in block
        ]
        head = ["step", "entropy (nats)", f"p({block[-1].get('original')})", "most probable"]
        tables.append(_table(head, lines, caption=f"{sentence} (token {position})"))
    return "\n".join(tables)


def _pictures(run_dir: Path) -> str:
    """Return the newest picture of each kind."""
    newest: dict[str, Path] = {}
    for path in sorted(
        (run_dir / "pictures").glob("step-*/*.png"), key=lambda path: (len(path.parent.name), path)
    ):
        newest[path.stem] = path
    return "\n".join(
        f"<h3>{escape(kind)} ({escape(path.parent.name)})</h3>\n{_image(path, kind)}"
        for kind, path in newest.items()
    )


def _environment(record: dict[str, Any]) -> dict[str, Any]:
    command = record.get("command")
    found: dict[str, Any] = (
        {"command": " ".join(map(str, command))} if isinstance(command, list) else {}
    )
    found |= {"git revision": record.get("git_revision")}
    for part in ("versions", "hardware"):
        found |= record.get(part) or {}
    return found


def _pairs(values: dict[str, Any]) -> str:
    rows = [[name, f"{value}"] for name, value in values.items() if value is not None]
    return _table(["name", "value"], rows, style="left")


def _table(
    head: Iterable[str], rows: Iterable[Iterable[str]], *, caption: str = "", style: str = ""
) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = f' class="{style}"' if style else ""
    return f'<div class="wide"><table{kind}>{title}<tr>{header}</tr>\n{body}</table></div>'


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else ""


def _image(path: Path, description: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'
