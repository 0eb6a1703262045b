"""Data sets, classifiers, the loss of an update and the course of a training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from downstream_models import make_image_model, make_text_model, recipe_of, sentences, source_of
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    ResNetConfig,
    ResNetModel,
    TrainingArguments,
)

from bert_pretrain.downstream.data import (
    ImageDataset,
    LengthSampler,
    TextDataset,
    augmentation_of,
    tokenize,
)
from bert_pretrain.downstream.models import (
    ClassifierSource,
    default_learning_rate,
    load_text_tokenizer,
    longest_row,
    read_model_config,
)
from bert_pretrain.downstream.sources import open_splits
from bert_pretrain.downstream.tables import Texts
from bert_pretrain.downstream.tasks import Task, find_labels, find_task
from bert_pretrain.downstream.training import (
    ClassifierTrainer,
    Validation,
    as_is,
    predict_logits,
    train,
    training_arguments,
    window_loss,
)
from bert_pretrain.errors import InputError, TrainingError
from bert_pretrain.models.image_encoder import sincos_positions

SINGLE, MULTI, VALUES = "single_label_classification", "multi_label_classification", "regression"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_text_model(tmp_path_factory.mktemp("model"))


def test_batches_equal_those_of_the_tokenizer_also_of_a_subset(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    first, second = ["a value", "the list of names", "file"], ["index", "a", "the function returns"]
    rows = tokenize(Texts(first, second), np.array([0, 1, 2]), tokenizer, max_seq_length=64)
    expected = tokenizer(
        ["file", "a value"], ["the function returns", "index"], padding=True, return_tensors="pt"
    )
    for batch in (rows.__getitems__([2, 0]), rows.subset(np.array([1, 2, 0])).__getitems__([1, 2])):
        assert batch.pop("labels").tolist() == [2, 0]
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            assert torch.equal(values, expected[name])


def test_images_are_normalised() -> None:
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    rows = ImageDataset(pixels, np.array([1, 0]), mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    values = rows.__getitems__([1])["pixel_values"]
    expected = (pixels[1, 2, 3, 3] / 255 - 0.3) / 0.4
    assert values.shape == (1, 3, 4, 4) and float(values[0, 2, 3, 3]) == pytest.approx(
        expected, abs=1e-6
    )


def test_an_epoch_draws_every_row_once_in_batches_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=330)
    sampler = LengthSampler(lengths, batch_size=16, seed=3)
    epochs = [list(sampler) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] == list(LengthSampler(lengths, batch_size=16, seed=3))
    for order in epochs:
        assert sorted(order) == list(range(330))
        batches = [lengths[order[start : start + 16]] for start in range(0, 320, 16)]
        padded = sum(batch.max() * len(batch) for batch in batches)
        assert padded < 1.15 * sum(batch.sum() for batch in batches)  # unsorted it is 1.7 times
        means = [batch.mean() for batch in batches]
        assert means != sorted(means) and means != sorted(means, reverse=True)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, VALUES])
def test_the_loss_of_one_batch_is_that_of_the_stock_head(model: str, problem_type: str) -> None:
    torch.manual_seed(0)
    width = 1 if problem_type == VALUES else 3
    classifier = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=width, problem_type=problem_type
    ).eval()
    labels = {
        SINGLE: torch.tensor([0, 2]),
        MULTI: torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
        VALUES: torch.tensor([0.5, 2]),
    }
    outputs = classifier(
        input_ids=torch.tensor([[2, 7, 9, 3], [2, 8, 5, 3]]), labels=labels[problem_type]
    )
    torch.testing.assert_close(window_loss(outputs, labels[problem_type]), outputs.loss)


def updated(model: str, rows: TextDataset, folder: Path, **sizes: int) -> torch.nn.Module:
    labels = find_labels(["a", "b"], Task(), description="d")
    classifier = ClassifierSource(model, labels).build(0)
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    recipe = recipe_of(
        learning_rate=0.5, mixed_precision="no", warmup_ratio=0.0, max_grad_norm=0.0, **sizes
    )
    arguments = training_arguments(recipe, classifier, folder, num_updates=3, seed=1)
    arguments.optim = "sgd"  # AdamW would hide a wrong scale
    trainer = ClassifierTrainer(
        classifier,
        arguments,
        train_dataset=rows,
        data_collator=as_is,
        compute_loss_func=window_loss,
    )
    trainer.train()
    return classifier


def test_an_update_does_not_depend_on_how_its_rows_are_cut(model: str, tmp_path: Path) -> None:
    texts = sentences(
        14
    )  # an update of 8 rows and one of 6: the latter is cut into 2, 2, 2 or into 3 and 3 or 4 and 2
    tokenizer = AutoTokenizer.from_pretrained(model)
    labels = np.array([row["label"] == "good" for row in texts], dtype=np.int64)
    rows = tokenize(
        Texts([row["text"] for row in texts], None), labels, tokenizer, max_seq_length=32
    )
    whole = updated(model, rows, tmp_path, per_device_train_batch_size=8)
    for size, steps in ((2, 4), (4, 2)):
        cut = updated(
            model,
            rows,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        for (name, ours), theirs in zip(cut.named_parameters(), whole.parameters(), strict=True):
            # float32: other sums, and other padding
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=name)


def test_a_head_is_new_for_each_seed_and_the_encoder_is_the_pretrained_one(model: str) -> None:
    labels = find_labels(["a", "b"], Task(), description="d")
    first, again, other = (ClassifierSource(model, labels).build(seed) for seed in (1, 1, 2))
    plain = AutoModelForSequenceClassification.from_pretrained(model)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    for name, values in plain.bert.state_dict().items():
        assert torch.equal(values, first.bert.state_dict()[name])
    scratch = ClassifierSource(model, labels, from_scratch=True).build(1)
    assert not torch.equal(scratch.bert.pooler.dense.weight, first.bert.pooler.dense.weight)
    assert scratch.config.to_dict() == first.config.to_dict()


def test_a_frozen_encoder_stays_and_what_it_lacks_is_trained(model: str, tmp_path: Path) -> None:
    BertForMaskedLM.from_pretrained(model).save_pretrained(tmp_path / "mlm")  # has no pooler
    labels = find_labels(["a", "b"], Task(), description="d")
    frozen = ClassifierSource(str(tmp_path / "mlm"), labels, freeze_encoder=True).build(0)
    trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trained == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


def test_what_a_frozen_encoder_lacks_learns_its_statistics_and_dropout_acts(
    model: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    encoder = ResNetModel(
        ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1])
    )
    encoder.save_pretrained(tmp_path / "resnet")
    state = load_file(tmp_path / "resnet/model.safetensors")
    lacking = "embedder.embedder.normalization"
    kept = {name: values for name, values in state.items() if not name.startswith(lacking)}
    save_file(kept, tmp_path / "resnet/model.safetensors", metadata={"format": "pt"})
    labels = find_labels([0, 1], Task(), description="d")
    frozen = ClassifierSource(str(tmp_path / "resnet"), labels, freeze_encoder=True).build(0)
    before = {name: values.clone() for name, values in frozen.state_dict().items()}
    frozen.train()
    frozen(pixel_values=torch.randn(4, 1, 32, 32))
    changed = {
        name
        for name, values in frozen.state_dict().items()
        if not torch.equal(values, before[name])
    }
    assert changed == {
        f"resnet.{lacking}.{name}"
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    texts = ClassifierSource(model, labels, freeze_encoder=True).build(0).train()
    first, second = (texts.bert(torch.tensor([[2, 7, 9, 3]])).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "distilbert"]
)
def test_the_longest_row_is_the_longest_that_the_model_computes(model: str, kind: str) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = AutoConfig.for_model(
        kind, vocab_size=50, max_position_embeddings=20, pad_token_id=1, **sizes
    )
    longest = longest_row(config, AutoTokenizer.from_pretrained(model))
    encoder = AutoModel.from_config(config).eval()
    with torch.no_grad():
        assert encoder(torch.full((1, longest), 5)).last_hidden_state.shape[1] == longest
        with pytest.raises((IndexError, RuntimeError)):
            encoder(torch.full((1, longest + 1), 5))


@pytest.mark.parametrize("kind", ["xlnet", "t5"])
def test_where_no_table_of_positions_limits_a_row_the_tokenizer_does(model: str, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model, model_max_length=77)
    assert longest_row(AutoConfig.for_model(kind, num_layers=1, n_layer=1), tokenizer) == 77


def test_the_rate_falls_with_the_width(model: str) -> None:
    config = read_model_config(model)
    for width, rate in ((768, 5e-5), (128, 5e-4), (256, 4.5e-4), (1024, 2.8125e-5)):
        config.hidden_size = width
        assert default_learning_rate(config) == pytest.approx(rate)


def test_training_has_a_least_and_a_largest_length() -> None:
    assert recipe_of(num_train_epochs=3, min_steps=10).num_updates(100) == 3 * 7
    assert recipe_of(num_train_epochs=3, min_steps=100).num_updates(100) == 100
    assert recipe_of(num_train_epochs=3, max_steps=5, min_steps=0).num_updates(100) == 5
    assert (
        recipe_of(num_train_epochs=3, min_steps=0, gradient_accumulation_steps=7).num_updates(100)
        == 3
    )


@pytest.mark.parametrize(
    ("updates", "asked", "expected"),
    [
        (7, 4, [2, 4, 6, 7]),
        (11, 3, [4, 8, 11]),
        (8, 4, [2, 4, 6, 8]),
        (9, 4, [3, 6, 9]),
        (3, 5, [1, 2, 3]),
        (5, 1, [5]),
    ],
)
def test_there_are_at_most_as_many_evaluations_as_asked_for_and_one_at_the_end(
    model: str, tmp_path: Path, updates: int, asked: int, expected: list[int]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = tokenize(
        Texts(["a value", "the list"], None), np.array([0, 1]), tokenizer, max_seq_length=32
    )
    source = ClassifierSource(model, find_labels(["a", "b"], Task(), description="d"))
    recipe = recipe_of(max_steps=updates, num_evaluations=asked, mixed_precision="no")
    validation = Validation(
        rows, lambda logits, references: {"accuracy": 0.5}, "accuracy", greater_is_better=True
    )
    trainer = train(
        source.build(0),
        rows,
        recipe,
        seed=0,
        scratch_folder=tmp_path / "scratch",
        validation=validation,
    )
    assert [row["step"] for row in trainer.state.log_history if "eval_accuracy" in row] == expected


def test_several_gpus_without_a_launcher_do_not_share_a_batch(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = ClassifierSource(model, find_labels(["a", "b"], Task(), description="d")).build(0)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 4))
    arguments = training_arguments(recipe_of(), classifier, tmp_path, num_updates=1, seed=0)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 16)


def test_a_tiny_task_is_learnt_and_nothing_is_left_on_disk(model: str, tmp_path: Path) -> None:
    texts = sentences(40)
    tokenizer = AutoTokenizer.from_pretrained(model)
    labels = np.array([row["label"] == "good" for row in texts], dtype=np.int64)
    rows = tokenize(
        Texts([row["text"] for row in texts], None), labels, tokenizer, max_seq_length=32
    )
    source = ClassifierSource(model, find_labels(["a", "b"], Task(), description="d"))
    recipe = recipe_of(learning_rate=5e-3, min_steps=60, mixed_precision="no")
    trainer = train(source.build(0), rows, recipe, seed=0, scratch_folder=tmp_path / "scratch")
    assert trainer.evaluate(rows)["eval_loss"] < 0.1
    assert not (tmp_path / "scratch").exists()


def test_classes_of_image_folders_are_matched_by_name(tmp_path: Path) -> None:
    model = make_image_model(tmp_path / "vit")
    for split, classes in (("train", ("ant", "bee", "cat")), ("test", ("bee", "cat"))):
        for name in classes:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(4):
                path = tmp_path / "images" / split / name / f"{number}.png"
                Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(path)
    data = source_of(
        dataset_name=str(tmp_path / "images"), test_split="test", validation_share=0.25
    )
    splits = open_splits(model, data, find_task("auto"), seed=0)
    assert splits.labels.names == ("ant", "bee", "cat")
    found = splits.rows["test"].labels
    assert found is not None and found.tolist() == [1] * 4 + [2] * 4
    (tmp_path / "images/test/bee").rename(tmp_path / "images/test/dog")
    with pytest.raises(InputError, match="'dog'"):
        open_splits(model, data, find_task("auto"), seed=0)


def test_a_class_that_training_lacks_is_none_of_its_numbers(tmp_path: Path) -> None:
    """Its name, 3, is also the number of the training class 5."""
    model = make_image_model(tmp_path / "vit")
    for split, classes in (("train", "1245"), ("test", "12345")):
        for name in classes:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = np.full((8, 8), 60 * number + int(name), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    data = source_of(
        dataset_name=str(tmp_path / "images"), test_split="test", validation_share=0.25
    )
    with pytest.raises(InputError, match="has the class '3', which is not among those of"):
        open_splits(model, data, find_task("auto"), seed=0)


def test_from_scratch_a_vit_begins_where_pretraining_does(tmp_path: Path) -> None:
    labels = find_labels(["a", "b"], Task(), description="d")
    source = ClassifierSource(make_image_model(tmp_path / "vit"), labels, from_scratch=True)
    positions = source.build(0).vit.embeddings.position_embeddings
    assert torch.allclose(positions[0], sincos_positions((2, 2), 32), atol=1e-6)


def test_from_scratch_a_bert_begins_where_pretraining_does(model: str) -> None:
    labels = find_labels(["a", "b"], Task(), description="d")
    table = ClassifierSource(model, labels, from_scratch=True).build(0).bert.embeddings
    waves = table.position_embeddings.weight.detach()
    squares = waves[:, 0::2] ** 2 + waves[:, 1::2] ** 2
    assert torch.allclose(squares, torch.full_like(squares, 2 * 0.02**2), rtol=1e-3)


def test_images_are_augmented_by_the_epoch_whatever_was_trained_before(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (10, 1, 8, 8), dtype=np.uint8)
    augmentation = augmentation_of("crop", (1, 8, 8), seed=0)
    assert augmentation is not None
    rows = ImageDataset(pixels, np.arange(10) % 2, mean=[0.3], std=[0.4], augmentation=augmentation)
    drawn: list[tuple[int, int]] = []
    draw = augmentation.draw

    def recorded(epoch: Any, places: Any, view: int) -> Any:
        drawn.extend((int(epoch), int(place)) for place in places)
        return draw(epoch, places, view)

    augmentation.draw = recorded  # type: ignore[method-assign]
    source = ClassifierSource(
        make_image_model(tmp_path / "vit"),
        find_labels([0, 1], Task(), description="d"),
    )
    recipe = recipe_of(
        num_train_epochs=3, min_steps=0, per_device_train_batch_size=4, mixed_precision="no"
    )
    for seed in (0, 1):
        drawn.clear()
        train(source.build(seed), rows, recipe, seed=seed, scratch_folder=tmp_path / "scratch")
        assert sorted(drawn) == [(epoch, place) for epoch in range(3) for place in range(10)]


def test_a_model_that_diverged_has_no_predictions(model: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = tokenize(
        Texts(["a value", "the list"], None), np.array([0, 1]), tokenizer, max_seq_length=32
    )
    source = ClassifierSource(model, find_labels(["a", "b"], Task(), description="d"))
    broken = source.build(0)
    torch.nn.init.constant_(broken.classifier.weight, math.nan)
    recipe = recipe_of(min_steps=1, num_train_epochs=1, mixed_precision="no")
    trainer = train(broken, rows, recipe, seed=0, scratch_folder=tmp_path / "scratch")
    with pytest.raises(TrainingError, match="`learning_rate`"):
        predict_logits(trainer, rows)


def test_token_types_that_a_model_does_not_know_are_left_out(tmp_path: Path) -> None:
    model = make_text_model(tmp_path / "model", type_vocab_size=1)
    tokenizer = load_text_tokenizer(model, read_model_config(model))
    assert "token_type_ids" not in tokenizer("one", "two")
    two_types = make_text_model(tmp_path / "two")
    assert "token_type_ids" in load_text_tokenizer(two_types, read_model_config(two_types))("a")
