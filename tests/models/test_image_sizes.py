"""Image models of other sizes: rectangles, and models that continue at another size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
)

from bert_pretrain.errors import InputError
from bert_pretrain.models.image_encoder import (
    build_image_encoder,
    embed,
    encoder_from_config,
    sincos_positions,
)
from bert_pretrain.models.image_encoder_config import image_encoder_config, vit_patch_size
from bert_pretrain.models.image_heads import build_autoencoder, build_contrastive
from bert_pretrain.models.image_processor import read_processor
from bert_pretrain.models.masked_autoencoder import build_masked_autoencoder, count_patches
from bert_pretrain.publishing.export import export_image_model, image_processor

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}
WITH_A_TABLE = {"vit": ViTConfig(**SMALL), "deit": DeiTConfig(**SMALL)}


@pytest.fixture(autouse=True)
def same_numbers(stock_attention: None) -> None:
    torch.set_num_threads(1)


def images(height: int, width: int, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(rows, 3, height, width, generator=generator)


def flags(source: Path | None, size: Any, config_name: str = "vit-tiny") -> dict[str, Any]:
    return {
        "config_name": config_name,
        "model_name_or_path": source and str(source),
        "image_size": size,
        "num_channels": 3,
        "dropout": 0.0,
    }


def with_random_positions(config: PreTrainedConfig) -> PreTrainedModel:
    """Return an encoder whose positions are no formula's, as those of a trained one."""
    torch.manual_seed(0)
    encoder = encoder_from_config(config)
    torch.nn.init.normal_(encoder.base_model.embeddings.position_embeddings)
    return encoder.eval()


def stock_features(folder: Path, pixel_values: Tensor, **how: bool) -> Tensor:
    stock = AutoModelForImageClassification.from_pretrained(folder, num_labels=0).eval()
    with torch.no_grad():
        features: Tensor = stock(pixel_values, **how).logits
    return features


def export(model: PreTrainedModel, folder: Path, size: Any) -> None:
    processor = image_processor(image_size=size, mean=[0.5] * 3, std=[0.25] * 3)
    export_image_model(model, processor, folder)


@pytest.mark.parametrize("size", [24, 8, (16, 24)])
@pytest.mark.parametrize("architecture", WITH_A_TABLE)
def test_a_model_continues_at_another_size_as_transformers_interpolates_it(
    tmp_path: Path, architecture: str, size: Any
) -> None:
    with_random_positions(WITH_A_TABLE[architecture]).base_model.save_pretrained(tmp_path)
    pixel_values = images(*((size, size) if isinstance(size, int) else size))
    expected = stock_features(tmp_path, pixel_values, interpolate_pos_encoding=True)
    with pytest.warns(UserWarning, match="for images of 16x16 pixels, are stretched to"):
        encoder = build_image_encoder(**flags(tmp_path, size)).eval()
    with torch.no_grad():
        assert torch.equal(embed(encoder, pixel_values), expected)
    encoder.base_model.save_pretrained(tmp_path / "continued")  # where no size has to be said
    assert torch.equal(stock_features(tmp_path / "continued", pixel_values), expected)
    assert encoder.base_model.embeddings.position_embeddings.requires_grad


def test_its_own_size_leaves_a_model_as_it_is(tmp_path: Path) -> None:
    original = with_random_positions(WITH_A_TABLE["vit"])
    original.base_model.save_pretrained(tmp_path)
    continued = build_image_encoder(**flags(tmp_path, 16))
    for name, weight in original.state_dict().items():
        assert torch.equal(continued.state_dict()[name], weight), name


def test_a_head_continues_with_its_encoder_at_another_size(tmp_path: Path) -> None:
    first = build_contrastive(**flags(None, 16), projection_dim=10).eval()
    export(first, tmp_path / "16", 16)
    expected = stock_features(tmp_path / "16", images(24, 24), interpolate_pos_encoding=True)
    model = build_contrastive(**flags(tmp_path / "16", 24), projection_dim=10).eval()
    export(model, tmp_path / "24", 24)
    assert torch.equal(stock_features(tmp_path / "24", images(24, 24)), expected)
    again = build_contrastive(**flags(tmp_path / "24", 24), projection_dim=10).eval()
    with torch.no_grad():
        found, projections = again(images(24, 24)).to_tuple()
        assert torch.equal(projections, first.projection(found))
    assert again.config.encoder.image_size == 24


def test_a_masked_autoencoder_continues_at_another_size(tmp_path: Path) -> None:
    first = build_masked_autoencoder(**flags(None, 16), mask_ratio=0.5)
    export(first, tmp_path, 16)
    model = build_masked_autoencoder(**flags(tmp_path, 24), mask_ratio=0.5).eval()
    # Its positions are the formula's for 12 x 12 patches of 2 pixels, all else is as it was.
    for name, weight in model.state_dict().items():
        expected = first.state_dict()[name]
        if name.endswith(("position_embeddings", "decoder_pos_embed")):
            expected = sincos_positions((12, 12), expected.shape[-1])
        assert torch.equal(weight, expected), name
    assert model.config.image_size == 24
    images_flags = {key: value for key, value in flags(tmp_path, 24).items() if key != "dropout"}
    assert count_patches(**images_flags) == model.vit.embeddings.patch_embeddings.num_patches


@pytest.mark.parametrize("config_name", ["vit-tiny", "convnextv2-mini"])
def test_rectangles_are_embedded_drawn_and_exported(tmp_path: Path, config_name: str) -> None:
    size, pixel_values = (16, 40), images(16, 40)
    model = build_autoencoder(**flags(None, size, config_name), embedding_dim=6).eval()
    with torch.no_grad():
        assert model(pixel_values).reconstruction.shape == (3, 3, 16, 40)
        expected = embed(model.encoder, pixel_values)
    export(model, tmp_path, size)
    torch.testing.assert_close(
        stock_features(tmp_path, pixel_values), expected, rtol=1e-5, atol=1e-5
    )
    again = build_autoencoder(**flags(tmp_path, size, config_name), embedding_dim=6).eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values).embeddings, model(pixel_values).embeddings)


def test_rows_and_columns_of_a_rectangle_are_not_mixed_up() -> None:
    encoder = build_image_encoder(**flags(None, (8, 16))).eval()
    pixel_values = images(8, 16)
    with torch.no_grad():
        positions = encoder.base_model.embeddings.position_embeddings[0, 1:]
        patches = encoder.base_model.embeddings(pixel_values)[:, 1:] - positions
    patch = encoder.config.patch_size
    convolution = encoder.base_model.embeddings.patch_embeddings.projection
    for row, column in [(0, 0), (0, 3), (1, 1)]:
        cut = pixel_values[:, :, row * patch :, column * patch :][:, :, :patch, :patch]
        expected = convolution(cut).flatten(1)
        place = row * (16 // patch) + column
        torch.testing.assert_close(patches[:, place], expected, rtol=0, atol=1e-5)
        half = positions.shape[1] // 2  # the sines of the column and of the row with frequency 1
        assert positions[place, 0].item() == pytest.approx(math.sin(column), abs=1e-6)
        assert positions[place, half].item() == pytest.approx(math.sin(row), abs=1e-6)


def test_patches_divide_both_sides_of_a_rectangle() -> None:
    assert vit_patch_size((64, 96)) == 16
    assert vit_patch_size((32, 48)) == 8  # 24 patches; of 4 pixels there would be 96
    assert image_encoder_config("vit-tiny", image_size=(8, 12), num_channels=1).patch_size == 2
    with pytest.raises(InputError, match="`image_size` is 32x31, which no patch"):
        vit_patch_size((32, 31))


def test_an_exported_processor_says_the_size_that_images_are_read_at(tmp_path: Path) -> None:
    for size in (16, (16, 40)):
        processor = image_processor(image_size=size, mean=[0.5] * 3, std=[0.25] * 3)
        processor.save_pretrained(tmp_path)
        assert read_processor(str(tmp_path)).image_size == size
    processor.do_center_crop = True  # of a rectangle, which is not how images are read here
    processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="neither squares nor whole images"):
        read_processor(str(tmp_path))


def test_a_masked_autoencoder_refuses_a_rectangle() -> None:
    with pytest.raises(InputError, match=r"16 x 24 pixels.*`image_size` one.*`mask_ratio` 0"):
        build_masked_autoencoder(**flags(None, (16, 24)), mask_ratio=0.5)
