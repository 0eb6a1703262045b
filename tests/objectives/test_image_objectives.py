"""Claims about image objectives without a run: their rows, workers, measures and small batches."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader
from trainers import PASSES

from bert_pretrain.data.loader import evaluation_batches
from bert_pretrain.data.random import Purpose, uniform
from bert_pretrain.data.stream import Batch, Place
from bert_pretrain.errors import InputError, TrainingError
from bert_pretrain.images.augmentation import PRESETS
from bert_pretrain.images.collator import EVALUATION_EPOCH
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.objectives import autoencoder, contrastive_pictures, pca_baseline
from bert_pretrain.objectives.autoencoder import (
    autoencoder_task,
    draw_patches,
    masked_autoencoder_task,
)
from bert_pretrain.objectives.contrastive import contrastive_task
from bert_pretrain.objectives.interface import Task
from bert_pretrain.training.held_out import held_out_means

ENCODER = {"config_name": "vit-tiny", "model_name_or_path": None, "dropout": 0.0}
ROWS = {"seed": 3, "max_eval_rows": 0}
TRIPLET = {
    "margin": 1.0,
    "distance": "l2",
    "normalize": True,
    "negatives": "random",
    "reduction": "mean",
}
KINDS = ("denoising", "masked", "triplet", "nt_xent")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ImageCorpus:
    """40 images of 8 x 8 x 3 in two classes, mapped from a file."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return open_images(
        dataset_name=str(folder / "photos"),
        validation_share=0.3,
        seed=3,
        cache_dir=folder / "cache",
        show_progress=False,
    )


def make_task(kind: str, corpus: ImageCorpus, /, **overrides: Any) -> Task:
    common = ENCODER | ROWS
    if kind == "denoising":
        own = {"embedding_dim": 4, "kind": "mse", "noise_std": 0.3}
        return autoencoder_task(corpus, **(common | own | overrides))
    if kind == "masked":
        own = {"mask_ratio": 0.5, "normalize_target": True}
        return masked_autoencoder_task(corpus, **(common | own | overrides))
    own = {"loss": kind, "triplet": TRIPLET, "temperature": 0.2, "projection_dim": 8}
    own["num_images"] = 8
    return contrastive_task(corpus, PRESETS["simclr_small"], **(common | own | overrides))


def assert_equal(batch: Batch, other: Batch) -> None:
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_across_epochs_is_that_of_its_parts(corpus: ImageCorpus, kind: str) -> None:
    stream = make_task(kind, corpus).objective.training
    plans = [stream.plan(epoch).take(np.arange(3)) for epoch in (0, 1)]
    parts = [(epoch, np.arange(3), plan) for epoch, plan in enumerate(plans)]
    whole = stream.collator.collate(parts)
    for epoch, part in enumerate(parts):
        cut = {name: value[3 * epoch : 3 * epoch + 3] for name, value in whole.items()}
        assert_equal(stream.collator.collate([part]), cut)
    assert stream.collator.num_units(whole) == 6
    assert stream.collator.unit == "images"
    images = np.concatenate([plan.images for plan in plans])
    expected = corpus.pixels[images].transpose(0, 3, 1, 2)
    assert np.array_equal(whole["pixels"].numpy(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["denoising", "nt_xent"])
def test_a_spawned_worker_makes_the_same_batches(corpus: ImageCorpus, kind: str) -> None:
    stream = make_task(kind, corpus).objective.training
    parts, _ = stream.take(Place(), 40)
    loader = DataLoader(
        [parts[:1], parts],  # type: ignore[arg-type]  # a list is a data set
        batch_size=None,
        collate_fn=stream.collator.collate,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    for batch, expected in zip(loader, (parts[:1], parts), strict=True):
        assert_equal(batch, stream.collator.collate(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_is_sent_no_pixels(corpus: ImageCorpus, kind: str) -> None:
    stream = make_task(kind, corpus).objective.training
    sent = pickle.dumps(stream.collator)
    assert corpus.pixels[7].tobytes() not in sent
    parts, _ = stream.take(Place(), 8)
    assert_equal(pickle.loads(sent).collate(parts), stream.collator.collate(parts))


def test_held_out_images_are_drawn_for_alike_in_every_evaluation(corpus: ImageCorpus) -> None:
    held_out = make_task("nt_xent", corpus).objective.held_out
    first, again = (list(evaluation_batches(held_out, batch_size=5)) for _ in range(2))
    for batch, other in zip(first, again, strict=True):
        assert_equal(batch, other)
    shown = torch.cat([batch["image_ids"] for batch in first])
    assert sorted(shown.tolist()) == corpus.validation_images.tolist()


def test_patch_ranks_are_float32_and_order_patches_as_float64_keys_do() -> None:
    images, num_patches = np.arange(50), 196
    drawn = draw_patches(images, EVALUATION_EPOCH, seed=1, num_patches=num_patches)["patch_ranks"]
    assert drawn.dtype is torch.float32
    keys = uniform(1, Purpose.PATCH_MASK, EVALUATION_EPOCH, images[:, None], np.arange(num_patches))
    assert np.array_equal(drawn.argsort(dim=1).numpy(), keys.argsort(axis=1))


@pytest.mark.parametrize("reduction", ["mean", "mean_positive"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_image_has_a_finite_loss_and_gradient(
    corpus: ImageCorpus, kind: str, reduction: str
) -> None:
    is_contrastive = kind in ("triplet", "nt_xent")
    overrides = {"triplet": TRIPLET | {"reduction": reduction}} if is_contrastive else {}
    objective = make_task(kind, corpus, **overrides).objective
    model = objective.build_model()
    (part,), _ = objective.training.take(Place(), 1)
    batch = objective.training.collator.collate([part])
    (term,) = objective.loss_terms(model.train(), batch).values()
    assert objective.target_counts(batch) == {objective.pretext.term: 1}
    term.sum.backward()
    for value in [term.sum, *term.metrics.values()]:
        assert torch.isfinite(value)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    if is_contrastive:  # without another image there is nothing to compare with
        assert term.sum == 0


def test_a_mean_over_active_triplets_is_zero_where_none_is(corpus: ImageCorpus) -> None:
    objective = make_task(
        "triplet", corpus, triplet=TRIPLET | {"reduction": "mean_positive"}
    ).objective
    objective.pretext = replace(objective.pretext, margin=1e-9)
    torch.manual_seed(0)
    model = objective.build_model().train()

    class Far(torch.nn.Module):
        """Puts both views of an image on one place and each image on a place of its own."""

        def forward(self, pixel_values: torch.Tensor) -> Any:
            half = 10 * torch.eye(len(pixel_values) // 2, requires_grad=True)
            return type("Output", (), {"projections": torch.cat([half, half])})

    parts, _ = objective.training.take(Place(), 4)
    (term,) = objective.loss_terms(
        Far().train(), objective.training.collator.collate(parts)
    ).values()
    assert term.sum == 0
    term.sum.backward()
    assert term.metrics["active_share"] == 0
    assert model.training


def test_the_floor_of_an_autoencoder_is_computed_once_for_a_corpus(
    corpus: ImageCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []
    fit = pca_baseline.fit_pca
    monkeypatch.setattr(
        pca_baseline, "fit_pca", lambda *arguments: fitted.append(arguments) or fit(*arguments)
    )
    found = [
        make_task("denoising", corpus, embedding_dim=dimension).monitor.baselines
        for dimension in (5, 5, 6)
    ]
    assert found[0] == found[1] and len(fitted) == 2
    assert found[0]["pca_reconstruction_loss"] > found[2]["pca_reconstruction_loss"]
    assert found[0]["pca_reconstruction_psnr"] < found[2]["pca_reconstruction_psnr"]


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_the_floor_is_that_of_principal_components_written_out(
    corpus: ImageCorpus, kind: str
) -> None:
    """By a singular value decomposition, on pixels; the PSNR is that of what can be seen."""
    task = make_task("denoising", corpus, kind=kind, embedding_dim=7, noise_std=0.4)
    train, held_out = (
        corpus.pixels[part].astype(np.float64) / 255
        for part in (corpus.train_images, task.objective.held_out.plan.images)
    )

    def rows(images: np.ndarray) -> np.ndarray:
        return ((images - corpus.mean) / corpus.std).reshape(len(images), -1)

    centre = rows(train).mean(axis=0)
    basis = np.linalg.svd(rows(train) - centre)[2][:7]

    def given_back(values: np.ndarray) -> np.ndarray:
        return centre + (values - centre) @ basis.T @ basis

    def seen(values: np.ndarray) -> np.ndarray:
        return np.clip(values.reshape(-1, 8, 8, 3) * corpus.std + corpus.mean, 0, 1)

    difference = given_back(rows(held_out)) - rows(held_out)
    expected = (difference**2 if kind == "mse" else np.abs(difference)).mean()
    psnr = -10 * np.log10(((seen(given_back(rows(held_out))) - held_out) ** 2).mean())
    found = task.monitor.baselines
    assert found["pca_reconstruction_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["pca_reconstruction_psnr"] == pytest.approx(psnr, rel=1e-5)
    # The picture's inputs have the noise of training, and PCA gets what the autoencoder gets.
    pca = task.objective.pretext.pca
    noise = pca.inputs.reshape(len(pca.inputs), -1) - rows(held_out)[: len(pca.inputs)]
    assert len(noise) == 8 and noise.std() == pytest.approx(0.4, rel=0.1)  # 1,536 draws
    np.testing.assert_allclose(  # bytes
        pca.outputs, seen(given_back(pca.inputs.reshape(8, -1))), atol=0.5 / 255 + 1e-5
    )


def test_the_psnr_of_an_autoencoder_is_that_of_all_pixels_as_they_are_seen(
    corpus: ImageCorpus,
) -> None:
    task = make_task("denoising", corpus, kind="l1")
    objective, model = task.objective, task.objective.build_model().eval()
    (batch,) = evaluation_batches(objective.held_out, batch_size=40)
    with torch.no_grad():
        (term,) = objective.loss_terms(model, batch).values()
        mean, std = (torch.from_numpy(v).view(-1, 1, 1) for v in (corpus.mean, corpus.std))
        images = batch["pixels"].double() / 255
        output = model(pixel_values=((images - mean) / std).float()).reconstruction
        error = ((output * std + mean).clamp(0, 1) - images).square().mean()
    means = {"reconstruction_squared_error": float(term.metrics["squared_error"]) / len(images)}
    measured = objective.pretext.measures(means)
    assert measured["reconstruction_psnr"] == pytest.approx(-10 * math.log10(error), rel=1e-5)
    assert pca_baseline.psnr(0.01) == pytest.approx(20) and pca_baseline.psnr(0) == 100


def test_measures_are_those_of_the_plain_encoder_and_warn_of_a_collapse(
    corpus: ImageCorpus, tmp_path: Path
) -> None:
    task = make_task("triplet", corpus)
    model = task.objective.build_model().eval()
    with torch.no_grad():
        beats: list[str] = []
        row = task.monitor.measures(model, {}, batch_size=5, beat=beats.append)
        assert len(beats) == 12  # 3 of 12 images, 3 of their second views, 6 of a bank of 28
        assert row == pytest.approx(task.monitor.measures(model, {}, **PASSES), rel=1e-4)
        assert row["encoder_dim"] == 128
        assert {"embedding_std", "effective_rank", "uniformity", "alignment"} < row.keys()
        for parameter in model.encoder.parameters():
            parameter.zero_()
        flat = task.monitor.measures(model, {}, **PASSES)
    means = {"contrastive_loss": 1.0, "contrastive_negative_distance": 0.0}
    assert flat["embedding_std"] == 0
    assert task.monitor.warnings({"step": 0, **flat, **means}) == []
    assert any(
        "margin" in message for message in task.monitor.warnings({"step": 5, **flat, **means})
    )
    with torch.no_grad():
        next(model.encoder.parameters()).fill_(torch.nan)
        with pytest.raises(TrainingError, match=r"12 of 12 images.*`learning_rate`"):
            task.monitor.measures(model, {}, **PASSES)


def projecting(project: Any) -> torch.nn.Module:
    """Return a model whose projections are a function of how many views it is given."""

    class Projections(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> Any:
            return SimpleNamespace(projections=project(len(pixel_values)))

    return Projections().eval()


@pytest.mark.parametrize("batch_size", [3, 5, 12])
def test_held_out_nt_xent_is_of_the_scale_of_training_whatever_the_batch(
    corpus: ImageCorpus, batch_size: int
) -> None:
    task = make_task("nt_xent", corpus, num_images=256)
    model = projecting(lambda n: torch.ones(n, 4))
    losses, chances, counts = [], [], []
    for batch in evaluation_batches(task.objective.held_out, batch_size=batch_size):
        (term,) = task.objective.loss_terms(model, batch).values()
        losses.append(float(term.sum))
        chances.append(float(term.metrics["chance_accuracy"]))
        counts.append(len(batch["image_ids"]))
    assert sum(losses) / 12 == pytest.approx(math.log(511), rel=1e-6)
    expected = sum(count / (2 * count - 1) for count in counts)
    assert sum(chances) == pytest.approx(expected, rel=1e-6)


def test_training_on_fewer_images_than_an_update_has_is_of_the_same_scale(
    corpus: ImageCorpus,
) -> None:
    objective = make_task("nt_xent", corpus, num_images=64).objective
    parts, _ = objective.training.take(Place(), 64)  # of 28 images, some three times
    batch = objective.training.collator.collate(parts)
    assert len(set(batch["image_ids"].tolist())) == 28
    model = projecting(lambda n: torch.ones(n, 4)).train()
    (term,) = objective.loss_terms(model, batch).values()
    assert float(term.sum) / 64 == pytest.approx(math.log(127), rel=1e-6)


@pytest.mark.parametrize("kind", ["triplet", "nt_xent"])
@pytest.mark.parametrize("batch_size", [11, 12])
def test_the_last_of_the_held_out_images_is_not_compared_with_nothing(
    corpus: ImageCorpus, kind: str, batch_size: int
) -> None:
    objective = make_task(kind, corpus, num_images=256).objective
    model = projecting(lambda n: torch.ones(n, 4))
    passes = {"batch_size": batch_size, "accelerator": Accelerator(cpu=True)}
    means = held_out_means(objective, objective.held_out, model, **passes)
    expected = {"triplet": 1, "nt_xent": math.log(511)}[kind]
    assert means["contrastive_loss"] == pytest.approx(expected, rel=1e-6)
    if kind == "nt_xent":
        assert means["contrastive_chance_accuracy"] == pytest.approx(1 / 23)


def test_processes_share_compared_rows_in_the_batches_of_one(corpus: ImageCorpus) -> None:
    held_out = make_task("nt_xent", corpus).objective.held_out  # 12 images

    def ids(batch_size: int, num_processes: int = 1, process_index: int = 0) -> list[list[int]]:
        share = {"num_processes": num_processes, "process_index": process_index}
        batches = evaluation_batches(held_out, batch_size=batch_size, are_compared=True, **share)
        return [batch["image_ids"].tolist() for batch in batches]

    for batch_size in (11, 5, 2):
        alone = ids(batch_size)
        assert all(len(batch) > 1 for batch in alone) and sum(map(len, alone)) == 12
        assert [alone[i::3] for i in range(3)] == [ids(batch_size, 3, i) for i in range(3)]


@pytest.mark.parametrize("kind", ["triplet", "nt_xent"])
def test_what_is_reached_by_chance_stands_beside_losses_and_accuracies(
    corpus: ImageCorpus, kind: str
) -> None:
    task = make_task(kind, corpus, num_images=256)
    model = task.objective.build_model().eval()
    with torch.no_grad():
        row = task.monitor.measures(model, {}, **PASSES)
    assert row["chance_contrastive_loss"] == pytest.approx(
        {"triplet": 1, "nt_xent": math.log(511)}[kind]
    )
    held_out = corpus.labels[corpus.validation_images]
    banked = np.bincount(corpus.labels[corpus.train_images])
    assert row["majority_knn_accuracy"] == (held_out == banked.argmax()).mean()


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        ({}, None),
        ({"margin": 2.5}, "2"),
        ({"margin": 2.0}, None),
        ({"margin": 50.0, "normalize": False}, None),
        ({"margin": 3.9, "distance": "l2_squared"}, None),
        ({"margin": 4.5, "distance": "l2_squared"}, "4"),
        ({"margin": 2.5, "distance": "cosine", "normalize": False}, "2"),
    ],
)
def test_a_margin_that_no_triplet_can_meet_is_announced_at_the_start(
    corpus: ImageCorpus, settings: dict[str, Any], largest: str | None
) -> None:
    monitor = make_task("triplet", corpus, triplet=TRIPLET | settings).monitor
    messages = monitor.warnings({"step": 0})
    assert len(messages) == (largest is not None)
    for message in messages:
        assert f"`margin` is {(TRIPLET | settings)['margin']:g}" in message
        assert f"no distance is above {largest}" in message
        assert ("`normalize`" in message) is settings.get("normalize", True)


def test_the_hardest_negatives_are_warned_of_at_the_start(corpus: ImageCorpus) -> None:
    monitor = make_task("triplet", corpus, triplet=TRIPLET | {"negatives": "hard"}).monitor
    (message,) = monitor.warnings({"step": 0})
    assert "equal embeddings" in message
    assert "use `negatives` semi_hard" in message


@pytest.mark.parametrize("kind", ["denoising", "masked"])
def test_an_autoencoder_is_given_no_advice_for_contrast(corpus: ImageCorpus, kind: str) -> None:
    flat = {"encoder_dim": 64, "embedding_std": 0.0, "effective_rank": 1.0, "uniformity": 0.0}
    messages = make_task(kind, corpus).monitor.warnings({"step": 5, **flat})
    assert messages
    for message in messages:
        assert "`learning_rate`" in message
        assert not any(f"`{flag}`" in message for flag in ("loss", "negatives", "normalize"))


def test_pictures_of_few_images_and_of_images_without_labels(
    corpus: ImageCorpus, tmp_path: Path
) -> None:
    unlabelled = replace(corpus, labels=np.full(40, -1), validation_images=np.arange(2))
    task = make_task("masked", unlabelled)
    model = task.objective.build_model().eval()
    with torch.no_grad():
        assert "knn_accuracy" not in task.monitor.measures(model, {}, **PASSES)
        _, rows = task.monitor.show(model, tmp_path, step=7, is_last=True)
    (folder,) = (tmp_path / row["folder"] for row in rows)
    assert {path.name for path in folder.iterdir()} == {"neighbours.png", "reconstructions.png"}


def pictured(
    kind: str, corpus: ImageCorpus, monkeypatch: pytest.MonkeyPatch, **overrides: Any
) -> tuple[Task, Any, dict[str, Any]]:
    """Return a task, its model, and what its picture is drawn from."""
    seen: dict[str, Any] = {}
    for module in (autoencoder, contrastive_pictures):
        monkeypatch.setattr(
            module,
            "image_rows",
            lambda rows, path, **texts: seen.update(rows=rows, path=path, **texts),
        )
    monkeypatch.setattr(
        contrastive_pictures,
        "draw_triplets",
        lambda triplets, path, **texts: seen.update(triplets=triplets, path=path, **texts),
    )
    task = make_task(kind, corpus, **overrides)
    torch.manual_seed(1)
    model = task.objective.build_model().eval()
    pretext = task.objective.pretext
    batch = next(evaluation_batches(task.objective.held_out, batch_size=pretext.num_drawn))
    with torch.no_grad():
        pretext.draw_picture(model, batch, Path("folder"))
    return task, model, seen | {"batch": batch}


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_reconstructions_stand_between_what_went_in_and_those_of_pca(
    corpus: ImageCorpus, monkeypatch: pytest.MonkeyPatch, noise_std: float
) -> None:
    task, model, seen = pictured("denoising", corpus, monkeypatch, noise_std=noise_std)
    rows = {row.label: row for row in seen["rows"]}
    noisy = ["with noise"] if noise_std else []
    assert list(rows) == ["image", *noisy, "autoencoder", "PCA"]
    pca, scale = task.objective.pretext.pca, task.objective.pretext.scale
    inputs = torch.from_numpy(pca.inputs).permute(0, 3, 1, 2)
    clean = seen["batch"]["pixels"].permute(0, 2, 3, 1).numpy() / 255
    np.testing.assert_allclose(rows["image"].images, clean, rtol=1e-6)
    given = rows["with noise"].images if noise_std else rows["image"].images
    np.testing.assert_allclose(given, scale.denormalize(inputs).permute(0, 2, 3, 1), atol=1e-6)
    with torch.no_grad():
        output = scale.denormalize(model(pixel_values=inputs).reconstruction)
    np.testing.assert_allclose(rows["autoencoder"].images, output.permute(0, 2, 3, 1), atol=1e-6)
    assert rows["PCA"].images is pca.outputs
    error = ((rows["PCA"].images[3] - clean[3]) ** 2).mean()
    assert rows["PCA"].notes[3] == f"{-10 * math.log10(error):.1f} dB"
    assert ("noise" in seen["title"]) == bool(noise_std) and "4 numbers" in seen["title"]


@pytest.mark.parametrize("normalize_target", [False, True])
def test_a_masked_picture_shows_what_is_seen_and_says_what_the_original_lends(
    corpus: ImageCorpus, monkeypatch: pytest.MonkeyPatch, normalize_target: bool
) -> None:
    _, model, seen = pictured(
        "masked", corpus, monkeypatch, mask_ratio=0.75, normalize_target=normalize_target
    )
    rows = [row.images for row in seen["rows"]]
    batch = seen["batch"]
    hidden = np.zeros((8, 8, 8), dtype=bool)  # 16 patches of 2 x 2 pixels
    for image, ranks in enumerate(batch["patch_ranks"].tolist()):
        for patch, rank in enumerate(ranks):
            y, x = divmod(patch, 4)
            hidden[image, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = rank >= 4
    colour = autoencoder._HIDDEN_COLOUR
    assert (rows[1][hidden] == colour).all()
    for row in rows[1:]:
        np.testing.assert_allclose(row[~hidden], rows[0][~hidden], atol=1e-6)
    assert "12 of 16 patches are hidden" in seen["title"]
    assert ("taken from the original" in seen["caption"]) == normalize_target
    assert len(rows) == (4 if normalize_target else 3)
    if not normalize_target:
        return
    # The third row is made of nothing that is hidden: with other hidden pixels it is the same.
    changed = dict(batch)
    noise = torch.randint(0, 256, batch["pixels"].shape, generator=torch.Generator().manual_seed(5))
    mask = torch.from_numpy(hidden)[:, None]
    changed["pixels"] = torch.where(mask, noise.to(torch.uint8), batch["pixels"])
    drawn: list[Any] = []
    monkeypatch.setattr(autoencoder, "image_rows", lambda rows, path, **_: drawn.extend(rows))
    pretext = make_task("masked", corpus, mask_ratio=0.75).objective.pretext
    with torch.no_grad():
        pretext.draw_picture(model, changed, Path("folder"))
    np.testing.assert_allclose(drawn[2].images, rows[2], atol=1e-5)
    assert np.abs(drawn[3].images - rows[3]).max() > 0.01


@pytest.mark.parametrize("negatives", ["random", "semi_hard", "hard", "all"])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_drawn_triplets_are_those_of_the_loss(
    corpus: ImageCorpus, monkeypatch: pytest.MonkeyPatch, negatives: str, distance: str
) -> None:
    rule = TRIPLET | {"negatives": negatives, "distance": distance, "normalize": False}
    task, model, seen = pictured("triplet", corpus, monkeypatch, triplet=rule)
    triplets, batch = seen["triplets"], seen["batch"]
    pretext = task.objective.pretext
    views = pretext.views(batch)
    with torch.no_grad():
        e1, e2 = pretext.rows(model, batch).unbind(dim=1)
        (term,) = task.objective.loss_terms(model, batch).values()
    for number in range(8):
        of = [
            next(
                place
                for place, image in enumerate(views[0])
                if np.array_equal(image.permute(1, 2, 0), found[number])
            )
            for found in (triplets.anchors, triplets.negatives)
        ]
        assert of[0] == number != of[1]
        rows = e1[number], e2[number], e1[of[1]]
        near, far = (
            float((rows[0] - other + 1e-6).norm())
            if distance == "l2"
            else 1 - float(torch.cosine_similarity(rows[0], other, dim=0))
            for other in rows[1:]
        )
        assert triplets.positive_distances[number] == pytest.approx(near, abs=1e-5)
        assert triplets.negative_distances[number] == pytest.approx(far, abs=1e-5)
    if negatives != "all":  # 12 images, 8 of which are drawn
        assert triplets.losses.sum() <= float(term.sum) + 1e-5
    assert seen["path"].name == "triplets.png" and "of 12 images" in seen["caption"]
    assert ("of length 1" in seen["caption"]) == pretext.normalize


def test_pairs_that_are_found_are_counted_as_the_accuracy_is(
    corpus: ImageCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model, seen = pictured("nt_xent", corpus, monkeypatch)
    with torch.no_grad():
        rows = task.objective.pretext.rows(model, seen["batch"])
    first, second = torch.nn.functional.normalize(rows, dim=2).unbind(dim=1)
    found = []
    for number, anchor in enumerate(first):
        own = float(anchor @ second[number])
        others = max(
            float(anchor @ view[other])
            for view in (first, second)
            for other in range(12)
            if other != number
        )
        found.append(own > others)
        if number < 8:
            mark = chr(0x2713 if own > others else 0x2717)
            assert seen["rows"][2].notes[number] == f"{own:.2f} | {others:.2f} {mark}"
    assert f"{sum(found)} of 12 pairs are found" in seen["caption"]
    assert [row.label for row in seen["rows"]] == ["image", "first view", "second view"]


def test_a_masked_autoencoder_refuses_images_that_are_no_squares(corpus: ImageCorpus) -> None:
    narrow = replace(corpus, pixels=corpus.pixels[:, :, :6])
    with pytest.raises(InputError, match=r"8 x 6 pixels.*`image_size` one number"):
        make_task("masked", narrow)


@pytest.mark.parametrize("kind", KINDS)
def test_useful_flops_grow_with_the_images_and_building_draws_no_number(
    corpus: ImageCorpus, kind: str
) -> None:
    objective = make_task(kind, corpus).objective
    torch.manual_seed(0)
    model = objective.build_model()
    after = torch.random.get_rng_state()
    torch.manual_seed(0)
    objective.make_model()
    assert torch.equal(after, torch.random.get_rng_state())
    assert model.training
    parts, _ = objective.training.take(Place(), 6)
    batch = objective.training.collator.collate(parts)
    assert objective.useful_flops(batch) == 6 * objective.flops_per_image > 0
