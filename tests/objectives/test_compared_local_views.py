"""Objectives with local views: what is in a batch, what is compared, and the loss of it."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from trainers import PASSES

from bert_pretrain.data.loader import evaluation_batches
from bert_pretrain.data.stream import Place
from bert_pretrain.images.augmentation import BOX, PRESETS
from bert_pretrain.images.collator import view_source
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.losses.contrastive import local_nt_xent_loss, nt_xent_loss
from bert_pretrain.objectives.contrastive import contrastive_task
from bert_pretrain.objectives.interface import Task

SIZE, LOCAL = 16, (8, 8)
NUM_LOCAL = 2
NAMES = ("local_view_1", "local_view_2")
TRIPLET = {
    "margin": 1.0,
    "distance": "l2_squared",
    "normalize": True,
    "negatives": "random",
    "reduction": "mean",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 2:1 in two classes."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 48, 96, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def open_photos(photos: Path, reading: Any) -> ImageCorpus:
    return open_images(
        dataset_name=str(photos),
        image_size=SIZE,
        reading=reading,
        with_whole=True,
        cache_dir=photos.parent / "cache",
        validation_share=0.3,
        seed=3,
        show_progress=False,
    )


def make_task(kind: Any, corpus: ImageCorpus, **others: Any) -> Task:
    options: dict[str, Any] = {"num_local_views": NUM_LOCAL, "triplet": TRIPLET, "num_images": 8}
    options |= {"temperature": 0.2, "projection_dim": 8, "seed": 3, "max_eval_rows": 0}
    options |= {"config_name": "convnextv2-mini", "model_name_or_path": None, "dropout": 0.0}
    return contrastive_task(corpus, PRESETS["simclr"], loss=kind, **(options | others))


@pytest.mark.parametrize("kind", ["triplet", "nt_xent"])
def test_local_views_of_few_pixels_are_warned_of_at_the_start(photos: Path, kind: str) -> None:
    corpus = open_photos(photos, "cache")

    def said(**others: Any) -> list[str]:
        messages = make_task(kind, corpus, **others).monitor.warnings({"step": 0})
        return [message for message in messages if "local views" in message]

    assert said() == said(num_local_views=0) == []
    assert "local views have 7 x 8 pixels" in said(wanted_local_size=(7, 8))[0]


@pytest.mark.parametrize("reading", ["cache", "stream"])
@pytest.mark.parametrize("kind", ["triplet", "nt_xent"])
def test_a_batch_does_not_depend_on_how_it_is_made(photos: Path, kind: str, reading: str) -> None:
    stream = make_task(kind, open_photos(photos, reading)).objective.training
    parts = [(epoch, np.arange(3), stream.plan(epoch).take(np.arange(3))) for epoch in (0, 1)]
    collator = pickle.loads(pickle.dumps(stream.collator))  # as a worker gets it
    together, alone = collator.collate(parts), [stream.collator.collate([part]) for part in parts]
    assert {*NAMES, "local_negative_offsets"} < together.keys()
    for name, value in together.items():
        assert torch.equal(value, torch.cat([batch[name] for batch in alone])), name


def test_streamed_local_views_come_from_the_full_resolution_and_are_small(photos: Path) -> None:
    cached, streamed = (
        make_task("nt_xent", open_photos(photos, reading)).objective.training
        for reading in ("cache", "stream")
    )
    parts, _ = cached.take(Place(), 12)
    of_cache, of_stream = (each.collator.collate(parts) for each in (cached, streamed))
    files = sorted(photos.rglob("*.png"))
    assert "pixels" not in of_stream
    for name in NAMES:
        crops = view_source(of_stream, name)
        assert crops.shape == (12, 3, *LOCAL)
        for place, image in enumerate(of_cache["image_ids"].tolist()):
            left, top, width, height = of_cache[name][place, BOX].double().tolist()
            edges = (96 * left, 48 * top, 96 * min(left + width, 1), 48 * min(top + height, 1))
            expected = Image.open(files[image]).resize(LOCAL, Image.Resampling.BICUBIC, edges)
            assert np.array_equal(crops[place].permute(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("reading", ["cache", "stream"])
def test_the_first_local_views_come_before_the_second(photos: Path, reading: str) -> None:
    objective = make_task("nt_xent", open_photos(photos, reading)).objective
    pretext: Any = objective.pretext
    batch = next(evaluation_batches(objective.held_out, batch_size=7))
    views = pretext.local_views(batch)
    assert views.shape == (NUM_LOCAL * 7, 3, *LOCAL)
    alone = pretext.local.augmentation.apply(view_source(batch, NAMES[1]) / 255, batch[NAMES[1]])
    torch.testing.assert_close(views[7:], alone)


def rows(num_images: int, num_views: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_images, num_views, 5, generator=generator)


def test_nt_xent_is_the_mean_over_all_pairs(photos: Path) -> None:
    task = make_task("nt_xent", open_photos(photos, "cache"), num_images=6)
    pretext: Any = task.objective.pretext
    embeddings, ids = rows(6, 2 + NUM_LOCAL), torch.arange(6)
    term = pretext.joint_terms(embeddings, [{"image_ids": ids}])["contrastive"]
    views = embeddings[:, :2]
    compared: Any = {"view_ids": ids, "candidate_ids": ids, "temperature": 0.2}
    of_views, num_correct = nt_xent_loss(views, views, **compared)
    of_local, num_found = local_nt_xent_loss(embeddings[:, 2:], views, views, **compared)
    # 2 pairs of views and 2 * 2 of a local view with one of them, for an image.
    torch.testing.assert_close(term.sum, (of_views + of_local) / 6)
    torch.testing.assert_close(term.metrics["global_loss"], of_views / 2)
    assert term.metrics["accuracy"] == num_correct / 2
    assert term.metrics["local_accuracy"] == num_found / 4


@pytest.mark.parametrize("negatives", ["random", "semi_hard", "hard", "all"])
@pytest.mark.parametrize("reduction", ["mean", "mean_positive"])
def test_triplets_of_local_views_are_formed_as_the_others(
    photos: Path, negatives: str, reduction: str
) -> None:
    corpus = open_photos(photos, "cache")
    options = {"negatives": negatives, "reduction": reduction, "normalize": False}
    pretext: Any = make_task("triplet", corpus, triplet=TRIPLET | options).objective.pretext
    embeddings = rows(5, 2 + NUM_LOCAL)
    offsets = torch.arange(5 * (1 + NUM_LOCAL)).view(5, -1)
    batch = {"image_ids": torch.arange(5), "negative_offset": offsets[:, 0]}
    batch["local_negative_offsets"] = offsets[:, 1:]
    term = pretext.joint_terms(embeddings, [batch])["contrastive"]
    losses: list[float] = []
    for i in range(5):
        e1 = embeddings[i, 0]
        others = [embeddings[j, 0] for j in range(5) if j != i]
        apart = [float((e1 - other).square().sum()) for other in others]
        for number in range(1 + NUM_LOCAL):
            together = float((e1 - embeddings[i, 1 + number]).square().sum())
            farther = [distance for distance in apart if distance > together]
            chosen = {
                "random": [apart[int(offsets[i, number]) % 4]],
                "semi_hard": [min(farther) if farther else max(apart)],
                "hard": [min(apart)],
                "all": apart,
            }[negatives]
            losses += [max(together - distance + 1, 0) for distance in chosen]
    active = sum(loss > 0 for loss in losses)
    mean = sum(losses) / (len(losses) if reduction == "mean" else active)
    assert float(term.sum) / 5 == pytest.approx(mean, rel=1e-5)
    assert float(term.metrics["active_share"]) / 5 == pytest.approx(active / len(losses))


def test_each_local_view_is_drawn_a_negative_of_its_own(photos: Path) -> None:
    stream = make_task("triplet", open_photos(photos, "cache")).objective.training
    parts, _ = stream.take(Place(), 16)
    batch = stream.collator.collate(parts)
    offsets = torch.cat([batch["negative_offset"][:, None], batch["local_negative_offsets"]], dim=1)
    assert offsets.shape == (16, 1 + NUM_LOCAL) and offsets.min() >= 0
    assert len(offsets.unique()) == offsets.numel()


@pytest.mark.parametrize("kind", ["triplet", "nt_xent"])
def test_all_views_are_embedded_in_one_call_and_told_apart(photos: Path, kind: str) -> None:
    objective = make_task(kind, open_photos(photos, "cache")).objective
    pretext: Any = objective.pretext
    parts, _ = objective.training.take(Place(), 4)
    batch = objective.training.collator.collate(parts)
    calls: list[dict[str, Tensor]] = []

    def model(**inputs: Tensor) -> SimpleNamespace:
        calls.append(inputs)
        means = [value.mean(dim=(1, 2, 3)) for value in inputs.values()]
        return SimpleNamespace(projections=torch.cat(means)[:, None])

    found = pretext.rows(model, batch)
    assert len(calls) == 1 and found.shape == (4, 2 + NUM_LOCAL, 1)
    expected = [
        *(pretext.scale.normalize(view) for view in pretext.views(batch)),
        *pretext.scale.normalize(pretext.local_views(batch)).chunk(NUM_LOCAL),
    ]
    for number, view in enumerate(expected):
        torch.testing.assert_close(found[:, number, 0], view.mean(dim=(1, 2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["triplet", "nt_xent"])
def test_pictures_and_measures_come_as_without_local_views(
    photos: Path, kind: str, tmp_path: Path
) -> None:
    task = make_task(kind, open_photos(photos, "stream"))
    torch.manual_seed(0)
    model = task.objective.build_model()
    alone = make_task(kind, open_photos(photos, "stream"), num_local_views=0)
    alone.objective.build_model()
    assert task.objective.flops_per_image > 1.1 * alone.objective.flops_per_image
    with torch.no_grad():
        measured = task.monitor.measures(model.eval(), {}, **PASSES)
        task.monitor.show(model, tmp_path, step=1, is_last=False)
        assert measured == alone.monitor.measures(model, {}, **PASSES)
    assert list(tmp_path.rglob({"triplet": "triplets.png", "nt_xent": "views.png"}[kind]))
