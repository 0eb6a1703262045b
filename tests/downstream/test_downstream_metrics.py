"""Metrics equal hand computations, and load without a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from bert_pretrain.downstream.metrics import (
    compute_metrics,
    is_better,
    load_metrics,
    offline_metric,
)
from bert_pretrain.errors import InputError

SINGLE, MULTI, VALUES = "single_label_classification", "multi_label_classification", "regression"


def of(name: str, predictions: list[Any], references: list[Any], **options: Any) -> float:
    metric = offline_metric(name, **options)
    assert isinstance(metric, evaluate.Metric)
    return float(metric.compute(predictions=predictions, references=references)[name])


def test_metrics_of_classes_equal_hand_computations() -> None:
    references, predictions = (
        [1, 1, 1, 0, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 1, 0, 1],
    )  # TP 3, FN 1, FP 1, TN 3
    assert of("accuracy", predictions, references) == 6 / 8
    assert of("f1", predictions, references) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert of("matthews_correlation", predictions, references) == pytest.approx(
        (3 * 3 - 1 * 1) / math.sqrt(4**4)
    )
    # Classes 0, 1, 2 have the F1 2/3, 4/5 and 0.
    assert of("f1_macro", [0, 1, 1, 0], [0, 1, 1, 2]) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert of("f1_micro", [0, 1, 1, 0], [0, 1, 1, 2]) == 3 / 4
    assert of("matthews_correlation", [1, 1], [0, 1]) == 0


def test_metrics_of_several_labels_equal_hand_computations() -> None:
    references, predictions = [[1, 0, 1], [0, 1, 0]], [[1, 0, 0], [0, 1, 1]]
    assert of("accuracy", predictions, references, is_multi_label=True) == 0
    assert of("f1_micro", predictions, references, is_multi_label=True) == pytest.approx(
        2 * 2 / (2 * 2 + 1 + 1)
    )
    assert of("f1_macro", predictions, references, is_multi_label=True) == pytest.approx(
        (1 + 1 + 0) / 3
    )


@pytest.mark.parametrize("name", ["f1_micro", "f1_macro"])
def test_the_f1_of_a_single_label_that_may_be_on_or_off_is_that_of_on(name: str) -> None:
    references, predictions = (
        [[1], [1], [1], [0], [0]],
        [[1], [0], [0], [1], [0]],
    )  # TP 1, FN 2, FP 1
    assert of(name, predictions, references, is_multi_label=True) == pytest.approx(
        2 * 1 / (2 * 1 + 1 + 2)
    )
    # With a second label that is always right the mean is as if scikit-learn had seen the first
    # alone.
    both = [[[*row, 1] for row in rows] for rows in (predictions, references)]
    assert of("f1_macro", *both, is_multi_label=True) == pytest.approx((2 / 5 + 1) / 2)
    assert of(name, [[0], [0]], [[0], [0]], is_multi_label=True) == 0
    assert of("accuracy", predictions, references, is_multi_label=True) == 2 / 5


def test_correlations_equal_hand_computations() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 20.0]
    dx, dy = np.array(x) - 2.5, np.array(y) - 8.5
    assert of("pearson", x, y) == pytest.approx((dx @ dy) / math.sqrt((dx @ dx) * (dy @ dy)))
    assert of("spearman", x, y) == pytest.approx(1.0)
    assert of("spearman", x, [4.0, 1.0, 2.0, 3.0]) == pytest.approx(
        1 - 6 * (9 + 1 + 1 + 1) / (4 * 15)
    )
    assert of("mse", x, y) == pytest.approx((0 + 4 + 36 + 256) / 4)
    assert of("pearson", [1.0, 1.0], [1.0, 2.0]) == 0


def test_our_metrics_combine_and_accumulate_like_those_of_evaluate() -> None:
    both = evaluate.combine([offline_metric("accuracy"), offline_metric("f1_macro")])
    both.add_batch(predictions=[0, 1], references=[0, 0])
    both.add_batch(predictions=[1], references=[1])
    assert both.compute()["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "problem_type", "num_classes"),
    [
        ("pearson", SINGLE, 2),
        ("accuracy", VALUES, 0),
        ("f1", SINGLE, 3),
        ("matthews_correlation", MULTI, 3),
    ],
)
def test_a_metric_that_is_not_defined_for_the_labels_is_refused(
    name: str, problem_type: Any, num_classes: int
) -> None:
    with pytest.raises(InputError, match="not defined"):
        load_metrics([name], problem_type, num_classes=num_classes)


def test_a_metric_by_another_name_is_looked_for_and_may_be_a_script(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`metrics`"):
        load_metrics(["bleurt"], SINGLE, num_classes=2)
    script = tmp_path / "twice.py"
    script.write_text(
        "import datasets\nimport evaluate\n"
        "class Twice(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        value = datasets.Value('int64')\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='',\n"
        "            features=datasets.Features({'predictions': value, 'references': value}))\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'hits': 2 * sum(p == r for p, r in zip(predictions, references))}\n"
    )
    metrics = load_metrics([str(script)], SINGLE, num_classes=2)
    assert list(compute_metrics(metrics, np.array([0, 1]), np.array([0, 0])).values()) == [2]


def test_no_number_beats_nothing_and_an_error_is_better_when_smaller() -> None:
    assert is_better(0.2, 0.1, "accuracy") and not is_better(0.2, 0.1, "mse")
    assert is_better(0.2, math.nan, "accuracy") and not is_better(math.nan, 0.1, "accuracy")
