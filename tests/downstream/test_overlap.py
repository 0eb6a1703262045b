"""Rows that are trained and evaluated on alike are counted; a changed file is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downstream_models import make_image_model, make_text_model, sentences, source_of, write_rows
from PIL import Image

from bert_pretrain.__main__ import main
from bert_pretrain.downstream.sources import (
    Splits,
    describe_overlap,
    labelled_rows_sha256,
    open_splits,
    overlap_with_training,
)
from bert_pretrain.downstream.tasks import find_task


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def open_rows(model: str, **flags: Any) -> Splits:
    return open_splits(model, source_of(**flags), find_task("auto"), seed=0)


def test_texts_are_the_same_only_letter_for_letter_and_pairs_only_in_both_columns(
    model: str, folder: Path
) -> None:
    train = [("a b", "c"), ("a", "b"), ("x", "y"), ("x", "z")]
    test = [("a b", "c"), ("a", "b c"), ("A b", "c"), ("y", "x"), ("x", "y"), ("x", "y")]
    for name, pairs in (("train", train), ("test", test)):
        rows = [
            {"text": first, "text_pair": second, "label": i % 2}
            for i, (first, second) in enumerate(pairs)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
        write_rows(folder / f"single_{name}.jsonl", [row | {"text_pair": "same"} for row in rows])
    for prefix, expected in (("", 3), ("single_", 4)):
        files = {f"{name}_file": f"{prefix}{name}.jsonl" for name in ("train", "test")}
        splits = open_rows(model, validation_file=f"{prefix}train.jsonl", **files)
        overlap = overlap_with_training(splits)
        assert overlap["test"] == {"rows": 6, "also_training_rows": expected}
        assert overlap["validation"] == {"rows": 4, "also_training_rows": 4}
        described = describe_overlap(splits, overlap)
        assert described is not None and described.startswith(
            f"4 of the 4 validation text pairs and {expected} of the 6 test text pairs are "
            "training rows too"
        )


def test_images_are_the_same_if_all_pixels_are(folder: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (12, 8, 8), dtype=np.uint8)
    others = pixels[:6].copy()
    others[4:, 3, 3] ^= 1
    for split, images in (("train", pixels), ("test", others)):
        for number, image in enumerate(images):
            (folder / f"images/{split}/{'ab'[number % 2]}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"images/{split}/{'ab'[number % 2]}/{number}.png")
    splits = open_rows(
        make_image_model(folder / "vit"),
        dataset_name="images",
        test_split="test",
        validation_share=0.2,
    )
    # The rows held out for validation are no longer training rows, which may take some of the four
    # with them.
    held_out = {image.tobytes() for image in splits.rows["validation"].pixels}  # type: ignore[union-attr]
    expected = sum(image.tobytes() not in held_out for image in others[:4])
    overlap = overlap_with_training(splits)
    assert overlap["test"] == {"rows": 6, "also_training_rows": expected} and expected > 1
    assert overlap["validation"]["also_training_rows"] == 0
    assert f"{expected} of the 6 test images" in str(describe_overlap(splits, overlap))


def test_finetune_says_it_once_and_records_it(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sentences(24)
    write_rows(folder / "train.jsonl", rows)
    write_rows(
        folder / "dev.jsonl",
        [{"text": f"new {row['text']}", "label": row["label"]} for row in rows[:8]],
    )
    flipped = {"good": "bad", "bad": "good"}  # the labels do not matter
    write_rows(folder / "test.jsonl", [row | {"label": flipped[row["label"]]} for row in rows[:3]])
    flags = ["--model", model, "--train_file", "train.jsonl", "--validation_file", "dev.jsonl"]
    flags += ["--max_steps", "2", "--mixed_precision", "no"]
    assert (
        main(
            [
                "finetune",
                *flags,
                "--test_file",
                "test.jsonl",
                "--seeds",
                "1",
                "2",
                "--output_dir",
                "out",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert (
        printed.count("WARNING") == 1
        and "WARNING: 3 of the 3 test texts are training rows too" in printed
    )
    assert json.loads((folder / "out/results.json").read_text())["overlap_with_training"] == {
        "validation": {"rows": 8, "also_training_rows": 0},
        "test": {"rows": 3, "also_training_rows": 3},
    }
    assert "3 of the 3 test texts" in (folder / "out/final/README.md").read_text()
    assert main(["finetune", *flags, "--output_dir", "clean"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert "training rows" not in (folder / "clean/final/README.md").read_text()


CURVE = [
    "--suite",
    "label_efficiency",
    "--arms",
    "floor",
    "--num_labels",
    "4",
    "--seeds",
    "0",
    "--output_dir",
    "out",
]


def test_the_curve_says_it_of_the_rows_it_tests(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sentences(40)
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "test.jsonl", rows[:10])
    files = ["--train_file", "train.jsonl", "--test_file", "test.jsonl"]
    assert main(["evaluate", *CURVE, "--model", model, *files, "--max_test_rows", "6"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.count("WARNING") == 1 and "6 of the 6 test texts are training rows too" in printed
    )
    results = json.loads((folder / "out/label_efficiency.json").read_text())
    assert results["overlap_with_training"] == {"test": {"rows": 6, "also_training_rows": 6}}


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize("change", ["text", "label", "order"])
def test_a_measurement_of_other_rows_under_the_same_name_is_not_continued(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], name: str, change: str
) -> None:
    write_rows(folder / "train.jsonl", sentences(40))
    write_rows(folder / "test.jsonl", sentences(10, seed=1))
    command = [
        "evaluate",
        *CURVE,
        "--model",
        model,
        "--train_file",
        "train.jsonl",
        "--test_file",
        "test.jsonl",
    ]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    if change == "text":
        rows[3]["text"] += " indeed"
    elif change == "label":
        rows[3]["label"] = rows[4]["label"]
    else:
        rows[3], rows[5] = rows[5], rows[3]
    write_rows(folder / f"{name}.jsonl", rows)
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--seeds", "1"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert (
        f"another set of {'training' if name == 'train' else name} rows; pass a new --output_dir"
        in message
    )
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before


def test_a_measurement_of_another_revision_of_a_model_on_the_hub_is_not_continued(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    write_rows(folder / "train.jsonl", sentences(40))
    command = ["evaluate", *CURVE, "--model", "someone/model", "--train_file", "train.jsonl"]
    for revision in ("a" * 40, "b" * 40):
        # As a download leaves it: the model is in the cache, and main points to this revision.
        cached = folder / "hub/models--someone--model"
        shutil.copytree(model, cached / "snapshots" / revision)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs/main").write_text(revision)
        if revision.startswith("a"):
            assert main(command) == main(command) == 0
    with pytest.raises(SystemExit):
        main(command)
    assert "another revision of the model" in capsys.readouterr().err


def test_the_digest_of_rows_tells_classes_of_other_names(model: str, folder: Path) -> None:
    digests = set()
    for names in ("ab", "xy"):
        write_rows(
            folder / "train.jsonl",
            [row | {"label": names[i % 2]} for i, row in enumerate(sentences(20))],
        )
        splits = open_rows(model, train_file="train.jsonl")
        assert labelled_rows_sha256(splits, "train") == labelled_rows_sha256(splits, "train")
        digests |= {labelled_rows_sha256(splits, name) for name in ("train", "validation")}
    assert len(digests) == 4
