"""Views of images that are no squares: crops over the true aspect, rectangles as views."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bert_pretrain.images.augmentation import BOX, PRESETS, AugmentationRule, Parameter
from bert_pretrain.images.views import Augmentation, crop_and_flip, rotate

NUM_IMAGES = 4000


def boxes(rule: AugmentationRule, aspect: float, size: int | tuple[int, int] = 16) -> np.ndarray:
    """Return left, top, width and height of crops of images of one width / height."""
    height, width = (size, size) if isinstance(size, int) else size
    stretch = np.full(NUM_IMAGES, aspect / (width / height))
    augmentation = Augmentation(rule, num_channels=3, image_size=size, seed=3, stretch=stretch)
    return np.asarray(augmentation.draw(0, np.arange(NUM_IMAGES), 0)[:, BOX].double().numpy())


@pytest.mark.parametrize("size", [16, (16, 32)])
@pytest.mark.parametrize("aspect", [0.4, 4 / 3, 2.5])
def test_crops_keep_area_and_aspect_in_pixels_of_the_image(
    aspect: float, size: int | tuple[int, int]
) -> None:
    rule = AugmentationRule(crop_area=(0.1, 0.3), crop_aspect=(3 / 4, 4 / 3))
    left, top, width, height = boxes(rule, aspect, size).T
    assert left.min() >= 0 and top.min() >= 0  # float32 may round 1 up by its last bit
    assert (left + width).max() <= 1 + 1e-6 and (top + height).max() <= 1 + 1e-6
    # Of a view twice as wide as high, crops are twice as wide too, to within 3/4 to 4/3.
    of_view = 1.0 if isinstance(size, int) else 2.0
    aspects = width * aspect / height / of_view
    assert aspects.min() >= 3 / 4 - 1e-5 and aspects.max() <= 4 / 3 + 1e-5
    fits = (width * height >= 0.1 - 1e-6) & (width * height <= 0.3 + 1e-6)
    assert fits.all()
    # Crops reach all edges: where left / (1 - width) is uniform, so is the minimum of 4,000 draws
    # above 0.01 with a probability of 0.99 ** 4000.
    places = left[width < 1] / (1 - width[width < 1])
    assert places.min() < 0.01 and places.max() > 0.99


def test_the_edges_of_a_wide_photograph_are_seen() -> None:
    left, _, width, _ = boxes(PRESETS["simclr"], 4 / 3).T
    centre = (1 - 3 / 4) / 2  # the centre square begins here
    # A centre square first would leave no crop beyond it; here most see something of the edges.
    assert ((left < centre) | (left + width > 1 - centre)).mean() > 0.5


def test_without_a_stretch_crops_are_what_they_were_to_the_bit() -> None:
    rows = np.arange(50)
    rule = PRESETS["basic"]
    plain = Augmentation(rule, num_channels=3, image_size=16, seed=3).draw(0, rows, 0)
    ones = replace_stretch(rule, np.ones(50)).draw(0, rows, 0)
    assert torch.equal(plain, ones)


def replace_stretch(rule: AugmentationRule, stretch: np.ndarray) -> Augmentation:
    return Augmentation(rule, num_channels=3, image_size=16, seed=3, stretch=stretch)


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [(2.0, (0.25, 0, 0.5, 1)), (0.5, (0, 0.25, 1, 0.5)), (1.0, (0, 0, 1, 1))],
)
def test_a_rule_that_crops_nothing_shows_the_centre_square(
    aspect: float, expected: tuple[float, ...]
) -> None:
    rule = replace(AugmentationRule(), grayscale_prob=1.0)
    augmentation = replace_stretch(rule, np.full(3, aspect))
    parameters = augmentation.draw(0, np.arange(3), 0)
    assert parameters[:, BOX].tolist() == [list(expected)] * 3
    # What is applied are the middle columns of a picture that was squeezed to a square.
    columns = torch.linspace(0, 1, 16).expand(3, 3, 16, 16)
    seen = augmentation.apply(columns, parameters)
    if aspect == 2:
        middle = torch.linspace(0.25, 0.75, 16)  # to within one column
        assert (seen[0, 0, 5] - middle).abs().max() < 0.03
    elif aspect == 1:
        torch.testing.assert_close(seen, columns, rtol=0, atol=1e-5)


def noise(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def parameters_of(num_images: int, **values: float) -> Tensor:
    augmentation = Augmentation(AugmentationRule(), num_channels=3, image_size=8, seed=0)
    parameters = augmentation.draw(0, np.arange(num_images), 0)
    for name, value in values.items():
        parameters[:, Parameter[name.upper()]] = value
    return parameters


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_crop_of_a_rectangle_is_pillows(flip: float) -> None:
    images = noise(20, 32)
    box = {"crop_left": 0.1, "crop_top": 0.35, "crop_width": 0.6, "crop_height": 0.45}
    found = crop_and_flip(images, parameters_of(2, **box, flip=flip))
    edges = (0.1 * 32, 0.35 * 20, 0.7 * 32, 0.8 * 20)
    for image, crop in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        expected = Image.fromarray(image.numpy()).resize((32, 20), Image.Resampling.BICUBIC, edges)
        pixels = torch.from_numpy(np.array(expected)).clamp(0, 1)
        pixels = pixels.flip(-1) if flip else pixels
        torch.testing.assert_close(crop, pixels, rtol=0, atol=1e-5)


def test_a_rectangle_is_rotated_without_being_sheared() -> None:
    images = noise(16, 28)
    half_turn = rotate(images, torch.full((2,), 180.0))
    torch.testing.assert_close(half_turn, images.flip(-1, -2), rtol=0, atol=1e-4)
    quarter = rotate(images, torch.full((2,), 90.0))
    # The square in the middle turns within itself.
    square = images[:, :, :, 6:22].rot90(1, (-2, -1))
    torch.testing.assert_close(quarter[:, :, :, 6:22], square, rtol=0, atol=1e-4)


def test_views_of_a_rectangle_have_its_shape_and_are_blurred_by_its_shorter_side() -> None:
    rule = replace(PRESETS["simclr"], blur_prob=1.0)
    augmentation = Augmentation(rule, num_channels=3, image_size=(24, 40), seed=0)
    images = noise(24, 40)
    view = augmentation.apply(images, augmentation.draw(0, np.arange(2), 0))
    assert view.shape == images.shape
    assert torch.isfinite(view).all() and view.min() >= 0 and view.max() <= 1


def test_the_area_of_crops_is_uniform_whatever_the_aspect() -> None:
    rule = AugmentationRule(crop_area=(0.1, 0.3), crop_aspect=(3 / 4, 4 / 3))
    areas = boxes(rule, 4 / 3)[:, 2:].prod(axis=1)
    # Of small areas all attempts fit, so areas are uniform: 4 standard errors of their mean.
    bound = 4 * 0.2 / math.sqrt(12 * NUM_IMAGES)
    assert abs(areas.mean() - 0.2) < bound
