"""Local views: their draws, the pixels they are made of, and their proportions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bert_pretrain.errors import InputError
from bert_pretrain.images.augmentation import BOX, PRESETS, AugmentationRule, Parameter
from bert_pretrain.images.local_views import (
    LOCAL_CROP_AREA,
    LocalViews,
    local_crop_area,
    local_view_size,
    make_local_views,
)
from bert_pretrain.images.views import Augmentation, crop_and_flip

RULE = PRESETS["simclr"]
IMAGES = np.arange(500)


def make(
    number: int = 3,
    size: tuple[int, int] = (8, 8),
    *,
    image_size: tuple[int, int] = (16, 16),
    rule: AugmentationRule = RULE,
    stretch: Any = None,
) -> tuple[Augmentation, LocalViews]:
    whole = Augmentation(rule, num_channels=3, image_size=image_size, seed=5, stretch=stretch)
    return whole, make_local_views(
        number,
        size,
        crop_area=LOCAL_CROP_AREA,
        augmentation=whole,
        image_size=image_size,
        num_images=len(IMAGES),
    )


def test_a_view_is_drawn_by_its_image_epoch_and_number_alone() -> None:
    whole, local = make(3)
    drawn = local.draw(2, IMAGES)
    assert list(drawn) == ["local_view_1", "local_view_2", "local_view_3"]
    for name, few in make(2)[1].draw(2, IMAGES[7:9]).items():  # of fewer views and images
        assert torch.equal(few, drawn[name][7:9])
    tables = [*drawn.values(), whole.draw(2, IMAGES, 0), whole.draw(2, IMAGES, 1)]
    tables.append(local.draw(3, IMAGES)["local_view_1"])  # of another epoch
    for i, one in enumerate(tables):
        for other in tables[:i]:
            assert (one[:, Parameter.FLIP] != other[:, Parameter.FLIP]).float().mean() > 0.3


def test_they_are_cut_smaller_and_changed_as_other_views_are() -> None:
    whole, local = make(1)
    drawn = local.draw(0, IMAGES)["local_view_1"]
    areas = drawn[:, BOX][:, 2:].prod(dim=1)
    assert 0.05 - 1e-6 <= areas.min() < 0.06 and 0.39 < areas.max() <= 0.4 + 1e-6
    # With the same numbers all else is as in a view of full size.
    others = slice(BOX.stop, None)
    assert torch.equal(drawn[:, others], whole.draw(0, IMAGES, 2)[:, others])
    assert local.augmentation.rule == replace(RULE, crop_area=(0.05, 0.4))


@pytest.mark.parametrize("size", [(8, 8), (8, 24)])
@pytest.mark.parametrize("of_images", [None, 2.5])
def test_crops_have_the_proportions_of_local_views(
    size: tuple[int, int], of_images: float | None
) -> None:
    """Whole images of width / height 2.5, squeezed into 16 x 32, or such rectangles themselves."""
    stretch = None if of_images is None else np.full(len(IMAGES), of_images / 2)
    _, local = make(1, size, image_size=(16, 32), stretch=stretch)
    box = local.draw(0, IMAGES)["local_view_1"][:, BOX].double().numpy()
    aspects = box[:, 2] / box[:, 3] * (of_images or 2)
    assert (aspects / (size[1] / size[0])).min() >= 3 / 4 - 1e-5
    assert (aspects / (size[1] / size[0])).max() <= 4 / 3 + 1e-5


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])  # enlarged, reduced by 1.6, by 3.2
def test_a_crop_that_shrinks_is_pillows_and_does_not_alias(share: float, flip: float) -> None:
    images = torch.rand(2, 3, 20, 32, generator=torch.Generator().manual_seed(0))
    parameters = torch.zeros(2, len(Parameter))
    parameters[:, BOX] = torch.tensor([0.0, 1 - share, share, share])
    parameters[:, Parameter.FLIP] = flip
    found = crop_and_flip(images, parameters, (7, 10))
    edges = (0, 20 * (1 - share), 32 * share, 20)
    for image, crop in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        expected = Image.fromarray(image.numpy()).resize((10, 7), Image.Resampling.BICUBIC, edges)
        pixels = torch.from_numpy(np.array(expected)).clamp(0, 1)
        pixels = pixels.flip(-1) if flip else pixels
        torch.testing.assert_close(crop, pixels, rtol=0, atol=1e-5)


def test_a_rule_that_changes_nothing_still_resizes() -> None:
    _, local = make(1, rule=replace(AugmentationRule()))
    image = torch.rand(500, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    views = local.augmentation.apply(image, local.draw(0, IMAGES)["local_view_1"])
    assert views.shape == (500, 3, 8, 8)


@pytest.mark.parametrize(
    ("wanted", "image_size", "expected"),
    [
        (0, (32, 32), (16, 16)),
        (0, (17, 35), (8, 17)),
        (0, (15, 32), (15, 32)),
        (0, (8, 8), (8, 8)),
        (12, (32, 48), (12, 12)),
        ((8, 24), (32, 32), (8, 24)),
        (32, (32, 32), (32, 32)),
    ],
)
def test_a_size_is_as_wanted_or_half_unless_that_shows_too_little(
    wanted: Any, image_size: Any, expected: Any
) -> None:
    assert local_view_size(wanted, image_size) == expected


@pytest.mark.parametrize("wanted", [33, (8, 40), (40, 8)])
def test_local_views_larger_than_images_are_refused(wanted: Any) -> None:
    with pytest.raises(InputError, match=r"`local_view_size` is '.*' but must be at most .* 32x32"):
        local_view_size(wanted, (32, 32))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.3], "must be two numbers"),
        ([0.1, 0.2, 0.3], "must be two numbers"),
        ([0.4, 0.1], "must be two ascending"),
        ([0.0, 0.4], "must be two ascending"),
        ([0.5, 1.2], "must be two ascending"),
        ([float("nan"), 1.0], "must be two ascending"),
    ],
)
def test_shares_that_are_none_are_refused(given: list[float], message: str) -> None:
    with pytest.raises(InputError, match=f"`local_crop_area` is .*{message}"):
        local_crop_area(given)
