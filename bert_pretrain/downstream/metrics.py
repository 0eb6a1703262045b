"""Metrics of downstream tasks as `evaluate.Metric` classes that need no network, over scikit-learn and SciPy.

Predictions and references enter; a dictionary of numbers leaves. `evaluate.load("accuracy")` would
fetch a script from the Hub, so that without a network not even an accuracy could be computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

from bert_pretrain.downstream.tasks import ProblemType
from bert_pretrain.errors import InputError


class _OfflineMetric(evaluate.Metric):  # type: ignore[misc]
    """What the metrics below share: features, and the name under which the result appears."""

    value_type: str = "int64"
    key: str
    description: str

    def __init__(self, *, is_multi_label: bool = False, **kwargs: Any) -> None:
        """Fix whether a row has one label (class number or value) or one 0 or 1 for each class."""
        self.is_multi_label = is_multi_label
        # In memory: the alternative is a file with a lock in the user's cache for each call.
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        value: Any = datasets.Value(self.value_type)
        if self.is_multi_label:
            value = datasets.Sequence(value)
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions and references: one class number, value, or row of 0 "
            "and 1 for each row",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {self.key: float(self.score(np.asarray(references), np.asarray(predictions)))}

    def score(self, references: NDArray[Any], predictions: NDArray[Any]) -> float:
        """Return the metric."""
        raise NotImplementedError


class Accuracy(_OfflineMetric):
    """Share of rows predicted exactly; of several labels in a row, all must be right."""

    key = "accuracy"
    description = "Share of rows predicted exactly."

    def score(self, references: NDArray[Any], predictions: NDArray[Any]) -> float:
        """Return the share in [0, 1]."""
        return float(sklearn_metrics.accuracy_score(references, predictions))


class F1(_OfflineMetric):
    """Harmonic mean of precision and recall of class 1, as GLUE has it; 0 where neither is defined."""

    key = "f1"
    description = "F1 of class 1 against class 0."
    average = "binary"

    def score(self, references: NDArray[Any], predictions: NDArray[Any]) -> float:
        """Return the F1 in [0, 1]."""
        # scikit-learn takes one column for two classes, 0 and 1, of which it would average the F1
        # or count both.
        is_one_class = self.is_multi_label and references.shape[1] == 1
        average = "binary" if is_one_class else self.average
        return float(
            sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0.0)
        )


class MacroF1(F1):
    """Unweighted mean over the classes of the F1 of each against the others."""

    key = "f1_macro"
    description = "Mean over classes of their F1."
    average = "macro"


class MicroF1(F1):
    """F1 of all pairs of row and class counted together; for single labels it equals the accuracy."""

    key = "f1_micro"
    description = "F1 over all pairs of row and class."
    average = "micro"


class MatthewsCorrelation(_OfflineMetric):
    """Correlation of predicted and true classes (Matthews 1975), in [-1, 1]; 0 if one class is always predicted."""

    key = "matthews_correlation"
    description = "Matthews' correlation coefficient."

    def score(self, references: NDArray[Any], predictions: NDArray[Any]) -> float:
        """Return the coefficient."""
        return float(sklearn_metrics.matthews_corrcoef(references, predictions))


class Pearson(_OfflineMetric):
    """Linear correlation, in [-1, 1]; 0 where one side is constant and it is not defined."""

    key = "pearson"
    value_type = "float64"
    description = "Pearson's correlation coefficient."

    def score(self, references: NDArray[Any], predictions: NDArray[Any]) -> float:
        """Return the coefficient."""
        return _correlation(stats.pearsonr, references, predictions)


class Spearman(Pearson):
    """Correlation of ranks, in [-1, 1]; 0 where one side is constant and it is not defined."""

    key = "spearman"
    description = "Spearman's rank correlation coefficient."

    def score(self, references: NDArray[Any], predictions: NDArray[Any]) -> float:
        """Return the coefficient."""
        return _correlation(stats.spearmanr, references, predictions)


class MeanSquaredError(_OfflineMetric):
    """Mean of squared differences."""

    key = "mse"
    value_type = "float64"
    description = "Mean squared error."

    def score(self, references: NDArray[Any], predictions: NDArray[Any]) -> float:
        """Return the mean."""
        return float(sklearn_metrics.mean_squared_error(references, predictions))


def _correlation(function: Any, references: NDArray[Any], predictions: NDArray[Any]) -> float:
    if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(function(references, predictions).statistic)


METRICS: dict[str, type[_OfflineMetric]] = {
    metric.key: metric
    for metric in (
        Accuracy,
        F1,
        MacroF1,
        MicroF1,
        MatthewsCorrelation,
        Pearson,
        Spearman,
        MeanSquaredError,
    )
}
SMALLER_IS_BETTER = {"mse", "mae", "brier_score"}
_OF_VALUES = {"pearson", "spearman", "mse"}


def load_metrics(
    names: Sequence[str], problem_type: ProblemType, *, num_classes: int
) -> dict[str, evaluate.Metric]:
    """Return the metrics of these names: ours, or by any other name one that the Hub or a local script defines.

    Raises:
        InputError: a metric does not suit the labels, or is neither ours nor found.
    """
    loaded = {}
    for name in names:
        if name in METRICS:
            _check_suits(name, problem_type, num_classes)
            loaded[name] = METRICS[name](
                is_multi_label=problem_type == "multi_label_classification"
            )
            continue
        try:
            loaded[name] = evaluate.load(name)
        except (
            Exception
        ) as error:  # evaluate raises whatever the network, the Hub and a foreign script raise
            raise InputError(
                f"the metric {name!r} is neither one of {', '.join(METRICS)} nor found as a script "
                f"or on the Hub ({type(error).__name__})",
                advice="change `metrics`",
            ) from error
    return loaded


def _check_suits(name: str, problem_type: ProblemType, num_classes: int) -> None:
    wrong = (
        (name in _OF_VALUES) != (problem_type == "regression")
        or (name == "matthews_correlation" and problem_type != "single_label_classification")
        or (name == "f1" and (problem_type != "single_label_classification" or num_classes != 2))
    )
    if wrong:
        what = problem_type.replace("_", " ") + (
            "" if problem_type == "regression" else f" of {num_classes} classes"
        )
        raise InputError(
            f"the metric {name!r} is not defined for {what}", advice="change `metrics`"
        )


def compute_metrics(
    metrics: dict[str, evaluate.Metric], predictions: NDArray[Any], references: NDArray[Any]
) -> dict[str, float]:
    """Return every metric by name; those with a result of several numbers by `name_key`.

    Args:
        metrics: from `load_metrics`.
        predictions: (N,) class numbers or values, or (N, num_classes) of 0 and 1.
        references: as `predictions`.
    """
    results: dict[str, float] = {}
    for name, metric in metrics.items():
        found = metric.compute(predictions=predictions, references=references)
        numbers = {key: float(value) for key, value in found.items() if np.ndim(value) == 0}
        results |= {
            name if len(numbers) == 1 else f"{name}_{key}": value for key, value in numbers.items()
        }
    return results


def predict(logits: NDArray[np.floating[Any]], problem_type: ProblemType) -> NDArray[Any]:
    """Return what logits (N, num_labels) mean: classes (N,), values (N,), or 0 and 1 (N, num_labels)."""
    if problem_type == "regression":
        return np.asarray(logits[:, 0])
    if problem_type == "multi_label_classification":
        return np.asarray((logits > 0).astype(np.int64))  # a probability above one half
    return np.asarray(logits.argmax(axis=1))


def is_better(score: float, than: float, metric: str) -> bool:
    """Return whether a score beats another one; nothing beats a number by not being one."""
    if math.isnan(score):
        return False
    if math.isnan(than):
        return True
    return score < than if metric in SMALLER_IS_BETTER else score > than
