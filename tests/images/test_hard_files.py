"""Images as people have them: what is trained on is what the cards' own code makes of the file."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from downstream_models import source_of
from hard_files import FILES, KINDS, noise, orientation
from PIL import Image
from runs import ROOT, environment

from bert_pretrain.config.flags import LevelRange
from bert_pretrain.downstream.labelled_images import read_image_splits
from bert_pretrain.errors import InputError
from bert_pretrain.images import decoding
from bert_pretrain.images.card import image_card
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.images.decoding import (
    MODES,
    ImageRow,
    decode_row,
    open_image,
    picture_conversion,
)
from bert_pretrain.images.sources import open_image_source
from bert_pretrain.models.image_processor import preparation_code
from bert_pretrain.publishing.export import image_processor

SIZE = 8


def opened(folder: Path, **options: Any) -> ImageCorpus:
    given = {"image_size": SIZE, "validation_share": 0.3, "seed": 0, "show_progress": False}
    given |= {"dataset_name": str(folder), "cache_dir": folder.parent / "cache"}
    return open_images(**(given | options))


def write_images(folder: Path, number: int, *, seed: int = 9, channels: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(number):
        pixels = noise(9, 9, channels, seed=seed + place).squeeze()
        Image.fromarray(pixels).save(folder / f"{seed + place}.png")


def prepared_by_card(path: Path, num_channels: int, processor: Any) -> Image.Image:
    names: dict[str, Any] = {"np": np, "Image": PIL.Image, "ImageOps": PIL.ImageOps}
    exec(preparation_code(MODES[num_channels], processor), names)
    prepared: Image.Image = names["prepared"](Image.open(path))
    return prepared


def processor_of(num_channels: int, **options: Any) -> Any:
    return image_processor(
        image_size=SIZE, mean=[0.5] * num_channels, std=[1.0] * num_channels, **options
    )


def finetuned_on(folder: Path, processor: Any, num_channels: int, **flags: Any) -> set[bytes]:
    """Return the images that fine-tuning learns from, as bytes of (H, W, C)."""
    source = source_of(dataset_name=str(folder), **flags)
    pixels = read_image_splits(source, processor, num_channels=num_channels)["train"].content
    return {image.transpose(1, 2, 0).tobytes() for image in pixels}


def seen_in(path: Path) -> np.ndarray:
    row = ImageRow(path.name, {"path": str(path), "bytes": None}, None)
    outcome = decode_row(row, picture_conversion(0, 3, None))
    assert outcome.pixels is not None, outcome.reason
    return outcome.pixels


# Turns and mirrors (H, W, C) as the EXIF standard says that the number's first row and column lie.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("number", UPRIGHT)
def test_every_orientation_is_turned_upright(tmp_path: Path, number: int) -> None:
    stored = noise(12, 20, 3)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=orientation(number))
    assert np.array_equal(seen_in(tmp_path / "a.png"), UPRIGHT[number](stored))


def test_of_16_bits_of_colour_the_upper_8_are_seen_and_of_pages_the_first(tmp_path: Path) -> None:
    for name in ("16 bits of colour.png", "pages.tiff"):
        FILES[name](tmp_path / name)
    colours = noise(12, 20, 3, high=65536, dtype=np.uint16) >> 8
    assert np.array_equal(seen_in(tmp_path / "16 bits of colour.png"), colours)
    assert np.array_equal(seen_in(tmp_path / "pages.tiff"), noise(12, 20, 3))


def test_the_documentation_lists_the_kinds_of_files_that_are_tested() -> None:
    table = (ROOT / "docs/image_files.md").read_text().split("|---|---|\n")[1].split("\n\n")[0]
    assert [row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()] == [
        *KINDS,
        "an EPS file",
    ]


@pytest.mark.parametrize("num_channels", [1, 3, 4])
@pytest.mark.parametrize("name", FILES)
def test_pretraining_the_card_and_fine_tuning_see_the_same_pixels(
    tmp_path: Path, name: str, num_channels: int
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    FILES[name](folder / name)
    write_images(folder, 6)  # a corpus is more than one image
    corpus = opened(folder, num_channels=num_channels)
    trained = {each.tobytes() for each in np.asarray(corpus.pixels)}
    processor = processor_of(num_channels, pixel_range=corpus.manifest["pixel_range"])
    image = prepared_by_card(folder / name, num_channels, processor)
    assert image.mode == MODES[num_channels]
    found = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    by_card = found["pixel_values"][0].transpose(1, 2, 0).astype(np.uint8)
    assert by_card.tobytes() in trained
    assert finetuned_on(folder, processor, num_channels) == trained
    # Of a model that knows no range, fine-tuning finds it out, and its card then says it.
    stranger = processor_of(num_channels)
    assert finetuned_on(folder, stranger, num_channels) == trained
    again = prepared_by_card(folder / name, num_channels, stranger)
    assert again.tobytes() == image.tobytes()


LEVELS = {
    "12 bits in 16.png": 4095,
    "12 bits in 16.tiff": 4095,
    "8 bits in 32.tiff": 255,
    "8 bits in floats.tiff": 255,
    "floats to 1.tiff": 1,
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_spread_from_black_to_white_over_the_bits_that_are_used(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    FILES[name](folder / name)
    for place in range(4):  # of the same size, since they are not resized
        Image.fromarray(noise(12, 20, seed=place)).save(folder / f"{place}.png")
    corpus = opened(folder, image_size=0)
    stored = np.asarray(Image.open(folder / name)).astype(np.float64)
    expected = np.rint(stored * 255 / LEVELS[name])
    errors = [np.abs(each[:, :, 0] - expected).max() for each in corpus.pixels.astype(int)]
    assert min(errors) <= (name.endswith("floats.tiff") or name.startswith("floats"))  # ties
    assert f"grey levels      0:{LEVELS[name]} " in image_card(corpus)


def write_levels(folder: Path, count: int, dtype: Any, high: float, *, first: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    for place in range(first, first + count):
        pixels = (np.random.default_rng(place).random((9, 9)) * high).astype(dtype)
        Image.fromarray(pixels).save(folder / f"{place:03}.tiff")


def test_the_brightest_image_decides_the_range_whether_or_not_it_is_sampled(
    tmp_path: Path,
) -> None:
    write_levels(tmp_path / "dark", 151, np.uint16, 900)  # every second one is sampled
    write_levels(tmp_path / "dark", 1, np.uint16, 4095, first=149)
    assert opened(tmp_path / "dark").manifest["pixel_range"] == [0, 4095]


def test_a_range_that_is_given_cuts_off_what_lies_outside(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    write_levels(folder, 6, np.int32, 400)
    corpus = opened(folder, image_size=0, pixel_range=(-100, 155))
    stored = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    for pixels, level in zip(corpus.pixels, stored, strict=True):
        assert np.array_equal(pixels[:, :, 0], np.clip(level + 100, 0, 255))
    processor = processor_of(1, pixel_range=(-100, 155))
    by_card = np.asarray(prepared_by_card(folder / "000.tiff", 1, processor))
    assert np.array_equal(by_card, np.clip(stored[0] + 100, 0, 255))


def test_a_file_of_more_bits_than_its_range_is_a_bad_image(tmp_path: Path) -> None:
    write_levels(tmp_path / "scans", 6, np.uint16, 9000)
    with pytest.raises(InputError, match=r"grey levels are .*, beyond 0:4095; pass a `pixel_range"):
        opened(tmp_path / "scans", pixel_range=(0, 4095))


@pytest.mark.parametrize("low", [-1, -300])
def test_negative_levels_are_refused_rather_than_made_black(tmp_path: Path, low: float) -> None:
    (tmp_path / "scans").mkdir()
    for place in range(6):
        pixels = np.random.default_rng(place).random((9, 9)) * (1 - low) + low
        Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "scans" / f"{place}.tiff")
    with pytest.raises(InputError, match=r"which of them are black and white; pass `pixel_range`"):
        opened(tmp_path / "scans")


def test_formats_of_different_ranges_are_not_mixed_in_silence(tmp_path: Path) -> None:
    write_levels(tmp_path / "scans", 4, np.float32, 1)
    write_levels(tmp_path / "scans", 4, np.uint16, 4000, first=4)
    with pytest.raises(
        InputError, match=r"0:1 in those of mode F, 0:4095 in .* I;16 .*`pixel_range`"
    ):
        opened(tmp_path / "scans")


def test_images_on_which_nothing_can_be_seen_are_warned_of(tmp_path: Path) -> None:
    write_levels(tmp_path / "scans", 6, np.uint16, 4000)
    assert "WARNING" not in image_card(opened(tmp_path / "scans"))
    dark = opened(tmp_path / "scans", pixel_range=(0, 65_535))
    assert "WARNING: the pixels have mean 0.0" in image_card(dark)
    source = source_of(dataset_name=str(tmp_path / "scans"), pixel_range=LevelRange("0:65535"))
    rows = read_image_splits(source, processor_of(1), num_channels=1)["train"]
    assert any(note.startswith("WARNING: the pixels have mean 0.0") for note in rows.notes)


def test_channels_are_those_of_most_images_not_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_images(folder / "a scanned page", 1, channels=1)
    write_images(folder / "photographs", 11, seed=50)
    assert opened(folder).pixels.shape == (12, SIZE, SIZE, 3)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_grey_images_among_coloured_ones_are_warned_of(tmp_path: Path, num_channels: int) -> None:
    for folder, channels in (("grey", (1, 1)), ("coloured", (3, 3)), ("mixed", (1, 3))):
        for number, own in enumerate(channels):
            write_images(tmp_path / folder, 3 + number, seed=50 * number, channels=own)
        card = image_card(opened(tmp_path / folder, num_channels=num_channels))
        source = source_of(dataset_name=str(tmp_path / folder))
        processor = processor_of(num_channels)
        rows = read_image_splits(source, processor, num_channels=num_channels)["train"]
        for said in (card, "\n".join(rows.notes)):
            found = "WARNING: 3 of the images are grey and 4 have colours; all become " in said
            assert found == (folder == "mixed")
            assert ("the colours are lost" in said) == (folder == "mixed" and num_channels == 1)


def test_a_picture_in_two_classes_has_no_label(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for number, name in enumerate(("cat", "dog")):
        write_images(folder / name, 4, seed=100 * number)
        Image.fromarray(noise(9, 9, 3, seed=7)).save(folder / name / "both.png")
    corpus = opened(folder)
    assert corpus.labels is not None
    assert sorted(corpus.labels.tolist()) == [-1] + 4 * [0] + 4 * [1]
    assert "of them 1 that lie in several classes" in image_card(corpus)


def test_a_strip_that_would_fill_the_memory_is_named_and_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_images(folder, 6)
    Image.new("L", (3, 60_000)).save(folder / "strip.png")
    with pytest.raises(InputError, match=r"strip\.png cannot be decoded .*3 x 60000 pixels"):
        opened(folder)
    corpus = opened(folder, on_bad_image="skip")
    assert len(corpus.pixels) == 6


def test_folders_of_splits_may_be_written_in_any_case_beside_unlabelled_images(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "images"
    for number, name in enumerate(("Train", "TEST", "unlabeled")):
        write_images(folder / name, 5 + number, seed=100 * number)
    assert len(opened(folder).pixels) == 5
    assert len(opened(folder, dataset_split="test").pixels) == 6
    assert len(opened(folder, dataset_split="unlabeled").pixels) == 7


def test_splits_beside_other_folders_are_not_taken_for_classes(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for number, name in enumerate(("train", "val", "cats")):
        write_images(folder / name, 5, seed=100 * number)
    with pytest.raises(InputError, match=r"subfolder val is named as a split, beside cats, train"):
        opened(folder)
    (folder / "val").rename(folder / "planes")  # vehicles: a class may be called train
    assert opened(folder).label_names == ("cats", "planes", "train")


@pytest.mark.parametrize("layout", ["cats/{}", "ILSVRC/Data/{}", "{}/cats"])
def test_no_folder_of_held_out_images_is_trained_on_in_silence(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "images"
    for number, name in enumerate(("train", "Val")):
        write_images(folder / layout.format(name), 5, seed=100 * number)
    if layout == "{}/cats":
        assert len(opened(folder).pixels) == 5
        write_images(folder / "dogs", 5, seed=300)
    with pytest.raises(InputError, match=r"subfolder \S*Val is named as a split"):
        opened(folder)


HELD_OUT_NAMES = ["val2017", "validate", "Test_Set", "testset", "holdout", "validation_images"]


@pytest.mark.parametrize("name", HELD_OUT_NAMES)
def test_other_names_of_held_out_images_are_known_as_folders_and_warned_of_as_files(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "images"
    for number, subfolder in enumerate(("cats", name)):
        write_images(folder / subfolder, 5, seed=100 * number)
    with pytest.raises(InputError, match=f"subfolder {name} is named as a split, beside cats"):
        opened(folder)
    (folder / "cats").rename(folder / "train")
    assert len(opened(folder).pixels) == 5
    files = [tmp_path / f"{each}-00000-of-00001.parquet" for each in ("train", name)]
    for file, part in zip(files, ("train", name), strict=True):
        images = [{"bytes": path.read_bytes()} for path in (folder / part).iterdir()]
        pq.write_table(pa.table({"image": images}), file)
    options = {"dataset_name": None, "data_files": [str(tmp_path / "*.parquet")]}
    warning = f"WARNING: 1 of the 2 `data_files`, such as {files[1].name}, are named as images to"
    assert warning in image_card(opened(folder, **options))
    for alone in files:  # nothing but such images is what was asked for
        assert "WARNING" not in image_card(opened(folder, **options | {"data_files": [str(alone)]}))


def test_classes_whose_names_begin_like_splits_are_classes(tmp_path: Path) -> None:
    names = ("devices", "test_tubes", "trains", "valleys")
    for number, name in enumerate(names):
        write_images(tmp_path / "images" / name, 3, seed=100 * number)
    assert opened(tmp_path / "images").label_names == names


def header_of(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size; its pixels are those of a small image."""
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    head = b"IHDR" + struct.pack(">II", width, height) + file.getvalue()[24:29]
    checked = head + struct.pack(">I", zlib.crc32(head))
    return file.getvalue()[:12] + checked + file.getvalue()[33:]


def jpeg_header_of(width: int, height: int, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "JPEG", **options)
    marker = b"\xff\xc2" if options.get("progressive") else b"\xff\xc0"
    before, after = file.getvalue().split(marker, maxsplit=1)
    return before + marker + after[:3] + struct.pack(">HH", height, width) + after[7:]


BOMBS = {
    "bomb.png": (header_of(50_000, 50_000), "exceeds limit"),
    "large.png": (header_of(12_000, 12_000), "12000 x 12000 pixels, more than 89,478,485"),
    "bomb.jpg": (jpeg_header_of(60_000, 60_000), "exceeds limit"),
    "progressive.jpg": (
        jpeg_header_of(12_000, 12_000, progressive=True),
        "12000 x 12000 pixels, more than 89,478,485",
    ),
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "program"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_bad_images_in_pretraining_and_fine_tuning(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    write_images(folder, 6)
    content, reason = BOMBS[name]
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot be decoded .*{reason}"):
        opened(folder)
    corpus = opened(folder, on_bad_image="skip")
    assert len(corpus.pixels) == 6 and reason in image_card(corpus)
    with pytest.raises(InputError, match=rf"{name} cannot be decoded .*{reason}"):
        finetuned_on(folder, processor_of(3), 3)
    source = source_of(dataset_name=str(folder), on_bad_image="skip")
    rows = read_image_splits(source, processor_of(3), num_channels=3)["train"]
    assert len(rows.content) == len(rows.labels or []) == 6
    assert any("1 of 7" in note and reason in note for note in rows.notes)


def test_what_is_decoded_at_the_same_time_has_no_more_pixels_than_the_largest_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", 40)  # 81 pixels each
    monkeypatch.setattr(decoding, "_ROOM", decoding._Room(200))
    monkeypatch.setattr(decoding, "_ROWS_PER_BLOCK", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    lock, at_once, most = threading.Lock(), 0, 0

    def fit(image: Image.Image) -> np.ndarray:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.002)
        with lock:
            at_once -= 1
        return np.asarray(image)

    rows = open_image_source(dataset_name=str(tmp_path / "images")).read()
    outcomes = list(decoding.decode_rows(rows, decoding.Conversion(3, None, 0, fit)))
    assert len(outcomes) == 40 and not any(outcome.reason for outcome in outcomes)
    assert most == 2


PEAK = """
import os, sys
os.cpu_count = lambda: 2
from bert_pretrain.hardware import peak_resident_bytes
from downstream_models import source_of
from hard_files import FILES, KINDS, noise, orientation
from bert_pretrain.downstream.labelled_images import read_image_splits
from bert_pretrain.publishing.export import image_processor

def peak():
    return peak_resident_bytes() / 2**20

def read(folder):
    processor = image_processor(image_size=64, mean=[0.5] * 3, std=[1.0] * 3)
    return read_image_splits(source_of(dataset_name=folder), processor, num_channels=3)

read(sys.argv[1])
before = peak()
assert len(read(sys.argv[2])["train"].content) == 24
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it does not tell its peak")
def test_fine_tuning_holds_a_few_full_size_photographs_however_many_there_are(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "few", 6)
    (tmp_path / "photographs").mkdir()
    image = Image.linear_gradient("L").resize((4000, 3000)).convert("RGB")  # 48 MB in Pillow
    for kind, count in (("png", 3), ("jpg", 21)):
        file = io.BytesIO()
        image.save(file, {"png": "PNG", "jpg": "JPEG"}[kind], compress_level=1)
        for number in range(count):
            (tmp_path / "photographs" / f"{number}.{kind}").write_bytes(file.getvalue())
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "few"), str(tmp_path / "photographs")],
        env=environment(tmp_path) | {"PYTHONPATH": f"{tests}:{tests.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # All 24 have 1,150 MB. Two threads hold two of the PNG files, with a copy or two of each.
    assert float(done.stdout.split()[-1]) < 400


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.png", "zip://a.png::https://127.0.0.1/"])
def test_an_address_in_a_table_is_not_asked_for_an_image(address: str) -> None:
    with pytest.raises(ValueError, match="an address, which is not asked"):
        open_image(ImageRow("row", {"bytes": None, "path": address}, None))
