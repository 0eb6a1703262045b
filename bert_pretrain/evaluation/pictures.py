"""Pictures of what a model makes of images: rows of images below each other, and triplets.

Arrays enter; PNG files leave. Images are as in `drawing`, (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.evaluation.drawing import (
    NOTE_SIZE,
    PANEL_INCHES,
    RIGHT,
    TEXT_SIZE,
    WRONG,
    draw_image,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_COLUMNS = 10
_LABEL_INCHES = 1.6
_SCALE_INCHES = 4.4  # width of a triplet's scale of distances
_POSITIVE, _NEGATIVE, _MARGIN = "#0969da", "#bc4c00", "#fff1c2"
_MINUS, _ALPHA = "\N{MINUS SIGN}", "\N{GREEK SMALL LETTER ALPHA}"


@dataclass(frozen=True)
class ImageRow:
    """A row of a picture.

    Attributes:
        label: what its images are, at their left; may have several lines.
        images: (N, H, W, C), of which each row of a picture has as many.
        notes: a text below each image; empty = none.
    """

    label: str
    images: NDArray[Any]
    notes: Sequence[str] = ()


def image_rows(rows: Sequence[ImageRow], path: Path, *, title: str, caption: str = "") -> None:
    """Draw rows of images into a PNG, what belongs together below each other.

    Args:
        rows: from top to bottom; after ten images all of them begin again below.
        path: PNG to write.
        title: says what is seen.
        caption: how to read it.
    """
    (num_images,) = {len(row.images) for row in rows}
    assert num_images > 0
    num_columns = min(num_images, _MAX_COLUMNS)
    num_lines = len(rows) * -(-num_images // num_columns)
    noted = sum(0.2 for row in rows if row.notes) * num_lines / len(rows)
    figure = new_figure(
        num_columns * PANEL_INCHES + _LABEL_INCHES,
        num_lines * PANEL_INCHES + noted,
        title=title,
        caption=caption,
    )
    grid = figure.subplots(num_lines, num_columns, squeeze=False)
    for panel in grid.flat:
        panel.set_axis_off()
    for place, row in enumerate(rows):
        for number, image in enumerate(row.images):
            block, column = divmod(number, num_columns)
            panel = grid[block * len(rows) + place, column]
            panel.set_axis_on()
            draw_image(panel, image)
            if row.notes:
                panel.set_xlabel(row.notes[number], fontsize=NOTE_SIZE, labelpad=2)
            if column == 0:
                style = {"ha": "right", "va": "center", "rotation": 0, "labelpad": 6}
                panel.set_ylabel(row.label, fontsize=TEXT_SIZE, **style)
    save_figure(figure, path)


@dataclass(frozen=True)
class Triplets:
    """Triplets as the loss forms them, one an anchor.

    Attributes:
        anchors, positives, negatives: images (N, H, W, C): x1, its other view, another image.
        positive_distances, negative_distances: float (N,), d(e1, e1') and d(e1, e2).
        margin: alpha, in units of the distance.
    """

    anchors: NDArray[Any]
    positives: NDArray[Any]
    negatives: NDArray[Any]
    positive_distances: NDArray[np.floating[Any]]
    negative_distances: NDArray[np.floating[Any]]
    margin: float

    def formula(self, number: int) -> str:
        """Return the loss of a triplet, written out with its numbers."""
        near, far = self.positive_distances[number], self.negative_distances[number]
        return (
            f"max({near:.3f} {_MINUS} {far:.3f} + {self.margin:g}, 0) = {self.losses[number]:.3f}"
        )

    @property
    def losses(self) -> NDArray[np.floating[Any]]:
        """The losses, float (N,)."""
        return np.maximum(self.positive_distances - self.negative_distances + self.margin, 0)


def draw_triplets(triplets: Triplets, path: Path, *, caption: str) -> None:
    """Draw triplets into a PNG, one a line, with their distances on a scale.

    Args:
        triplets: at least one.
        path: PNG to write.
        caption: which distance it is, and which negatives these are.
    """
    num_triplets, margin = len(triplets.anchors), triplets.margin
    num_satisfied = int((triplets.losses == 0).sum())
    figure = new_figure(
        3 * (PANEL_INCHES + 0.25) + _SCALE_INCHES,
        num_triplets * PANEL_INCHES + 0.7,
        title="Triplets of held-out images: their loss is 0 where the negative is farther from "
        f"the anchor than the positive, by the margin ({num_satisfied} of {num_triplets})",
        caption=f"loss = max(d(e1, e1') {_MINUS} d(e1, e2) + {_ALPHA}, 0), margin {_ALPHA} = "
        f"{margin:g}; {caption}",
    )
    ratios = [1, 1, 1, _SCALE_INCHES / (PANEL_INCHES + 0.25)]
    grid = figure.subplots(num_triplets, 4, squeeze=False, width_ratios=ratios)
    names = ("anchor x1", "positive x1':\nx1 augmented", "negative x2:\nanother image")
    for panel, name in zip(grid[0], names, strict=False):
        panel.set_title(name, fontsize=TEXT_SIZE)
    both = np.concatenate([triplets.positive_distances, triplets.negative_distances])
    longest = 1.05 * max(float(both.max()), float(triplets.positive_distances.max()) + margin)
    images = zip(triplets.anchors, triplets.positives, triplets.negatives, strict=True)
    for number, (panels, of_triplet) in enumerate(zip(grid, images, strict=True)):
        colours = ("0.4", _POSITIVE, _NEGATIVE)
        for panel, image, colour in zip(panels, of_triplet, colours, strict=False):
            draw_image(panel, image, frame=colour)
        _draw_scale(panels[3], triplets, number, longest)
        if number < num_triplets - 1:
            panels[3].set_xticklabels([])
    grid[-1, 3].set_xlabel("distance of the embeddings from the anchor's", fontsize=TEXT_SIZE)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "handletextpad": 0.3}
    grid[0, 3].legend(ncols=3, fontsize=NOTE_SIZE, columnspacing=1.0, frameon=False, **place)
    save_figure(figure, path)


def _draw_scale(panel: Axes, triplets: Triplets, number: int, longest: float) -> None:
    """Draw where positive and negative lie, and how far the margin reaches."""
    near, far = triplets.positive_distances[number], triplets.negative_distances[number]
    panel.axvspan(near, near + triplets.margin, color=_MARGIN, label=f"margin {_ALPHA}")
    style: dict[str, Any] = {"markersize": 8, "linestyle": ""}
    # Not at the same height, so that both are seen where they are equally far.
    panel.plot([near], [0.1], marker="o", color=_POSITIVE, label="positive, d(e1, e1')", **style)
    panel.plot([far], [-0.6], marker="D", color=_NEGATIVE, label="negative, d(e1, e2)", **style)
    panel.set(xlim=(0, longest), ylim=(-1, 1.4), yticks=[])
    panel.spines[["left", "top", "right"]].set_visible(False)
    panel.tick_params(labelsize=NOTE_SIZE)
    is_satisfied = triplets.losses[number] == 0
    panel.text(
        0.5,
        0.97,
        triplets.formula(number),
        transform=panel.transAxes,
        ha="center",
        va="top",
        fontsize=TEXT_SIZE,
        color=RIGHT if is_satisfied else WRONG,
    )
