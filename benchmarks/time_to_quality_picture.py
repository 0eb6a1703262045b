"""The picture of time to quality: held-out numbers against minutes of training."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = {"mlm_loss": "held-out masked-LM loss, nats", "nsp_accuracy": "next-sentence accuracy"}
COLORS = {
    "ours": "#c0392b",
    "ours_mlm": "#c0392b",
    "ours_modernbert": "#8e44ad",
    "stock_fp32": "#2c3e50",
    "stock_fp32_rows8": "#7f8c8d",
    "stock_fp32_lr1e-3": "#34495e",
    "stock_bf16": "#2471a3",
    "stock_bf16_lr1e-3": "#5dade2",
}


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw a PNG.

    A dot of ours is where a run of that budget ended, the line joins medians over seeds: each has
    a schedule of its own. A line of stock is the course of its longest run, of the first seed.
    """
    panels = {
        name: text for name, text in PANELS.items() if any(name in r["curve"][-1] for r in runs)
    }
    figure = Figure(figsize=(5.2 * len(panels), 4.0), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, text) in zip(axes, panels.items(), strict=True):
        ends = []
        for key in dict.fromkeys((run["config_name"], run["arm"]) for run in runs):
            members = [
                run
                for run in runs
                if (run["config_name"], run["arm"]) == key and name in run["curve"][-1]
            ]
            if members:
                ends.append(_draw_arm(axis, members, name))
        _label_ends(axis, ends)
        axis.set_xscale("log")
        axis.set_xlabel("minutes of training (evaluation left out)")
        axis.set_ylabel(text)
        ticks = sorted({run["minutes"] for run in runs})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_arm(axis: Any, members: list[dict[str, Any]], name: str) -> tuple[float, float, str, str]:
    """Draw an arm and return where its line ends, its label and its colour."""
    arm = members[0]["arm"]
    color = COLORS[arm]
    label = f"{arm.replace('_', ' ')}, {members[0]['config_name']}"
    if arm.startswith("ours"):
        by_budget: dict[float, list[float]] = {}
        for run in members:
            by_budget.setdefault(run["minutes"], []).append(run["curve"][-1][name])
        for budget, values in by_budget.items():
            axis.plot([budget] * len(values), values, "o", color=color, alpha=0.4, markersize=4)
        points = sorted((m, statistics.median(values)) for m, values in by_budget.items())
        axis.plot(*zip(*points, strict=True), "-o", color=color, markersize=6)
    else:
        longest = max(run["minutes"] for run in members)
        run = next(run for run in members if run["minutes"] == longest)
        points = [(point["minutes"], point[name]) for point in run["curve"] if point["minutes"] > 0]
        axis.plot(*zip(*points, strict=True), "-", color=color)
        ends = [run["curve"][-1][name] for run in members if run["minutes"] == longest]
        axis.plot([longest] * len(ends), ends, "s", color=color, alpha=0.6, markersize=4)
        if name == "mlm_loss":
            axis.axhline(statistics.median(ends), color=color, linestyle=":", linewidth=0.8)
    return (*points[-1], label, color)


def _label_ends(axis: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end, moved apart where two would overlap."""
    low, high = axis.get_ylim()
    gap, last = 0.055 * (high - low), float("-inf")
    right = max(x for x, _, _, _ in ends)
    for _, y, label, color in sorted(ends, key=lambda end: end[1]):
        last = max(y, last + gap)
        axis.annotate(
            label, (right * 1.08, last), color=color, fontsize=8, va="center", annotation_clip=False
        )
