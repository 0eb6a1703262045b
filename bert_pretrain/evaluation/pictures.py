"""Pictures of what was learnt: reconstructions, views, maps of embeddings, nearest neighbours.

Arrays enter; PNG files leave. A file appears whole, and its bytes depend on the arrays alone.
Images are uint8, or float that is clipped to [0, 1], of shape (N, H, W, C) with 1 channel (gray),
3 (RGB) or 4 (RGBA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.atomic import atomic_file
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.evaluation.fonts import drawn_names
from bert_pretrain.evaluation.probes import unit_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_COLUMNS = 10
_MAX_LEGEND = 20
_PANEL_INCHES = 1.0
_MAP_INCHES = 5.0
_DOTS_PER_INCH = 120


def reconstructions(originals: NDArray[Any], reconstructed: NDArray[Any], path: Path) -> None:
    """Draw images (N, H, W, C) above their reconstructions, ten pairs side by side, into a PNG."""
    _stacked({"original": originals, "reconstructed": reconstructed}, path)


def augmented_views(
    originals: NDArray[Any], first_views: NDArray[Any], second_views: NDArray[Any], path: Path
) -> None:
    """Draw images (N, H, W, C) above the two views (N, h, w, C) that are compared, into a PNG."""
    _stacked({"original": originals, "first view": first_views, "second view": second_views}, path)


def nearest_neighbours(
    query_images: NDArray[Any],
    query_features: NDArray[np.floating[Any]],
    bank_images: NDArray[Any],
    bank_features: NDArray[np.floating[Any]],
    path: Path,
    *,
    num_neighbours: int = 8,
) -> NDArray[np.int64]:
    """Draw each query with the bank images whose embeddings are closest by cosine, closest first.

    Args:
        query_images: images (M, H, W, C), a few.
        query_features: float (M, D).
        bank_images: images (N, H, W, C); should not hold the queries themselves.
        bank_features: float (N, D).
        path: PNG to write.
        num_neighbours: per query; more than N means N.

    Returns:
        Rows of the bank, int64 (M, num_neighbours).
    """
    assert len(query_images) == len(query_features) and len(bank_images) == len(bank_features)
    similarities = unit_rows(query_features) @ unit_rows(bank_features).T
    neighbours = np.argsort(-similarities, axis=1, kind="stable")[:, :num_neighbours]
    num_queries, num_columns = neighbours.shape
    figure = _figure((num_columns + 1.6) * _PANEL_INCHES, (num_queries + 0.3) * _PANEL_INCHES)
    grid = figure.subplots(num_queries, num_columns + 1, squeeze=False)
    for row, (image, columns) in enumerate(zip(query_images, neighbours, strict=True)):
        _draw(grid[row, 0], image)
        for place, column in enumerate(columns.tolist()):
            _draw(grid[row, place + 1], bank_images[column])
            grid[row, place + 1].set_title(f"{similarities[row, column]:.2f}", fontsize=7, pad=2)
    grid[0, 0].set_title("query", fontsize=8, pad=2)
    _save(figure, path)
    return neighbours.astype(np.int64)


def embedding_map(
    embeddings: NDArray[np.floating[Any]],
    path: Path,
    *,
    method: Literal["pca", "tsne"] = "tsne",
    labels: NDArray[np.integer[Any]] | None = None,
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    max_points: int = 2000,
) -> None:
    """Draw embeddings on the plane.

    Args:
        embeddings: float (N, D), at least three rows.
        path: PNG to write.
        method: `pca` draws the first two principal components, which takes milliseconds. `tsne`
            draws them beside t-SNE, which takes seconds.
        labels: int (N,), the colours, -1 where an image has none; None = one colour.
        label_names: what the legend calls label 0, 1, ...; see `drawn_names`.
        seed: of the methods and of the rows drawn.
        max_points: rows drawn, a random subset.
    """
    assert len(embeddings) >= 3
    shown = np.sort(permutation(len(embeddings), seed, Purpose.EVALUATION_ROW)[:max_points])
    rows = embeddings[shown].astype(np.float32)
    if rows.shape[1] == 1:
        rows = np.hstack([rows, np.zeros_like(rows)])
    # Embeddings that are all equal have no principal components.
    has_collapsed = np.allclose(rows, rows[0])
    maps: dict[str, NDArray[np.floating[Any]]] = {"PCA": np.zeros((len(rows), 2))}
    axis_names = ["", ""]
    if not has_collapsed:
        maps["PCA"], axis_names = _principal_components(rows, seed)
    if method == "tsne":
        maps["t-SNE"] = _tsne(rows, "random" if has_collapsed else "pca", seed)
    figure = _figure((len(maps) + 0.3) * _MAP_INCHES, _MAP_INCHES)
    (axes,) = figure.subplots(1, len(maps), squeeze=False)
    for panel, (title, points) in zip(axes, maps.items(), strict=True):
        _scatter(panel, points, None if labels is None else labels[shown], label_names)
        panel.set(title=title, xticks=[], yticks=[])
    axes[0].set(xlabel=axis_names[0], ylabel=axis_names[1])
    if axes[-1].get_legend_handles_labels()[0]:
        _write_legend(axes[-1], drawn_names(tuple(label_names or ())).families)
    if len(shown) < len(embeddings):
        figure.suptitle(f"{len(shown):,} of {len(embeddings):,} embeddings", fontsize=9)
    _save(figure, path)


def _stacked(kinds: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Draw arrays of images below each other, wrapped into blocks of ten columns."""
    (num_images,) = {len(images) for images in kinds.values()}
    assert num_images > 0
    num_columns = min(num_images, _MAX_COLUMNS)
    num_blocks = -(-num_images // num_columns)
    num_rows = num_blocks * len(kinds)
    figure = _figure((num_columns + 1.2) * _PANEL_INCHES, num_rows * _PANEL_INCHES)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for panel in grid.flat:
        panel.set_axis_off()
    for place, (kind, images) in enumerate(kinds.items()):
        for number, image in enumerate(images):
            block, column = divmod(number, num_columns)
            panel = grid[block * len(kinds) + place, column]
            _draw(panel, image)
            if column == 0:
                style = {"ha": "right", "va": "center", "fontsize": 8}
                panel.text(-0.1, 0.5, kind, transform=panel.transAxes, **style)
    _save(figure, path)


def _draw(panel: Axes, image: NDArray[Any]) -> None:
    is_bytes = image.dtype == np.uint8
    pixels = image if is_bytes else (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    assert pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4), pixels.shape
    panel.set_axis_off()
    if pixels.shape[2] == 1:
        panel.imshow(pixels[:, :, 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    else:
        panel.imshow(pixels, interpolation="nearest")


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
    label_names: Sequence[str] | None,
) -> None:
    from matplotlib import colormaps

    style: dict[str, Any] = {"s": 6, "linewidths": 0}
    if labels is None:
        panel.scatter(*points.T, **style)
        return
    if (labels < 0).any():
        panel.scatter(*points[labels < 0].T, color="lightgray", label="no label", **style)
    points, labels = points[labels >= 0], labels[labels >= 0]
    classes = np.unique(labels)
    if len(classes) > _MAX_LEGEND:
        x, y = points.T
        panel.scatter(x, y, c=labels, cmap="viridis", **style)
        return
    names = drawn_names(tuple(label_names or ())).names
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for number, label in enumerate(classes.tolist()):
        members = points[labels == label]
        name = names[label] if names else str(label)
        panel.scatter(*members.T, color=palette(number), label=name, **style)


def _write_legend(panel: Axes, families: Sequence[str]) -> None:
    """Write the names of the points beside a panel."""
    legend = panel.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        prop={"family": list(families), "size": 8},
        markerscale=3,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called a$b$


def _figure(width_inches: float, height_inches: float) -> Figure:
    # Matplotlib takes most of a second to import. A figure without pyplot leaves the user's alone.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), dpi=_DOTS_PER_INCH, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the software's name the bytes depend on the picture alone.
    with atomic_file(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
