"""The code on a model card, run as it stands on images as people have them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hard_files import FILES, noise
from PIL import Image
from records import metrics_rows, run_record
from runs import environment

from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.models.image_heads import build_autoencoder
from bert_pretrain.publishing.export import (
    export_image_model,
    image_card_fields,
    image_processor,
)
from bert_pretrain.publishing.model_card import model_card

SIZE = 8
# The range of levels in the files, and which of them are trained on together.
RANGES = {
    "16 bits": [name for name in FILES if name.startswith("16 bits.") or "endian" in name],
    "12 bits": [name for name in FILES if name.startswith("12 bits")],
    "8 bits": [name for name in FILES if name.startswith("8 bits")],
    "floats": [name for name in FILES if name.startswith("floats")],
}
IN_RANGES = [name for names in RANGES.values() for name in names]
GROUPS = RANGES | {"no levels": [name for name in FILES if name not in IN_RANGES]}
# Runs the code of each export's card for each image beside the export, up to the model's input:
# test_image_export runs the models.
RUNNER = """
import re, sys
sys.modules["bert_pretrain"] = None  # any import of it fails
from pathlib import Path
import torch
from transformers.utils import logging
logging.set_verbosity_error()
found = {}
for export in map(Path, sys.argv[2:]):
    images = export.parent / "hard"
    code = (export / "README.md").read_text().split("```python")[1].split("```")[0]
    code = code.split("# The embedding")[0].replace('path = "."', f"path = {str(export)!r}")
    for file in sorted(images.iterdir()):
        opened, replaced = re.subn(r"Image\\.new\\(.*\\)  #", f"Image.open({str(file)!r})  #", code)
        assert replaced == 1, code
        names = {}
        try:
            exec(opened, names)
            found[str(export), file.name] = names["inputs"]["pixel_values"][0]
        except ValueError as error:
            found[str(export), file.name] = str(error)
torch.save(found, sys.argv[1])
"""


def export_for(corpus: ImageCorpus, folder: Path) -> Path:
    """Export a new encoder as a run on the corpus does, with its card."""
    num_channels = corpus.pixels.shape[-1]
    model = build_autoencoder(
        config_name="vit-tiny",
        model_name_or_path=None,
        image_size=SIZE,
        num_channels=num_channels,
        embedding_dim=4,
        dropout=0.0,
    )
    processor = image_processor(
        image_size=SIZE,
        mean=corpus.mean.tolist(),
        std=corpus.std.tolist(),
        pixel_range=corpus.manifest["pixel_range"],
    )
    export_image_model(model, processor, folder)
    card = model_card(
        image_card_fields(model, processor),
        record=run_record(),
        data_card="",
        metrics_rows=metrics_rows(unit="images", reconstruction_loss=0.5),
        step=9,
        seconds=1.0,
    )
    card.save(folder / "README.md")
    return folder


def run_cards(exports: list[Path], folder: Path) -> dict[tuple[str, str], torch.Tensor | str]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(folder / "found.pt"), *map(str, exports)],
        env={k: v for k, v in environment(folder).items() if k != "PYTHONPATH"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, str], torch.Tensor | str] = torch.load(folder / "found.pt")
    return found


def normalised(corpus: ImageCorpus) -> set[bytes]:
    """Return what a model is trained on of each image: float32 (C, H, W), as bytes."""
    scaled = torch.from_numpy(np.array(corpus.pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.from_numpy(values).view(1, -1, 1, 1) for values in (corpus.mean, corpus.std))
    return {row.contiguous().numpy().tobytes() for row in (scaled - mean) / std}


class Ran(NamedTuple):
    """What the cards' code gave the models, by export and file, and what they were trained on."""

    found: dict[tuple[str, str], torch.Tensor | str]
    trained: dict[Path, set[bytes]]
    of_8_bits: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run all cards in one process, which takes longer to start than to run them."""
    folder = tmp_path_factory.mktemp("cards")

    def opened(images: Path, num_channels: int) -> ImageCorpus:
        for seed in range(4):  # a corpus is more than one image
            Image.fromarray(noise(9, 9, 3, seed=seed + 20)).save(images / f"{seed}.png")
        return open_images(
            dataset_name=str(images),
            image_size=SIZE,
            num_channels=num_channels,
            validation_share=0.3,
            seed=0,
            cache_dir=folder / "cache",
            show_progress=False,
        )

    trained = {}
    for group, names in GROUPS.items():
        for num_channels in (1, 3, 4):
            place = folder / f"{group} {num_channels}"
            corpus = opened(write_files(place / "hard", names), num_channels)
            trained[export_for(corpus, place / "final")] = normalised(corpus)
    of_8_bits = folder / "of 8 bits"
    write_files(of_8_bits / "hard", IN_RANGES)
    export = export_for(opened(write_files(of_8_bits / "seen", []), 3), of_8_bits / "final")
    return Ran(run_cards([*trained, export], folder), trained, export)


def write_files(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        FILES[name](folder / name)
    return folder


@pytest.mark.parametrize("num_channels", [1, 3, 4])
@pytest.mark.parametrize("group", GROUPS)
def test_the_card_as_it_stands_gives_the_model_what_was_trained_on(
    ran: Ran, group: str, num_channels: int
) -> None:
    (export,) = [path for path in ran.trained if path.parent.name == f"{group} {num_channels}"]
    for name in GROUPS[group]:
        values = ran.found[str(export), name]
        assert isinstance(values, torch.Tensor), (name, values)
        assert values.numpy().tobytes() in ran.trained[export], name


def test_a_card_of_8_bits_refuses_levels_rather_than_make_them_black(ran: Ran) -> None:
    for name in IN_RANGES:
        assert ran.found[str(ran.of_8_bits), name] == (
            "trained on 8 bits: scale the levels, black to 0 and white to 255 (uint8)"
        )
