"""Images per second of a contrastive step, against the plain way, side by side in one run.

The plain way: a torch `DataLoader` whose data set decodes nothing (images are Pillow images in
memory) but augments one image at a time with Pillow, two views each, in float32, with transformers'
own encoder, and the same loss and optimiser. Ours: pixels as one uint8 array, augmentation of the
whole batch as tensor operations, our faster layers, in the precision that `--mixed_precision auto`
would choose. Both use SimCLR's small-image augmentation (crop, flip,
jitter, grey) and all processor cores.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from results import write_results
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bert_pretrain.hardware import cpu_threads, native_precision
from bert_pretrain.images.augmentation import PRESETS
from bert_pretrain.images.views import Augmentation
from bert_pretrain.losses.contrastive import nt_xent_loss
from bert_pretrain.models.image_heads import ContrastiveModel, build_contrastive

RULE = PRESETS["simclr_small"]
MEAN, STD = 0.5, 0.25


def random_view(image: Image.Image) -> Image.Image:
    """Augment one image as the plain way does, with Pillow and Python's generator."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(*RULE.crop_area)
        aspect = math.exp(random.uniform(*map(math.log, RULE.crop_aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            image = image.resize(
                (width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h)
            )
            break
    if random.random() < RULE.flip_prob:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < RULE.jitter_prob:
        operations = [
            lambda x: ImageEnhance.Brightness(x).enhance(
                random.uniform(1 - RULE.brightness, 1 + RULE.brightness)
            ),
            lambda x: ImageEnhance.Contrast(x).enhance(
                random.uniform(1 - RULE.contrast, 1 + RULE.contrast)
            ),
            lambda x: ImageEnhance.Color(x).enhance(
                random.uniform(1 - RULE.saturation, 1 + RULE.saturation)
            ),
            lambda x: turn_hue(x, random.uniform(-RULE.hue, RULE.hue)),
        ]
        random.shuffle(operations)
        for operation in operations:
            image = operation(image)
    if random.random() < RULE.grayscale_prob:
        image = image.convert("L").convert("RGB")
    return image


def turn_hue(image: Image.Image, turns: float) -> Image.Image:
    """Turn all hues by a share of the colour circle."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = hue.point([(level + round(255 * turns)) % 256 for level in range(256)])
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")


class PillowViews(Dataset[Tensor]):
    """Two augmented views of an image, made when asked for."""

    def __init__(self, pixels: np.ndarray) -> None:
        """Keep the images as Pillow images."""
        self.images = [Image.fromarray(array) for array in pixels]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Return float32 (2, 3, H, W)."""
        views = [
            np.asarray(random_view(self.images[index]), dtype=np.float32) / 255 for _ in range(2)
        ]
        return (torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2) - MEAN) / STD


def plain_batches(pixels: np.ndarray, batch_size: int, num_workers: int) -> Iterator[Tensor]:
    """Yield float32 (2B, 3, H, W) without end: first views, then second views."""
    loader = DataLoader(
        PillowViews(pixels), batch_size, shuffle=True, num_workers=num_workers, drop_last=True
    )
    while True:
        for views in loader:
            yield views.transpose(0, 1).flatten(0, 1)


def our_batches(pixels: np.ndarray, batch_size: int) -> Iterator[Tensor]:
    """Yield the same, as the contrastive objective makes them."""
    augmentation = Augmentation(RULE, num_channels=3, image_size=pixels.shape[1], seed=0)
    step = 0
    while True:
        rows = (np.arange(batch_size) + step * batch_size) % len(pixels)
        images = (
            torch.from_numpy(np.ascontiguousarray(pixels[rows].transpose(0, 3, 1, 2))).float() / 255
        )
        views = [augmentation.apply(images, augmentation.draw(step, rows, view)) for view in (0, 1)]
        yield (torch.cat(views) - MEAN) / STD
        step += 1


def make_step(model: ContrastiveModel, *, bf16: bool) -> Callable[[Tensor], None]:
    """Return a function that makes one update from a batch of views."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(pixel_values: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            projections = model(pixel_values).projections
        views = torch.stack(projections.float().chunk(2), dim=1)
        ids = torch.arange(len(views))
        total, _ = nt_xent_loss(views, views, view_ids=ids, candidate_ids=ids, temperature=0.5)
        (total / (2 * len(views))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed_round(
    batches: Iterator[Tensor], step: Callable[[Tensor], None], repeats: int
) -> tuple[float, float]:
    """Return seconds a step, and the share of it that waits for the batch."""
    waiting, start = 0.0, time.perf_counter()
    for _ in range(repeats):
        before = time.perf_counter()
        batch = next(batches)
        waiting += time.perf_counter() - before
        step(batch)
    seconds = time.perf_counter() - start
    return seconds / repeats, waiting / seconds


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config_name", default="vit-tiny")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of a round")
    parser.add_argument(
        "--plain_workers",
        type=int,
        nargs="+",
        default=[0, 1],
        help="worker processes of the plain way",
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(cpu_threads(0))
    bf16 = native_precision() == "bf16"
    size, batch_size = arguments.image_size, arguments.batch_size
    pixels = np.random.default_rng(0).integers(
        0, 256, (20 * batch_size, size, size, 3), dtype=np.uint8
    )

    def model() -> ContrastiveModel:
        torch.manual_seed(0)
        shape = {"image_size": size, "num_channels": 3}
        name = arguments.config_name
        return build_contrastive(
            config_name=name, model_name_or_path=None, dropout=0.0, projection_dim=128, **shape
        )

    ways = {
        f"plain_{workers}_workers": (
            plain_batches(pixels, batch_size, workers),
            # Built of its configuration alone it has the layers of transformers.
            make_step(ContrastiveModel(model().config), bf16=False),
        )
        for workers in arguments.plain_workers
    }
    ways["ours"] = our_batches(pixels, batch_size), make_step(model(), bf16=bf16)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        for name, (batches, step) in ways.items():
            taken, waiting = timed_round(batches, step, arguments.steps)
            if number:  # the first round warms up
                seconds[name].append(taken)
                shares[name].append(waiting)
    print(
        f"{arguments.config_name}, {size} x {size}, batch {batch_size}; ours in "
        f"{'bf16' if bf16 else 'fp32'}"
    )
    figures = {}
    for name in ways:
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
        figures[f"{name}_images_per_second"] = batch_size / statistics.median(seconds[name])
        figures[f"{name}_augmentation_share"] = statistics.median(shares[name])
        figures[f"{name}_time_ratio"] = statistics.median(ratios)
        print(
            f"{name:18} {figures[f'{name}_images_per_second']:8,.0f} images/s, "
            f"{100 * statistics.median(shares[name]):3.0f} % of the step waiting for views; "
            f"time / ours {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    write_results(arguments.json, figures, runs=arguments.rounds)


if __name__ == "__main__":
    main()
