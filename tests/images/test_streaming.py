"""Streamed images against a cache, crops against Pillow, tars against the files that went in."""

from __future__ import annotations

import contextlib
import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from datasets import Dataset, Features, Image, Value

from bert_pretrain.errors import InputError
from bert_pretrain.images import streaming
from bert_pretrain.images.card import image_card
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.images.streaming import StreamedPixels

SIZE = 16
ORIENTATION = 0x0112  # EXIF
Open = Callable[..., ImageCorpus]


@pytest.fixture
def open_here(tmp_path: Path) -> Open:
    def call(name: Path | None = None, **options: Any) -> ImageCorpus:
        defaults = {"validation_share": 0.3, "seed": 1, "image_size": SIZE, "show_progress": False}
        defaults |= {"cache_dir": tmp_path / "cache", "num_channels": 3}
        return open_images(dataset_name=name and str(name), **(defaults | options))

    return call


def scene(width: int, height: int, seed: int) -> PIL.Image.Image:
    """Return a smooth picture, as photographs are: eight random colours a side, enlarged."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)


def write_photos(folder: Path) -> Path:
    """Write pictures of several sizes, formats and modes in two classes, one of them twice."""
    sizes = [(40, 30), (30, 40), (64, 64), (200, 150), (90, 31), (17, 16), (33, 33), (48, 20)]
    for number, size in enumerate(sizes):
        path = folder / "ab"[number % 2] / f"{number}.{('jpg', 'png')[number % 3 == 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(*size, number).save(path)
    turned = PIL.Image.Exif()
    turned[ORIENTATION] = 6
    scene(300, 120, 20).save(folder / "a/turned.jpg", exif=turned)
    scene(50, 40, 21).convert("L").save(folder / "b/grey.png")
    scene(50, 40, 22).convert("RGBA").save(folder / "b/alpha.png")
    (folder / "b/again.jpg").write_bytes((folder / "a/0.jpg").read_bytes())
    return folder


def everything(corpus: ImageCorpus) -> np.ndarray:
    return np.asarray(corpus.pixels[np.arange(len(corpus.pixels))])


def upright(path: Path) -> PIL.Image.Image:
    return PIL.ImageOps.exif_transpose(PIL.Image.open(path)).convert("RGB")


@pytest.mark.parametrize("image_size", [SIZE, (12, 20)])
def test_streamed_images_are_those_of_a_cache(
    open_here: Open, tmp_path: Path, image_size: Any
) -> None:
    folder = write_photos(tmp_path / "photos")
    (folder / "a/broken.jpg").write_bytes(b"no image")
    options = {"image_size": image_size, "on_bad_image": "skip"}
    cached = open_here(folder, **options)
    streamed = open_here(folder, **options, reading="stream")
    assert isinstance(streamed.pixels, StreamedPixels)
    assert streamed.pixels.shape == cached.pixels.shape
    assert np.array_equal(everything(streamed), cached.pixels)
    backwards = np.array([7, 2, 2])
    assert np.array_equal(streamed.pixels[backwards], cached.pixels[backwards])
    assert streamed.pixels[backwards[:0]].shape == (0, *cached.pixels.shape[1:])
    for name in ("labels", "train_images", "validation_images", "mean", "std"):
        assert np.array_equal(getattr(streamed, name), getattr(cached, name)), name
    assert streamed.manifest["key"] == cached.manifest["key"]
    assert streamed.manifest["counts"] == cached.manifest["counts"]
    assert cached.manifest["counts"]["skipped"] == cached.manifest["counts"]["duplicates"] == 1
    assert "decoded whenever they are read" in image_card(streamed)


def test_no_pixels_are_kept_of_streamed_images(open_here: Open, tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    corpus = open_here(folder, reading="stream", with_whole=True)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.name for path in kept if path.stat().st_size} == {
        "labels.npy",
        "manifest.json",
        "moments.npy",
        "places.npy",
    }
    sent = pickle.dumps(corpus)
    assert everything(corpus)[3].tobytes() not in sent
    assert np.array_equal(everything(pickle.loads(sent)), everything(corpus))
    assert corpus.remembered("a", lambda: 5.0) == corpus.remembered("a", lambda: 6.0) == 5.0


def files_of(folder: Path) -> list[Path]:
    """Return the files in the order of the corpus: sorted paths, without the second of two."""
    return [path for path in sorted(folder.rglob("*.*")) if path.name != "again.jpg"]


BOXES = [(0.0, 0.0, 1.0, 1.0), (0.1, 0.3, 0.5, 0.6), (0.75, 0.5, 0.25, 0.5), (0.6, 0.1, 0.4, 0.9)]


def test_crops_are_pillows_resize_of_boxes_of_the_whole_image(
    open_here: Open, tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "photos")
    corpus = open_here(folder, reading="stream")
    files = files_of(folder)
    images = np.arange(len(files))
    first = np.array([BOXES[number % 4] for number in images], dtype=np.float32)
    second = np.array([BOXES[(number + 1) % 4] for number in images], dtype=np.float32)
    pixels, *crops = corpus.pixels.crops(images, [first, second], with_pixels=True)
    assert np.array_equal(pixels, everything(corpus))
    for boxes, found in zip((first, second), crops, strict=True):
        assert found.dtype == np.uint8
        for path, box, crop in zip(files, boxes.astype(np.float64), found, strict=True):
            assert np.abs(crop.astype(int) - whole_crop(path, box)).mean() <= LEVELS[path.suffix]


# How far on average from the image decoded in full: a JPEG may be decoded at a half of its sides.
LEVELS = {".png": 0, ".jpg": 5}


def whole_crop(path: Path, box: Any) -> np.ndarray[Any, Any]:
    """Return a box of an image, in shares of it, as Pillow resizes it."""
    image = upright(path)
    left, top, width, height = np.asarray(box) * np.tile(image.size, 2)
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    edges = (left, top, right, bottom)
    return np.asarray(image.resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC, edges)).astype(int)


def test_large_jpegs_are_decoded_reduced_where_the_crops_allow_it(
    open_here: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    sides = [(400, 300), (300, 400), (410, 303), (640, 130)]
    for number, size in enumerate(sides):
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = 6 if number == 3 else 1
        scene(*size, number).save(folder / f"{number}.jpg", quality=95, exif=exif)
    corpus = open_here(folder, reading="stream")
    loaded: list[tuple[int, int]] = []
    original = streaming.decoded

    @contextlib.contextmanager
    def decoded(*arguments: Any, **names: Any) -> Iterator[Any]:
        with original(*arguments, **names) as found:
            loaded.append(found[0].size)
            yield found

    monkeypatch.setattr(streaming, "decoded", decoded)
    monkeypatch.setattr(streaming, "cpu_threads", lambda _: 1)
    images = np.arange(4)
    boxes = [np.array([box] * 4) for box in BOXES[:3]]
    reduced = corpus.pixels.crops(images, boxes, with_pixels=False)
    # The smallest box is a quarter wide and half as high, so that of 400 x 300 pixels 100 x 150
    # become 16 x 16: a quarter of the sides is enough. The last has 130 x 640 pixels when upright,
    # and a quarter of 130 is 32.5, which becomes 16 by a half.
    assert loaded == [(100, 75), (75, 100), (103, 76), (65, 320)]
    for box, crops in zip(BOXES, reduced, strict=False):
        for path, crop in zip(files_of(folder), crops, strict=True):
            assert np.abs(crop.astype(int) - whole_crop(path, box)).mean() < LEVELS[".jpg"]
    # A box of a twentieth of a small side needs all of it.
    loaded.clear()
    tight = np.array([[0.4, 0.4, 0.05, 0.05]] * 4)
    corpus.pixels.crops(images, [tight], with_pixels=False)
    assert sorted(loaded) == sorted([*sides[:3], sides[3][::-1]])


def test_threads_and_workers_read_the_same(
    open_here: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_here(write_photos(tmp_path / "photos"), reading="stream")
    found = []
    for num_threads in (1, 3):
        monkeypatch.setattr(streaming, "cpu_threads", lambda _, number=num_threads: number)
        found.append(everything(corpus))
    assert np.array_equal(*found)


def test_an_image_that_changes_while_it_is_streamed_is_named(
    open_here: Open, tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "photos")
    corpus = open_here(folder, reading="stream")
    (folder / "b/1.jpg").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"b/1\.jpg cannot be decoded any more"):
        everything(corpus)
    images, boxes = np.arange(len(corpus.pixels)), np.array([BOXES[0]] * len(corpus.pixels))
    with pytest.raises(InputError, match=r"b/1\.jpg cannot be decoded any more"):
        corpus.pixels.crops(images, [boxes], with_pixels=False)


def test_whole_images_are_kept_for_views_where_squares_show_only_their_centre(
    open_here: Open, tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "photos")
    corpus = open_here(folder, with_whole=True)
    assert np.array_equal(corpus.pixels, open_here(folder).pixels)
    assert open_here(folder).whole is None and open_here(folder).stretch is None
    files = files_of(folder)
    assert isinstance(corpus.whole, np.memmap) and corpus.stretch is not None
    for path, whole, stretch in zip(files, corpus.whole, corpus.stretch, strict=True):
        image = upright(path)
        if "alpha" in path.name:
            continue  # laid on white, see test_images
        difference = np.abs(whole.astype(int) - whole_crop(path, (0, 0, 1, 1)))
        assert difference.mean() <= LEVELS[path.suffix], path
        assert stretch == pytest.approx(image.width / image.height)
    assert "views see the edges too" in image_card(corpus)
    restored = pickle.loads(pickle.dumps(corpus))
    assert isinstance(restored.whole, np.memmap) and np.array_equal(restored.whole, corpus.whole)
    assert corpus.manifest["key"] == open_here(folder).manifest["key"]


def test_square_images_are_kept_once(open_here: Open, tmp_path: Path) -> None:
    (tmp_path / "squares").mkdir()
    for number in range(6):
        scene(32, 32, number).save(tmp_path / f"squares/{number}.png")
    corpus = open_here(tmp_path / "squares", with_whole=True)
    assert corpus.whole is None and corpus.stretch is None
    assert len(list((tmp_path / "cache").rglob("pixels.npy"))) == 1


def test_a_rectangle_is_the_whole_image_resized(open_here: Open, tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    corpus = open_here(folder, image_size=(12, 20), with_whole=True)
    assert corpus.pixels.shape[1:] == (12, 20, 3) and corpus.whole is None
    path = files_of(folder)[1]
    image = upright(path)
    expected = image.resize((20, 12), PIL.Image.Resampling.BICUBIC)
    assert np.array_equal(corpus.pixels[1], np.asarray(expected))
    assert corpus.stretch is not None
    assert corpus.stretch[1] == pytest.approx(image.width / image.height * 12 / 20)
    assert "20 x 12 pixels (width x height)" in image_card(corpus)
    assert "resized as a whole" in image_card(corpus)


# Tar archives


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def png(seed: int, width: int = 20, height: int = 15) -> bytes:
    file = io.BytesIO()
    scene(width, height, seed).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, num_images: int = 10) -> list[str]:
    """Write two shards with a class for all but the last image; other files lie between them."""
    folder.mkdir()
    shards = []
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(shard, num_images, 2):
            members[f"n/{number:04}.txt"] = b"a caption"
            if number < num_images - 1:
                members[f"n/{number:04}.cls"] = f"{number % 3}\n".encode()
            members[f"n/{number:04}.png"] = png(number)
            members[f"n/{number:04}.mask.png"] = b"another field"
        shards.append(write_tar(folder / f"{shard}.tar", members))
    return shards


@pytest.mark.parametrize("reading", ["cache", "stream"])
def test_shards_give_the_images_and_classes_that_went_in(
    open_here: Open, tmp_path: Path, reading: str
) -> None:
    shards = write_shards(tmp_path / "shards")
    corpus = open_here(data_files=[str(tmp_path / "shards/*.tar")], reading=reading)
    order = [*range(0, 10, 2), *range(1, 10, 2)]
    labels = [-1 if number == 9 else number % 3 for number in order]
    assert corpus.labels is not None and corpus.labels.tolist() == labels
    assert corpus.label_names == ("0", "1", "2")
    (tmp_path / "files").mkdir()
    for place, number in enumerate(order):
        (tmp_path / f"files/{place}.png").write_bytes(png(number))
    assert np.array_equal(everything(corpus), everything(open_here(tmp_path / "files")))
    assert open_here(data_files=shards[1:]).labels is not None


BAD_SHARDS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "two images": (
        {"a.png": png(0), "a.jpg": b""},
        "w",
        r"sample 'a' of .*bad\.tar has two images, a\.png and a\.jpg",
    ),
    "empty class": ({"a.png": png(0), "a.cls": b"\n"}, "w", r"a\.cls of .*bad\.tar is empty"),
    "numbers and names": (
        {"a.png": png(0), "a.cls": b"0", "b.png": png(1), "b.cls": b"cat"},
        "w",
        r"the class of b\.png is a name, but .* numbers",
    ),
    "class in Latin-1": (
        {"a.png": png(0), "a.cls": "café".encode("latin-1")},
        "w",
        r"a\.cls of .*bad\.tar is not UTF-8",
    ),
    "large class": ({"a.png": png(0), "a.cls": b"99999999"}, "w", r"a\.cls .*label 99999999"),
    "compressed": ({"a.png": png(0)}, "w:gz", r"bad\.tar is not a whole tar.*`data_files`"),
    "empty": ({"a.txt": b"text"}, "w", r"bad\.tar holds no images.*`data_files`"),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_a_shard_that_cannot_be_used_is_named(open_here: Open, tmp_path: Path, case: str) -> None:
    members, mode, message = BAD_SHARDS[case]
    path = write_tar(tmp_path / "bad.tar", members, mode)
    with pytest.raises(InputError, match=message):
        open_here(data_files=[path])


CUTS: dict[str, Callable[[bytes, int], bytes]] = {
    "between two files": lambda whole, header: whole[:header],
    "in a header": lambda whole, header: whole[: header + 200],
    "a damaged header": lambda whole, header: whole[:header] + b"?" * 99 + whole[header + 99 :],
}


@pytest.mark.parametrize("case", CUTS)
def test_a_part_of_a_shard_is_not_taken_for_all_of_it(
    open_here: Open, tmp_path: Path, case: str
) -> None:
    path = tmp_path / "cut.tar"
    write_tar(path, {f"{number}.png": png(number) for number in range(4)})
    with tarfile.open(path) as archive:
        header = archive.getmembers()[2].offset
    path.write_bytes(CUTS[case](path.read_bytes(), header))
    with pytest.raises(InputError, match=r"cut\.tar is not a whole tar.*after 2 files"):
        open_here(data_files=[str(path)])


def test_shards_of_the_webdataset_library_are_read_with_the_names_of_their_classes(
    open_here: Open, tmp_path: Path
) -> None:
    webdataset = pytest.importorskip("webdataset")
    classes = ["zebra", "ape", "zebra", "cow", "ape", "cow"]
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, name in enumerate(classes):
            image = np.asarray(scene(20, 15, number))
            writer.write({"__key__": f"{number:04}", "png": image, "cls": name})
    corpus = open_here(data_files=[str(tmp_path / "a.tar")], reading="stream")
    assert corpus.label_names == ("ape", "cow", "zebra")
    assert corpus.labels is not None and corpus.labels.tolist() == [2, 0, 2, 1, 0, 1]
    (tmp_path / "files").mkdir()
    for number in range(6):
        scene(20, 15, number).save(tmp_path / f"files/{number}.png")
    assert np.array_equal(everything(corpus), everything(open_here(tmp_path / "files")))


def test_a_bad_image_of_a_shard_is_named(open_here: Open, tmp_path: Path) -> None:
    members = {f"{number}.png": png(number) for number in range(5)} | {"x.jpg": b"broken"}
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"x\.jpg of .*a\.tar cannot be decoded.*`on_bad_image`"):
        open_here(data_files=[path], reading="stream")
    corpus = open_here(data_files=[path], reading="stream", on_bad_image="skip")
    assert len(everything(corpus)) == 5


# What can be streamed


def test_a_saved_data_set_is_streamed_and_parquet_and_digits_are_not(
    open_here: Open, tmp_path: Path
) -> None:
    rows = [{"bytes": png(number), "path": None} for number in range(6)]
    features = Features({"image": Image(), "label": Value("int64")})
    dataset = Dataset.from_dict({"image": rows, "label": [0, 1] * 3}, features=features)
    dataset.save_to_disk(tmp_path / "saved")
    cached = open_here(tmp_path / "saved")
    streamed = open_here(tmp_path / "saved", reading="stream")
    assert np.array_equal(everything(streamed), cached.pixels)
    again = pickle.loads(pickle.dumps(streamed))
    assert np.array_equal(everything(again), cached.pixels)
    dataset.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet cannot be streamed.*`data_files`"):
        open_here(data_files=[str(tmp_path / "a.parquet")], reading="stream")
    with pytest.raises(InputError, match=r"digits.*cannot be streamed.*`image_reading`"):
        open_here(reading="stream")
