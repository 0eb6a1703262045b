"""Image models: one embedding for every architecture, a decoder that sees e alone, masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    ConvNextV2Config,
    DeiTConfig,
    Dinov2Config,
    PoolFormerConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTMAEForPreTraining,
)

from bert_pretrain.errors import InputError
from bert_pretrain.models import fast_paths
from bert_pretrain.models.image_encoder import (
    build_image_encoder,
    embed,
    embedding_width,
    encoder_from_config,
    sincos_positions,
)
from bert_pretrain.models.image_encoder_config import (
    IMAGE_SIZES,
    image_encoder_config,
    vit_patch_size,
)
from bert_pretrain.models.image_heads import (
    ContrastiveModel,
    ImageAutoencoder,
    build_autoencoder,
    build_contrastive,
    default_decoder_channels,
)
from bert_pretrain.models.masked_autoencoder import (
    MaskedAutoencoder,
    build_masked_autoencoder,
    check_mask_ratio,
    count_patches,
)

SIZE, CHANNELS, ROWS = 16, 3, 5
TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 4,
    "num_channels": CHANNELS,
}
CONVOLUTIONS = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_channels": CHANNELS}

# A configuration and the width that its classifier is fed.
ARCHITECTURES: dict[str, tuple[PreTrainedConfig, int]] = {
    "vit": (ViTConfig(**TRANSFORMER), 32),
    "deit": (DeiTConfig(**TRANSFORMER), 32),
    "dinov2": (
        Dinov2Config(**{k: v for k, v in TRANSFORMER.items() if k != "intermediate_size"}),
        64,
    ),
    "swin": (
        SwinConfig(
            image_size=SIZE,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 2],
            window_size=2,
        ),
        16,
    ),
    "convnextv2": (
        ConvNextV2Config(num_stages=2, patch_size=2, image_size=SIZE, **CONVOLUTIONS),
        16,
    ),
    "resnet": (ResNetConfig(embedding_size=8, layer_type="basic", **CONVOLUTIONS), 16),
}
BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {
    "autoencoder": lambda **flags: build_autoencoder(embedding_dim=6, **flags),
    "contrastive": lambda **flags: build_contrastive(projection_dim=10, **flags),
    "masked": lambda **flags: build_masked_autoencoder(mask_ratio=0.75, **flags),
}


pytestmark = pytest.mark.usefixtures("stock_attention")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def saved_config(folder: Path, architecture: str = "vit") -> str:
    ARCHITECTURES[architecture][0].save_pretrained(folder)
    return str(folder)


def small_flags(folder: Path, architecture: str = "vit", **overrides: object) -> dict:
    flags = {
        "config_name": saved_config(folder, architecture),
        "model_name_or_path": None,
        "image_size": SIZE,
        "num_channels": CHANNELS,
        "dropout": 0.0,
    }
    return flags | overrides


def images(
    *, rows: int = ROWS, channels: int = CHANNELS, size: int = SIZE, seed: int = 0
) -> Tensor:
    return torch.randn(rows, channels, size, size, generator=torch.Generator().manual_seed(seed))


def noise_for(model: MaskedAutoencoder, rows: int, seed: int = 0) -> Tensor:
    return torch.rand(
        rows,
        model.vit.embeddings.patch_embeddings.num_patches,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


def outputs(model: PreTrainedModel, pixel_values: Tensor) -> list[Tensor]:
    if isinstance(model, MaskedAutoencoder):
        return [model(pixel_values, noise_for(model, len(pixel_values))).logits]
    return list(model(pixel_values).to_tuple())


def states_are_equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# The embedding


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_embedding_is_what_the_stock_classifier_is_fed(
    tmp_path: Path, architecture: str
) -> None:
    _, width = ARCHITECTURES[architecture]
    encoder = build_image_encoder(**small_flags(tmp_path, architecture)).eval()
    encoder.base_model.save_pretrained(tmp_path / "base")
    stock, loading = AutoModelForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=3, output_loading_info=True
    )
    assert loading["missing_keys"] and all(
        key.startswith("classifier") for key in loading["missing_keys"]
    )
    assert not loading["unexpected_keys"]
    stock.eval()
    fed = []
    stock.classifier.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    with torch.no_grad():
        stock(images())
        embedding = embed(encoder, images())
    assert (
        embedding.shape
        == (ROWS, width)
        == (ROWS, embedding_width(encoder, image_size=SIZE, num_channels=CHANNELS))
    )
    # Convolutions and norms in our forms round otherwise.
    torch.testing.assert_close(embedding, fed[0].flatten(1), rtol=1e-5, atol=1e-5)


# Millions of parameters of the encoder alone at 32 x 32 x 3.
PARAMETERS = {
    "vit-tiny": (1.15, 1.25),
    "vit-mini": (2.6, 2.8),
    "vit-small": (21, 22),
    "vit-base": (85, 86),
    "convnextv2-mini": (0.35, 0.45),
    "convnextv2-micro": (3.1, 3.3),
    "convnextv2-atto": (3.3, 3.5),
    "convnextv2-tiny": (27.5, 28.5),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_named_size_has_the_stated_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        encoder = encoder_from_config(image_encoder_config(name, image_size=32, num_channels=3))
    low, high = PARAMETERS[name]
    assert low < encoder.num_parameters() / 1e6 < high


@pytest.mark.parametrize(
    ("image_size", "patch_size"),
    [(8, 2), (16, 2), (28, 4), (32, 4), (48, 6), (64, 8), (96, 12), (224, 16)],
)
def test_patches_suit_the_image(image_size: int, patch_size: int) -> None:
    assert vit_patch_size(image_size) == patch_size
    config = image_encoder_config("vit-tiny", image_size=image_size, num_channels=1)
    assert (config.patch_size, config.image_size, config.num_channels) == (
        patch_size,
        image_size,
        1,
    )
    assert config.layer_norm_eps == 1e-6


@pytest.mark.parametrize("name", ["convnextv2-mini", "convnextv2-atto"])
@pytest.mark.parametrize("image_size", [8, 28, 32])
def test_convolutional_sizes_take_small_images(name: str, image_size: int) -> None:
    encoder = encoder_from_config(
        image_encoder_config(name, image_size=image_size, num_channels=1)
    ).eval()
    embedding = embed(encoder, images(rows=1, channels=1, size=image_size))
    assert (
        embedding.shape == (1, IMAGE_SIZES[name].fields["hidden_sizes"][-1]) and embedding.std() > 0
    )


def test_no_patch_for_a_prime_image_size() -> None:
    with pytest.raises(InputError, match=r"`image_size` is 31.*another `image_size`"):
        vit_patch_size(31)


def test_a_new_vit_begins_with_positions_that_it_then_trains(tmp_path: Path) -> None:
    encoder = build_image_encoder(**small_flags(tmp_path))
    positions = encoder.base_model.embeddings.position_embeddings
    assert torch.equal(positions, sincos_positions((4, 4), 32)) and positions.requires_grad
    with torch.no_grad():
        positions.add_(1)
    encoder.base_model.save_pretrained(tmp_path / "weights")
    continued = build_image_encoder(
        **small_flags(tmp_path, model_name_or_path=str(tmp_path / "weights"))
    )
    assert torch.equal(continued.base_model.embeddings.position_embeddings, positions)


@pytest.mark.parametrize("name", ["vit-tiny", "vit-mini", "convnextv2-mini"])
@pytest.mark.parametrize("kind", ["encoder", "projections"])
def test_a_new_encoder_tells_digits_apart(name: str, kind: str) -> None:
    """Where all embeddings are equal neither NT-Xent nor a squared distance has a gradient."""
    torch.manual_seed(0)
    model = BUILDERS["contrastive"](
        config_name=name, model_name_or_path=None, image_size=8, num_channels=1, dropout=0.0
    ).eval()
    pixels = torch.from_numpy(load_digits().images[:300]).float()[:, None] / 16
    with torch.no_grad():
        out = model(pixel_values=(pixels - pixels.mean()) / pixels.std())
    rows = out.embeddings if kind == "encoder" else out.projections
    unit = torch.nn.functional.normalize(rows, dim=1)
    # Spread evenly over directions, the deviation of a dimension is 1 / sqrt(D).
    assert unit.std(dim=0, correction=0).mean() > 0.2 / rows.shape[1] ** 0.5
    assert torch.linalg.svdvals(unit)[1:].square().sum() > 0.05 * len(unit)


# All pretraining models


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3), (32, 4)])
@pytest.mark.parametrize("kind", BUILDERS)
def test_shapes_for_grey_rgb_and_rgba(kind: str, size: int, channels: int) -> None:
    model = BUILDERS[kind](
        config_name="vit-tiny",
        model_name_or_path=None,
        image_size=size,
        num_channels=channels,
        dropout=0.0,
    )
    pixel_values = images(rows=2, channels=channels, size=size)
    patch = size // 4 if size == 8 else size // 8
    expected = {
        "autoencoder": [(2, 6), (2, channels, size, size)],
        "contrastive": [(2, 128), (2, 10)],
        "masked": [(2, (size // patch) ** 2, patch * patch * channels)],
    }
    assert [tuple(output.shape) for output in outputs(model, pixel_values)] == expected[kind]
    assert embed(model.plain_encoder(), pixel_values).shape == (2, 128)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("masked", "vit"),
        *((kind, name) for kind in ("autoencoder", "contrastive") for name in ARCHITECTURES),
    ],
)
def test_a_gradient_reaches_every_parameter_that_is_not_frozen(
    tmp_path: Path, kind: str, architecture: str
) -> None:
    model = BUILDERS[kind](**small_flags(tmp_path, architecture))
    last = outputs(model, images())[-1]
    (last * images(rows=last.numel(), channels=1, size=1).view(last.shape)).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if model.get_parameter(name).grad is None} == set()
    # A key's bias cancels in the softmax: its gradient is zero but for rounding.
    unmoved = {name for name in trained if not model.get_parameter(name).grad.abs().max() > 0}
    assert all("k_proj.bias" in name or "key.bias" in name for name in unmoved), unmoved
    frozen = {
        name.rsplit(".", 1)[-1]
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    expected = {"dinov2": {"mask_token"}}.get(architecture, set())
    assert frozen == (
        {"position_embeddings", "decoder_pos_embed"} if kind == "masked" else expected
    )


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_row_depends_on_its_own_image_alone_while_training(tmp_path: Path, kind: str) -> None:
    model = BUILDERS[kind](**small_flags(tmp_path))
    assert model.training
    first, second = images(), images(seed=1)
    second[2] = first[2]
    for a, b in zip(outputs(model, first), outputs(model, second), strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a[2], b[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", BUILDERS)
def test_saving_and_loading_is_exact(tmp_path: Path, kind: str) -> None:
    model = BUILDERS[kind](**small_flags(tmp_path / "config")).eval()
    model.save_pretrained(tmp_path / "saved")
    loaded, info = type(model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    assert states_are_equal(model, loaded)
    for ours, theirs in zip(
        outputs(model, images()), outputs(loaded.eval(), images()), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", BUILDERS)
def test_initial_weights_follow_the_global_seed(tmp_path: Path, kind: str) -> None:
    def build(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        return BUILDERS[kind](**small_flags(tmp_path))

    assert states_are_equal(build(1), build(1)) and not states_are_equal(build(1), build(2))


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(("has_accelerator", "expected"), [(True, "sdpa"), (False, "eager")])
def test_attention_is_fused_but_for_short_rows_on_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, has_accelerator: bool, expected: str
) -> None:
    monkeypatch.setattr(fast_paths, "LONGEST_EAGER_ROW", 256)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    model = BUILDERS[kind](**small_flags(tmp_path))
    model.save_pretrained(tmp_path / "saved")
    for found, attention in (
        (model, expected),
        (type(model).from_pretrained(tmp_path / "saved"), "sdpa"),
    ):
        encoder = getattr(found, "encoder", found).base_model
        assert encoder.config._attn_implementation == attention


@pytest.mark.parametrize("kind", BUILDERS)
def test_dropout_is_set_and_the_configuration_keeps_its_own(tmp_path: Path, kind: str) -> None:
    model = BUILDERS[kind](**small_flags(tmp_path, dropout=0.25))
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}
    assert model.plain_encoder().config.hidden_dropout_prob == 0.0


# The autoencoder


def test_the_decoder_sees_the_embedding_and_nothing_else(tmp_path: Path) -> None:
    model = build_autoencoder(**small_flags(tmp_path), embedding_dim=6).eval()
    fixed = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(3))
    hook = model.bottleneck.register_forward_hook(lambda *_: fixed)
    first, second = model(images(seed=0)), model(images(seed=1))
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert torch.equal(first.reconstruction, model.decode(fixed))
    hook.remove()
    output = model(images())
    assert torch.equal(output.embeddings, model.encode(images()))
    assert torch.equal(output.reconstruction, model.decode(output.embeddings))
    assert not torch.equal(output.reconstruction, first.reconstruction)


def test_the_decoder_can_draw_whatever_pca_of_the_same_dimension_can(tmp_path: Path) -> None:
    model = build_autoencoder(**small_flags(tmp_path), embedding_dim=6)
    pixels = images(rows=40).numpy().reshape(40, -1)
    pca = PCA(n_components=6).fit(pixels)
    with torch.no_grad():
        model.decoder.to_pixels.weight.zero_()
        model.decoder.to_pixels.bias.zero_()
        model.decoder.linear.weight.copy_(torch.from_numpy(pca.components_.T))
        model.decoder.linear.bias.copy_(torch.from_numpy(pca.mean_))
        drawn = model.decode(torch.from_numpy(pca.transform(pixels)))
    expected = pca.inverse_transform(pca.transform(pixels)).reshape(drawn.shape)
    np.testing.assert_allclose(drawn.numpy(), expected, atol=1e-5)  # float32, sums of 6 terms


@pytest.mark.parametrize("image_size", [8, 28, 32, 50, 64, 224])
def test_decoder_maps_grow_from_seven_pixels_at_most_to_the_image(image_size: int) -> None:
    channels = default_decoder_channels(image_size)
    num_doublings = len(channels) - 1
    first = math.ceil(image_size / 2**num_doublings)
    assert (
        4 <= first <= 7 and image_size <= first * 2**num_doublings < image_size + 2**num_doublings
    )
    assert all(width % 8 == 0 for width in channels)  # group normalisation


def test_a_size_that_is_no_power_of_two_is_reconstructed_whole(tmp_path: Path) -> None:
    ConvNextV2Config(num_stages=2, patch_size=2, **CONVOLUTIONS).save_pretrained(tmp_path)
    model = build_autoencoder(
        config_name=str(tmp_path),
        model_name_or_path=None,
        image_size=50,
        num_channels=CHANNELS,
        dropout=0.0,
        embedding_dim=6,
    )
    assert model(images(size=50)).reconstruction.shape == (ROWS, CHANNELS, 50, 50)


# The contrastive model


def test_without_a_head_the_projection_is_the_embedding(tmp_path: Path) -> None:
    output = build_contrastive(**small_flags(tmp_path), projection_dim=0)(images())
    assert torch.equal(output.projections, output.embeddings)


def test_new_heads_keep_the_variance_of_what_they_read() -> None:
    flags = {
        "model_name_or_path": None,
        "image_size": SIZE,
        "num_channels": CHANNELS,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    states = torch.randn(64, 128)
    projection = build_contrastive(config_name="vit-tiny", projection_dim=64, **flags).projection
    bottleneck = build_autoencoder(config_name="vit-tiny", embedding_dim=64, **flags).bottleneck
    # 64 x 64 values of standard deviation 1, over 64 random rows of weights: within 10 %.
    assert abs(float(bottleneck(states).detach().std()) - 1) < 0.1
    # E[gelu(z)^2] of a standard normal z is 0.425.
    assert abs(float(projection(states).detach().std()) - 0.425**0.5) < 0.1


def test_the_embedding_of_a_contrastive_model_is_its_encoders(tmp_path: Path) -> None:
    model = build_contrastive(**small_flags(tmp_path), projection_dim=10).eval()
    assert torch.equal(model(images()).embeddings, embed(model.plain_encoder(), images()))


# The masked autoencoder


def test_the_patches_with_the_smallest_noise_are_seen(tmp_path: Path) -> None:
    model = build_masked_autoencoder(**small_flags(tmp_path), mask_ratio=0.7)
    noise = noise_for(model, ROWS)
    mask = model(images(), noise).mask
    for row in range(ROWS):
        order = sorted(range(16), key=noise[row].tolist().__getitem__)
        seen = set(order[: int(16 * (1 - 0.7))])
        assert [position not in seen for position in range(16)] == mask[row].bool().tolist()


def test_integer_ranks_give_the_masks_of_the_noise_they_rank(tmp_path: Path) -> None:
    model = build_masked_autoencoder(**small_flags(tmp_path), mask_ratio=0.75)
    noise = noise_for(model, ROWS)
    ranks = noise.argsort(dim=1).argsort(dim=1)
    assert torch.equal(model(images(), noise).mask, model(images(), ranks).mask)


@pytest.mark.parametrize("source", ["size", "configuration", "encoder", "masked autoencoder"])
def test_patches_are_counted_before_the_model_is_built(tmp_path: Path, source: str) -> None:
    flags = small_flags(tmp_path / "config")
    if source == "size":
        flags["config_name"] = "vit-mini"
    elif source != "configuration":
        model = build_masked_autoencoder(**flags, mask_ratio=0.75)
        saved = model if source == "masked autoencoder" else model.plain_encoder().base_model
        saved.save_pretrained(tmp_path / "saved")
        flags["model_name_or_path"] = str(tmp_path / "saved")
    model = build_masked_autoencoder(**flags, mask_ratio=0.75)
    del flags["dropout"]
    assert count_patches(**flags) == model.vit.embeddings.patch_embeddings.num_patches


def test_removed_pixels_do_not_reach_the_prediction(tmp_path: Path) -> None:
    model = build_masked_autoencoder(**small_flags(tmp_path), mask_ratio=0.75).eval()
    noise = noise_for(model, ROWS)
    first = model(images(), noise)
    patches, others = model.patchify(images()), model.patchify(images(seed=1))
    changed = model.unpatchify(torch.where(first.mask[:, :, None].bool(), others, patches))
    assert torch.equal(model(changed, noise).logits, first.logits)
    seen = model.unpatchify(torch.where(first.mask[:, :, None].bool(), patches, others))
    assert not torch.allclose(model(seen, noise).logits, first.logits)


def test_patchify_reads_a_patch_row_by_row_channels_last(tmp_path: Path) -> None:
    model = build_masked_autoencoder(**small_flags(tmp_path), mask_ratio=0.75)
    pixel_values = images()
    patches = model.patchify(pixel_values)
    for row, grid_row, grid_column, y, x, channel in [
        (0, 0, 1, 2, 3, 1),
        (4, 3, 2, 1, 0, 2),
        (2, 1, 3, 3, 2, 0),
    ]:
        expected = pixel_values[row, channel, 4 * grid_row + y, 4 * grid_column + x]
        assert (
            patches[row, 4 * grid_row + grid_column, (4 * y + x) * CHANNELS + channel] == expected
        )


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_prediction_and_mask_give_the_stock_loss(tmp_path: Path, norm_pix_loss: bool) -> None:
    model = build_masked_autoencoder(**small_flags(tmp_path), mask_ratio=0.75).eval()
    stock = ViTMAEForPreTraining(model.config).eval()
    stock.load_state_dict(model.state_dict())
    stock.config.norm_pix_loss = norm_pix_loss
    noise = noise_for(model, ROWS)
    output = model(images(), noise)
    target = model.patchify(images())
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (
            target.var(-1, keepdim=True) + 1e-6
        ).sqrt()
    loss = (output.logits - target).square().mean(-1)[output.mask.bool()].mean()
    torch.testing.assert_close(loss, stock(images(), noise=noise).loss, rtol=1e-6, atol=0)


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    positions = sincos_positions((2, 3), 8)
    assert positions.shape == (1, 7, 8) and not positions[0, 0].any()
    for row in range(2):
        for column in range(3):
            values = []
            for coordinate in (column, row):
                values += [math.sin(coordinate / 10_000 ** (i / 2)) for i in range(2)]
                values += [math.cos(coordinate / 10_000 ** (i / 2)) for i in range(2)]
            expected = torch.tensor(values)
            torch.testing.assert_close(
                positions[0, 1 + 3 * row + column], expected, rtol=0, atol=1e-7
            )


def test_a_new_masked_autoencoder_knows_where_a_patch_is(tmp_path: Path) -> None:
    # Without position embeddings the predictions of all removed patches of an image would be one
    # and the same.
    model = build_masked_autoencoder(**small_flags(tmp_path), mask_ratio=0.75).eval()
    output = model(images(), noise_for(model, ROWS))
    removed = output.logits[0][output.mask[0].bool()]
    assert (removed[0] - removed[1]).abs().max() > 1e-3
    encoder = model.plain_encoder().eval()
    shuffled = model.unpatchify(model.patchify(images()).flip(1))
    assert not torch.allclose(embed(encoder, images()), embed(encoder, shuffled), atol=1e-3)


def test_the_plain_encoder_gives_the_features_of_the_masked_autoencoder(tmp_path: Path) -> None:
    model = build_masked_autoencoder(**small_flags(tmp_path), mask_ratio=0.75).eval()
    encoder = model.plain_encoder()
    assert encoder.config.model_type == "vit" and not encoder.training
    model.vit.config.mask_ratio = 0.0
    everything = model.vit(images(), noise=torch.arange(16.0).expand(ROWS, -1)).last_hidden_state
    assert torch.equal(embed(encoder, images()), everything[:, 0])
    assert torch.equal(encoder.base_model(images()).last_hidden_state, everything)


@pytest.mark.parametrize("mask_ratio", [0.0, 1.0, 0.97, 0.01, -1.0, 75.0])
def test_a_ratio_must_leave_and_remove_patches(mask_ratio: float) -> None:
    if mask_ratio == 0.01:
        check_mask_ratio(mask_ratio, num_patches=16)  # 15 seen
        return
    with pytest.raises(InputError, match=r"`mask_ratio`"):
        check_mask_ratio(mask_ratio, num_patches=16)


# What a user can get wrong


def test_weights_are_continued_with_their_heads(tmp_path: Path) -> None:
    for kind, build in BUILDERS.items():
        model = build(**small_flags(tmp_path / "config"))
        model.save_pretrained(tmp_path / kind / "pretraining")
        model.plain_encoder().base_model.save_pretrained(tmp_path / kind)
        again = build(**small_flags(tmp_path / "config", model_name_or_path=str(tmp_path / kind)))
        assert type(again) is type(model) and states_are_equal(model, again)
    # Another objective takes the encoder.
    for kind, build in BUILDERS.items():
        source = "contrastive" if kind != "contrastive" else "masked"
        model = build(**small_flags(tmp_path / "config", model_name_or_path=str(tmp_path / source)))
        stock = AutoModelForImageClassification.from_pretrained(tmp_path / source, num_labels=0)
        assert states_are_equal(model.plain_encoder(), stock)


REFUSED = {
    "no such folder": ({"config_name": "/nowhere"}, r"/nowhere.*`config_name`.*vit-tiny"),
    "no such weights": ({"model_name_or_path": "/nowhere"}, r"/nowhere.*`model_name_or_path`"),
    "text": ({"config_name": "bert"}, r"'bert'.*`config_name`"),
    "channels": (
        {"model_name_or_path": "weights", "num_channels": 1},
        r"1 channels.*takes 3.*`num_channels` 3",
    ),
    "size": (
        {"model_name_or_path": "weights", "image_size": 30},
        r"30 x 30.*`image_size`.*multiple of its patches of 4",
    ),
    "heads only": (
        {"model_name_or_path": "incomplete"},
        r"lacks \d+ weights.*embeddings.*`model_name_or_path`",
    ),
    "dropout": ({"config_name": "convolutions", "dropout": 0.1}, r"dropout is 0.1.*`dropout` 0"),
    "weights outside": ({"config_name": "poolformer"}, r"norm\.weight.*`config_name`"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    BertConfig().save_pretrained(folder / "bert")
    ARCHITECTURES["convnextv2"][0].save_pretrained(folder / "convolutions")
    PoolFormerConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_channels=CHANNELS, mlp_ratio=1.0
    ).save_pretrained(folder / "poolformer")
    encoder = encoder_from_config(ViTConfig(**TRANSFORMER))
    encoder.base_model.save_pretrained(folder / "weights")
    rest = {
        key: value
        for key, value in encoder.base_model.state_dict().items()
        if "embeddings" not in key
    }
    encoder.base_model.save_pretrained(folder / "incomplete", state_dict=rest)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pretrained_is_refused_with_the_flag_to_change(
    folders: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    overrides, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        build_image_encoder(**small_flags(folders / "vit", **overrides))


def test_another_width_than_the_continued_head_is_refused(tmp_path: Path) -> None:
    model = build_autoencoder(**small_flags(tmp_path / "config"), embedding_dim=6)
    model.save_pretrained(tmp_path / "autoencoder")
    flags = small_flags(tmp_path / "config", model_name_or_path=str(tmp_path / "autoencoder"))
    with pytest.raises(InputError, match="pass `embedding_dim` 6"):
        build_autoencoder(**flags, embedding_dim=7)
    build_contrastive(**small_flags(tmp_path / "config"), projection_dim=10).save_pretrained(
        tmp_path / "contrastive"
    )
    flags = small_flags(tmp_path / "config", model_name_or_path=str(tmp_path / "contrastive"))
    with pytest.raises(InputError, match="pass `projection_dim` 10"):
        build_contrastive(**flags, projection_dim=0)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_damaged_pretraining_model_is_named(tmp_path: Path, kind: str) -> None:
    model = BUILDERS[kind](**small_flags(tmp_path / "config"))
    model.plain_encoder().base_model.save_pretrained(tmp_path / "final")
    whole = tmp_path / "final/pretraining"
    model.save_pretrained(whole)
    flags = small_flags(tmp_path / "config", model_name_or_path=str(tmp_path / "final"))
    weights = whole / "model.safetensors"
    content = weights.read_bytes()
    # Cut in the middle, emptied, without one weight, and with half a configuration.
    for damaged in (content[: len(content) // 2], b""):
        weights.write_bytes(damaged)
        with pytest.raises(
            InputError,
            match=r"weights of \S*final/pretraining cannot be read.*`model_name_or_path`",
        ):
            BUILDERS[kind](**flags)
    weights.write_bytes(save(dict(list(load(content).items())[1:]), metadata={"format": "pt"}))
    with pytest.raises(
        InputError, match=r"final/pretraining lacks 1 weights, such as .*`model_name_or_path`"
    ):
        BUILDERS[kind](**flags)
    (whole / "config.json").write_text((whole / "config.json").read_text()[:20])
    with pytest.raises(InputError, match=r"final/pretraining/config.json is damaged"):
        BUILDERS[kind](**flags)


def test_a_masked_autoencoder_needs_a_vit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'convnextv2'.*`config_name` vit-tiny.*`mask_ratio` 0"):
        build_masked_autoencoder(**small_flags(tmp_path, "convnextv2"), mask_ratio=0.75)
    with pytest.raises(InputError, match=r"`image_size` is 18.*pass `image_size` 16"):
        build_masked_autoencoder(**small_flags(tmp_path, image_size=18), mask_ratio=0.75)


@pytest.mark.parametrize("kind", [ImageAutoencoder, ContrastiveModel, MaskedAutoencoder])
def test_loading_from_a_folder_without_the_model_says_what_is_expected(
    folders: Path, kind: type[PreTrainedModel]
) -> None:
    with pytest.raises(InputError, match=r"holds no model of type.*final/"):
        kind.from_pretrained(folders / "weights")
