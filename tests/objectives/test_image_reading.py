"""Objectives on images that are streamed, seen whole, or no squares: rows, workers and losses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from trainers import PASSES

from bert_pretrain.data.loader import evaluation_batches
from bert_pretrain.data.stream import Batch, Place
from bert_pretrain.images.augmentation import BOX, PRESETS, AugmentationRule
from bert_pretrain.images.collator import view_source
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.objectives.autoencoder import autoencoder_task, masked_autoencoder_task
from bert_pretrain.objectives.contrastive import contrastive_task
from bert_pretrain.objectives.interface import Task

SIZE = 8
COMMON = {"model_name_or_path": None, "dropout": 0.0, "seed": 3, "max_eval_rows": 0}
TRIPLET = {
    "margin": 1.0,
    "distance": "l2",
    "normalize": True,
    "negatives": "random",
    "reduction": "mean",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 2:1 in two classes; left and right of the centre square they are white."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 128, (24, 24, 48, 3), dtype=np.uint8)
    pixels[:, :, :12] = pixels[:, :, 36:] = 255
    for number, image in enumerate(pixels):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def open_photos(photos: Path, **options: Any) -> ImageCorpus:
    defaults = {"image_size": SIZE, "with_whole": True, "cache_dir": photos.parent / "cache"}
    defaults |= {"validation_share": 0.3, "seed": 3, "show_progress": False}
    return open_images(dataset_name=str(photos), **(defaults | options))


def make_task(
    kind: str, corpus: ImageCorpus, rule: AugmentationRule = PRESETS["simclr_small"]
) -> Task:
    common: dict[str, Any] = COMMON | {"config_name": "convnextv2-mini"}
    if kind == "denoising":
        return autoencoder_task(corpus, **common, embedding_dim=4, kind="mse", noise_std=0.3)
    if kind == "masked":
        common["config_name"] = "vit-tiny"
        return masked_autoencoder_task(corpus, **common, mask_ratio=0.5, normalize_target=True)
    own: dict[str, Any] = {"triplet": TRIPLET, "temperature": 0.2, "projection_dim": 8}
    return contrastive_task(corpus, rule, loss=kind, num_images=8, **own, **common)


def assert_equal(batch: Batch, other: Batch) -> None:
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("reading", ["cache", "stream"])
@pytest.mark.parametrize("kind", ["denoising", "masked", "triplet", "nt_xent"])
def test_a_batch_does_not_depend_on_how_it_is_made(photos: Path, kind: str, reading: str) -> None:
    stream = make_task(kind, open_photos(photos, reading=reading)).objective.training
    plans = [stream.plan(epoch).take(np.arange(3)) for epoch in (0, 1)]
    parts = [(epoch, np.arange(3), plan) for epoch, plan in enumerate(plans)]
    whole = stream.collator.collate(parts)
    for epoch, part in enumerate(parts):  # alone or with others
        cut = {name: value[3 * epoch : 3 * epoch + 3] for name, value in whole.items()}
        assert_equal(stream.collator.collate([part]), cut)
    loader = DataLoader(  # in a worker, to which the collator is sent
        [parts],  # type: ignore[arg-type]  # a list is a data set
        batch_size=None,
        collate_fn=stream.collator.collate,
        num_workers=1,
    )
    (made,) = loader
    assert_equal(made, whole)
    assert_equal(pickle.loads(pickle.dumps(stream.collator)).collate(parts), whole)


@pytest.mark.slow
def test_a_spawned_worker_streams_the_same_batches(photos: Path) -> None:
    stream = make_task("nt_xent", open_photos(photos, reading="stream")).objective.training
    parts, _ = stream.take(Place(), 12)
    loader = DataLoader(
        [parts],  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=stream.collator.collate,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    (made,) = loader
    assert_equal(made, stream.collator.collate(parts))


@pytest.mark.parametrize("kind", ["denoising", "masked"])
def test_an_autoencoder_streams_what_it_reads_from_a_cache(photos: Path, kind: str) -> None:
    tasks = [
        make_task(kind, open_photos(photos, reading=reading, with_whole=False))
        for reading in ("cache", "stream")
    ]
    streams = [task.objective.training for task in tasks]
    assert streams[0].identity == streams[1].identity  # either continues what the other began
    batches = [stream.collator.collate(stream.take(Place(), 10)[0]) for stream in streams]
    assert_equal(*batches)
    held_out = [next(evaluation_batches(task.objective.held_out, batch_size=5)) for task in tasks]
    assert_equal(*held_out)


@pytest.mark.parametrize("kind", ["triplet", "nt_xent"])
def test_views_of_streamed_images_come_from_the_full_resolution(photos: Path, kind: str) -> None:
    corpora = [open_photos(photos, reading=reading) for reading in ("cache", "stream")]
    cached, streamed = (make_task(kind, corpus).objective for corpus in corpora)
    parts, _ = cached.training.take(Place(), 12)
    of_cache, of_stream = (each.training.collator.collate(parts) for each in (cached, streamed))
    assert cached.training.identity != streamed.training.identity
    views = {"triplet": ["second_view"], "nt_xent": ["first_view", "second_view"]}[kind]
    assert ("pixels" in of_stream) == (kind == "triplet")
    for name in views:
        crops = of_stream[f"{name}_crop"]
        assert view_source(of_stream, name) is crops
        assert of_stream[name][:, BOX].tolist() == [[0, 0, 1, 1]] * 12
        # All else is drawn alike, and so are the boxes that the crops show.
        others = slice(BOX.stop, None)
        assert torch.equal(of_stream[name][:, others], of_cache[name][:, others])
        boxes = of_cache[name][:, BOX].double().tolist()
        files = sorted(photos.rglob("*.png"))
        for place, image in enumerate(of_cache["image_ids"].tolist()):
            left, top, width, height = boxes[place]
            edges = (48 * left, 24 * top, 48 * min(left + width, 1), 24 * min(top + height, 1))
            expected = Image.open(files[image]).resize(
                (SIZE, SIZE), Image.Resampling.BICUBIC, edges
            )
            assert np.array_equal(crops[place].permute(1, 2, 0), np.asarray(expected))


def whites(pixels: Tensor) -> float:
    return float((pixels > 200).float().mean())


@pytest.mark.parametrize("reading", ["cache", "stream"])
def test_views_see_the_edges_and_the_images_as_they_are_do_not(photos: Path, reading: str) -> None:
    rule = AugmentationRule(crop_area=(0.5, 1.0), crop_aspect=(2.0, 2.0))
    objective = make_task("nt_xent", open_photos(photos, reading=reading), rule).objective
    batch = next(evaluation_batches(objective.held_out, batch_size=7))
    assert whites(batch["pixels"]) == 0  # the centre squares
    first, second = objective.pretext.views(batch)
    # Half of each image is white, and crops of half of it and more see most of that.
    for view in (first, second):
        assert 0.2 < whites(view * 255) < 0.6


@pytest.mark.parametrize("reading", ["cache", "stream"])
@pytest.mark.parametrize("kind", ["denoising", "triplet", "nt_xent"])
def test_rectangles_are_trained_on_and_measured(
    photos: Path, kind: str, reading: str, tmp_path: Path
) -> None:
    corpus = open_photos(photos, image_size=(8, 12), reading=reading)
    task = make_task(kind, corpus)
    objective = task.objective
    torch.manual_seed(0)
    model = objective.build_model()
    parts, _ = objective.training.take(Place(), 6)
    (term,) = objective.loss_terms(model, objective.training.collator.collate(parts)).values()
    term.sum.backward()
    assert torch.isfinite(term.sum)
    with torch.no_grad():
        means = {"reconstruction_squared_error": 0.1}
        assert "knn_accuracy" in task.monitor.measures(model.eval(), means, **PASSES)
        task.monitor.show(model, tmp_path, step=1, is_last=False)
    processor = task.exporter.processor
    found = processor(Image.open(sorted(photos.rglob("*.png"))[0]), return_tensors="np")
    expected = corpus.pixels[np.array([0])].transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(values)[:, None, None] for values in (corpus.mean, corpus.std))
    np.testing.assert_allclose(found["pixel_values"], (expected - mean) / std, atol=1e-5)
