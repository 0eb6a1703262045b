"""The label-efficiency curve shown: as a table, as figures by name, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pretrain.data.atomic import atomic_file
from bert_pretrain.evaluation.label_efficiency import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def format_points(points: Sequence[Point]) -> str:
    """Lay the curve out as text: a line for each number of labels and arm."""
    width = max(len("arm"), *(len(point.arm) for point in points))
    lines = [
        f"{'labels/class':>12}  {'rows':>6}  {'arm':<{width}}  {'accuracy [95 %]':<22}  difference "
        "[95 %]"
    ]
    for point in points:
        line = f"{point.num_per_class or 'all':>12}  {point.num_rows:>6}  {point.arm:<{width}}  "
        line += f"{_with_interval(point.mean, point.interval, ''):<22}"
        if point.difference is not None:
            line += "  " + _with_interval(point.difference, point.difference_interval, "+")
        lines.append(line.rstrip())
    compared = next((point.versus for point in points if point.versus), None)
    seeds = max(point.num_seeds for point in points)
    note = f"{seeds} seeds; intervals: 95 %, Student's t over seeds"
    return "\n".join(
        [*lines, note + (f"; difference: to {compared}, paired by seed" if compared else "")]
    )


def _with_interval(mean: float, interval: tuple[float, float] | None, sign: str) -> str:
    text = format(mean, f"{sign}.3f")
    return (
        text if interval is None else f"{text} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
    )


def figures_of(points: Sequence[Point]) -> dict[str, float]:
    """Return the means and differences by name, such as `fine_tuned_16_accuracy` and `fine_tuned_16_gain`."""
    figures = {}
    for point in points:
        name = f"{point.arm}_{point.num_per_class or 'all'}"
        figures[f"{name}_accuracy"] = point.mean
        if point.difference is not None:
            figures[f"{name}_gain"] = point.difference
        if point.difference_interval is not None:
            figures[f"{name}_gain_low"], figures[f"{name}_gain_high"] = point.difference_interval
    return figures


def points_as_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the points as JSON takes them."""
    return [asdict(point) for point in points]


def draw_curve(
    points: Sequence[Point], path: Path, *, title: str, labels_of_arms: dict[str, str]
) -> None:
    """Write the curve as a PNG: accuracy with its intervals against rows per class on a logarithmic axis.

    Args:
        points: of `summarize`.
        path: of the PNG; the file appears whole.
        title: above the curve.
        labels_of_arms: what to call the arms in the legend.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    plot_curve(axes, points, title=title, labels_of_arms=labels_of_arms)
    axes.legend()
    with atomic_file(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def plot_curve(
    axes: Axes, points: Sequence[Point], *, title: str, labels_of_arms: dict[str, str]
) -> None:
    """Draw the curve on the axes of a figure, without a legend; the arguments are those of `draw_curve`."""
    colours = ["#0072B2", "#009E73", "#D55E00", "#7F7F7F"]  # told apart with any colour vision
    counts = list(dict.fromkeys(point.num_per_class for point in points))
    largest = max((count for count in counts if count), default=1)
    place = {count: float(count or largest * 4) for count in counts}
    for number, ((arm, name), colour) in enumerate(
        zip(labels_of_arms.items(), colours, strict=False)
    ):
        own = [point for point in points if point.arm == arm]
        if not own:
            continue
        # Beside one another, so that no interval hides another one.
        x = [place[point.num_per_class] * 1.06 ** (number - 1.5) for point in own]
        half = [(point.interval[1] - point.mean) if point.interval else 0.0 for point in own]
        style = "--" if arm == "floor" else "-"
        axes.errorbar(
            x,
            [point.mean for point in own],
            half,
            fmt="o" + style,
            color=colour,
            label=name,
            capsize=3,
            markersize=4,
        )
    axes.set_xscale("log")
    axes.set_xticks(list(place.values()), [str(count or "all") for count in counts])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.0, high))
    axes.set(xlabel="labels per class", ylabel="accuracy", title=title)
    axes.grid(alpha=0.3)
