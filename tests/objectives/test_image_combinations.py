"""Every combination that the flags allow learns: digits have nearer neighbours of their class.

A combination is trained by the program for a part of its recipe, and its last encoder is compared
with the one that it began with. On two cores all of this takes an hour: `pytest -m long`. The slow
part takes each value of each flag at least once.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from runs import metrics, run

from bert_pretrain.models.image_encoder_config import IMAGE_SIZES

# A small convolutional encoder learns most in a minute, so it tries the losses; a ViT needs the
# length of the recipe.
SHORT = "--config_name convnextv2-mini --max_steps 100 --global_batch_size 128"
TRIPLETS = [
    f"--objective contrastive --negatives {negatives} --distance {distance}{scale} {SHORT}"
    for negatives, distance, scale in product(
        ("random", "semi_hard", "all"),
        ("l2", "l2_squared", "cosine"),
        ("", " --no_normalize"),
    )
]
OTHERS = [
    f"--objective {flags} {SHORT}"
    for flags in (
        "contrastive --reduction mean_positive",
        "contrastive --projection_dim 0",
        "contrastive --loss nt_xent",
        "contrastive --loss nt_xent --temperature 0.1",
        "contrastive --loss nt_xent --projection_dim 0",
        "contrastive --loss nt_xent --queue_size 1024",
        "contrastive --loss nt_xent --augmentation simclr_small --no_horizontal_flip",
        "autoencoder",
        "autoencoder --reconstruction_loss l1",
        "autoencoder --noise_std 0.3",
    )
]
RECIPES = [
    "--objective contrastive",
    "--objective contrastive --loss nt_xent",
    "--objective autoencoder",
]
# Contrast takes a large ViT longer than a test may take.
SIZES = {
    "vit-tiny": "autoencoder --max_steps 100",
    "vit-mini": "autoencoder --max_steps 100",
    "vit-small": "autoencoder --max_steps 60 --global_batch_size 32",
    "vit-base": "autoencoder --max_steps 40 --global_batch_size 32",
    "convnextv2-mini": "contrastive --loss nt_xent --max_steps 100 --global_batch_size 128",
    "convnextv2-micro": "contrastive --loss nt_xent --max_steps 100 --global_batch_size 128",
    "convnextv2-atto": "contrastive --loss nt_xent --max_steps 100 --global_batch_size 128",
    "convnextv2-tiny": "contrastive --loss nt_xent --max_steps 60 --global_batch_size 64",
}
BY_SIZE = [f"--objective {flags} --config_name {name}" for name, flags in SIZES.items()]


SLOW = [RECIPES[1], TRIPLETS[0], TRIPLETS[9], TRIPLETS[16], OTHERS[5], OTHERS[9]]


def train(folder: Path, flags: str) -> tuple[float, float, list[str]]:
    """Return the k-NN accuracy before and after a run, and what it warned of."""
    few = "--eval_steps 0 --save_steps 0 --output_dir out"
    run(folder, [*flags.split(), *few.split()])
    rows = metrics(folder / "out")
    accuracies = [row["knn_accuracy"] for row in rows if row["split"] == "validation"]
    return accuracies[0], accuracies[-1], [r["message"] for r in rows if r["split"] == "warning"]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(flags, marks=pytest.mark.slow if flags in SLOW else pytest.mark.long)
        for flags in (*RECIPES, *TRIPLETS, *OTHERS, *BY_SIZE)
    ],
)
def test_a_combination_learns_more_than_its_untrained_encoder_knows(
    tmp_path: Path, flags: str
) -> None:
    untrained, trained, warnings = train(tmp_path, flags)
    assert trained > untrained, (untrained, trained, warnings)
    assert warnings == []


@pytest.mark.long
@pytest.mark.parametrize("distance", ["l2", "l2_squared", "cosine"])
def test_the_hardest_negatives_learn_or_say_why_not(tmp_path: Path, distance: str) -> None:
    flags = f"--objective contrastive --negatives hard --distance {distance} {SHORT}"
    untrained, trained, warnings = train(tmp_path, flags)
    assert "--negatives is hard" in warnings[0]
    assert trained > untrained or any("stuck at its margin" in message for message in warnings)


def test_every_size_for_small_images_is_tried() -> None:
    small = {name for name in IMAGE_SIZES if name.startswith(("vit-", "convnextv2-"))}
    assert SIZES.keys() >= small - {"vit-large", "convnextv2-nano", "convnextv2-base"}
