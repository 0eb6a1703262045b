"""Decoded images against their arrays, and against Pillow, datasets and transformers."""

from __future__ import annotations

import io
import math
import pickle
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from sklearn.datasets import load_digits
from transformers import ViTImageProcessorPil

from bert_pretrain.errors import InputError
from bert_pretrain.images import decoding
from bert_pretrain.images.card import image_card
from bert_pretrain.images.corpus import ImageCorpus, open_images

Open = Callable[..., ImageCorpus]


@pytest.fixture
def open_here(tmp_path: Path) -> Open:
    def call(name: Path | str | None = None, **options: Any) -> ImageCorpus:
        defaults = {
            "validation_share": 0.2,
            "seed": 1,
            "cache_dir": tmp_path / "cache",
            "show_progress": False,
        }
        return open_images(dataset_name=name and str(name), **(defaults | options))

    return call


def random_pixels(
    count: int, height: int = 6, width: int = 5, channels: int = 3, *, seed: int = 0
) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def picture(pixels: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return encoded(picture(pixels))


def write_folder(
    folder: Path, pixels: np.ndarray, classes: tuple[str, ...] = ("dog", "cat")
) -> Path:
    """Write PNG files in the order of `pixels` within each class, classes taken in turn."""
    for number, image in enumerate(pixels):
        path = folder / classes[number % len(classes)] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return folder


def write_flat(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def write_parquet(path: Path, columns: dict[str, Any], features: Features | None = None) -> str:
    if features is None:
        pq.write_table(pa.table(columns), path)
    else:
        Dataset.from_dict(columns, features=features).to_parquet(path)
    return str(path)


def as_structs(pixels: np.ndarray) -> list[dict[str, Any]]:
    return [{"bytes": png(image), "path": None} for image in pixels]


def content_of(corpus: ImageCorpus) -> set[bytes]:
    return {image.tobytes() for image in corpus.pixels}


def test_digits_are_those_of_scikit_learn_scaled_to_bytes(open_here: Open) -> None:
    digits = load_digits()
    corpus = open_here(None)
    expected = [
        [round(Fraction(int(v)) * 255 / 16) for v in image.ravel()] for image in digits.images[:200]
    ]
    assert corpus.pixels.shape == (1797, 8, 8, 1)
    assert corpus.pixels[:200].reshape(200, 64).tolist() == expected
    assert corpus.pixels.max() == 255
    assert corpus.labels is not None
    assert corpus.labels.tolist() == digits.target.tolist()
    assert corpus.label_names == tuple("0123456789")
    assert not isinstance(corpus.pixels, np.memmap)
    assert not corpus.pixels.flags.writeable
    assert open_here("digits").manifest["key"] == corpus.manifest["key"]


def test_digits_take_other_sizes_and_channels(open_here: Open) -> None:
    corpus = open_here("digits", image_size=12, num_channels=3)
    assert corpus.pixels.shape == (1797, 12, 12, 3)
    assert (corpus.pixels == corpus.pixels[..., :1]).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_folder_gives_the_pixels_of_its_files_in_order(
    open_here: Open, tmp_path: Path, channels: int
) -> None:
    pixels = random_pixels(101, channels=channels)
    corpus = open_here(write_folder(tmp_path / "f", pixels))
    assert np.array_equal(corpus.pixels, np.concatenate([pixels[1::2], pixels[0::2]]))
    assert corpus.label_names == ("cat", "dog")
    assert corpus.labels is not None
    assert corpus.labels.tolist() == [0] * 50 + [1] * 51


@pytest.mark.parametrize(
    "layout", [("a", "b"), ("only",), ("a", "b/c"), ("x/a", "y/b"), ("x/a", "y/a")]
)
def test_folders_are_labelled_as_datasets_labels_them(
    open_here: Open, tmp_path: Path, layout: tuple[str, ...]
) -> None:
    folder = write_folder(tmp_path / "f", random_pixels(12), layout)
    corpus = open_here(folder)
    theirs = load_dataset(
        "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "hf"), split="train"
    )
    labels = theirs["label"] if "label" in theirs.column_names else []
    expected = sorted(
        (np.asarray(row["image"]).tobytes(), label)
        for row, label in zip(theirs, labels, strict=False)
    )
    found = [] if corpus.labels is None else corpus.labels.tolist()
    assert (
        sorted((image.tobytes(), label) for image, label in zip(corpus.pixels, found, strict=False))
        == expected
    )
    names = theirs.features["label"].names if labels else []
    assert list(corpus.label_names) == names


def test_hidden_files_and_other_files_are_no_images(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(6)
    folder = write_folder(tmp_path / "f", pixels)
    junk = write_flat(folder / "__MACOSX", {"a.png": b"no image"})
    write_flat(folder, {".a.png": b"no image", "README.md": b"text", "Thumbs.db": b""})
    assert len(open_here(folder).pixels) == 6
    assert junk.is_dir()


def test_folders_named_by_split_are_splits_and_classes_called_train_are_not(
    open_here: Open, tmp_path: Path
) -> None:
    pixels = random_pixels(40)
    write_folder(tmp_path / "s" / "train", pixels[:20])
    write_folder(tmp_path / "s" / "test", pixels[20:])
    assert content_of(open_here(tmp_path / "s")) == {image.tobytes() for image in pixels[:20]}
    test = open_here(tmp_path / "s", dataset_split="test")
    assert content_of(test) == {image.tobytes() for image in pixels[20:]}
    assert test.label_names == ("cat", "dog")
    with pytest.raises(InputError, match=r"test, train.*`dataset_split`"):
        open_here(tmp_path / "s", dataset_split="validation")
    vehicles = open_here(write_folder(tmp_path / "v", pixels, ("plane", "train")))
    assert vehicles.label_names == ("plane", "train")
    assert len(vehicles.pixels) == 40


def test_all_kinds_of_parquet_columns_give_the_same_images(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(9)
    contents = [png(image) for image in pixels]
    write_flat(
        tmp_path / "files", {f"{number}.png": content for number, content in enumerate(contents)}
    )
    kinds = {
        "feature": write_parquet(
            tmp_path / "1.parquet", {"image": as_structs(pixels)}, Features({"image": Image()})
        ),
        "struct": write_parquet(tmp_path / "2.parquet", {"image": as_structs(pixels)}),
        "bytes only": write_parquet(
            tmp_path / "3.parquet", {"image": [{"bytes": content} for content in contents]}
        ),
        "binary": write_parquet(tmp_path / "4.parquet", {"image": contents}),
        "large": write_parquet(
            tmp_path / "5.parquet", {"image": pa.array(contents, pa.large_binary())}
        ),
        "paths": write_parquet(
            tmp_path / "6.parquet",
            {"image": [str(tmp_path / "files" / f"{number}.png") for number in range(9)]},
        ),
    }
    corpora = {kind: open_here(data_files=[file]) for kind, file in kinds.items()}
    for kind, corpus in corpora.items():
        assert np.array_equal(corpus.pixels, pixels), kind
        assert corpus.labels is None
        assert corpus.label_names == ()
    assert len({corpus.manifest["key"] for corpus in corpora.values()}) == 1


LABELS: dict[str, tuple[Any, Any, list[int], tuple[str, ...]]] = {
    "class label": (
        ["b", "a", "b", None, "c"],
        ClassLabel(names=["c", "b", "a"]),
        [1, 2, 1, -1, 0],
        ("c", "b", "a"),
    ),
    "string": (["b", "a", "b", None, "d"], Value("string"), [1, 0, 1, -1, 2], ("a", "b", "d")),
    "number": ([3, 0, -1, None, 3], Value("int32"), [3, 0, -1, -1, 3], ("0", "1", "2", "3")),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_numbered_and_named(open_here: Open, tmp_path: Path, kind: str) -> None:
    values, feature, expected, names = LABELS[kind]
    columns = {"picture": as_structs(random_pixels(5)), "kind": values, "other": list(range(5))}
    features = Features({"picture": Image(), "kind": feature, "other": Value("float64")})
    file = write_parquet(tmp_path / "a.parquet", columns, features)
    corpus = open_here(data_files=[file], image_column="picture", label_column="kind")
    assert corpus.labels is not None
    assert corpus.labels.dtype == np.int64
    assert corpus.labels.tolist() == expected
    assert corpus.label_names == names
    assert open_here(data_files=[file], image_column="picture").labels is None


def test_several_parquet_files_follow_each_other(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(200)
    for number in range(2):
        part = pixels[number * 100 : number * 100 + 100]
        columns = {"image": as_structs(part), "label": [number] * 100}
        features = Features({"image": Image(), "label": ClassLabel(names=["x", "y"])})
        write_parquet(tmp_path / f"{number}.parquet", columns, features)
    corpus = open_here(data_files=[str(tmp_path / "*.parquet")])
    assert np.array_equal(corpus.pixels, pixels)
    assert corpus.labels is not None
    assert corpus.labels.tolist() == [0] * 100 + [1] * 100
    other = Features({"image": Image(), "label": ClassLabel(names=["y", "x"])})
    write_parquet(
        tmp_path / "2.parquet", {"image": as_structs(pixels[:5]), "label": [0] * 5}, other
    )
    with pytest.raises(InputError, match=r"2\.parquet.*0\.parquet"):
        open_here(data_files=[str(tmp_path / "*.parquet")])


def test_a_saved_data_set_is_read_by_split_and_through_its_index(
    open_here: Open, tmp_path: Path
) -> None:
    pixels = random_pixels(150)
    features = Features({"image": Image(), "label": Value("string")})
    columns = {"image": as_structs(pixels), "label": [f"{n % 3}" for n in range(150)]}
    dataset = Dataset.from_dict(columns, features=features)
    DatasetDict(train=dataset.select([7, 3, 149, 20, 3]), test=dataset).save_to_disk(
        tmp_path / "saved"
    )
    corpus = open_here(tmp_path / "saved")
    assert np.array_equal(corpus.pixels, pixels[[7, 3, 149, 20]])
    assert corpus.labels is not None
    assert corpus.labels.tolist() == [1, 0, 2, 2]
    test = open_here(tmp_path / "saved", dataset_split="test")
    assert np.array_equal(test.pixels, pixels)
    with pytest.raises(InputError, match=r"train, test.*`dataset_split`"):
        open_here(tmp_path / "saved", dataset_split="validation")
    dataset.select([5, 6, 7, 8]).save_to_disk(tmp_path / "other")
    assert np.array_equal(open_here(tmp_path / "other").pixels, pixels[5:9])
    with pytest.raises(InputError, match="has no split 'tets'; it has train"):
        open_here(tmp_path / "other", dataset_split="tets")


def test_a_copy_without_a_label_contradicts_none(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(6)
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    places, labels = [0, 1, 2, 3, 0, 1, 2, 4, 5, 3, 3], [0, None, 1, 0, None, 1, 1, 1, 0, 1, 0]
    rows = {"image": as_structs(pixels[places]), "label": labels}
    write_parquet(tmp_path / "own.parquet", rows, features)
    corpus = open_here(data_files=[str(tmp_path / "own.parquet")])
    assert corpus.labels is not None
    assert corpus.labels.tolist() == [0, 1, 1, -1, 1, 0]
    assert corpus.manifest["counts"]["contradictions"] == 1


def test_a_folder_of_parquet_files_is_left_to_datasets(
    open_here: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    pixels = random_pixels(6)
    folder = write_flat(tmp_path / "repository", {"figure.png": png(random_pixels(1, seed=9)[0])})
    features = Features({"image": Image(), "label": Value("int64")})
    write_parquet(
        folder / "train.parquet", {"image": as_structs(pixels), "label": range(6)}, features
    )
    assert np.array_equal(open_here(folder).pixels, pixels)


SIZES = [(40, 40), (23, 41), (57, 19), (16, 90), (12, 9), (33, 16), (16, 31), (16, 16)]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resizing_and_cropping_are_those_of_the_image_processor(
    open_here: Open, tmp_path: Path, channels: int
) -> None:
    processor = ViTImageProcessorPil(
        size={"shortest_edge": 16},
        resample=PIL.Image.Resampling.BICUBIC,
        do_center_crop=True,
        crop_size={"height": 16, "width": 16},
        do_rescale=False,
        do_normalize=False,
    )
    pixels = [random_pixels(1, *size, channels)[0] for size in SIZES]
    folder = write_flat(
        tmp_path / "f", {f"{number}.png": png(image) for number, image in enumerate(pixels)}
    )
    corpus = open_here(folder, image_size=16, num_channels=channels)
    for image, found in zip(pixels, corpus.pixels, strict=True):
        expected = processor(picture(image), input_data_format=None)["pixel_values"][0]
        assert np.array_equal(found, np.moveaxis(np.asarray(expected), 0, -1))


def test_shrinking_averages_instead_of_picking_pixels(open_here: Open, tmp_path: Path) -> None:
    """A fine chequerboard becomes grey; without antialiasing it would stay black and white."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    contents = {
        f"{n}.png": png(np.minimum(board, 255 - n).astype(np.uint8)[:, :, None])
        for n in (0, 20, 40, 60)
    }
    corpus = open_here(write_flat(tmp_path / "f", contents), image_size=8)
    assert np.abs(corpus.pixels[0].astype(int) - 127).max() <= 2


def single(
    open_here: Open, folder: Path, content: bytes, suffix: str = "png", **options: Any
) -> np.ndarray:
    """Return the decoded pixels of one image, which comes first among four."""
    with PIL.Image.open(io.BytesIO(content)) as image:
        height, width = image.height, image.width
    others = random_pixels(3, height, width, seed=5)
    contents = {f"{number}.png": png(image) for number, image in enumerate(others, start=1)}
    corpus = open_here(
        write_flat(folder, {f"0.{suffix}": content} | contents), **{"image_size": 0, **options}
    )
    assert len(corpus.pixels) == 4
    return np.asarray(corpus.pixels[0])


def test_grey_is_the_luma_of_itu_r_601(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(1)[0]
    found = single(open_here, tmp_path / "f", png(pixels), num_channels=1)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found[:, :, 0] - luma).max() <= 1  # Pillow computes in 16-bit fixed point


def test_sixteen_bit_levels_are_scaled_and_not_cut_off(open_here: Open, tmp_path: Path) -> None:
    levels = np.array(
        [[0, 128, 129, 255, 256, 257, 1000], [4095, 32767, 32768, 40000, 65000, 65534, 65535]],
        np.uint16,
    )
    expected = [[math.floor(Fraction(int(v), 257) + Fraction(1, 2)) for v in row] for row in levels]
    for suffix, kind in (("png", "PNG"), ("tiff", "TIFF")):
        content = encoded(PIL.Image.fromarray(levels), kind)
        found = single(open_here, tmp_path / suffix, content, suffix, num_channels=1)
        assert found.shape == (2, 7, 1)
        assert found[:, :, 0].tolist() == expected


def test_palettes_become_their_colours_and_what_is_transparent_white(
    open_here: Open, tmp_path: Path
) -> None:
    image = PIL.Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    image.putdata([0, 1, 1, 2])
    plain = single(open_here, tmp_path / "1", encoded(image))
    assert plain.tolist() == [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [0, 0, 0]]]
    transparent = encoded(image, transparency=bytes([255, 0, 255]))
    white = single(open_here, tmp_path / "2", transparent, num_channels=3)
    assert white.tolist() == [[[10, 20, 30], [255, 255, 255]], [[255, 255, 255], [0, 0, 0]]]
    alpha = single(open_here, tmp_path / "3", transparent, num_channels=4)
    assert alpha[:, :, 3].tolist() == [[255, 0], [0, 255]]


def test_transparency_is_laid_on_white(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(1, channels=4)[0]
    found = single(open_here, tmp_path / "f", png(pixels), num_channels=3)
    alpha = pixels[:, :, 3:] / 255
    assert np.abs(found - (pixels[:, :, :3] * alpha + 255 * (1 - alpha))).max() <= 1


def test_photographs_are_turned_as_their_camera_was(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(1, 6, 6)[0]
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6  # shown after a quarter turn clockwise
    found = single(open_here, tmp_path / "f", encoded(picture(pixels), exif=exif))
    assert np.array_equal(found, np.rot90(pixels, -1))


def test_most_images_decide_the_channels_and_the_card_tells_what_was_converted(
    open_here: Open, tmp_path: Path
) -> None:
    grey, colour = random_pixels(3, channels=1), random_pixels(2)
    contents = {f"{n}.png": png(image) for n, image in enumerate([*colour, *grey])}
    corpus = open_here(write_flat(tmp_path / "f", contents))
    assert corpus.pixels.shape[3] == 1
    assert "L (from 3 L, 2 RGB)" in image_card(corpus)


JPEG = encoded(picture(random_pixels(1, 40, 40, seed=8)[0]), "JPEG")
BAD = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated.png": (png(random_pixels(1, 40, 40, seed=7)[0])[:1500], "truncated"),
    "text.png": (b"this is no image", "no image in a known format"),
    "empty.gif": (b"", "no image in a known format"),
    "float.tiff": (
        encoded(PIL.Image.fromarray(np.full((40, 40), np.nan, np.float32)), "TIFF"),
        "no finite numbers",
    ),
    "wide.tiff": (
        encoded(PIL.Image.fromarray(np.full((40, 40), 70_000, np.int32)), "TIFF"),
        "its grey levels are 70000:70000",
    ),
}


def good_files(height: int = 40, width: int = 40) -> dict[str, bytes]:
    return {
        f"n{number}.png": png(image) for number, image in enumerate(random_pixels(5, height, width))
    }


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_or_skipped(open_here: Open, tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    folder = write_flat(tmp_path / "f", good_files() | {name: content})
    with pytest.raises(
        InputError, match=rf"{name} cannot be decoded \(.*{reason}.*`on_bad_image` skip"
    ):
        open_here(folder)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}
    corpus = open_here(folder, on_bad_image="skip")
    assert np.array_equal(corpus.pixels, random_pixels(5, 40, 40))
    assert corpus.manifest["counts"]["skipped"] == 1
    assert f"{name} (" in image_card(corpus)
    assert reason in image_card(corpus)
    with pytest.raises(InputError, match="`on_bad_image`"):
        open_here(folder)


def test_a_bad_row_is_named_by_its_number_and_path(open_here: Open, tmp_path: Path) -> None:
    rows = as_structs(random_pixels(100))
    rows[70] = {"bytes": b"broken", "path": "cat.png"}
    rows[80] = None
    rows[90] = {"bytes": None, "path": str(tmp_path / "nowhere.png")}
    file = write_parquet(tmp_path / "a.parquet", {"image": rows})
    with pytest.raises(InputError, match=r"row 70 of .*a\.parquet \(cat\.png\)"):
        open_here(data_files=[file])
    corpus = open_here(data_files=[file], on_bad_image="skip")
    assert np.array_equal(corpus.pixels, np.delete(random_pixels(100), [70, 80, 90], axis=0))
    first, second, third = corpus.manifest["skipped"]
    assert "row 70" in first
    assert "row 80" in second
    assert "nowhere.png" in third


def test_the_card_names_five_of_many_bad_images(open_here: Open, tmp_path: Path) -> None:
    bad = {f"bad{number}.png": b"broken" for number in range(9)}
    card = image_card(
        open_here(write_flat(tmp_path / "f", good_files() | bad), on_bad_image="skip")
    )
    assert "skipped: 9: " in card
    assert [f"bad{number}.png" in card for number in range(9)] == [True] * 5 + [False] * 4


def test_equal_images_are_kept_once_so_that_none_is_on_both_sides(
    open_here: Open, tmp_path: Path
) -> None:
    pixels = random_pixels(30)
    contents = {f"{number:03}.png": png(pixels[number % 30]) for number in range(90)}
    contents["050.bmp"] = encoded(picture(pixels[20]), "BMP")  # other bytes, equal pixels
    corpus = open_here(write_flat(tmp_path / "f", contents))
    assert np.array_equal(corpus.pixels, pixels)
    assert corpus.manifest["counts"]["duplicates"] == 61
    assert "duplicates dropped: 61" in image_card(corpus)
    sides = [corpus.train_images, corpus.validation_images]
    assert not content_of(corpus) - {image.tobytes() for image in pixels}
    assert sorted(np.concatenate(sides).tolist()) == list(range(30))


@pytest.mark.parametrize(("share", "expected"), [(0.1, 180), (0.001, 2), (0.5, 899), (0.9, 1618)])
def test_the_share_is_held_out_at_random_but_always_the_same(
    open_here: Open, share: float, expected: int
) -> None:
    corpus = open_here(None, validation_share=share)
    again = open_here(None, validation_share=share)
    other = open_here(None, validation_share=share, seed=2)
    held_out = corpus.validation_images
    assert len(held_out) == expected
    assert held_out.dtype == corpus.train_images.dtype == np.int64
    assert (np.diff(held_out) > 0).all()
    assert np.array_equal(held_out, again.validation_images)
    assert not np.array_equal(held_out, other.validation_images)
    assert sorted([*held_out, *corpus.train_images]) == list(range(1797))
    if expected > 100:
        # The mean index of a draw without replacement lies within 4 standard errors of the middle.
        sigma = 1797 / math.sqrt(12 * expected) * math.sqrt(1 - expected / 1797)
        assert abs(held_out.mean() - 898) < 4 * sigma


def test_mean_and_deviation_are_those_of_the_training_images(
    open_here: Open, tmp_path: Path
) -> None:
    pixels = random_pixels(50, channels=4)
    pixels[..., 1] //= 3
    pixels[..., 3] = 255
    corpus = open_here(write_folder(tmp_path / "f", pixels))
    values = corpus.pixels[corpus.train_images].astype(np.float64) / 255
    assert corpus.mean.dtype == corpus.std.dtype == np.float32
    np.testing.assert_allclose(corpus.mean, values.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(corpus.std[:3], values.std(axis=(0, 1, 2))[:3], rtol=1e-6)
    assert corpus.std[3] == np.float32(1 / 255)  # constant, hence the floor


def test_pixels_are_mapped_from_a_plain_npy_file(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(20)
    corpus = open_here(write_folder(tmp_path / "f", np.concatenate([pixels, pixels])))
    assert isinstance(corpus.pixels, np.memmap)
    (file,) = (tmp_path / "cache").rglob("pixels.npy")
    plain = np.load(file)
    assert plain.shape == (20, 6, 5, 3)
    assert np.array_equal(plain, corpus.pixels)
    assert len(file.read_bytes()) == plain.nbytes + 128
    assert f"mapped from {file}" in image_card(corpus)
    restored = pickle.loads(pickle.dumps(corpus))
    assert np.array_equal(restored.pixels, corpus.pixels)
    assert np.array_equal(restored.validation_images, corpus.validation_images)
    assert isinstance(restored.pixels, np.memmap)
    assert plain.tobytes() not in pickle.dumps(corpus)


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    original = decoding.decode_row

    def decode(row: decoding.ImageRow, conversion: decoding.Conversion) -> decoding.Outcome:
        names.append(row.name)
        return original(row, conversion)

    monkeypatch.setattr(decoding, "decode_row", decode)
    return names


def test_images_are_decoded_once_until_they_change(
    open_here: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = count_decoding(monkeypatch)
    folder = write_folder(tmp_path / "f", random_pixels(20))
    first = open_here(folder, num_channels=3)
    assert len(decoded) == 20
    second = open_here(folder, num_channels=3, seed=5)
    assert len(decoded) == 20
    assert np.array_equal(first.pixels, second.pixels)
    open_here(folder, num_channels=1)
    assert len(decoded) == 40
    changed = random_pixels(1, seed=4)[0]
    (folder / "cat" / "0001.png").write_bytes(png(changed))
    third = open_here(folder, num_channels=3)
    assert len(decoded) == 60
    assert np.array_equal(third.pixels[0], changed)
    assert first.manifest["key"] != third.manifest["key"]
    monkeypatch.setattr("bert_pretrain.images.cache.metadata.version", lambda _: "another")
    assert open_here(folder, num_channels=3).manifest["key"] == third.manifest["key"]
    assert len(decoded) == 80


def test_processes_that_open_at_once_decode_once(
    open_here: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = count_decoding(monkeypatch)
    folder = write_folder(tmp_path / "f", random_pixels(20))
    with ThreadPoolExecutor(4) as pool:
        corpora = list(pool.map(lambda _: open_here(folder, num_channels=3), range(4)))
    assert len(decoded) == 20
    assert len({corpus.manifest["key"] for corpus in corpora}) == 1


def test_what_a_killed_process_left_is_replaced(open_here: Open, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", random_pixels(20))
    expected = np.array(open_here(folder).pixels)
    (kept,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    left_over = Path(f"{kept}.bert-pretrain.tmp")
    kept.rename(left_over)
    (left_over / "pixels.npy").write_bytes(b"half")
    corpus = open_here(folder)
    assert np.array_equal(corpus.pixels, expected)
    assert not left_over.exists()


@pytest.mark.parametrize("name", ["pixels.npy", "moments.npy", "labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_copy_is_decoded_again_and_that_is_said(
    open_here: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    folder = write_folder(tmp_path / "f", random_pixels(20))
    expected = np.array(open_here(folder).pixels)
    (file,) = (tmp_path / "cache").rglob(name)
    whole = file.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(flipped if damage == "flipped" else whole[: len(whole) // 2])
    capsys.readouterr()
    corpus = open_here(folder)
    said = capsys.readouterr().err
    assert f"{file.parent} are not complete" in said and "they are decoded again" in said
    assert np.array_equal(corpus.pixels, expected)
    assert file.read_bytes() == whole
    assert "decoded again" not in (open_here(folder), capsys.readouterr().err)[1]


def test_a_damaged_number_that_is_kept_is_computed_again(open_here: Open, tmp_path: Path) -> None:
    corpus = open_here(write_folder(tmp_path / "f", random_pixels(20)))
    assert corpus.remembered("number", lambda: 0.5) == 0.5
    assert corpus.remembered("number", lambda: pytest.fail("computed again")) == 0.5
    (file,) = (tmp_path / "cache").rglob("number-*.json")
    for damaged in (file.read_text().replace("0.5", "0.7"), "{", "0.5"):
        file.write_text(damaged)
        assert corpus.remembered("number", lambda: 0.25) == 0.25


def test_the_key_follows_the_content_and_not_the_place(open_here: Open, tmp_path: Path) -> None:
    pixels = random_pixels(20)

    def key(name: str, pixels: np.ndarray, labels: list[int], **options: Any) -> str:
        features = Features({"image": Image(), "label": Value("int64")})
        file = write_parquet(
            tmp_path / name, {"image": as_structs(pixels), "label": labels}, features
        )
        return str(open_here(data_files=[file], **options).manifest["key"])

    changed = pixels.copy()
    changed[3, 2, 1, 0] ^= 1
    labels = [0, 1] * 10
    original = key("a.parquet", pixels, labels)
    assert key("b.parquet", pixels, labels) == original
    others = {
        key("c.parquet", changed, labels),
        key("d.parquet", pixels, [1, 1, *labels[2:]]),
        key("e.parquet", pixels[::-1], labels),
        key("a.parquet", pixels, labels, seed=2),
        key("a.parquet", pixels, labels, validation_share=0.3),
        key("a.parquet", pixels, labels, num_channels=1),
        key("a.parquet", pixels, labels, image_size=4),
    }
    assert len(others | {original}) == 8


def test_opening_holds_blocks_and_never_all_pixels(
    open_here: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    file = write_parquet(
        tmp_path / "a.parquet", {"image": [png(image) for image in random_pixels(600, 64, 64)]}
    )
    size = 600 * 64 * 64 * 3
    open_here("digits")  # imports and their caches are not counted
    tracemalloc.start()
    try:
        corpus = open_here(data_files=[file])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert corpus.pixels.nbytes == size
    assert peak < size / 2


def test_the_card_counts_classes(open_here: Open, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", random_pixels(11))
    lines = image_card(open_here(folder)).splitlines()
    assert f"images           {folder}" in lines
    assert "classes          cat 5, dog 6" in lines
    assert any(line.startswith("number           11 (8 training, 3 held out)") for line in lines)
    assert "size             5 x 6 pixels (width x height), RGB (from 11 RGB)" in lines
    many = [{"image": png(image), "label": n % 30} for n, image in enumerate(random_pixels(70))]
    columns = {name: [row[name] for row in many] for name in ("image", "label")}
    columns["label"][0] = None
    card = image_card(open_here(data_files=[write_parquet(tmp_path / "a.parquet", columns)]))
    assert "30 of 2 to 3 images; without a label: 1" in card


def test_images_of_several_sizes_ask_for_one(open_here: Open, tmp_path: Path) -> None:
    folder = write_flat(
        tmp_path / "f", good_files(30, 20) | {"x.png": png(random_pixels(1, 8, 9)[0])}
    )
    with pytest.raises(
        InputError, match=r"x\.png has 9 x 8 pixels.*n0\.png has 20 x 30.*`image_size`"
    ):
        open_here(folder)
    assert open_here(folder, image_size=8).pixels.shape == (6, 8, 8, 3)


FLOATS = Features({"image": Image(), "label": Value("float32")})
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "validation_share 0": (
        {"dataset_name": "digits", "validation_share": 0.0},
        "`validation_share`",
    ),
    "validation_share 1": (
        {"dataset_name": "digits", "validation_share": 1.0},
        "`validation_share`",
    ),
    "all held out": (
        {"dataset_name": "digits", "validation_share": 0.9999},
        "1797 images.*`validation_share`",
    ),
    "num_channels": (
        {"dataset_name": "digits", "num_channels": 2},
        "`num_channels` is 2 but must be 1",
    ),
    "image_size": (
        {"dataset_name": "digits", "image_size": -1},
        "`image_size` is -1 but must be at least 0",
    ),
    "no file": ({"data_files": ["nowhere*.parquet"]}, r"nowhere\*.*`data_files`"),
    "no parquet": (
        {"data_files": ["text.parquet"]},
        r"text\.parquet is not a Parquet file.*`data_files`",
    ),
    "no data set": ({"dataset_name": "nowhere/nothing"}, "nowhere/nothing.*`dataset_name`"),
    "empty folder": ({"dataset_name": "empty"}, "empty holds no images.*`dataset_name`"),
    "few": ({"dataset_name": "few"}, "holds 3 distinct images.*1 duplicates.*`dataset_name`"),
    "all bad": (
        {"dataset_name": "bad", "on_bad_image": "skip"},
        r"holds 0 distinct.*bad/0\.png \(no image in",
    ),
    "image column": (
        {"data_files": ["a.parquet"], "image_column": "img"},
        "no column 'img'; it has 'image', 'label'.*`image_column`",
    ),
    "no images": (
        {"data_files": ["a.parquet"], "image_column": "label"},
        "holds float.*`image_column`",
    ),
    "labels": ({"data_files": ["a.parquet"]}, "'label' of .*a.parquet holds float.*`label_column`"),
    "label column": (
        {"data_files": ["a.parquet"], "label_column": "kind"},
        "no column 'kind'; it has 'image', 'label'.*`label_column`",
    ),
    "class number": (
        {"data_files": ["b.parquet"]},
        "row 2 of b.parquet has the label 100000.*`label_column`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_names_value_and_flag(
    open_here: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = random_pixels(5)
    Path("text.parquet").write_text("text")
    Path("empty").mkdir()
    write_flat(tmp_path / "few", {f"{n}.png": png(pixels[n % 3]) for n in range(4)})
    write_flat(tmp_path / "bad", {f"{n}.png": b"broken" for n in range(9)})
    write_parquet(tmp_path / "a.parquet", {"image": as_structs(pixels), "label": [0.5] * 5}, FLOATS)
    write_parquet(
        tmp_path / "b.parquet", {"image": as_structs(pixels), "label": [0, 1, 100_000, 2, 3]}
    )
    options, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        open_here(
            options.get("dataset_name"), **{k: v for k, v in options.items() if k != "dataset_name"}
        )
