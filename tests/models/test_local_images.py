"""Encoders embed images of two sizes in one forward pass, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, SwinConfig

from bert_pretrain.errors import InputError
from bert_pretrain.models.image_encoder import embed
from bert_pretrain.models.image_heads import ContrastiveModel, build_contrastive
from bert_pretrain.models.image_positions import stretched


def build(name: str | Path, image_size: Any = 16, local: tuple[int, int] = (8, 8)) -> Any:
    torch.manual_seed(0)
    return build_contrastive(
        projection_dim=6,
        config_name=str(name),
        model_name_or_path=None,
        image_size=image_size,
        num_channels=3,
        dropout=0.0,
        local_view_size=local,
    )


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_rows_of_local_images_follow_the_others() -> None:
    model: ContrastiveModel = build("vit-tiny")
    images, small = noise(2, 3, 16, 16), noise(5, 3, 8, 8)
    both = model(pixel_values=images, local_pixel_values=small).projections
    alone = model(pixel_values=images).projections
    assert both.shape == (7, 6)
    torch.testing.assert_close(both[:2], alone)


def test_a_vits_positions_are_those_of_a_model_stretched_to_the_local_size() -> None:
    model = build("vit-tiny").eval()
    small = noise(5, 3, 8, 8)
    config, state = stretched(model.encoder, 8)
    other = AutoModelForImageClassification.from_config(config)
    other.load_state_dict(state)
    found = embed(model.encoder, small, **model.other_size_inputs)
    torch.testing.assert_close(found, embed(other.eval(), small))


def test_both_sizes_reach_the_weights() -> None:
    model = build("vit-tiny")
    positions = model.encoder.vit.embeddings.position_embeddings
    output = model(pixel_values=noise(2, 3, 16, 16), local_pixel_values=noise(2, 3, 8, 8))
    (gradient,) = torch.autograd.grad(output.projections[2:].square().sum(), positions)
    assert (gradient.abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("size", [(6, 6), (8, 10), (3, 4)])
def test_sizes_that_patches_do_not_divide_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="must be a multiple of the patches of vit-tiny, 4 pixels"):
        build("vit-tiny", 32, size)


@pytest.mark.parametrize(("image_size", "local"), [((16, 32), (8, 16)), (32, (16, 8))])
def test_a_vit_is_refused_rectangles_and_a_convolutional_encoder_is_not(
    image_size: Any, local: tuple[int, int]
) -> None:
    with pytest.raises(InputError, match="from squares to squares alone"):
        build("vit-tiny", image_size, local)
    assert build("convnextv2-mini", image_size, local)


def test_an_encoder_that_would_see_one_place_is_refused() -> None:
    with pytest.raises(InputError, match="`local_view_size` is 32, but resnet18 divides each side"):
        build("resnet18", 64, (32, 32))


def test_windows_larger_than_a_local_map_are_refused(tmp_path: Path) -> None:
    SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[2], num_heads=[1], window_size=4
    ).save_pretrained(tmp_path)
    # transformers would turn the shift of windows off, for the images of full size too.
    for size, message in ((8, "computes another embedding of an image"), (4, "does not take")):
        with pytest.raises(InputError, match=message):
            build(tmp_path, 32, (size, size))
    assert build(tmp_path, 32, (16, 16))
