"""Maps of embeddings on the plane: which images lie together.

Embeddings and, where there are some, classes enter; a PNG file leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.evaluation.drawing import NOTE_SIZE, TEXT_SIZE, new_figure, save_figure
from bert_pretrain.evaluation.fonts import drawn_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LEGEND = 20
_MAP_INCHES, _LEGEND_INCHES = 5.5, 2.0


def embedding_map(
    embeddings: NDArray[np.floating[Any]],
    path: Path,
    *,
    method: Literal["pca", "tsne"],
    labels: NDArray[np.integer[Any]] | None = None,
    label_names: Sequence[str] = (),
    seed: int = 0,
    max_points: int = 2000,
) -> None:
    """Draw embeddings of held-out images on the plane.

    Args:
        embeddings: float (N, D), at least three rows.
        path: PNG to write.
        method: `pca` draws the first two principal components, which takes milliseconds, to scale
            and on axes that say how much of the variance they hold. `tsne` takes seconds; its axes
            have no unit.
        labels: int (N,), the colours, -1 where an image has none; None = one colour. Of more than
            20 classes the most frequent are told apart.
        label_names: what the legend calls label 0, 1, ...; empty = the numbers.
        seed: of the method and of the rows drawn.
        max_points: rows drawn, a random subset.
    """
    assert len(embeddings) >= 3
    shown = np.sort(permutation(len(embeddings), seed, Purpose.EVALUATION_ROW)[:max_points])
    rows = embeddings[shown].astype(np.float32)
    if rows.shape[1] == 1:
        rows = np.hstack([rows, np.zeros_like(rows)])
    # Embeddings that are all equal have no principal components.
    has_collapsed = np.allclose(rows, rows[0])
    count = f"{len(embeddings):,}"
    if len(shown) < len(embeddings):
        count = f"{len(shown):,} of {count}"
    how = "on their first two principal components" if method == "pca" else "by t-SNE"
    figure = new_figure(
        _MAP_INCHES + (0 if labels is None else _LEGEND_INCHES),
        _MAP_INCHES,
        title=f"Embeddings of {count} held-out images {how}",
        caption=f"{embeddings.shape[1]} dimensions on two. "
        + (
            "All embeddings are equal: the encoder has collapsed."
            if has_collapsed
            else "Axes are to the same scale; what lies apart here is apart in the embedding, what "
            "overlaps here need not overlap there."
            if method == "pca"
            else "Near neighbours stay neighbours; distances between groups, and their sizes, mean "
            "nothing."
        ),
    )
    panel = figure.subplots()
    if method == "tsne":
        points = _tsne(rows, "random" if has_collapsed else "pca", seed)
        panel.set(xticks=[], yticks=[])
    elif has_collapsed:
        points = np.zeros((len(rows), 2))
    else:
        points, (x_name, y_name) = _principal_components(rows, seed)
        panel.set_xlabel(x_name, fontsize=TEXT_SIZE)
        panel.set_ylabel(y_name, fontsize=TEXT_SIZE)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    panel.tick_params(labelsize=NOTE_SIZE)
    panel.set_aspect("equal", adjustable="datalim")
    _scatter(panel, points, None if labels is None else labels[shown], label_names)
    if labels is not None:
        place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        fonts = {"family": list(drawn_names(tuple(label_names)).families), "size": NOTE_SIZE}
        legend = panel.legend(title="class (images)", prop=fonts, markerscale=2, **place)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class may be called a$b$
    save_figure(figure, path)


def _principal_components(
    rows: NDArray[np.float32], seed: int
) -> tuple[NDArray[np.floating[Any]], list[str]]:
    """Return the first two components, (N, 2), and their names with their shares of variance."""
    from sklearn.decomposition import PCA

    pca = PCA(2, random_state=seed)
    points = pca.fit_transform(rows)
    shares = enumerate(pca.explained_variance_ratio_, start=1)
    return points, [f"component {n}, {100 * share:.0f} % of the variance" for n, share in shares]


def _tsne(
    rows: NDArray[np.float32], start: Literal["pca", "random"], seed: int
) -> NDArray[np.floating[Any]]:
    """Return the plane of t-SNE, (N, 2); a start from PCA keeps the large-scale order."""
    from sklearn.manifold import TSNE

    # Below a third of the points, as the method demands; 30 is its authors' usual value.
    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start, random_state=seed)
    return np.asarray(tsne.fit_transform(rows))


def _scatter(
    panel: Axes,
    points: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]] | None,
    label_names: Sequence[str],
) -> None:
    from matplotlib import colormaps

    style: dict[str, Any] = {"s": 12, "linewidths": 0}
    if labels is None:
        panel.scatter(*points.T, **style)
        return
    is_unlabelled = labels < 0
    if is_unlabelled.any():
        name = f"no label ({is_unlabelled.sum():,})"
        panel.scatter(*points[is_unlabelled].T, color="lightgray", label=name, **style)
    classes, counts = np.unique(labels[~is_unlabelled], return_counts=True)
    if len(classes) > _MAX_LEGEND:
        kept = np.sort(np.argsort(-counts, kind="stable")[: _MAX_LEGEND - 1])
        is_other = ~is_unlabelled & ~np.isin(labels, classes[kept])
        name = f"{len(classes) - len(kept)} other classes ({is_other.sum():,})"
        panel.scatter(*points[is_other].T, color="darkgray", label=name, **style)
        classes, counts = classes[kept], counts[kept]
    names = drawn_names(tuple(label_names)).names
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for number, (label, count) in enumerate(zip(classes.tolist(), counts, strict=True)):
        name = names[label] if names else str(label)
        members = points[labels == label]
        panel.scatter(*members.T, color=palette(number), label=f"{name} ({count:,})", **style)
