"""Pictures: every image has its panel in its place, in its own colours, and files are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from bert_pretrain.evaluation import pictures
from bert_pretrain.evaluation.pictures import (
    augmented_views,
    embedding_map,
    nearest_neighbours,
    reconstructions,
)


def plain_images(colours: list[tuple[int, ...]]) -> np.ndarray:
    """One image of a single colour each, uint8 (N, 6, 6, C)."""
    return np.array(colours, dtype=np.uint8)[:, None, None, :].repeat(6, axis=1).repeat(6, axis=2)


def distinct_colours(count: int, *, offset: int = 0) -> list[tuple[int, int, int]]:
    return [
        (40 + 13 * (number + offset) % 200, 7 * (number + offset) % 256, 250)
        for number in range(count)
    ]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.array(image.convert("RGB"))


def panels(picture: np.ndarray, colour: tuple[int, ...]) -> list[tuple[float, float]]:
    """Return the centres (row, column) of the regions of a colour, without pixels of text."""
    regions, count = ndimage.label((picture == np.array(colour)).all(axis=2))
    sizes = ndimage.sum_labels(np.ones(regions.shape), regions, range(1, count + 1))
    kept = [number for number, size in enumerate(np.atleast_1d(sizes), 1) if size > 400]
    return [tuple(centre) for centre in ndimage.center_of_mass(regions > 0, regions, kept)]


def centre(picture: np.ndarray, colour: tuple[int, ...]) -> tuple[float, float]:
    (only,) = panels(picture, colour)
    return only


def test_originals_stand_above_their_reconstructions(tmp_path: Path) -> None:
    first, second = distinct_colours(4), distinct_colours(4, offset=40)
    reconstructions(plain_images(first), plain_images(second), tmp_path / "new/pictures.png")
    picture = read(tmp_path / "new/pictures.png")
    for original, reconstructed in zip(first, second, strict=True):
        (upper, left), (lower, below_left) = (
            centre(picture, original),
            centre(picture, reconstructed),
        )
        assert lower > upper + 20
        assert left == pytest.approx(below_left, abs=1.5)
    lefts = [centre(picture, colour)[1] for colour in first]
    assert lefts == sorted(lefts)


def test_more_than_ten_images_are_wrapped_into_blocks(tmp_path: Path) -> None:
    first, second = distinct_colours(13), distinct_colours(13, offset=40)
    reconstructions(plain_images(first), plain_images(second), tmp_path / "pictures.png")
    picture = read(tmp_path / "pictures.png")
    rows = [centre(picture, colour)[0] for colour in (first[0], second[0], first[10], second[10])]
    assert rows == sorted(rows) and len(set(rows)) == 4
    assert centre(picture, first[12])[1] == pytest.approx(centre(picture, first[2])[1], abs=1.5)


def test_both_views_stand_below_their_original_whatever_their_size(tmp_path: Path) -> None:
    kinds = [distinct_colours(3, offset=offset) for offset in (0, 20, 40)]
    originals, first_views, second_views = (plain_images(colours) for colours in kinds)
    augmented_views(
        originals, first_views[:, :4, :4], second_views[:, :4, :4], tmp_path / "views.png"
    )
    picture = read(tmp_path / "views.png")
    for column in range(3):
        centres = [centre(picture, colours[column]) for colours in kinds]
        assert [row for row, _ in centres] == sorted(row for row, _ in centres)
        assert np.ptp([place for _, place in centres]) < 1.5


@pytest.mark.parametrize(
    ("pixel", "shown"),
    [
        ((0,), (0, 0, 0)),
        ((120,), (120, 120, 120)),
        ((10, 200, 30), (10, 200, 30)),
        ((10, 200, 30, 255), (10, 200, 30)),
    ],
)
def test_one_three_and_four_channels_are_shown_in_their_own_colours(
    pixel: tuple[int, ...], shown: tuple[int, ...], tmp_path: Path
) -> None:
    """A gray image of one value is not stretched to the range of gray."""
    images = plain_images([pixel] * 2)
    reconstructions(images, images, tmp_path / "pictures.png")
    assert len(panels(read(tmp_path / "pictures.png"), shown)) == 4


def test_a_transparent_image_lets_the_paper_through(tmp_path: Path) -> None:
    images = plain_images([(10, 200, 30, 0)])
    reconstructions(images, images, tmp_path / "pictures.png")
    picture = read(tmp_path / "pictures.png")
    assert not panels(picture, (10, 200, 30))


def test_floats_are_shown_as_their_bytes_and_clipped(tmp_path: Path) -> None:
    pixels = plain_images([(51, 102, 255)])
    beyond = np.full((1, 6, 6, 3), [0.2, 0.4, 1.7], dtype=np.float32)
    reconstructions(pixels, beyond, tmp_path / "pictures.png")
    assert len(panels(read(tmp_path / "pictures.png"), (51, 102, 255))) == 2


def test_the_same_input_gives_the_same_bytes_and_no_half_file(tmp_path: Path) -> None:
    images = plain_images(distinct_colours(3))
    for name in ("first.png", "second.png"):
        reconstructions(images, images, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.png", "second.png"]


def test_neighbours_are_the_closest_by_cosine_in_order(tmp_path: Path) -> None:
    angles = np.radians([50, 10, 30, 180, 5])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(
        [[3], [0.1], [1], [9], [2]]
    )
    colours = distinct_colours(5)
    query = distinct_colours(1, offset=60)
    neighbours = nearest_neighbours(
        plain_images(query),
        np.array([[1.0, 0.0]]),
        plain_images(colours),
        bank,
        tmp_path / "n.png",
        num_neighbours=3,
    )
    assert neighbours.tolist() == [[4, 1, 2]]
    picture = read(tmp_path / "n.png")
    lefts = [
        centre(picture, colour)[1] for colour in (query[0], colours[4], colours[1], colours[2])
    ]
    assert lefts == sorted(lefts)
    assert not panels(picture, colours[0]) and not panels(picture, colours[3])


def test_more_neighbours_than_the_bank_has_means_all(tmp_path: Path) -> None:
    images, features = plain_images(distinct_colours(3)), np.eye(3)
    assert nearest_neighbours(images, features, images, features, tmp_path / "n.png").shape == (
        3,
        3,
    )


def tab10(number: int) -> tuple[int, ...]:
    from matplotlib import colormaps

    return tuple(round(255 * value) for value in colormaps["tab10"](number)[:3])


def coloured_pixels(picture: np.ndarray, number: int) -> int:
    return int((picture == np.array(tab10(number))).all(axis=2).sum())


def test_the_map_has_a_panel_per_method_and_a_colour_per_label(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    embeddings = generator.normal(size=(60, 5)) + 6 * np.eye(5)[labels]
    embedding_map(
        embeddings, tmp_path / "map.png", labels=labels, label_names=["cat", "dog", "eel"], seed=1
    )
    picture = read(tmp_path / "map.png")
    assert all(coloured_pixels(picture, number) > 20 for number in range(3))
    assert coloured_pixels(picture, 3) == 0
    # The frames of two panels: columns that are black from top to bottom of the axes.
    is_black = (picture < 40).all(axis=2).sum(axis=0) > 0.6 * len(picture)
    assert ndimage.label(is_black)[1] == 4


def test_the_quick_map_is_one_panel_whose_axes_name_their_share_of_the_variance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sklearn.manifold.TSNE", lambda *_, **__: pytest.fail("t-SNE is slow"))
    titles: list[tuple[str, str, str]] = []
    save = pictures._save

    def read_titles(figure: Figure, path: Path) -> None:
        titles.extend((a.get_title(), a.get_xlabel(), a.get_ylabel()) for a in figure.axes)
        save(figure, path)

    monkeypatch.setattr(pictures, "_save", read_titles)
    # Two uncorrelated columns, the first with three times the deviation: 9 parts of 10.
    embeddings = np.array([[-3.0, 1.0], [3.0, 1.0], [-3.0, -1.0], [3.0, -1.0]])
    embedding_map(embeddings, tmp_path / "map.png", method="pca")
    shares = ("component 1, 90 % of the variance", "component 2, 10 % of the variance")
    assert titles == [("PCA", *shares)]


def test_a_random_subset_is_drawn_in_its_own_colours(tmp_path: Path) -> None:
    """Two far clusters in turn, so that labels of other rows would mix the colours."""
    labels = np.random.default_rng(1).integers(2, size=200)
    embeddings = np.random.default_rng(0).normal(size=(200, 3)) + np.outer(labels, [30, 0, 0])
    embedding_map(embeddings, tmp_path / "map.png", labels=labels, max_points=40)
    picture = read(tmp_path / "map.png")
    pca_panel = picture[:, : picture.shape[1] * 47 // 100]
    spans = [
        np.flatnonzero((pca_panel == np.array(tab10(number))).all(axis=2).any(axis=0))
        for number in (0, 1)
    ]
    assert spans[0].max() < spans[1].min() or spans[1].max() < spans[0].min()


def test_images_without_a_label_are_gray_on_the_map(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(40, 3))
    embedding_map(
        embeddings, tmp_path / "map.png", labels=np.repeat([-1, 0], [15, 25]), label_names=["cat"]
    )
    picture = read(tmp_path / "map.png")
    assert (picture == 211).all(axis=2).sum() > 20  # "lightgray"
    assert coloured_pixels(picture, 0) > 20 and coloured_pixels(picture, 1) == 0


def test_a_map_without_labels_and_one_with_many_are_drawn(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(40, 3))
    embedding_map(embeddings, tmp_path / "plain.png")
    embedding_map(embeddings, tmp_path / "many.png", labels=np.arange(40))
    assert coloured_pixels(read(tmp_path / "plain.png"), 0) > 20
    assert read(tmp_path / "many.png").shape == read(tmp_path / "plain.png").shape


@pytest.mark.parametrize(
    "embeddings",
    [np.ones((12, 4)), np.arange(12.0)[:, None], np.random.default_rng(0).random((3, 4))],
)
def test_collapsed_and_one_dimensional_and_few_embeddings_are_drawn(
    embeddings: np.ndarray, tmp_path: Path
) -> None:
    embedding_map(embeddings, tmp_path / "map.png")
    assert coloured_pixels(read(tmp_path / "map.png"), 0) > 0
