"""The variants of fine-tuning: the first is the package's, and no task chooses for itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from downstream_models import make_text_model, recipe_of, sentences, write_rows
from runs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import finetuning_variants as variants

from bert_pretrain.downstream.models import ClassifierSource
from bert_pretrain.downstream.training import predict_logits, train
from bert_pretrain.evaluation.probes import fit_probe


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> variants.Pool:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("variants")
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = make_text_model(folder / "model", **plain)
    rows = write_rows(folder / "rows.jsonl", sentences(1080))
    return variants.open_pool("words", model, rows)


def source_of(pool: variants.Pool) -> ClassifierSource:
    return ClassifierSource(pool.model, pool.splits.labels, max_seq_length=64, pad_token_id=0)


def test_rows_that_judge_are_not_learnt_from(pool: variants.Pool) -> None:
    texts = pool.splits.texts
    assert (len(texts["test"].first), len(texts["train"].first)) == (1000, 80)
    everything = sorted(texts["test"].first + texts["train"].first)
    assert everything == sorted(row["text"] for row in sentences(1080))


def test_the_first_variant_trains_as_the_package_does(pool: variants.Pool, tmp_path: Path) -> None:
    rows, test = (pool.splits.rows[name] for name in ("train", "test"))
    some = rows.subset(np.arange(40))
    recipe = recipe_of(min_steps=30, learning_rate=0.005)
    trainer = train(
        source_of(pool).build(7), some, recipe, seed=7, scratch_folder=tmp_path / "scratch"
    )
    expected = predict_logits(trainer, test)
    base = replace(variants.VARIANTS["base"], min_steps=30, rate=10)
    model = variants.finetune(source_of(pool), some, base, seed=7)
    with torch.no_grad():
        fed = torch.from_numpy(variants.features(model, test, base))
        found = model.classifier(fed).numpy()
    assert expected.std(axis=0).min() > 0.1  # it has learnt something
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_trains(pool: variants.Pool, name: str) -> None:
    variant = replace(variants.VARIANTS[name], min_steps=2)
    rows = pool.splits.rows["train"].subset(np.arange(12))
    model = variants.finetune(source_of(pool), rows, variant, seed=1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 0 <= variants.accuracy(model, pool.splits.rows["train"], variant) <= 1


@pytest.mark.parametrize("reading", ["cls", "mean", "both"])
def test_a_head_that_begins_as_a_probe_predicts_what_the_probe_does(
    pool: variants.Pool, reading: str
) -> None:
    rows, test = (pool.splits.rows[name] for name in ("train", "test"))
    variant = variants.Variant(reading=reading, head="probe")
    model = source_of(pool).build(0)
    variants.begin(model, rows, variant, seed=0)
    fed, test_fed = (variants.features(model, part, variant) for part in (rows, test))
    probe, *_ = fit_probe(fed, rows.labels, seed=0)
    expected = float((probe.predict(test_fed) == test.labels).mean())
    assert variants.accuracy(model, test, variant) == pytest.approx(expected, abs=0.002)


def run(task: str, name: str, accuracy: float, **others: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "task": task,
        "variant": name,
        "labels": 16,
        "seed": 0,
        "accuracy": accuracy,
    } | others


def test_the_way_for_a_task_is_chosen_by_the_others() -> None:
    runs = [run(task, "base", 0.5, seed=seed) for task in "abc" for seed in (0, 1)]
    # On a itself R-Drop is the best, on the others the average.
    for seed in (0, 1):
        runs += [run("a", "R-Drop", 0.9 + 0.01 * seed, seed=seed)]
        runs += [run(task, "R-Drop", 0.4, seed=seed) for task in "bc"]
        runs += [run(task, "averaged", 0.6 + 0.02 * seed, seed=seed) for task in "abc"]
    found = variants.accuracies_of(runs)
    rows = [line.split(" | ") for line in variants.left_out_table(found).splitlines()[2:]]
    assert [row[2] for row in rows] == ["averaged", "R-Drop", "R-Drop"]
    assert rows[0][3].startswith("+0.110 [")
    table = variants.variants_table(found)
    assert "| averaged | a b c | +0.110 [" in table and "] | 6 | 0.014 |" in table
    # A trial that one of two lacks is left out of their difference alone.
    (line,) = [line for line in table.splitlines() if line.startswith("| R-Drop ")]
    assert line.split(" | ")[3] == "6"
    for fewer in (runs[:-1], runs[1:]):  # the average on c, and base on a
        table = variants.variants_table(variants.accuracies_of(fewer))
        (line,) = [line for line in table.splitlines() if line.startswith("| averaged ")]
        assert line.split(" | ")[3] == "5"
