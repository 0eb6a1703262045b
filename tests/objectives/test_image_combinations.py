"""Combinations of flags learn: digits have nearer neighbours of their class.

A combination is trained by the program, and its last encoder is compared with the one that it began
with. On one core without bfloat16 all of this takes an hour (`pytest -m long`). Not asked for: the
larger encoders, which learn nothing in minutes on a processor, and `convnextv2-micro` and
`convnextv2-atto`, which untrained already find neighbours of .96 and .94 of these digits by their
pixels.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from runs import metrics, run_here

RECIPES = [
    "contrastive",
    "contrastive --loss nt_xent",
    "autoencoder --max_steps 100",
    "autoencoder --noise_std 0.3 --max_steps 100",
    "autoencoder --reconstruction_loss l1 --max_steps 100",
    "autoencoder --mask_ratio 0.75 --config_name vit-tiny",
    "autoencoder --mask_ratio 0.75 --config_name vit-tiny --no_norm_pix_loss",
]
# A small convolutional encoder learns most in a minute, so it tries the losses; a ViT needs the
# length of the recipe.
SHORT = "--config_name convnextv2-mini --max_steps 100 --global_batch_size 128"
VIT = "--config_name vit-mini --max_steps 100 --global_batch_size 128"
TRIPLETS = [
    f"contrastive --negatives {negatives} --distance {distance}{scale} {SHORT}"
    for negatives, distance, scale in product(
        ("random", "semi_hard", "all"),
        ("l2", "l2_squared", "cosine"),
        ("", " --no_normalize"),
    )
]
OTHERS = [
    f"contrastive --loss nt_xent {SHORT}",
    f"contrastive --reduction mean_positive {SHORT}",
    f"contrastive --loss nt_xent {VIT}",
]
LOCAL = [
    f"contrastive --num_local_views {flags}"
    for flags in (
        f"4 --loss nt_xent {SHORT}",
        f"4 --negatives all {SHORT}",
        f"4 --negatives random {SHORT}",
        f"2 --loss nt_xent --local_crop_area 0.2 0.6 {SHORT}",
        f"4 --loss nt_xent {VIT}",
    )
]


def train(folder: Path, flags: str) -> tuple[float, float, list[str]]:
    """Return the k-NN accuracy before and after a run, and what it warned of."""
    few = "--eval_steps 0 --save_steps 0 --output_dir out"
    run_here(folder, ["--objective", *flags.split(), *few.split()])
    rows = metrics(folder / "out")
    accuracies = [row["knn_accuracy"] for row in rows if row["split"] == "validation"]
    return accuracies[0], accuracies[-1], [r["message"] for r in rows if r["split"] == "warning"]


@pytest.mark.long
@pytest.mark.parametrize("flags", [*RECIPES, *TRIPLETS, *OTHERS, *LOCAL])
def test_a_combination_learns_more_than_its_untrained_encoder_knows(
    tmp_path: Path, flags: str
) -> None:
    untrained, trained, warnings = train(tmp_path, flags)
    assert trained > untrained, (untrained, trained, warnings)
    assert warnings == []


@pytest.mark.long
@pytest.mark.parametrize("distance", ["l2", "l2_squared", "cosine"])
def test_the_hardest_negatives_learn_or_say_why_not(tmp_path: Path, distance: str) -> None:
    untrained, trained, warnings = train(
        tmp_path, f"contrastive --negatives hard --distance {distance} {SHORT}"
    )
    assert "--negatives is hard" in warnings[0]
    assert trained > untrained or any("stuck at its margin" in message for message in warnings)
