"""Named sizes of image encoders: the published ones, whatever the image, exported as stock."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
)

from bert_pretrain.errors import InputError
from bert_pretrain.models import image_encoder_config as module
from bert_pretrain.models.image_encoder import build_image_encoder, embed, encoder_from_config
from bert_pretrain.models.image_encoder_config import IMAGE_SIZES, image_encoder_config
from bert_pretrain.models.image_heads import build_autoencoder, build_contrastive
from bert_pretrain.publishing.export import export_image_model, image_processor

pytestmark = pytest.mark.usefixtures("stock_attention")

# Millions of parameters at 224 x 224 x 3 as published, less those of a classifier of 1,000 classes.
PUBLISHED = {
    "vit-large": 303.3,
    "beit-base": 85.8,
    "beit-large": 303.4,
    "dinov2-small": 21.7,
    "dinov2-base": 85.8,
    "dinov2-large": 303.2,
    "convnext-tiny": 27.8,
    "convnext-small": 49.5,
    "convnext-base": 87.6,
    "convnextv2-nano": 15.0,
    "convnextv2-base": 87.7,
    "swin-tiny": 27.5,
    "swin-small": 48.8,
    "swin-base": 86.7,
    "swinv2-tiny": 27.6,
    "swinv2-small": 49.0,
    "swinv2-base": 86.9,
    "resnet18": 11.2,
    "resnet34": 21.3,
    "resnet50": 23.5,
    "resnet101": 42.5,
    "resnet152": 58.1,
}
# One of each architecture, and of the ways in which an image is first divided.
KINDS = (
    "vit-small",
    "beit-base",
    "dinov2-small",
    "convnext-tiny",
    "convnextv2-atto",
    "swin-tiny",
    "swinv2-tiny",
    "resnet18",
    "resnet50",
)
SHRUNKEN: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "embed_dim": 8,
    "num_heads": [1, 1, 2, 2],
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def shrunken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all names mean narrow encoders of few layers, alike in everything else."""
    small = {
        name: size._replace(fields={k: SHRUNKEN.get(k, v) for k, v in size.fields.items()})
        for name, size in IMAGE_SIZES.items()
    }
    monkeypatch.setattr(module, "IMAGE_SIZES", small)


def flags(name: str, **overrides: Any) -> dict[str, Any]:
    size = 64 if name.startswith("resnet") else 32
    common = {"model_name_or_path": None, "num_channels": 3, "dropout": 0.0, "image_size": size}
    return {"config_name": name} | common | overrides


def images(*, rows: int = 6, size: int = 32) -> Tensor:
    """Bright and dark blobs at places of their own."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(rows, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_size_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        encoder = encoder_from_config(image_encoder_config(name, image_size=224, num_channels=3))
    assert encoder.num_parameters() / 1e6 == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("name", KINDS)
def test_an_encoder_of_a_name_learns_to_give_images_back(shrunken: None, name: str) -> None:
    torch.manual_seed(0)
    given = flags(name)
    model = build_autoencoder(**given, embedding_dim=8).train()
    pixel_values = images(size=given["image_size"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = (model(pixel_values=pixel_values).reconstruction - pixel_values).square().mean()
        optimizer.zero_grad()
        loss.backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < 0.8 * losses[0], losses


def spread(rows: Tensor) -> float:
    """Return the share of embeddings of length 1 that is not along their common direction."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    return float(torch.linalg.svdvals(unit)[1:].square().sum() / len(unit))


def spread_of_digits(encoder: PreTrainedModel, size: int) -> float:
    """Return that of embeddings in training, where batch normalisation is of the batch."""
    digits = torch.from_numpy(load_digits().images[:100]).float()[:, None] / 16
    digits = (digits - digits.mean()) / digits.std()
    pixels = torch.nn.functional.interpolate(digits, size=(size, size), mode="bilinear")
    with torch.no_grad():
        return spread(embed(encoder.train(), pixels.expand(-1, 3, -1, -1)))


# Where NT-Xent was seen to stay, all embeddings were equal to 1 part in 1000 (see
# `initialize_vit`), a share of 1e-6. No architecture begins near that.
@pytest.mark.parametrize("name", KINDS)
def test_a_new_encoder_of_every_architecture_tells_images_apart(shrunken: None, name: str) -> None:
    torch.manual_seed(0)
    given = flags(name)
    assert spread_of_digits(build_image_encoder(**given), given["image_size"]) > 0.005


# How each architecture's classifier pools, from what AutoModel alone returns.
POOLED: dict[str, Callable[[PreTrainedModel, Any], Tensor]] = {
    "vit": lambda base, out: out.last_hidden_state[:, 0],
    "beit": lambda base, out: base.pooler.layernorm(out.last_hidden_state[:, 1:].mean(1)),
    "dinov2": lambda base, out: torch.cat(
        [out.last_hidden_state[:, 0], out.last_hidden_state[:, 1:].mean(1)], dim=1
    ),
    "convnext": lambda base, out: base.layernorm(out.last_hidden_state.mean((2, 3))),
    "convnextv2": lambda base, out: base.layernorm(out.last_hidden_state.mean((2, 3))),
    "swin": lambda base, out: out.last_hidden_state.mean(1),
    "swinv2": lambda base, out: out.last_hidden_state.mean(1),
    "resnet": lambda base, out: out.last_hidden_state.mean((2, 3)),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_export_is_a_stock_model_that_lacks_nothing_but_the_classifier(
    shrunken: None, tmp_path: Path, name: str
) -> None:
    """The features trained and evaluated are those that the stock classifier is fed."""
    torch.manual_seed(0)
    given = flags(name)
    pixel_values = images(size=given["image_size"])
    model = build_contrastive(**given, projection_dim=4).train()
    model(pixel_values=pixel_values)  # batch normalisation has running means of its own
    processor = image_processor(image_size=given["image_size"], mean=[0.5] * 3, std=[0.5] * 3)
    export_image_model(model.eval(), processor, tmp_path / "final")
    stock, loading = AutoModelForImageClassification.from_pretrained(
        tmp_path / "final", num_labels=3, output_loading_info=True
    )
    assert loading["missing_keys"] and not loading["unexpected_keys"]
    assert all(key.startswith("classifier") for key in loading["missing_keys"])
    fed: list[Tensor] = []
    stock.eval().classifier.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    options = {"add_pooling_layer": False} if stock.config.model_type == "vit" else {}
    base = AutoModel.from_pretrained(tmp_path / "final", **options).eval()
    with torch.no_grad():
        embedding = embed(model.plain_encoder(), pixel_values)
        stock(pixel_values)
        pooled = POOLED[stock.config.model_type](base, base(pixel_values))
    # Convolutions and norms in our forms round otherwise.
    torch.testing.assert_close(embedding, fed[0].flatten(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedding, pooled)  # in another order of sums
    assert embedding.std(dim=0).mean() > 0


@pytest.mark.parametrize("name", ["beit-base", "swin-tiny", "swinv2-tiny"])
def test_no_path_is_dropped_while_pretraining_and_the_configuration_keeps_its_rate(
    shrunken: None, name: str
) -> None:
    encoder = build_image_encoder(**flags(name)).train()
    assert encoder.config.drop_path_rate == 0.1
    with torch.no_grad():
        first, again = (embed(encoder, images()) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "window_size"),
    [
        (16, 1, 2),
        (28, 1, 4),
        (32, 1, 4),
        (48, 1, 6),
        (64, 2, 4),
        (96, 2, 6),
        (224, 4, 7),
        (256, 4, 8),
        (352, 4, 8),
    ],
)
def test_windows_are_no_larger_than_the_last_map(
    shrunken: None, image_size: int, patch_size: int, window_size: int
) -> None:
    """As published at 224 and 256 pixels; transformers cannot compute with larger windows."""
    encoder = build_image_encoder(**flags("swin-tiny", image_size=image_size)).eval()
    config = encoder.config
    assert (config.patch_size, config.window_size) == (patch_size, window_size)
    with torch.no_grad():
        embedding = embed(encoder, images(rows=1, size=image_size))
    assert embedding.shape == (1, 64) and torch.isfinite(embedding).all()


@pytest.mark.parametrize(("image_size", "patch_size"), [(32, 4), (98, 14), (224, 14), (518, 14)])
def test_a_dinov2_has_patches_of_at_most_14_pixels(image_size: int, patch_size: int) -> None:
    config = image_encoder_config("dinov2-small", image_size=image_size, num_channels=3)
    assert config.patch_size == patch_size


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        ("resnet50", 32, r"`image_size` is 32, but resnet50.*map of one place.*`image_size` 64"),
        ("swin-tiny", 8, r"`image_size` is 8, of which swin-tiny.*`image_size` 32"),
    ],
)
def test_images_too_small_for_an_architecture_are_refused_with_the_way_out(
    name: str, image_size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        image_encoder_config(name, image_size=image_size, num_channels=3)


def test_a_resnet_of_ones_own_is_held_to_its_own_stride(tmp_path: Path) -> None:
    """With two stages it halves three times, and a place more when the first one does."""
    for number, (halves_first, smallest) in enumerate([(False, 9), (True, 17)]):
        folder = tmp_path / str(number)
        ResNetConfig(
            embedding_size=4,
            hidden_sizes=[4, 8],
            depths=[1, 1],
            layer_type="basic",
            downsample_in_first_stage=halves_first,
        ).save_pretrained(folder)
        given = flags(str(folder), image_size=smallest)
        encoder = build_image_encoder(**given)
        base = encoder.base_model(images(rows=2, size=smallest))
        assert base.last_hidden_state.shape[2:] == (2, 2)
        with pytest.raises(InputError, match=f"`image_size` is {smallest - 1}"):
            build_image_encoder(**flags(str(folder), image_size=smallest - 1))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet-50", "resnet50"), ("ViT-Small", "vit-small"), ("swin_tiny", "swin-tiny")],
)
def test_an_unknown_name_lists_what_there_is_and_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean {nearest}\?.*vit-tiny.*resnet152"):
        build_image_encoder(**flags(name))


def test_a_name_like_no_other_has_no_nearest() -> None:
    with pytest.raises(InputError, match=r"'xyz' is neither.*Hub; pass") as refused:
        build_image_encoder(**flags("xyz"))
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize("name", ["convnextv2-atto", "resnet18", "vit-small", "swin-tiny"])
def test_checkpointing_of_gradients_is_offered_where_the_encoder_has_it(
    shrunken: None, name: str
) -> None:
    model = build_contrastive(**flags(name), projection_dim=4)
    assert model.supports_gradient_checkpointing == (name in ("vit-small", "swin-tiny"))
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def test_the_page_of_image_encoders_has_all_names_in_their_order() -> None:
    page = (ROOT / "docs/image_encoders.md").read_text()
    table = page[page.index("| names |") :].split("\n\n")[0].splitlines()[2:]
    names = [name for row in table for name in re.findall("`([^`]+)`", row.split("|")[1])]
    assert names == list(IMAGE_SIZES)


def test_a_swin_of_ones_own_is_left_as_it_is(tmp_path: Path) -> None:
    SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1], num_heads=[1], window_size=2
    ).save_pretrained(tmp_path)
    config = build_image_encoder(**flags(str(tmp_path), image_size=16)).config
    assert (config.patch_size, config.window_size) == (2, 2)
