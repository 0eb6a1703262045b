"""Real runs on as few images as there may be, and on strange ones."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import metrics, run_here

from bert_pretrain.commands.report import write_report

COMMON = (
    "--mixed_precision no --optimizer adamw --learning_rate 5e-4 --max_steps 2 --eval_steps 1 "
    "--logging_steps 1"
)


def write_images(folder: Path, number: int, *, dtype: type = np.uint8, high: int = 256) -> Path:
    folder.mkdir()
    for place in range(number):
        pixels = np.random.default_rng(place).integers(0, high, (16, 16)).astype(dtype)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return folder


OBJECTIVES = {
    "triplet": "--objective contrastive --loss triplet --config_name convnextv2-mini",
    "nt_xent": "--objective contrastive --loss nt_xent --config_name convnextv2-mini",
    "autoencoder": "--objective autoencoder --embedding_dim 4 --config_name vit-tiny",
    "masked": "--objective autoencoder --mask_ratio 0.5 --config_name vit-tiny",
}
FEW = {
    "two held out": (10, ""),  # 5 % of ten, but at least two
    "two evaluated": (40, "--validation_share 0.4 --max_eval_rows 2"),
    "three in batches of two": (12, "--validation_share 0.25 --per_device_eval_batch_size 2"),
}


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("nt_xent", "two held out"),
        ("autoencoder", "two held out"),
        ("triplet", "two evaluated"),
        ("masked", "two evaluated"),
        ("nt_xent", "three in batches of two"),
    ],
)
def test_a_few_held_out_images_are_enough(tmp_path: Path, name: str, few: str) -> None:
    number, flags = FEW[few]
    write_images(tmp_path / "images", number)
    flags += f" {OBJECTIVES[name]} --dataset_name images --global_batch_size 4 --output_dir out"
    run_here(tmp_path, [*COMMON.split(), *flags.split()])
    check_evaluations(tmp_path / "out")


@pytest.mark.parametrize("objective", ["autoencoder", "contrastive"])
def test_the_recipe_for_photographs_takes_forty(tmp_path: Path, objective: str) -> None:
    write_images(tmp_path / "images", 40)
    flags = f"--objective {objective} --recipe small_images --dataset_name images --output_dir out"
    flags += " --config_name vit-tiny --image_size 16 --global_batch_size 8"
    run_here(tmp_path, [*COMMON.split(), *flags.split()])
    check_evaluations(tmp_path / "out")


def check_evaluations(folder: Path) -> None:
    rows = [row for row in metrics(folder) if row["split"] == "validation"]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert np.isfinite([value for value in row.values() if isinstance(value, float)]).all()
        assert row["loss"] > 0
        assert row.get("contrastive_chance_accuracy", 0) < 0.34  # of two views of one other image
    assert (folder / "final/model.safetensors").exists()


def test_what_is_strange_about_images_stands_in_report_and_card(tmp_path: Path) -> None:
    scans = write_images(tmp_path / "scans", 10, dtype=np.uint16, high=900)
    colours = np.random.default_rng(99).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(colours // 100).save(scans / "colours.png")
    flags = "--objective autoencoder --config_name vit-tiny --embedding_dim 4 --global_batch_size 4"
    flags += " --dataset_name scans --pixel_range 0:65535 --num_channels 1 --output_dir out"
    printed = run_here(tmp_path, [*COMMON.split(), *flags.split()])
    rows = [row for row in metrics(tmp_path / "out") if row["split"] == "warning"]
    about_data = [row["message"] for row in rows if row["step"] == 0]
    assert [message.split(" have")[0] for message in about_data[:1]] == [
        "10 of the images are grey and 1"
    ]
    assert about_data[1].startswith("the pixels have mean 0.0") and len(about_data) == 2
    page = write_report(tmp_path / "out").read_text()
    card = (tmp_path / "out/final/README.md").read_text()
    for message in about_data:
        assert "`" not in message and f"WARNING: {message}" in printed
        assert message in card and html.escape(message) in page
