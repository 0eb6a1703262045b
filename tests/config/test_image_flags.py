"""Flags of images: sizes as one number or two, and strengths of augmentation over the presets."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from bert_pretrain.commands.image_tasks import augmentation_rule, local_view_values
from bert_pretrain.config.image_arguments import ViewArguments
from bert_pretrain.config.pretraining import parse_config
from bert_pretrain.config.sizes import ImageSize
from bert_pretrain.errors import InputError
from bert_pretrain.images.augmentation import PRESETS, AugmentationRule

CONTRAST = ("--objective", "contrastive")


@pytest.mark.parametrize(
    ("text", "sides", "as_given"),
    [("0", 0, 0), ("64", 64, 64), ("64x96", (64, 96), "64x96"), ("32x32", 32, 32)],
)
def test_a_size_is_a_number_or_height_x_width(text: str, sides: object, as_given: object) -> None:
    config = parse_config([*CONTRAST, "--image_size", text])
    size = config.images.image_size
    assert size.sides == sides and size.as_given == as_given
    assert config.to_dict()["image_size"] == as_given
    assert copy.deepcopy(size).sides == ImageSize(as_given).sides == sides  # as run.json has it


@pytest.mark.parametrize("text", ["64x", "x64", "64x96x3", "big", "-4", "64x0", "1.5"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"`image_size` is .* but must be"):
        parse_config([*CONTRAST, f"--image_size={text}"])


def test_both_sides_must_be_in_range() -> None:
    for text in ("9000", "64x9000", "9000x64"):
        with pytest.raises(InputError, match="`image_size` is 9000 but must be in"):
            parse_config([*CONTRAST, "--image_size", text])


def rule_of(*arguments: str) -> AugmentationRule:
    return augmentation_rule(parse_config([*CONTRAST, *arguments]))


def test_every_field_of_a_rule_is_a_flag() -> None:
    names = [entry.name for entry in dataclasses.fields(AugmentationRule)]
    assert [entry.name for entry in dataclasses.fields(ViewArguments)] == names


def test_flags_change_the_preset_and_leave_the_rest() -> None:
    assert rule_of() == PRESETS["basic"]  # of the recipe for digits
    found = rule_of(
        *("--augmentation", "simclr", "--crop_area", "0.2", "1", "--blur_sigma", "0.5", "1.5"),
        *("--hue", "0.05", "--jitter_prob", "0.3", "--rotation_prob", "0.5"),
        *("--rotation_degrees", "10"),
    )
    assert found == dataclasses.replace(
        PRESETS["simclr"],
        crop_area=(0.2, 1.0),
        blur_sigma=(0.5, 1.5),
        hue=0.05,
        jitter_prob=0.3,
        rotation_prob=0.5,
        rotation_degrees=10.0,
    )
    assert rule_of("--flip_prob", "0.2").flip_prob == 0.2
    assert rule_of("--augmentation", "simclr", "--no_horizontal_flip").flip_prob == 0


REFUSED = {
    "range": (["--hue", "0.7"], "`hue` is 0.7 but must be in"),
    "share": (["--flip_prob", "50"], r"for 50 % pass `flip_prob` 0\.5"),
    "one number": (["--crop_area", "0.2"], r"`crop_area` is \[0\.2\] but must be two numbers"),
    "order": (["--crop_area", "1", "0.2"], r"`crop_area` of the augmentation is \(1\.0, 0\.2\)"),
    "nothing": (["--crop_area", "0", "1"], r"`crop_area` of the augmentation is \(0\.0, 1\.0\)"),
    "not finite": (["--crop_aspect", "nan", "1"], "`crop_aspect` of the augmentation"),
    "contradiction": (
        ["--no_horizontal_flip", "--flip_prob", "0.5"],
        "`flip_prob` is 0.5 but `no_horizontal_flip`",
    ),
    "no effect": (["--brightness", "0.4"], "`brightness` means nothing while `jitter_prob` is 0"),
    "no blur": (["--blur_sigma", "1", "2"], "`blur_sigma` means nothing while `blur_prob` is 0"),
    "objective": (["--objective", "autoencoder", "--hue", "0.1"], "`hue` means nothing to"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_strength_that_cannot_be_used_is_refused(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        rule_of(*arguments)


LOCAL = ("--num_local_views", "4")


def local_values(*arguments: str) -> dict[str, object]:
    return local_view_values(parse_config([*CONTRAST, *arguments]))


def test_flags_of_local_views_are_what_the_task_takes() -> None:
    assert local_values()["num_local_views"] == 0
    of_default = {"num_local_views": 4, "wanted_local_size": 0, "local_crop_area": (0.05, 0.4)}
    assert local_values(*LOCAL) == of_default
    own = ("--local_view_size", "12x16", "--local_crop_area", "0.1", "0.3")
    assert local_values(*LOCAL, *own) == {
        "num_local_views": 4,
        "wanted_local_size": (12, 16),
        "local_crop_area": (0.1, 0.3),
    }


REFUSED_LOCAL = {
    "negative": (["--num_local_views", "-1"], r"`num_local_views` is -1 but must be in \[0, 64\]"),
    "size alone": (["--local_view_size", "8"], "`local_view_size` means nothing with `num_local_"),
    "area alone": (["--local_crop_area", "0.1", "0.2"], "`local_crop_area` means nothing with"),
    "no size": ([*LOCAL, "--local_view_size", "8x"], "`local_view_size` is '8x' but must be"),
    "no number": ([*LOCAL, "--local_crop_area", "small"], "`local_crop_area` is 'small' but must"),
    "one number": ([*LOCAL, "--local_crop_area", "0.1"], "`local_crop_area` is .* two numbers"),
    "order": ([*LOCAL, "--local_crop_area", "0.4", "0.1"], "`local_crop_area` is .* ascending"),
    "larger than images": (
        [*LOCAL, "--image_size", "32", "--local_view_size", "40"],
        "`local_view_size` is '40x40' but must be at most the size of the images, 32x32",
    ),
    "objective": (["--objective", "autoencoder", *LOCAL], "`num_local_views` means nothing to"),
}


@pytest.mark.parametrize("case", REFUSED_LOCAL)
def test_local_views_that_cannot_be_are_refused(case: str) -> None:
    arguments, message = REFUSED_LOCAL[case]
    with pytest.raises(InputError, match=message):
        local_values(*arguments)
