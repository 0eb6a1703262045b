"""`bert-pretrain demo`: what self-supervision is worth, shown without a download.

Nothing enters but the user's own Python. Text: an encoder learns from the documentation of the
libraries that are installed, then from a few labelled sentences which library one is from. Images:
an encoder learns from handwritten digits without their labels, then from a few of them with. Both
are compared with the same network untrained, and with TF-IDF or raw pixels. Each step is a command
that is printed before it runs; curves and tables stay in the output folder.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers import HfArgumentParser

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.flags import Range, flag, parse_flags
from bert_pretrain.data.atomic import check_creatable, make_folder, write_json, write_text
from bert_pretrain.data.programs import environment
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.label_efficiency import Point
from bert_pretrain.evaluation.statistics import format_interval
from bert_pretrain.hardware import describe_run
from bert_pretrain.text.embedded_task import read_embedded_task

_PARTS = ("text", "images")
_NUM_TEST_DIGITS = 500
# So few that all of it ends within ten minutes on two cores.
_SEEDS, _NUM_LABELS = (0, 1, 2), (4, 16)
_FLOORS = {"text": "TF-IDF", "images": "pixels"}


@dataclass
class DemoArguments:
    """What is shown."""

    _argument_group_name: ClassVar[str] = "demo"

    parts: list[str] = field(
        default_factory=lambda: list(_PARTS), metadata={"help": "Of text, images."}
    )
    minutes: float = flag(
        3.0,
        "Minutes of pretraining on text; images take one.",
        Range(0, 10_000, low_included=False),
    )
    output_dir: str = flag("runs/demo", "New folder: encoders, curves and demo.json.")
    debug: bool = flag(False, "Show the traceback of an input error.")

    def check(self) -> None:
        """Raise `InputError` if a part is unknown."""
        for part in self.parts:
            if part not in _PARTS:
                raise InputError.out_of_range("parts", part, f"of {', '.join(_PARTS)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Show as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments):
        parser = HfArgumentParser(
            DemoArguments,
            prog="bert-pretrain demo",
            description="Pretrain, fine-tune on few labels, compare, draw the curve; no download.",
            allow_abbrev=False,
        )
        (options,) = parse_flags(parser, arguments)
        options.check()
        folder = Path(options.output_dir)
        check_creatable(folder, parameter="output_dir")
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder} is not an empty folder", advice="pass a new one as `output_dir`"
            )
        make_folder(folder, parameter="output_dir")
        show = {"text": _show_text, "images": _show_images}
        found = {part: show[part](folder / part, options.minutes) for part in options.parts}
        write_json(folder / "demo.json", {"points": found} | describe_run())
        for part, points in found.items():
            sys.stdout.write(summary(part, points, folder / part / "curve"))
    return 0


def _show_text(folder: Path, minutes: float) -> list[dict[str, Any]]:
    _say("Reading the documentation of this Python: which library is a sentence from?")
    task = read_embedded_task()
    folder.mkdir(parents=True)
    write_text(folder / "corpus.jsonl", _lines({"text": text} for text in task.corpus))
    for name, rows in task.rows.items():
        write_text(folder / f"{name}.jsonl", _lines(rows))
    _run(
        "pretrain",
        *("--data_files", folder / "corpus.jsonl", "--max_hours", f"{minutes / 60:.4f}"),
        *("--output_dir", folder / "encoder"),
    )
    return _curve(
        folder,
        *("--train_file", folder / "train.jsonl", "--test_file", folder / "test.jsonl"),
        *("--title", "which library is this sentence from?"),
    )


def _show_images(folder: Path, _: float) -> list[dict[str, Any]]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

    digits = load_digits()
    order = permutation(len(digits.images), 0, Purpose.SPLIT)
    for number, place in enumerate(order):
        split = "test" if number < _NUM_TEST_DIGITS else "train"
        path = folder / "digits" / split / str(digits.target[place]) / f"{place:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.rint(digits.images[place] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    _run(
        "pretrain",
        *("--objective", "contrastive", "--dataset_name", folder / "digits"),
        *("--config_name", "convnextv2-mini", "--global_batch_size", 128, "--max_steps", 200),
        *("--output_dir", folder / "encoder"),
    )
    return _curve(
        folder,
        *("--dataset_name", folder / "digits", "--test_split", "test"),
        *("--title", "handwritten digits"),
    )


def _curve(folder: Path, *flags: object) -> list[dict[str, Any]]:
    """Measure accuracy against labels, and return the points of the curve."""
    arms = ("fine_tuned", "frozen_probe", "from_scratch", "floor")
    _run(
        *("evaluate", "--suite", "label_efficiency", "--model", folder / "encoder/final"),
        *("--arms", *arms, "--num_labels", *_NUM_LABELS, "--seeds", *_SEEDS),
        *("--max_test_rows", 1000, "--output_dir", folder / "curve", *flags),
    )
    content = json.loads((folder / "curve/label_efficiency.json").read_text())
    points: list[dict[str, Any]] = content["points"]
    return points


def _run(*words: object) -> None:
    """Print a command of this package and run it; end with its status if it fails."""
    command = [str(word) for word in words]
    _say(f"\n$ bert-pretrain {shlex.join(command)}")
    status = subprocess.run(
        [sys.executable, "-m", "bert_pretrain", *command], env=environment(), check=False
    ).returncode
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


def _lines(rows: Iterable[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def summary(part: str, points: Sequence[dict[str, Any]], curve: Path) -> str:
    """Return what a curve shows, a line for each number of labels."""
    by_place = {(point["num_per_class"], point["arm"]): Point(**point) for point in points}
    counts = list(dict.fromkeys(count for count, _ in by_place))
    lines = [f"\n{part}: accuracy with few labels ({curve / 'label_efficiency.png'})"]
    for count in counts:
        tuned, frozen, scratch, floor = (
            by_place[count, arm] for arm in ("fine_tuned", "frozen_probe", "from_scratch", "floor")
        )
        assert tuned.difference is not None
        gain = format_interval(tuned.difference, tuned.difference_interval, sign="+")
        lines.append(
            f"  {count:>3} labels per class: from scratch {scratch.mean:.3f}, pretrained "
            f"{tuned.mean:.3f}: {gain}; frozen {frozen.mean:.3f}, {_FLOORS[part]} {floor.mean:.3f}"
        )
    return "\n".join(lines) + "\n"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
