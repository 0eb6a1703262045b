"""Image objectives as real runs: any layout, any interruption, and the exported encoder."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import metrics, parted, run, run_here
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ResNetConfig

from bert_pretrain.commands.report import write_report
from bert_pretrain.evaluation.fonts import drawn_names

SMALL = (
    "--config_name convnextv2-mini --max_eval_rows 64 --max_steps 12 --logging_steps 1 "
    "--eval_steps 8"
)
COMMON = [
    *SMALL.split(),
    "--mixed_precision",
    "no",
    "--optimizer",
    "adamw",
    "--learning_rate",
    "5e-4",
]
OBJECTIVES = {
    "denoising": "--objective autoencoder --noise_std 0.3 --embedding_dim 8",
    "masked": "--objective autoencoder --mask_ratio 0.5 --config_name vit-tiny",
    "triplet": "--objective contrastive --loss triplet",
    "nt_xent": "--objective contrastive --loss nt_xent",
    "batch_norm": "--objective contrastive --loss nt_xent --config_name resnet --image_size 16",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
    ).save_pretrained(folder / "resnet")
    return folder


def flags_of(name: str, folder: Path, out: str) -> list[str]:
    return [
        *COMMON,
        *OBJECTIVES[name].split(),
        "--output_dir",
        str(folder / out),
        "--global_batch_size",
        "32",
    ]


def assert_equal_curves(one: Path, other: Path) -> None:
    for expected, found in zip(metrics(one), metrics(other), strict=True):
        assert expected.keys() == found.keys() and expected.pop("split") == found["split"]
        expected.pop("message", None)  # of a warning, with rounded numbers
        for key, value in expected.items():
            # A neighbour or a triplet may change sides where two distances tie to within rounding.
            tolerance = 0.02 if key.endswith(("accuracy", "active_share")) else 0
            assert found[key] == pytest.approx(value, rel=2e-5, abs=max(tolerance, 1e-6)), (
                key,
                expected["step"],
            )


# The gathered negatives of two processes are those of one; reconstruction does not couple images at
# all.
@pytest.mark.parametrize(
    "name",
    parted(
        ["triplet", "denoising", "masked", "nt_xent", "batch_norm"],
        slow=["nt_xent", "masked"],
    ),
)
def test_two_processes_train_as_one(folder: Path, name: str) -> None:
    run_here(folder, flags_of(name, folder, f"{name}-1"))
    run(folder, flags_of(name, folder, f"{name}-2"), num_processes=2)
    assert json.loads((folder / f"{name}-2/run.json").read_text())["config"]["num_processes"] == 2
    assert_equal_curves(folder / f"{name}-1", folder / f"{name}-2")


@pytest.mark.slow
def test_micro_batches_do_not_change_an_autoencoder(folder: Path) -> None:
    run_here(folder, flags_of("denoising", folder, "one"))
    run_here(folder, [*flags_of("denoising", folder, "four"), "--per_device_train_batch_size", "8"])
    assert (
        json.loads((folder / "four/run.json").read_text())["config"]["gradient_accumulation_steps"]
        == 4
    )
    assert_equal_curves(folder / "one", folder / "four")


@pytest.mark.parametrize("name", parted(["denoising", "nt_xent", "batch_norm"], slow=["nt_xent"]))
def test_a_resumed_run_is_bit_identical(folder: Path, name: str) -> None:
    flags = [
        *flags_of(name, folder, f"{name}-whole"),
        "--save_steps",
        "5",
        "--dataloader_num_workers",
        "1",
    ]
    run_here(folder, flags)
    whole = folder / f"{name}-whole"
    cut = shutil.copytree(whole, folder / f"{name}-cut")
    shutil.rmtree(cut / "checkpoints/step-000012")
    shutil.rmtree(cut / "final")
    run_here(folder, [*flags, "--output_dir", str(cut), "--resume_from_checkpoint", "latest"])
    assert metrics(cut) == metrics(whole)
    assert (cut / "pictures.jsonl").read_text() == (whole / "pictures.jsonl").read_text()
    expected = load_file(whole / "final/pretraining/model.safetensors")
    found = load_file(cut / "final/pretraining/model.safetensors")
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key


def write_photos(folder: Path) -> Path:
    """Write 40 JPEGs of two shapes, larger than what they become."""
    generator = torch.Generator().manual_seed(1)
    for number in range(40):
        sides = (48, 36, 3) if number % 2 else (40, 60, 3)
        pixels = torch.randint(0, 256, sides, generator=generator).to(torch.uint8).numpy()
        path = folder / "streamed" / ("dark", "light")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder / "streamed"


def streaming_flags(folder: Path, out: str) -> list[str]:
    write_photos(folder)
    flags = (
        f"--objective contrastive --loss nt_xent --image_reading stream --image_size 16 "
        f"--dataset_name {folder / 'streamed'} --validation_share 0.2 --output_dir {folder / out} "
        f"--global_batch_size 12 --max_steps 4 --eval_steps 0 --save_steps 2 --num_local_views 2"
    )
    return [*COMMON, *flags.split()]


@pytest.mark.slow
def test_a_streamed_run_is_bit_identical_on_any_workers_and_after_any_interruption(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = streaming_flags(folder, "workers")
    run_here(folder, [*flags, "--dataloader_num_workers", "2"])
    whole = folder / "workers"
    cut = shutil.copytree(whole, folder / "none")
    shutil.rmtree(cut / "checkpoints/step-000004")
    shutil.rmtree(cut / "final")
    resumed = ["--output_dir", str(cut), "--resume_from_checkpoint", "latest"]
    run_here(folder, [*flags, *resumed, "--dataloader_num_workers", "0"])
    assert metrics(cut) == metrics(whole)
    expected = load_file(whole / "final/pretraining/model.safetensors")
    for key, tensor in load_file(cut / "final/pretraining/model.safetensors").items():
        assert torch.equal(tensor, expected[key]), key
    with pytest.raises(SystemExit):
        run_here(folder, [*flags, *resumed, "--image_reading", "cache"])
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert any(row[:1] == ["images"] and "no:" in row for row in rows)


@pytest.mark.slow
def test_two_processes_stream_as_one(folder: Path) -> None:
    run_here(folder, streaming_flags(folder, "one-process"))
    run(folder, streaming_flags(folder, "two-processes"), num_processes=2)
    assert_equal_curves(folder / "one-process", folder / "two-processes")


@pytest.mark.slow
def test_a_contrastive_run_says_when_another_number_of_images_is_compared(folder: Path) -> None:
    flags = "--objective contrastive --max_steps 1 --max_eval_rows 16 --global_batch_size 32"
    flags += f" --config_name convnextv2-mini --mixed_precision no --output_dir {folder / 'notes'}"
    flags += " --margin 50"
    printed = run_here(folder, flags.split())
    changed = "--per_device_train_batch_size 16 --per_device_eval_batch_size 8 --max_steps 2"
    again = run_here(folder, [*flags.split(), *changed.split(), "--resume_from_checkpoint", "auto"])
    row = ["rows", "compared", "in", "evaluation", "256", "8", "yes"]
    assert "NOTE" in again and row in [line.split() for line in again.splitlines()]
    assert "compared in training" not in again  # all images of an update are compared in any case
    # A margin that cannot be met is said once, with its reason, and is no collapse.
    (warning,) = [row for row in metrics(folder / "notes") if row["split"] == "warning"]
    assert warning["step"] == 0
    assert (
        "--margin is 50" in warning["message"] and "above 2 (--distance l2)" in warning["message"]
    )
    assert f"WARNING: {warning['message']}" in printed
    assert warning["message"] in (folder / "notes/final/README.md").read_text()
    assert html.escape(warning["message"]) in write_report(folder / "notes").read_text()


@pytest.mark.parametrize("name", parted(["triplet", "nt_xent"], slow=["nt_xent"]))
@pytest.mark.parametrize("num_processes", [1, 2])
def test_micro_batches_do_not_change_what_images_are_compared_with(
    folder: Path, name: str, num_processes: int
) -> None:
    whole = folder / f"{name}-at-once"
    if not whole.exists():
        run_here(folder, flags_of(name, folder, whole.name))
    cut = f"{name}-cut-{num_processes}"
    flags = [*flags_of(name, folder, cut), "--per_device_train_batch_size", "5"]
    run(folder, flags, num_processes=num_processes)
    recorded = json.loads((folder / cut / "run.json").read_text())["config"]
    assert recorded["gradient_accumulation_steps"] == {1: 7, 2: 4}[num_processes]
    assert_equal_curves(whole, folder / cut)


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_classifier_and_trains_on(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        path = folder / "photos" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 128, (20, 24, 3), generator=generator) + 127 * (number % 2)
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
    flags = [
        *COMMON,
        "--objective",
        "contrastive",
        "--image_size",
        "16",
        "--max_steps",
        "3",
        "--global_batch_size",
        "8",
    ]
    printed = run_here(folder, [*flags, "--dataset_name", "photos", "--output_dir", "first"])
    assert "dark 20, light 20" in printed
    processor = AutoImageProcessor.from_pretrained(folder / "first/final")
    model = AutoModelForImageClassification.from_pretrained(folder / "first/final", num_labels=2)
    pixel_values = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    assert model(pixel_values).logits.shape == (1, 2)
    continued = ["--model_name_or_path", "first/final", "--output_dir", "second"]
    run_here(folder, [*flags, "--dataset_name", "photos", *continued])
    last, first = metrics(folder / "first")[-1], metrics(folder / "second")[0]
    assert first["contrastive_loss"] == pytest.approx(last["contrastive_loss"], rel=1e-6)


def test_ten_scans_of_twelve_bits_in_chinese_classes_are_learnt_and_published(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(10):
        path = folder / "scans" / ("猫", "犬")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = generator.integers(0, 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(levels).save(path)
    flags = "--objective contrastive --dataset_name scans --max_steps 2 --eval_steps 1 "
    flags += "--global_batch_size 8 --output_dir scanned"
    printed = run_here(folder, [*COMMON, *flags.split()])
    assert "10 (8 training, 2 held out)" in printed
    assert "grey levels      0:4095 of images of more than 8 bits become 0:255 (--" in printed
    final = folder / "scanned/final"
    assert AutoImageProcessor.from_pretrained(final).pixel_range == [0, 4095]
    assert "levels = (np.asarray(image, dtype=np.float32) - 0) * (255 / 4095)" in (
        final / "README.md"
    ).read_text(encoding="utf-8")
    note = drawn_names(("犬", "猫")).note  # where no font has the characters
    assert not note or printed.count(note) == 1


@pytest.mark.slow
def test_a_collapse_is_announced_with_its_cause(folder: Path) -> None:
    # The hardest negatives, squared distances and too high a rate: the way to the trivial solution.
    flags = (
        "--objective contrastive --negatives hard --distance l2_squared --learning_rate 0.03 "
        "--max_steps 40"
    )
    printed = run_here(
        folder, [*COMMON, *flags.split(), "--global_batch_size", "64", "--output_dir", "collapsed"]
    )
    assert "WARNING: the triplet loss" in printed
    rows = [row for row in metrics(folder / "collapsed") if row["split"] == "warning"]
    assert rows and all(f"WARNING: {row['message']}" in printed for row in rows)
    card = (folder / "collapsed/final/README.md").read_text()
    assert all(row["message"] in card for row in rows)
    page = write_report(folder / "collapsed").read_text()
    assert "<h2>Warnings</h2>" in page and "stuck at its margin" in page
    assert "--negatives semi_hard" in printed
