"""Images as people have them, made by a script: one file of each kind, and what kind it is of."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # EXIF


def noise(*shape: int, seed: int = 0, high: int = 256, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif


def turned(path: Path, number: int) -> None:
    image = Image.fromarray(noise(12, 20, 3, seed=number))
    image.save(path, exif=orientation(number), quality=95)


def photograph(path: Path, **options: Any) -> None:
    """Write a JPEG of many times the size that is trained on."""
    coarse = Image.fromarray(noise(15, 20, 3))
    coarse.resize((400, 300), Image.Resampling.BICUBIC).save(path, **options)


def levels(path: Path, dtype: Any, high: int) -> None:
    """Write grey levels from 0 to `high`, both of which occur."""
    pixels = (np.random.default_rng(0).random((12, 20)) * high).astype(dtype)
    pixels[0, 0], pixels[0, 1] = 0, high
    Image.fromarray(pixels).save(path)


def with_palette(path: Path) -> None:
    image = Image.fromarray(noise(12, 20, 3)).quantize(16)
    image.save(path, transparency=3)


def colours_of_16_bits(path: Path) -> None:
    """Write a PNG as Pillow cannot: three channels of 16 bits each."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    pixels = noise(12, 20, 3, high=65536, dtype=">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # each without a filter
    head = struct.pack(">IIBBBBB", 20, 12, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def several(path: Path) -> None:
    pages = [Image.fromarray(noise(12, 20, 3, seed=seed)) for seed in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def grey_levels(path: Path, dtype: Any = np.uint16) -> None:
    Image.fromarray(noise(12, 20, high=65536, dtype=dtype)).save(path)


Writer = Callable[[Path], None]
# By the rows of the table in docs/image_files.md; each is written by its function into the name's
# file.
KINDS: dict[str, dict[str, Writer]] = {
    "EXIF orientation": {
        "turned 3.jpg": lambda path: turned(path, 3),
        "turned 6.jpg": lambda path: turned(path, 6),
        "turned 8.jpg": lambda path: turned(path, 8),
        "mirrored 2.jpg": lambda path: turned(path, 2),
        "mirrored 4.jpg": lambda path: turned(path, 4),
        "mirrored 5.jpg": lambda path: turned(path, 5),
        "mirrored 7.jpg": lambda path: turned(path, 7),
        "large and turned.jpg": lambda path: photograph(path, exif=orientation(6)),
    },
    "transparency": {
        "transparent.png": lambda path: Image.fromarray(noise(12, 20, 4)).save(path),
        "grey and transparent.png": lambda path: Image.fromarray(noise(12, 20, 2)).save(path),
        "palette with transparency.png": with_palette,
    },
    "palette, CMYK, 1 bit": {
        "palette.gif": lambda path: Image.fromarray(noise(12, 20, 3)).quantize(16).save(path),
        "print colours.jpg": lambda path: Image.fromarray(noise(12, 20, 4), "CMYK").save(path),
        "one bit.png": lambda path: Image.fromarray(noise(12, 20)).convert("1").save(path),
    },
    "more than 8 bits of grey": {
        "16 bits.png": grey_levels,
        "16 bits.tiff": grey_levels,
        "16 bits, big-endian.tiff": lambda path: grey_levels(path, ">u2"),
        "12 bits in 16.png": lambda path: levels(path, np.uint16, 4095),
        "12 bits in 16.tiff": lambda path: levels(path, np.uint16, 4095),
        "8 bits in 32.tiff": lambda path: levels(path, np.int32, 255),
        "8 bits in floats.tiff": lambda path: levels(path, np.float32, 255),
        "floats to 1.tiff": lambda path: levels(path, np.float32, 1),
    },
    "16 bits of colour": {"16 bits of colour.png": colours_of_16_bits},
    "several pictures (pages, frames)": {"pages.tiff": several, "frames.gif": several},
    "a JPEG much larger than the model's input": {
        "large.jpg": photograph,
        "large and progressive.jpg": lambda path: photograph(path, progressive=True),
    },
    "another size": {
        "grey.png": lambda path: Image.fromarray(noise(12, 20)).save(path),
        "colour.png": lambda path: Image.fromarray(noise(12, 20, 3)).save(path),
    },
}
FILES = {name: write for files in KINDS.values() for name, write in files.items()}
