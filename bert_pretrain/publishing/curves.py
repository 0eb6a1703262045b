"""The course of a run as a picture: metrics.jsonl enters, a PNG leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pretrain.data.atomic import atomic_file
from bert_pretrain.data.run_folder import read_rows
from bert_pretrain.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (5.0, 3.2)
_DOTS_PER_INCH = 110
# Title, what the columns of metrics.jsonl in it end with, whether its axis is logarithmic.
_PANELS = (
    ("loss", ("loss", "unigram_entropy"), False),
    ("accuracy", ("_accuracy",), False),
    ("learning rate", ("learning_rate",), False),
    ("gradient norm", ("grad_norm",), True),
    ("throughput", ("_per_second",), False),
)
# Measured once: what ignoring the context, always saying the same, or a linear method reaches.
# Drawn as dotted lines.
_BASELINES = ("unigram_", "majority_", "pca_")


def read_metrics(metrics_file: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line that is still being written is left out.

    Raises:
        InputError: the file cannot be read, or has no complete row.
    """
    rows = read_rows(metrics_file)
    if not rows:
        raise InputError(
            f"{metrics_file} has no row yet", advice="wait for the run's first evaluation"
        )
    return rows


def draw_curves(metrics_file: Path, png: Path) -> None:
    """Draw losses with their baselines, accuracies, learning rate, gradient norm and throughput against updates.

    Args:
        metrics_file: metrics.jsonl of a run, finished or not.
        png: picture to write; it appears whole or not at all.

    Raises:
        InputError: `metrics_file` cannot be read.
    """
    from matplotlib.figure import Figure  # takes a second to import

    rows = read_metrics(metrics_file)
    present = list(dict.fromkeys(key for row in rows for key in row))
    panels = [
        (title, columns, is_log)
        for title, endings, is_log in _PANELS
        if (columns := [column for column in present if column.endswith(endings)])
    ]
    if not panels:
        raise InputError(f"{metrics_file} holds no loss", advice="pass the folder of a run")
    num_columns = min(len(panels), 3)
    num_lines = -(-len(panels) // num_columns)
    figure = Figure(
        figsize=(_PANEL_INCHES[0] * num_columns, _PANEL_INCHES[1] * num_lines),
        dpi=_DOTS_PER_INCH,
        layout="constrained",
    )
    axes = figure.subplots(num_lines, num_columns, squeeze=False).flatten()
    for axis, (title, columns, is_log) in zip(axes, panels, strict=False):
        _draw_panel(axis, rows, columns)
        axis.set_title(title)
        axis.set_xlabel("updates")
        if is_log:
            axis.set_yscale("log")
    for axis in axes[len(panels) :]:
        axis.remove()
    with atomic_file(png) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})


def _draw_panel(axis: Axes, rows: list[dict[str, Any]], columns: list[str]) -> None:
    for number, column in enumerate(columns):
        name, color = column.replace("_", " "), f"C{number}"
        if column.startswith(_BASELINES):
            value = next(row[column] for row in reversed(rows) if column in row)
            axis.axhline(value, color=color, linestyle=":", label=name)
            continue
        for split, style, alpha in (("train", "-", 0.5), ("validation", "o--", 1.0)):
            points = [
                (row["step"], row[column])
                for row in rows
                if row["split"] == split and column in row
            ]
            if points:
                label = f"{name}, {split}"
                axis.plot(
                    *zip(*points, strict=True),
                    style,
                    color=color,
                    alpha=alpha,
                    markersize=3,
                    label=label,
                )
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
