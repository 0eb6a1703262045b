"""Pictures of nearest neighbours: whether images that look alike, or are alike, lie together.

Images, their embeddings and, where there are some, their classes enter; a PNG file leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    shortened,
)
from bert_pretrain.evaluation.fonts import drawn_names
from bert_pretrain.evaluation.probes import unit_rows

_MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}  # seen without colours, too


class Embedded(NamedTuple):
    """Images with their embeddings.

    Attributes:
        images: (N, H, W, C), as in `drawing`.
        features: float (N, D).
        labels: int (N,), class numbers, -1 where an image has none; None = none has one.
    """

    images: NDArray[Any]
    features: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]] | None = None


def nearest_neighbours(
    queries: Embedded,
    bank: Embedded,
    path: Path,
    *,
    label_names: Sequence[str] = (),
    num_neighbours: int = 7,
) -> NDArray[np.int64]:
    """Draw each query with the images of a bank that are closest by cosine, closest first.

    Args:
        queries: a few.
        bank: to look for neighbours in; should not hold the queries themselves.
        path: PNG to write.
        label_names: of class numbers 0, 1, ...; empty = the numbers.
        num_neighbours: per query; more than the bank has means all.

    Returns:
        Rows of the bank, int64 (number of queries, num_neighbours).
    """
    assert all(len(part.images) == len(part.features) for part in (queries, bank))
    similarities = unit_rows(queries.features) @ unit_rows(bank.features).T
    neighbours = np.argsort(-similarities, axis=1, kind="stable")[:, :num_neighbours]
    num_queries, num_columns = neighbours.shape
    figure = new_figure(
        (num_columns + 1.3) * (PANEL_INCHES + 0.1),
        num_queries * (PANEL_INCHES + 0.38) + 0.2,
        title="Held-out images, and the others whose embeddings are nearest to theirs",
        caption=_caption(queries, bank, neighbours),
    )
    drawn = drawn_names(tuple(label_names))
    # A class may be called a$b$.
    style: dict[str, Any] = {
        "fontsize": NOTE_SIZE,
        "labelpad": 2,
        "fontfamily": list(drawn.families),
        "parse_math": False,
    }
    # The empty column keeps queries apart from what is found for them.
    ratios = [1, 0.25, *[1] * num_columns]
    grid = figure.subplots(num_queries, num_columns + 2, squeeze=False, width_ratios=ratios)
    for panels, query, found in zip(grid, range(num_queries), neighbours.tolist(), strict=True):
        draw_image(panels[0], queries.images[query])
        panels[0].set_xlabel(_name(queries, query, drawn.names), **style)
        panels[1].set_axis_off()
        for panel, row in zip(panels[2:], found, strict=True):
            is_right = _is_same_class(queries, query, bank, row)
            frame = None if is_right is None else RIGHT if is_right else WRONG
            draw_image(panel, bank.images[row], frame=frame)
            name = _name(bank, row, drawn.names)
            mark = "" if is_right is None else _MARKS[is_right]
            number = f"{mark} {similarities[query, row]:.2f}".strip()
            text = "\n".join(filter(None, (name, number)))
            panel.set_xlabel(text, color=frame or "black", **style)
    grid[0, 0].set_title("image", fontsize=TEXT_SIZE)
    grid[0, 2].set_title("closest", fontsize=TEXT_SIZE)
    save_figure(figure, path)
    return neighbours.astype(np.int64)


def _is_same_class(queries: Embedded, query: int, bank: Embedded, row: int) -> bool | None:
    """Return whether two images have the same class; None = one has none."""
    if queries.labels is None or bank.labels is None:
        return None
    one, other = queries.labels[query], bank.labels[row]
    return None if min(one, other) < 0 else bool(one == other)


def _name(part: Embedded, row: int, label_names: Sequence[str]) -> str:
    if part.labels is None or part.labels[row] < 0:
        return ""
    label = int(part.labels[row])
    return shortened(label_names[label] if label_names else str(label))


def _caption(queries: Embedded, bank: Embedded, neighbours: NDArray[np.integer[Any]]) -> str:
    """Say what the numbers are, how many neighbours are right, and how many would be by chance."""
    meaning = "number: cosine similarity of the embeddings"
    judged = [
        (query, is_right)
        for query, found in enumerate(neighbours.tolist())
        for row in found
        if (is_right := _is_same_class(queries, query, bank, row)) is not None
    ]
    if not judged or queries.labels is None or bank.labels is None:
        return meaning
    num_right = sum(is_right for _, is_right in judged)
    known = bank.labels[bank.labels >= 0]
    chance = np.mean([(known == queries.labels[query]).mean() for query, _ in judged])
    return (
        f"{num_right} of {len(judged)} neighbours are of the image's own class (green, "
        f"{_MARKS[True]}), the others of another (red, {_MARKS[False]}); by chance {chance:.0%} "
        f"would be; {meaning}"
    )
