"""The course of a run as a picture: rows of metrics.jsonl enter, a PNG leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pretrain.data.atomic import atomic_file
from bert_pretrain.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (5.0, 3.2)
_DOTS_PER_INCH = 110
# Title, endings of the columns of metrics.jsonl in it, whether its axis is logarithmic.
_PANELS = (
    ("loss", ("loss", "unigram_entropy"), False),
    ("accuracy", ("_accuracy",), False),
    ("learning rate", ("learning_rate",), False),
    ("gradient norm", ("grad_norm",), True),
    ("throughput", ("_per_second",), False),
)
# Measured once, drawn as dotted lines: what ignoring the context, always giving the same answer or
# a linear method reaches.
_BASELINES = ("unigram_", "majority_", "pca_")


def draw_curves(rows: Sequence[Mapping[str, Any]], png: Path) -> None:
    """Draw losses, accuracies, learning rate, gradient norm and throughput against updates.

    Args:
        rows: of metrics.jsonl; the run may be unfinished.
        png: picture to write; it appears whole or not at all.

    Raises:
        InputError: the rows hold nothing to draw.
    """
    from matplotlib.figure import Figure  # takes a second to import

    present = list(dict.fromkeys(key for row in rows for key in row))
    panels = [
        (title, columns, is_log)
        for title, endings, is_log in _PANELS
        if (columns := [column for column in present if column.endswith(endings)])
    ]
    if not panels:
        raise InputError("metrics.jsonl holds no loss", advice="pass the folder of a run")
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


def _draw_panel(axis: Axes, rows: Sequence[Mapping[str, Any]], columns: list[str]) -> None:
    for number, column in enumerate(columns):
        name, color = column.replace("_", " "), f"C{number}"
        if column.startswith(_BASELINES):
            value = next(row[column] for row in reversed(rows) if column in row)
            axis.axhline(value, color=color, linestyle=":", label=name)
            continue
        for split, style, alpha in (("train", "-", 0.5), ("validation", "o--", 1.0)):
            shown = [row for row in rows if row["split"] == split and column in row]
            if shown:
                axis.plot(
                    [row["step"] for row in shown],
                    [row[column] for row in shown],
                    style,
                    color=color,
                    alpha=alpha,
                    markersize=3,
                    label=f"{name}, {split}",
                )
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
