"""Pictures: every image has its panel in its place, in its own colours, and files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from bert_pretrain.evaluation import embedding_maps, neighbour_pictures, pictures
from bert_pretrain.evaluation.drawing import RIGHT, WRONG
from bert_pretrain.evaluation.embedding_maps import embedding_map
from bert_pretrain.evaluation.neighbour_pictures import Embedded, nearest_neighbours
from bert_pretrain.evaluation.pictures import ImageRow, Triplets, draw_triplets, image_rows


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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, still open."""
    figures: list[Figure] = []
    for module in (pictures, embedding_maps, neighbour_pictures):
        save = module.save_figure

        def keep(figure: Figure, path: Path, save: Any = save) -> None:
            figures.append(figure)
            save(figure, path)

        monkeypatch.setattr(module, "save_figure", keep)
    return figures


def title_of(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def caption_of(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def pair_of_rows(first: np.ndarray, second: np.ndarray, path: Path) -> None:
    image_rows([ImageRow("above", first), ImageRow("below", second)], path, title="Two rows")


def test_what_belongs_together_stands_below_each_other(tmp_path: Path) -> None:
    """Whatever the size of the images."""
    kinds = [distinct_colours(4, offset=offset) for offset in (0, 20, 40)]
    rows = [
        ImageRow(f"row {n}", plain_images(kind)[:, : 6 - n, : 6 - n])
        for n, kind in enumerate(kinds)
    ]
    image_rows(rows, tmp_path / "new/pictures.png", title="Three rows")
    picture = read(tmp_path / "new/pictures.png")
    for column in range(4):
        centres = [centre(picture, colours[column]) for colours in kinds]
        heights = [row for row, _ in centres]
        assert min(np.diff(heights)) > 20
        assert np.ptp([place for _, place in centres]) < 1.5
    lefts = [centre(picture, colour)[1] for colour in kinds[0]]
    assert lefts == sorted(lefts)


def test_more_than_ten_images_are_wrapped_into_blocks(tmp_path: Path) -> None:
    first, second = distinct_colours(13), distinct_colours(13, offset=40)
    pair_of_rows(plain_images(first), plain_images(second), tmp_path / "pictures.png")
    picture = read(tmp_path / "pictures.png")
    rows = [centre(picture, colour)[0] for colour in (first[0], second[0], first[10], second[10])]
    assert rows == sorted(rows) and len(set(rows)) == 4
    assert centre(picture, first[12])[1] == pytest.approx(centre(picture, first[2])[1], abs=1.5)


def test_a_picture_says_what_is_seen_and_how_to_read_it_in_lines_that_fit(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    images = plain_images(distinct_colours(3))
    title, caption = "What is seen " * 12, "How it is to be read " * 20
    image_rows(
        [ImageRow("an image", images), ImageRow("another", images, ["1 dB", "2 dB", "3 dB"])],
        tmp_path / "pictures.png",
        title=title,
        caption=caption,
    )
    (figure,) = drawn
    assert title_of(figure) == title.strip() and caption_of(figure) == caption.strip()
    width = figure.bbox.width
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width, text.get_text()
    labels = [panel.get_ylabel() for panel in figure.axes]
    assert labels == ["an image", "", "", "another", "", ""]
    assert [panel.get_xlabel() for panel in figure.axes] == ["", "", "", "1 dB", "2 dB", "3 dB"]


def triplets(count: int, *, margin: float = 0.5) -> Triplets:
    near, far = np.linspace(0.1, 0.4, count), np.linspace(0.2, 1.9, count)
    kinds = [plain_images(distinct_colours(count, offset=offset)) for offset in (0, 20, 40)]
    return Triplets(*kinds, positive_distances=near, negative_distances=far, margin=margin)


def test_the_formula_of_a_triplet_is_the_articles_with_its_numbers() -> None:
    """max(d(e1, e1') - d(e1, e2) + alpha, 0), by hand: 0.1 - 0.2 + 0.5 and 0.4 - 1.9 + 0.5."""
    of_two = triplets(2)
    assert of_two.formula(0) == "max(0.100 \N{MINUS SIGN} 0.200 + 0.5, 0) = 0.400"
    assert of_two.formula(1) == "max(0.400 \N{MINUS SIGN} 1.900 + 0.5, 0) = 0.000"
    np.testing.assert_allclose(of_two.losses, [0.4, 0])


def test_a_triplet_is_named_and_lies_on_the_scale_of_its_distances(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_triplets(triplets(3), tmp_path / "triplets.png", caption="d is a distance")
    (figure,) = drawn
    # 0.1 - 0.2 + 0.5 is above 0; 0.25 - 1.05 + 0.5 and 0.4 - 1.9 + 0.5 are not.
    assert "(2 of 3)" in title_of(figure)
    assert "margin \N{GREEK SMALL LETTER ALPHA} = 0.5" in caption_of(figure)
    assert caption_of(figure).endswith("d is a distance")
    names = [panel.get_title().split()[0] for panel in figure.axes[:3]]
    assert names == ["anchor", "positive", "negative"]
    for number, panel in enumerate(figure.axes[3::4]):
        positive, negative = (line.get_xdata()[0] for line in panel.lines)
        assert positive == pytest.approx(triplets(3).positive_distances[number])
        assert negative == pytest.approx(triplets(3).negative_distances[number])
        (margin,) = panel.patches
        # A rectangle from Matplotlib 3.9 on, a polygon before: both have extents, in pixels.
        corners = panel.transData.inverted().transform(margin.get_extents().get_points())
        assert corners[:, 0] == pytest.approx([positive, positive + 0.5])
        assert panel.texts[0].get_text() == triplets(3).formula(number)
    picture = read(tmp_path / "triplets.png")
    for number in range(3):
        centres = [
            centre(picture, distinct_colours(3, offset=offset)[number]) for offset in (0, 20, 40)
        ]
        assert np.ptp([row for row, _ in centres]) < 1.5
        assert [place for _, place in centres] == sorted(place for _, place in centres)


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
    pair_of_rows(images, images, tmp_path / "pictures.png")
    assert len(panels(read(tmp_path / "pictures.png"), shown)) == 4


def test_a_transparent_image_lets_the_paper_through(tmp_path: Path) -> None:
    images = plain_images([(10, 200, 30, 0)])
    pair_of_rows(images, images, tmp_path / "pictures.png")
    picture = read(tmp_path / "pictures.png")
    assert not panels(picture, (10, 200, 30))


def test_floats_are_shown_as_their_bytes_and_clipped(tmp_path: Path) -> None:
    pixels = plain_images([(51, 102, 255)])
    beyond = np.full((1, 6, 6, 3), [0.2, 0.4, 1.7], dtype=np.float32)
    pair_of_rows(pixels, beyond, tmp_path / "pictures.png")
    assert len(panels(read(tmp_path / "pictures.png"), (51, 102, 255))) == 2


def test_the_same_input_gives_the_same_bytes_and_no_half_file(tmp_path: Path) -> None:
    images = plain_images(distinct_colours(3))
    for name in ("first.png", "second.png"):
        pair_of_rows(images, images, tmp_path / name)
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
        Embedded(plain_images(query), np.array([[1.0, 0.0]])),
        Embedded(plain_images(colours), bank),
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
    images = Embedded(plain_images(distinct_colours(3)), np.eye(3))
    assert nearest_neighbours(images, images, tmp_path / "n.png").shape == (3, 3)


def test_neighbours_of_the_images_own_class_are_told_from_those_of_another(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    """By a mark and a colour; an image without a label is neither. 1 right of 2, by chance 2/3."""
    angles = np.radians([10, 20, 30, 40])
    bank = Embedded(
        plain_images(distinct_colours(4)),
        np.stack([np.cos(angles), np.sin(angles)], axis=1),
        np.array([1, -1, 0, 1]),
    )
    query = Embedded(
        plain_images(distinct_colours(1, offset=60)), np.array([[1.0, 0.0]]), np.array([1])
    )
    nearest_neighbours(
        query,
        bank,
        tmp_path / "n.png",
        label_names=["cat", "a dog of a long name"],
        num_neighbours=3,
    )
    (figure,) = drawn
    panels = [figure.axes[number] for number in (0, 2, 3, 4)]
    shown = [panel.get_xlabel() for panel in panels]
    name = "a dog of a long\N{HORIZONTAL ELLIPSIS}"
    assert shown == [name, f"{name}\n\N{CHECK MARK} 0.98", "0.94", "cat\n\N{BALLOT X} 0.87"]
    frames = [panel.spines["left"] for panel in panels]
    assert [frame.get_visible() for frame in frames] == [False, True, False, True]
    assert [to_hex(frames[number].get_edgecolor()) for number in (1, 3)] == [RIGHT, WRONG]
    assert "1 of 2 neighbours are of the image's own class" in caption_of(figure)
    assert "by chance 67% would be" in caption_of(figure)


def test_neighbours_without_labels_are_not_judged(tmp_path: Path, drawn: list[Figure]) -> None:
    images = Embedded(plain_images(distinct_colours(3)), np.eye(3), np.array([-1, 0, -1]))
    nearest_neighbours(images, images._replace(labels=None), tmp_path / "n.png")
    assert caption_of(drawn[0]) == "number: cosine similarity of the embeddings"


def tab10(number: int) -> tuple[int, ...]:
    from matplotlib import colormaps

    return tuple(round(255 * value) for value in colormaps["tab10"](number)[:3])


def coloured_pixels(picture: np.ndarray, number: int) -> int:
    return int((picture == np.array(tab10(number))).all(axis=2).sum())


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_has_a_colour_and_a_count_per_label(
    tmp_path: Path, drawn: list[Figure], method: Any
) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    embeddings = generator.normal(size=(60, 5)) + 6 * np.eye(5)[labels]
    names = ["cat", "dog", "eel"]
    embedding_map(
        embeddings, tmp_path / "map.png", method=method, labels=labels, label_names=names, seed=1
    )
    picture = read(tmp_path / "map.png")
    assert all(coloured_pixels(picture, number) > 20 for number in range(3))
    assert coloured_pixels(picture, 3) == 0
    legend = drawn[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["cat (10)", "dog (20)", "eel (30)"]
    assert title_of(drawn[0]).startswith("Embeddings of 60 held-out images")


def test_the_quick_map_is_to_scale_and_its_axes_name_their_share_of_the_variance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[Figure]
) -> None:
    monkeypatch.setattr("sklearn.manifold.TSNE", lambda *_, **__: pytest.fail("t-SNE is slow"))
    # Two uncorrelated columns, the first with three times the deviation: 9 parts of 10.
    embeddings = np.array([[-3.0, 1.0], [3.0, 1.0], [-3.0, -1.0], [3.0, -1.0]])
    embedding_map(embeddings, tmp_path / "map.png", method="pca")
    (panel,) = drawn[0].axes
    assert panel.get_xlabel() == "component 1, 90 % of the variance"
    assert panel.get_ylabel() == "component 2, 10 % of the variance"
    assert len(panel.get_xticks()) > 2 and len(panel.get_yticks()) > 2
    # A unit is as long in one direction as in the other.
    (x0, y0), (x1, y1) = panel.transData.transform([(0, 0), (1, 1)])
    assert x1 - x0 == pytest.approx(y1 - y0)


def test_a_random_subset_is_drawn_in_its_own_colours(tmp_path: Path, drawn: list[Figure]) -> None:
    """Two far clusters in turn, so that labels of other rows would mix the colours."""
    labels = np.random.default_rng(1).integers(2, size=200)
    embeddings = np.random.default_rng(0).normal(size=(200, 3)) + np.outer(labels, [30, 0, 0])
    embedding_map(embeddings, tmp_path / "map.png", method="pca", labels=labels, max_points=40)
    assert title_of(drawn[0]).startswith("Embeddings of 40 of 200 held-out images")
    spans = [points.get_offsets()[:, 0] for points in drawn[0].axes[0].collections]
    assert sum(map(len, spans)) == 40
    assert spans[0].max() < spans[1].min() or spans[1].max() < spans[0].min()


def test_images_without_a_label_are_gray_on_the_map(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(40, 3))
    labels = np.repeat([-1, 0], [15, 25])
    embedding_map(
        embeddings, tmp_path / "map.png", method="pca", labels=labels, label_names=["cat"]
    )
    picture = read(tmp_path / "map.png")
    assert (picture == 211).all(axis=2).sum() > 20  # "lightgray"
    assert coloured_pixels(picture, 0) > 20 and coloured_pixels(picture, 1) == 0


def test_of_many_classes_the_most_frequent_are_told_apart(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    embeddings = np.random.default_rng(0).normal(size=(60, 3))
    labels = np.concatenate([np.arange(40), np.arange(20, 40)])  # classes from 20 on twice
    embedding_map(embeddings, tmp_path / "many.png", method="pca", labels=labels)
    texts = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert texts == ["21 other classes (22)", *(f"{label} (2)" for label in range(20, 39))]


def test_a_map_without_labels_has_one_colour_and_no_legend(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    embeddings = np.random.default_rng(0).normal(size=(40, 3))
    embedding_map(embeddings, tmp_path / "plain.png", method="pca")
    assert coloured_pixels(read(tmp_path / "plain.png"), 0) > 20
    assert drawn[0].axes[0].get_legend() is None


@pytest.mark.parametrize(
    "embeddings",
    [np.ones((12, 4)), np.arange(12.0)[:, None], np.random.default_rng(0).random((3, 4))],
)
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_collapsed_and_one_dimensional_and_few_embeddings_are_drawn(
    embeddings: np.ndarray, tmp_path: Path, method: Any
) -> None:
    embedding_map(embeddings, tmp_path / "map.png", method=method)
    assert coloured_pixels(read(tmp_path / "map.png"), 0) > 0
