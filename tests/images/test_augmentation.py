"""Views of images against Pillow, colorsys, SciPy and kornia; draws against distributions."""

from __future__ import annotations

import colorsys
import itertools
from dataclasses import replace
from math import sqrt
from typing import Any

import kornia.enhance
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from bert_pretrain.errors import InputError
from bert_pretrain.images.augmentation import PRESETS, AugmentationRule, Parameter
from bert_pretrain.images.views import Augmentation

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])
OPERATIONS = (Parameter.BRIGHTNESS, Parameter.CONTRAST, Parameter.SATURATION, Parameter.HUE)
RANKS = (
    Parameter.BRIGHTNESS_RANK,
    Parameter.CONTRAST_RANK,
    Parameter.SATURATION_RANK,
    Parameter.HUE_RANK,
)
NEUTRAL = AugmentationRule()
EVERYTHING = AugmentationRule(
    crop_area=(0.2, 1.0),
    crop_aspect=(3 / 4, 4 / 3),
    flip_prob=0.5,
    rotation_prob=0.7,
    rotation_degrees=45.0,
    jitter_prob=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.5,
    grayscale_prob=0.3,
    blur_prob=0.5,
    inversion_prob=0.3,
)
RULES = {**PRESETS, "everything": EVERYTHING}
ATOL = 1e-5  # float32 pixels in [0, 1], a few dozen operations


def make(
    rule: AugmentationRule, *, size: int = 20, channels: Any = 3, seed: int = 0
) -> Augmentation:
    return Augmentation(rule, num_channels=channels, image_size=size, seed=seed)


def random_images(num_images: int, *, size: int = 20, channels: int = 3, seed: int = 0) -> Tensor:
    """Noise in which some pixels are exactly black, white or grey."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(num_images, channels, size, size, generator=generator) * 1.4 - 0.2
    images[:, :, ::5, ::3] = images[:, :1, ::5, ::3]
    return images.clamp(0, 1)


def draw(
    rule: AugmentationRule, num_images: int, *, view: int = 0, epoch: int = 0, seed: int = 0
) -> Tensor:
    return make(rule, seed=seed).draw(epoch, np.arange(num_images), view)


def neutral_parameters(num_images: int, **values: float | Tensor) -> Tensor:
    """Parameters that change nothing, except for those named."""
    parameters = draw(NEUTRAL, num_images)
    for name, value in values.items():
        parameters[:, Parameter[name.upper()]] = value
    return parameters


def apply(rule: AugmentationRule, images: Tensor, parameters: Tensor) -> Tensor:
    return make(rule, size=images.shape[-1], channels=images.shape[1]).apply(images, parameters)


def as_pillow(image: Tensor) -> Image.Image:
    """Image (C, H, W) of whole 255ths as Pillow's 8-bit image."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze())


def from_pillow(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_neutral_parameters_give_the_identical_image(channels: int) -> None:
    images = random_images(5, channels=channels)
    assert torch.equal(apply(NEUTRAL, images, neutral_parameters(5)), images)
    unchanged = apply(EVERYTHING, images, neutral_parameters(5))
    torch.testing.assert_close(unchanged, images, rtol=0, atol=ATOL)


BOXES = [
    (0.0, 0.0, 1.0, 1.0),
    (0.1, 0.35, 0.6, 0.45),
    (0.5, 0.0, 0.5, 1.0),
    (0.83, 0.71, 0.17, 0.29),
]


def pillow_crop(images: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """Cut `box` (left, top, width, height as shares) out of each image; resize each channel."""
    size = images.shape[-1]
    left, top, width, height = (share * size for share in box)
    planes = [
        Image.fromarray(plane).resize(
            (size, size), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
        for plane in images.flatten(0, 1).numpy()
    ]
    return (
        torch.from_numpy(np.stack([np.array(plane) for plane in planes]))
        .view_as(images)
        .clamp(0, 1)
    )


def box_parameters(
    num_images: int, box: tuple[float, float, float, float], **others: float
) -> Tensor:
    left, top, width, height = box
    return neutral_parameters(
        num_images, crop_left=left, crop_top=top, crop_width=width, crop_height=height, **others
    )


@pytest.mark.parametrize("box", BOXES)
def test_a_crop_is_pillows_resize_of_the_box(box: tuple[float, float, float, float]) -> None:
    images = random_images(2, channels=4)
    rule = AugmentationRule(crop_area=(0.1, 1.0))
    found = apply(rule, images, box_parameters(2, box))
    torch.testing.assert_close(found, pillow_crop(images, box), rtol=0, atol=ATOL)


def test_flip_mirrors_left_and_right_of_the_images_that_are_flipped() -> None:
    images = random_images(4)
    found = apply(
        AugmentationRule(flip_prob=0.5),
        images,
        neutral_parameters(4, flip=torch.tensor([0.0, 1, 1, 0])),
    )
    torch.testing.assert_close(found[1:3], images[1:3].flip(-1), rtol=0, atol=ATOL)
    torch.testing.assert_close(found[::3], images[::3], rtol=0, atol=ATOL)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_the_view_is_cropped_then_flipped_then_rotated_counter_clockwise(quarters: int) -> None:
    """A quarter turn maps pixels on pixels: the order of the three shows without error."""
    images, box = random_images(3), BOXES[1]
    angle = 90.0 * quarters - (360 if quarters == 3 else 0)
    rule = AugmentationRule(
        crop_area=(0.1, 1.0), flip_prob=0.5, rotation_prob=1.0, rotation_degrees=180.0
    )
    found = apply(rule, images, box_parameters(3, box, flip=1.0, angle=angle))
    expected = torch.rot90(pillow_crop(images, box).flip(-1), quarters, dims=(-2, -1))
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


def test_rotation_is_pillows_within_the_circle_that_stays_in_the_image() -> None:
    size, angles = 21, torch.tensor([-37.0, 5.0, 12.5, 44.0])
    images = random_images(4, size=size, channels=1)
    rule = AugmentationRule(rotation_prob=1.0, rotation_degrees=45.0)
    found = apply(rule, images, neutral_parameters(4, angle=angles))
    offsets = np.arange(size) - (size - 1) / 2
    inside = np.hypot(*np.meshgrid(offsets, offsets)) < size / 2 - 1.5
    for image, angle, turned in zip(images, angles.tolist(), found, strict=True):
        expected = np.array(
            Image.fromarray(image[0].numpy()).rotate(angle, Image.Resampling.BILINEAR)
        )
        np.testing.assert_allclose(turned[0].numpy()[inside], expected[inside], rtol=0, atol=1e-4)


def test_past_the_edge_a_rotated_image_is_mirrored_not_black() -> None:
    images = torch.full((2, 3, 16, 16), 0.7)
    rule = AugmentationRule(rotation_prob=1.0, rotation_degrees=45.0)
    torch.testing.assert_close(apply(rule, images, neutral_parameters(2, angle=45.0)), images)


def reference_jitter(
    image: np.ndarray, order: tuple[int, ...], values: dict[Parameter, float]
) -> np.ndarray:
    """Operation after operation on one image (3, H, W), hue by colorsys, pixel by pixel."""
    image = image.astype(np.float64)
    for operation in (OPERATIONS[i] for i in order):
        value = values[operation]
        grey = np.tensordot(GREY_WEIGHTS, image, 1)
        if operation is Parameter.BRIGHTNESS:
            image = value * image
        elif operation is Parameter.CONTRAST:
            image = value * image + (1 - value) * grey.mean()
        elif operation is Parameter.SATURATION:
            image = value * image + (1 - value) * grey
        else:
            image = np.stack(
                [turned(pixel, value) for pixel in image.reshape(3, -1).T], axis=1
            ).reshape(image.shape)
        image = image.clip(0, 1)
    return image


def turned(pixel: np.ndarray, turns: float) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)


JITTER = AugmentationRule(jitter_prob=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5)


def test_jitter_in_each_of_the_24_orders_is_the_reference_loop() -> None:
    orders = list(itertools.permutations(range(4)))
    images = random_images(len(orders), size=6)
    parameters = draw(JITTER, len(orders), seed=3)
    for row, order in enumerate(orders):
        for rank, operation in enumerate(order):
            parameters[row, RANKS[operation]] = rank
    found = apply(JITTER, images, parameters)
    for image, order, row, jittered in zip(images, orders, parameters, found, strict=True):
        values = {operation: float(row[operation]) for operation in OPERATIONS}
        expected = reference_jitter(image.numpy(), order, values)
        np.testing.assert_allclose(jittered.numpy(), expected, rtol=0, atol=ATOL)


def test_hue_is_colorsys_on_all_corners_edges_and_greys_of_the_cube() -> None:
    levels = torch.linspace(0, 1, 9)
    cube = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 27)
    turns = torch.tensor([-0.5, -0.21, 0.0, 1 / 6, 0.37])
    found = apply(JITTER, cube.repeat(5, 1, 1, 1), neutral_parameters(5, hue=turns, hue_rank=0.0))
    for turn, image in zip(turns.tolist(), found, strict=True):
        expected = [turned(pixel, turn) for pixel in cube.reshape(3, -1).T.double().numpy()]
        np.testing.assert_allclose(image.reshape(3, -1).T.numpy(), expected, rtol=0, atol=ATOL)


def test_each_jitter_operation_is_kornias() -> None:
    images = random_images(8)
    factors, turns = torch.linspace(0, 2, 8), torch.linspace(-0.5, 0.5, 8)
    kornias = {
        "brightness": kornia.enhance.adjust_brightness_accumulative(images, factors),
        "contrast": kornia.enhance.adjust_contrast_with_mean_subtraction(images, factors),
        "saturation": kornia.enhance.adjust_saturation_with_gray_subtraction(images, factors),
        "hue": kornia.enhance.adjust_hue(images, turns * 2 * torch.pi),
    }
    for name, expected in kornias.items():
        values = turns if name == "hue" else factors
        found = apply(JITTER, images, neutral_parameters(8, **{name: values}))
        torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_factors_mean_what_they_mean_to_pillow(name: str, enhancer: Any) -> None:
    images = (random_images(3) * 255).round() / 255
    factors = [0.3, 1.0, 1.7]
    found = apply(JITTER, images, neutral_parameters(3, **{name: torch.tensor(factors)}))
    for image, factor, enhanced in zip(images, factors, found, strict=True):
        expected = from_pillow(enhancer(as_pillow(image)).enhance(factor))
        # Pillow rounds the grey to be blended with, then the result: 0.5 * |1 - factor| + 1 levels
        # at most.
        torch.testing.assert_close(enhanced, expected, rtol=0, atol=1.5 / 255)


def test_on_one_channel_the_jitter_is_brightness_and_contrast() -> None:
    augmentation = make(EVERYTHING, channels=1)
    parameters = augmentation.draw(0, np.arange(200), 0)
    assert (parameters[:, Parameter.SATURATION] == 1).all()
    assert (parameters[:, Parameter.HUE] == 0).all()
    assert (parameters[:, Parameter.GRAYSCALE] == 0).all()
    image = random_images(1, channels=1, size=6)
    bright, contrast = 1.3, 0.4
    for brightness_first in (True, False):
        ranks = {
            "brightness_rank": 3.0 * (not brightness_first),
            "contrast_rank": 3.0 * brightness_first,
        }
        others = {
            "saturation_rank": 1.0,
            "hue_rank": 2.0,
            "brightness": bright,
            "contrast": contrast,
        }
        found = apply(JITTER, image, neutral_parameters(1, **ranks, **others))
        first = (image * bright).clamp(0, 1) if brightness_first else image
        second = contrast * first + (1 - contrast) * first.mean()
        expected = second if brightness_first else (second * bright).clamp(0, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


def test_grayscale_and_inversion_are_pillows() -> None:
    images = (random_images(4, size=16) * 255).round() / 255
    half = torch.tensor([1.0, 0, 1, 0])
    grey = apply(
        AugmentationRule(grayscale_prob=0.5), images, neutral_parameters(4, grayscale=half)
    )
    inverted = apply(
        AugmentationRule(inversion_prob=0.5), images, neutral_parameters(4, inversion=half)
    )
    for row in (0, 2):
        picture = as_pillow(images[row])
        expected_grey = from_pillow(ImageOps.grayscale(picture)).expand(3, -1, -1)
        torch.testing.assert_close(grey[row], expected_grey, rtol=0, atol=0.51 / 255)
        torch.testing.assert_close(
            inverted[row], from_pillow(ImageOps.invert(picture)), rtol=0, atol=ATOL
        )
    for found in (grey, inverted):
        assert torch.equal(found[1::2], images[1::2])


def test_blur_is_a_gaussian_of_its_own_width_for_every_image() -> None:
    size = 40  # radius 2
    images = random_images(4, size=size)
    sigmas = [0.0, 0.3, 1.1, 2.0]
    found = apply(
        AugmentationRule(blur_prob=0.5),
        images,
        neutral_parameters(4, blur_sigma=torch.tensor(sigmas)),
    )
    assert torch.equal(found[0], images[0])
    for image, sigma, blurred in zip(images[1:], sigmas[1:], found[1:], strict=True):
        weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * sigma**2))
        expected = image.double().numpy()
        for axis in (1, 2):
            expected = scipy.ndimage.correlate1d(
                expected, weights / weights.sum(), axis=axis, mode="mirror"
            )
        np.testing.assert_allclose(blurred.numpy(), expected, rtol=0, atol=ATOL)


def test_alpha_moves_with_the_colours_and_is_otherwise_left_alone() -> None:
    images = random_images(30, channels=4, size=24)
    parameters = draw(EVERYTHING, 30, seed=5)
    geometry_alone = replace(NEUTRAL, crop_area=(0.5, 1.0), rotation_prob=0.5)
    found, moved = apply(EVERYTHING, images, parameters), apply(geometry_alone, images, parameters)
    assert torch.equal(found[:, 3], moved[:, 3])
    assert torch.equal(found[:, :3], apply(EVERYTHING, images[:, :3].contiguous(), parameters))
    assert not torch.equal(found[:, :3], moved[:, :3])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_views_are_finite_and_lie_in_0_to_1(name: str, channels: int) -> None:
    images = random_images(64, channels=channels, size=24)
    images[:8], images[8:16] = 0, 1
    augmentation = make(RULES[name], channels=channels, size=24)
    views = augmentation.apply(images, augmentation.draw(0, np.arange(64), 1))
    assert views.shape == images.shape
    assert views.dtype == torch.float32
    assert torch.isfinite(views).all()
    assert views.min() >= 0
    assert views.max() <= 1


@pytest.mark.parametrize("name", RULES)
def test_a_view_depends_on_no_other_image_of_the_batch(name: str) -> None:
    images = random_images(37, size=24)
    augmentation = make(RULES[name], size=24)
    parameters = augmentation.draw(0, np.arange(37), 0)
    together = augmentation.apply(images, parameters)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augmentation.apply(images[order], parameters[order]), together[order])
    parts = [
        augmentation.apply(images[rows], parameters[rows])
        for rows in torch.arange(37).split([1, 3, 20, 13])
    ]
    assert torch.equal(torch.cat(parts), together)


def test_the_same_row_gets_the_same_augmentation_in_any_batch() -> None:
    augmentation = make(EVERYTHING, seed=7)
    rows = np.array([5, 900, 3, 5, 17])
    together = augmentation.draw(2, rows, 1)
    assert torch.equal(together[0], together[3])
    for place, row in enumerate(rows):
        assert torch.equal(make(EVERYTHING, seed=7).draw(2, np.array([row]), 1)[0], together[place])
    epochs = np.array([2, 3, 2, 3, 2])
    mixed = augmentation.draw(epochs, rows, 1)
    for place, (epoch, row) in enumerate(zip(epochs.tolist(), rows, strict=True)):
        assert torch.equal(augmentation.draw(epoch, np.array([row]), 1)[0], mixed[place])


def test_views_epochs_rows_and_seeds_are_augmented_differently() -> None:
    first = draw(EVERYTHING, 100)
    others = {
        "view": draw(EVERYTHING, 100, view=1),
        "epoch": draw(EVERYTHING, 100, epoch=1),
        "seed": draw(EVERYTHING, 100, seed=1),
        "row": first.roll(1, dims=0),
    }
    for other in others.values():
        for column in (Parameter.CROP_WIDTH, Parameter.CROP_LEFT):
            share_equal = (first[:, column] == other[:, column]).float().mean()
            assert share_equal < 0.3  # large crops fall back to the whole image
        assert abs(
            np.corrcoef(first[:, Parameter.CROP_LEFT], other[:, Parameter.CROP_LEFT])[0, 1]
        ) < 4 / sqrt(100)


def loop_of_crops(rule: AugmentationRule, num_crops: int) -> np.ndarray:
    """Area and aspect (N, 2), by trial and error crop after crop."""
    generator = np.random.default_rng(11)
    crops = []
    for _ in range(num_crops):
        width = height = 1.0
        for _ in range(10):
            area = generator.uniform(*rule.crop_area)
            aspect = np.exp(generator.uniform(*np.log(rule.crop_aspect)))
            if (area * aspect) ** 0.5 <= 1 and (area / aspect) ** 0.5 <= 1:
                width, height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
                break
        crops.append((width * height, width / height))
    return np.array(crops)


@pytest.mark.parametrize("name", ["basic", "simclr"])
def test_crops_are_distributed_as_by_trial_and_error(name: str) -> None:
    num_crops = 4000
    crops = draw(RULES[name], num_crops).double().numpy()
    left, top, width, height = crops[:, : Parameter.CROP_HEIGHT + 1].T
    expected = loop_of_crops(RULES[name], num_crops)
    for found, reference in ((width * height, expected[:, 0]), (width / height, expected[:, 1])):
        assert scipy.stats.ks_2samp(found, reference).pvalue > 1e-3
    has_room = (width < 1) & (height < 1)
    places = []
    for margin, extent in ((left, width), (top, height)):
        assert margin.min() >= 0
        assert (margin + extent).max() < 1 + 1e-6
        places.append(margin[has_room] / (1 - extent[has_room]))
        assert scipy.stats.kstest(places[-1], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(places)[0, 1]) < 4 / sqrt(has_room.sum())


def test_a_crop_that_never_fits_is_the_middle_of_the_image_with_the_nearest_aspect() -> None:
    rule = AugmentationRule(crop_area=(0.9, 1.0), crop_aspect=(2.0, 3.0))
    parameters = draw(rule, 20)
    expected = torch.tensor([0.0, 0.25, 1.0, 0.5]).expand(20, -1)
    torch.testing.assert_close(parameters[:, : Parameter.CROP_HEIGHT + 1], expected)


def test_things_happen_as_often_as_the_rule_says() -> None:
    num_images = 5000
    parameters = draw(EVERYTHING, num_images)
    happened = [
        (EVERYTHING.flip_prob, parameters[:, Parameter.FLIP] == 1),
        (EVERYTHING.rotation_prob, parameters[:, Parameter.ANGLE] != 0),
        (EVERYTHING.jitter_prob, parameters[:, Parameter.BRIGHTNESS] != 1),
        (EVERYTHING.grayscale_prob, parameters[:, Parameter.GRAYSCALE] == 1),
        (EVERYTHING.blur_prob, parameters[:, Parameter.BLUR_SIGMA] > 0),
        (EVERYTHING.inversion_prob, parameters[:, Parameter.INVERSION] == 1),
    ]
    for share, events in happened:
        bound = 4 * sqrt(share * (1 - share) / num_images)
        assert abs(events.float().mean() - share) < bound


def test_strengths_are_uniform_over_their_ranges() -> None:
    parameters = draw(replace(EVERYTHING, brightness=1.5), 5000).double().numpy()
    ranges = {
        Parameter.BRIGHTNESS: (0.0, 2.5),  # a factor is never negative
        Parameter.CONTRAST: (0.2, 1.8),
        Parameter.SATURATION: (0.2, 1.8),
        Parameter.HUE: (-0.5, 0.5),
        Parameter.ANGLE: (-45.0, 45.0),
        Parameter.BLUR_SIGMA: (0.1, 2.0),
    }
    neutral = neutral_parameters(1)[0].tolist()
    for column, (low, high) in ranges.items():
        changed = parameters[parameters[:, column] != neutral[column], column]
        assert len(changed) > 2000
        assert scipy.stats.kstest(changed, "uniform", (low, high - low)).pvalue > 1e-3


def test_every_order_of_the_jitter_is_equally_likely() -> None:
    ranks = draw(JITTER, 4800)[:, list(RANKS)].long()
    assert (ranks.sort(dim=1).values == torch.arange(4)).all()
    codes = (ranks * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = torch.unique(codes, return_counts=True)[1].double()
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_draws_of_different_parameters_are_uncorrelated() -> None:
    parameters = draw(replace(EVERYTHING, jitter_prob=1.0, rotation_prob=1.0, blur_prob=1.0), 5000)
    continuous = [
        *OPERATIONS,
        Parameter.ANGLE,
        Parameter.BLUR_SIGMA,
        Parameter.FLIP,
        Parameter.INVERSION,
    ]
    correlations = np.corrcoef(parameters[:, continuous].numpy().T) - np.eye(len(continuous))
    assert np.abs(correlations).max() < 4.5 / sqrt(5000)


@pytest.mark.parametrize("name", RULES)
def test_apply_reads_no_value_on_the_host(name: str) -> None:
    """Tensors without values fail wherever Python would have to wait for one."""
    augmentation = make(RULES[name], size=24)
    parameters = augmentation.draw(0, np.arange(5), 0)
    views = augmentation._apply(torch.empty(5, 3, 24, 24, device="meta"), parameters.to("meta"))
    assert views.shape == (5, 3, 24, 24)


def test_global_random_states_are_neither_read_nor_changed() -> None:
    images = random_images(8)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        results.append(apply(EVERYTHING, images, draw(EVERYTHING, 8)))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(*results)


def test_autocast_costs_no_precision() -> None:
    images, parameters = random_images(8), draw(EVERYTHING, 8)
    expected = apply(EVERYTHING, images, parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply(EVERYTHING, images, parameters), expected)


def test_images_are_not_changed_in_place() -> None:
    images = random_images(8, size=24)
    before = images.clone()
    for rule in (
        *RULES.values(),
        replace(EVERYTHING, crop_area=(1, 1), crop_aspect=(1, 1), flip_prob=0, rotation_prob=0),
    ):
        apply(rule, images, draw(rule, 8))
        assert torch.equal(images, before)


def test_presets_say_what_their_papers_say() -> None:
    simclr, small = PRESETS["simclr"], PRESETS["simclr_small"]
    assert (simclr.brightness, simclr.contrast, simclr.saturation, simclr.hue) == (
        0.8,
        0.8,
        0.8,
        0.2,
    )
    assert (small.brightness, small.contrast, small.saturation, small.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (simclr.blur_prob, small.blur_prob) == (0.5, 0.0)
    basic = PRESETS["basic"]
    assert basic.flip_prob == basic.jitter_prob == 0
    assert min(basic.rotation_prob, basic.inversion_prob, 1 - basic.crop_area[0]) > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"flip_prob": 1.5},
        {"inversion_prob": -0.1},
        {"hue": 0.6},
        {"brightness": -1.0},
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.5, 1.2)},
        {"crop_aspect": (2.0, 1.0)},
        {"blur_sigma": (0.0, 2.0)},
        {"rotation_degrees": float("nan")},
    ],
)
def test_impossible_rules_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(fields))):
        AugmentationRule(**fields)
