"""Images as people have them: what is trained on is what the cards' own code makes of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from PIL import Image

from bert_pretrain.errors import InputError
from bert_pretrain.images.corpus import ImageCorpus, image_card, open_images
from bert_pretrain.images.decoding import MODES
from bert_pretrain.models.image_processor import preparation_code
from bert_pretrain.publishing.export import image_processor

SIZE = 8
ORIENTATION = 0x0112  # EXIF


def noise(*shape: int, seed: int = 0, high: int = 256, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(noise(12, 20, 3, seed=orientation)).save(path, exif=exif, quality=95)


def with_palette(path: Path) -> None:
    image = Image.fromarray(noise(12, 20, 3)).quantize(16)
    image.save(path, transparency=3)


# Each is written by its function into the name's file.
FILES = {
    "grey.png": lambda path: Image.fromarray(noise(12, 20)).save(path),
    "colour.png": lambda path: Image.fromarray(noise(12, 20, 3)).save(path),
    "transparent.png": lambda path: Image.fromarray(noise(12, 20, 4)).save(path),
    "grey and transparent.png": lambda path: Image.fromarray(noise(12, 20, 2)).save(path),
    "palette with transparency.png": with_palette,
    "palette.gif": lambda path: Image.fromarray(noise(12, 20, 3)).quantize(16).save(path),
    "one bit.png": lambda path: Image.fromarray(noise(12, 20)).convert("1").save(path),
    "16 bits.png": lambda path: Image.fromarray(noise(12, 20, high=65536, dtype=np.uint16)).save(
        path
    ),
    "16 bits.tiff": lambda path: Image.fromarray(noise(12, 20, high=65536, dtype=np.uint16)).save(
        path
    ),
    "print colours.jpg": lambda path: Image.fromarray(noise(12, 20, 4), "CMYK").save(path),
    "turned 3.jpg": lambda path: turned(path, 3),
    "turned 6.jpg": lambda path: turned(path, 6),
    "mirrored 2.jpg": lambda path: turned(path, 2),
}


def opened(folder: Path, **options: Any) -> ImageCorpus:
    given = {"image_size": SIZE, "validation_share": 0.3, "seed": 0, "show_progress": False}
    return open_images(
        dataset_name=str(folder), cache_dir=folder.parent / "cache", **(given | options)
    )


def write_images(folder: Path, number: int, *, seed: int = 9, channels: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(number):
        pixels = noise(9, 9, channels, seed=seed + place).squeeze()
        Image.fromarray(pixels).save(folder / f"{seed + place}.png")


def prepared_by_card(path: Path, num_channels: int) -> Image.Image:
    names: dict[str, Any] = {"np": np, "Image": PIL.Image, "ImageOps": PIL.ImageOps}
    exec(preparation_code(MODES[num_channels]), names)
    prepared: Image.Image = names["prepared"](Image.open(path))
    return prepared


@pytest.mark.parametrize("num_channels", [1, 3, 4])
@pytest.mark.parametrize("name", FILES)
def test_the_code_of_the_card_gives_the_pixels_that_are_trained_on(
    tmp_path: Path, name: str, num_channels: int
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    FILES[name](folder / name)
    write_images(folder, 6)  # a corpus is more than one image
    corpus = opened(folder, num_channels=num_channels)
    processor = image_processor(
        image_size=SIZE, mean=[0.5] * num_channels, std=[1.0] * num_channels
    )
    image = prepared_by_card(folder / name, num_channels)
    assert image.mode == MODES[num_channels]
    found = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    pixels = found["pixel_values"][0].transpose(1, 2, 0).astype(np.uint8)
    assert pixels.tobytes() in {each.tobytes() for each in np.asarray(corpus.pixels)}


def test_channels_are_those_of_most_images_not_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_images(folder / "a scanned page", 1, channels=1)
    write_images(folder / "photographs", 11, seed=50)
    assert opened(folder).pixels.shape == (12, SIZE, SIZE, 3)


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
    with pytest.raises(InputError, match=r"named as splits \(train, val\) and others \(cats\)"):
        opened(folder)
    (folder / "val").rename(folder / "planes")  # vehicles: a class may be called train
    assert opened(folder).label_names == ("cats", "planes", "train")
