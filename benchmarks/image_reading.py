"""Images per second that reach a training step as two crops each, side by side in one run.

Photographs are made by this script (JPEG, quality 90, about as many bytes as ImageNet's) and
become two crops of 224 x 224 pixels each, as SimCLR takes them: 8 to 100 % of the area, bicubic.

- plain: a torch `DataLoader` whose data set opens a file with Pillow, crops twice and flips.
- stream: `--image_reading stream`, which decodes at every visit too, in as many workers.
- cache: `--image_reading cache`, whose pixels were decoded once; crops are cut on the device.
- cache + crops: the same, with the crops cut by this processor, as a run without a GPU does.

Every way is timed in each round, once its workers deliver steadily, and medians over the rounds are
shown. The first start of the two readings, which looks at every image once, is timed by itself.
--write puts the table of --json between the marks of a document; `--rounds 0` measures nothing new.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import replace_marked, write_results
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bert_pretrain.data.course import Course
from bert_pretrain.data.loader import training_windows
from bert_pretrain.data.stream import Place
from bert_pretrain.hardware import cpu_threads, describe_run
from bert_pretrain.images.augmentation import PRESETS, AugmentationRule
from bert_pretrain.images.collator import unit_range, view_source
from bert_pretrain.images.corpus import ImageReading, open_images
from bert_pretrain.images.views import Augmentation
from bert_pretrain.objectives.contrastive import contrastive_task

RULE = AugmentationRule(
    crop_area=PRESETS["simclr"].crop_area,
    crop_aspect=PRESETS["simclr"].crop_aspect,
    flip_prob=0.5,
)
VIEWS = ("first_view", "second_view")


def write_photos(folder: Path, *, number: int, width: int, height: int) -> float:
    """Write pictures with the large shapes and the grain of photographs; return their mean bytes.

    `width` and `height` are those of three in four; the others stand upright.
    """
    generator = np.random.default_rng(0)
    sizes = []
    for place in range(number):
        size = (width, height) if place % 4 else (height, width)
        shapes = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        large = np.asarray(shapes.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        fine = generator.normal(0, 12, large.shape[:2])[:, :, None]
        path = folder / f"{place:05}.jpg"
        Image.fromarray((large + fine).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


class PlainViews(Dataset[Tensor]):
    """Two crops of an image, made with Pillow and Python's generator when they are asked for."""

    def __init__(self, files: list[Path], size: int) -> None:
        """Keep the paths."""
        self.files = files
        self.size = size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """Return uint8 (2, 3, S, S)."""
        with Image.open(self.files[index]) as opened:
            image = opened.convert("RGB")
        views = [np.asarray(self._crop(image)) for _ in VIEWS]
        return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()

    def _crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        box = (0, 0, width, height)
        for _ in range(10):
            area = width * height * random.uniform(*RULE.crop_area)
            aspect = math.exp(random.uniform(*map(math.log, RULE.crop_aspect)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = random.randint(0, width - w), random.randint(0, height - h)
                box = (left, top, left + w, top + h)
                break
        view = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
        is_flipped = random.random() < RULE.flip_prob
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_flipped else view


def plain_batches(
    files: list[Path], size: int, *, batch_size: int, num_workers: int
) -> Iterator[Tensor]:
    """Yield uint8 (B, 2, 3, S, S) without end."""
    views = PlainViews(files, size)
    # One epoch without end, so that no worker stops and starts while rates are taken.
    endless = RandomSampler(views, replacement=True, num_samples=2**40)
    loader = DataLoader(views, batch_size, sampler=endless, num_workers=num_workers, drop_last=True)
    yield from loader


@dataclass
class Reading:
    """One of our readings: what a run's loader reads from, and how long its first start took."""

    training: Any
    augmentation: Augmentation
    seconds: float

    def batches(
        self, *, batch_size: int, num_workers: int, cuts_crops: bool = False
    ) -> Iterator[Any]:
        """Yield what the loader of a run yields, without end."""
        windows = training_windows(
            self.training,
            Place(),
            course=Course(batch_size),
            num_processes=1,
            process_index=0,
            num_micro_batches=1,
            num_workers=num_workers,
        )
        for window in windows:
            (batch,) = window.micro_batches
            if cuts_crops:
                yield [
                    self.augmentation.apply(unit_range(view_source(batch, name)), batch[name])
                    for name in VIEWS
                ]
            else:
                yield batch


def open_reading(folder: Path, size: int, reading: ImageReading, *, batch_size: int) -> Reading:
    """Open the photographs as a contrastive run does, for the first time."""
    begun = time.perf_counter()
    corpus = open_images(
        dataset_name=str(folder / "photos"),
        image_size=size,
        num_channels=3,
        reading=reading,
        with_whole=True,
        validation_share=0.05,
        seed=0,
        cache_dir=folder / "cache",
        show_progress=False,
    )
    seconds = time.perf_counter() - begun
    task: Any = contrastive_task(
        corpus,
        RULE,
        loss="nt_xent",
        triplet={},
        temperature=0.5,
        num_images=batch_size,
        seed=0,
        max_eval_rows=0,
        config_name="vit-tiny",
        model_name_or_path=None,
        dropout=0.0,
        projection_dim=8,
    )
    objective = task.objective
    return Reading(objective.training, objective.pretext.augmentation, seconds)


def images_per_second(
    make: Callable[[], Iterator[Any]], *, batch_size: int, num_batches: int, num_ahead: int
) -> float:
    """Return the rate of an iterator from the time on when what was read ahead is used up."""
    batches = make()
    for _ in range(num_ahead):
        next(batches)
    begun = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    seconds = time.perf_counter() - begun
    del batches  # and its workers
    return num_batches * batch_size / seconds


def measure(
    arguments: argparse.Namespace, settings: list[str]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the figures, and the images per second of each way by round."""
    size, batch_size = arguments.image_size, arguments.batch_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        sides = {"width": arguments.width, "height": arguments.height}
        mean_bytes = write_photos(folder / "photos", number=arguments.num_images, **sides)
        stream, cache = (
            open_reading(folder, size, reading, batch_size=batch_size)
            for reading in ("stream", "cache")
        )
        files = sorted((folder / "photos").iterdir())
        common = {"batch_size": batch_size, "num_workers": arguments.num_workers}
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "plain": lambda: plain_batches(files, size, **common),
            "stream": lambda: stream.batches(**common),
            "cache": lambda: cache.batches(**common),
            "cache_and_crops": lambda: cache.batches(**common, cuts_crops=True),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, make in ways.items():
                rate = images_per_second(
                    make,
                    batch_size=batch_size,
                    num_batches=arguments.batches,
                    num_ahead=2 * arguments.num_workers + 1,
                )
                rates[way].append(rate)
    figures: dict[str, float] = {name: getattr(arguments, name) for name in settings}
    figures |= {"bytes_a_file": mean_bytes}
    figures |= {"stream_first_seconds": stream.seconds, "cache_first_seconds": cache.seconds}
    for way, found in rates.items():
        figures[f"{way}_images_per_second"] = statistics.median(found)
        figures[f"{way}_to_plain_ratio"] = statistics.median(ratios(found, rates["plain"]))
    return figures, rates


def ratios(rates: list[float], plain: list[float]) -> list[float]:
    """Return how many times as fast as the plain way each round was, ascending."""
    return sorted(ours / theirs for ours, theirs in zip(rates, plain, strict=True))


def table(content: dict[str, Any]) -> str:
    """Return what a results file holds as Markdown."""
    figures, rates, hardware = content["figures"], content["runs"], content["hardware"]
    lines = [
        f"{figures['num_images']} JPEGs of {figures['width']} x {figures['height']} pixels, "
        f"{figures['bytes_a_file'] / 1000:.0f} kB each, to two crops of {figures['image_size']} x "
        f"{figures['image_size']}; {len(rates['plain'])} rounds; {hardware['processor']}, "
        f"{hardware['cores']} cores, {figures['num_workers']} workers. First start: "
        f"{figures['stream_first_seconds']:.1f} s (stream), {figures['cache_first_seconds']:.1f} s "
        "(cache).\n",
        "| way | images/s | times plain, by round |",
        "| --- | --- | --- |",
    ]
    for way, found in rates.items():
        times = ratios(found, rates["plain"])
        lines.append(
            f"| {way.replace('_and_', ' + ')} | {statistics.median(found):,.0f} "
            f"({min(found):,.0f} to {max(found):,.0f}) | {statistics.median(times):.2f} "
            f"({times[0]:.2f} to {times[-1]:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, and write figures and documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    settings = {
        "image_size": (224, "side of a crop, pixels"),
        "width": (500, "of the photographs, pixels"),
        "height": (375, "of the photographs, pixels"),
        "num_images": (512, "photographs that are made"),
        "batch_size": (64, "images, each as two crops"),
        "num_workers": (cpu_threads(0), "processes of every way"),
        "rounds": (5, "that the medians are of"),
        "batches": (6, "timed in a round, of every way"),
    }
    for name, (default, meaning) in settings.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures and these settings")
    parser.add_argument("--write", type=Path, help="document with marks that gets the table")
    arguments = parser.parse_args()
    torch.set_num_threads(cpu_threads(0))
    if arguments.rounds:
        figures, rates = measure(arguments, list(settings))
        content = {"figures": figures, "runs": rates} | describe_run()
        write_results(arguments.json, figures, runs=rates)
    else:
        content = json.loads(arguments.json.read_text())
    print(table(content), end="")
    if arguments.write:
        document = arguments.write.read_text()
        arguments.write.write_text(replace_marked(document, "image reading", table(content)))


if __name__ == "__main__":
    main()
