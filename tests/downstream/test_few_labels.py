"""For few labels: heads that read the mean too, or begin as a probe, and averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from downstream_models import (
    make_image_model,
    make_text_model,
    recipe_of,
    sentences,
    source_of,
    write_rows,
)
from transformers import AutoModelForSequenceClassification, ResNetConfig, ResNetModel

from bert_pretrain.downstream.data import ImageDataset
from bert_pretrain.downstream.heads import begin_as_probe, last_layer, read_by
from bert_pretrain.downstream.labels import LabelSpace
from bert_pretrain.downstream.logistic import fit_probe
from bert_pretrain.downstream.models import ClassifierSource
from bert_pretrain.downstream.reading import settle_reading
from bert_pretrain.downstream.sources import Splits, open_splits
from bert_pretrain.downstream.tables import Texts
from bert_pretrain.downstream.tasks import find_task
from bert_pretrain.downstream.training import Validation, predict_logits, train

THREE = LabelSpace("single_label_classification", ("a", "b", "c"), {"a": 0, "b": 1, "c": 2})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return make_text_model(tmp_path_factory.mktemp("model") / "bert", **plain)


@pytest.fixture(scope="module")
def splits(model: str, tmp_path_factory: pytest.TempPathFactory) -> Splits:
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", sentences(120))
    return open_splits(model, source_of(train_file=rows), find_task("auto"), seed=0)


def classifiers(model: str, splits: Splits, **options: Any) -> ClassifierSource:
    options = {"reading": "cls_and_mean", "max_seq_length": 64, "pad_token_id": 0} | options
    return ClassifierSource(model, splits.labels, **options)


@torch.no_grad()
def test_the_head_reads_cls_and_the_mean_over_real_tokens_of_the_last_pretrained_layer(
    model: str, splits: Splits
) -> None:
    classifier = classifiers(model, splits).build(0)
    own = classifiers(model, splits, reading="own").build(0).eval()
    rows = splits.rows["train"]
    found = read_by(classifier.classifier, classifier, rows, batch_size=7)
    batch = rows.__getitems__(range(len(rows)))
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    states = own.bert(**inputs).last_hidden_state
    assert len(set(batch["attention_mask"].sum(dim=1).tolist())) > 3  # rows of several lengths
    for row, (state, mask) in enumerate(zip(states, batch["attention_mask"], strict=True)):
        both = state[0] + state[mask.bool()].mean(dim=0)
        expected = torch.tanh((both - both.mean()) / both.std(unbiased=False))
        np.testing.assert_allclose(found[row], expected.numpy(), atol=1e-5)


def test_stock_transformers_loads_what_reads_the_mean_and_training_keeps_it(
    model: str, splits: Splits, tmp_path: Path
) -> None:
    source = classifiers(model, splits)
    recipe = recipe_of(min_steps=20, learning_rate=5e-3)
    trainer = train(
        source.build(0), splits.rows["train"], recipe, seed=0, scratch_folder=tmp_path / "scratch"
    )
    logits = predict_logits(trainer, splits.rows["validation"])
    trainer.model.save_pretrained(tmp_path / "final")
    stock, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "final", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    batch = splits.rows["validation"].__getitems__(range(len(logits)))
    with torch.no_grad():
        again = stock.eval()(**batch).logits.numpy()
    np.testing.assert_allclose(again, logits, atol=1e-4)
    attention = stock.bert.encoder.layer[-1].attention.self
    assert not attention.query.weight.any() and not attention.key.weight.any()
    assert not torch.equal(attention.value.weight, torch.eye(32))  # the rest is trained
    # Another head on it, for other classes, needs no further layer.
    folder = str(tmp_path / "final")
    other = ClassifierSource(folder, THREE, reading="cls_and_mean", max_seq_length=64)
    assert other.has_new_head and other.config.num_hidden_layers == 3
    # With the same classes it goes on as it is.
    same = classifiers(folder, splits)
    assert not same.has_new_head and same.config.num_hidden_layers == 3


def test_an_encoder_that_is_frozen_stays_whatever_the_head_reads(
    model: str, splits: Splits
) -> None:
    classifier = classifiers(model, splits, freeze_encoder=True).build(0)
    trained = {name for name, weight in classifier.named_parameters() if weight.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("reading", "texts", "expected"),
    [
        ("auto", Texts(["a"], None), "cls_and_mean"),
        ("auto", Texts(["a"], ["b"]), "own"),
        ("auto", None, "own"),
        ("own", Texts(["a"], None), "own"),
        ("cls_and_mean", Texts(["a"], ["b"]), "cls_and_mean"),
    ],
)
def test_single_texts_are_read_by_their_mean_too_and_pairs_by_cls_alone(
    reading: str, texts: Texts | None, expected: str
) -> None:
    assert settle_reading(reading, texts) == expected


@pytest.mark.parametrize("reading", ["cls_and_mean", "own"])
def test_a_head_that_begins_as_a_probe_predicts_what_logistic_regression_does(
    model: str, splits: Splits, reading: str
) -> None:
    classifier = classifiers(model, splits, reading=reading).build(0)
    rows, test = (splits.rows[name] for name in ("train", "validation"))
    fed, test_fed = (
        read_by(classifier.classifier, classifier, r, batch_size=16) for r in (rows, test)
    )
    assert begin_as_probe(classifier, rows, seed=3, batch_size=16)
    probe, *_ = fit_probe(fed, rows.labels, seed=3)
    scores = classifier.classifier(torch.from_numpy(test_fed)).softmax(dim=-1)
    expected = probe.predict_proba(test_fed)
    np.testing.assert_allclose(scores.detach().numpy(), expected, atol=1e-4)
    assert expected.max() > 0.6


def test_a_class_without_a_row_begins_as_the_rarest(model: str, splits: Splits) -> None:
    classifier = ClassifierSource(model, THREE, reading="cls_and_mean", max_seq_length=64).build(0)
    rows = splits.rows["train"].subset(np.arange(40))
    assert set(rows.labels) == {0, 1}
    rows.labels = 2 * rows.labels  # a and c
    assert begin_as_probe(classifier, rows, seed=0, batch_size=16)
    assert not classifier.classifier.weight[1].any()
    assert classifier.classifier.bias[1] == classifier.classifier.bias.min()


def test_images_have_a_head_that_begins_as_a_probe_too(tmp_path: Path) -> None:
    source = ClassifierSource(make_image_model(tmp_path / "vit"), THREE)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 1, 8, 8), dtype=np.uint8)
    rows = ImageDataset(pixels, np.arange(30) % 3, mean=[0.3], std=[0.4])
    classifier = source.build(0)
    assert begin_as_probe(classifier, rows, seed=0, batch_size=8)
    with torch.no_grad():
        logits = classifier(pixel_values=rows.__getitems__(range(30))["pixel_values"]).logits
    fed = read_by(last_layer(classifier), classifier, rows, batch_size=8)
    probe, *_ = fit_probe(fed, rows.labels, seed=0)
    np.testing.assert_allclose(logits.softmax(-1).numpy(), probe.predict_proba(fed), atol=1e-4)


@pytest.mark.parametrize("kind", ["one class", "several labels", "values"])
def test_without_a_class_for_each_row_a_head_begins_at_random(
    model: str, splits: Splits, kind: str
) -> None:
    classifier = classifiers(model, splits).build(0)
    rows = splits.rows["train"].subset(np.arange(20))
    rows.labels = {
        "one class": np.zeros(20, np.int64),
        "several labels": np.ones((20, 2), np.float32),
        "values": np.ones(20, np.float32),
    }[kind]
    before = classifier.classifier.weight.clone()
    assert not begin_as_probe(classifier, rows, seed=0, batch_size=16)
    assert torch.equal(classifier.classifier.weight, before)


class Recorded:
    """Weights after each update of a training, by a hook on its optimiser."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[torch.Tensor] = []
        step = torch.optim.AdamW.step

        def recorded(optimizer: Any, *arguments: Any, **options: Any) -> Any:
            outcome = step(optimizer, *arguments, **options)
            self.weights.append(optimizer.param_groups[0]["params"][0].detach().clone())
            return outcome

        monkeypatch.setattr(torch.optim.AdamW, "step", recorded)


@pytest.mark.parametrize(("share", "num_averaged"), [(0.5, 5), (0.0, 1), (0.25, 3)])
def test_the_last_updates_are_averaged(
    model: str,
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    num_averaged: int,
) -> None:
    recorded = Recorded(monkeypatch)
    recipe = recipe_of(max_steps=10, learning_rate=5e-3, average_share=share)
    trainer = train(
        classifiers(model, splits).build(0),
        splits.rows["train"],
        recipe,
        seed=0,
        scratch_folder=tmp_path / "scratch",
    )
    assert len(recorded.weights) == 10 and trainer.has_averaged == (share > 0)
    expected = torch.stack(recorded.weights[-num_averaged:]).mean(dim=0)
    found = next(iter(trainer.model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("of_average", "is_kept"), [(0.4, False), (0.5, True), (0.6, True)])
def test_validation_rows_decide_between_the_average_and_the_best_update(
    model: str,
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_average: float,
    is_kept: bool,
) -> None:
    recorded = Recorded(monkeypatch)
    answers = iter([0.3, 0.5, 0.2, of_average])  # after updates 4, 8 and 10, and of the average
    trainer = train(
        classifiers(model, splits).build(0),
        splits.rows["train"],
        recipe_of(max_steps=10, num_evaluations=3, learning_rate=5e-3),
        seed=0,
        scratch_folder=tmp_path / "scratch",
        validation=Validation(
            splits.rows["validation"], lambda *_: {"accuracy": next(answers)}, "accuracy", True
        ),
    )
    assert trainer.has_averaged == is_kept and trainer.state.best_global_step == 8
    expected = torch.stack(recorded.weights[5:]).mean(dim=0) if is_kept else recorded.weights[7]
    found = next(iter(trainer.model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_weights_are_not_averaged_apart_from_the_statistics_of_their_batches(
    tmp_path: Path,
) -> None:
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"
    )
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    pixels = np.random.default_rng(0).integers(0, 255, (12, 1, 16, 16), dtype=np.uint8)
    trainer = train(
        ClassifierSource(str(tmp_path / "resnet"), THREE).build(0),
        ImageDataset(pixels, np.arange(12) % 3, mean=[0.3], std=[0.4]),
        recipe_of(max_steps=4),
        seed=0,
        scratch_folder=tmp_path / "scratch",
    )
    assert not trainer.has_averaged
