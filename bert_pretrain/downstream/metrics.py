"""Metrics that need no network: `evaluate.Metric` over scikit-learn and SciPy.

Logits or predictions enter, with references; numbers by name leave. `evaluate.load("accuracy")`
fetches a script from the Hub, so that without a network not even an accuracy could be computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.downstream.labels import ProblemType
from bert_pretrain.errors import InputError

if TYPE_CHECKING:
    import evaluate

SMALLER_IS_BETTER = {"mse", "mae", "brier_score"}
_SINGLE, _MULTI, _VALUES = get_args(ProblemType)
# What each is, and the kinds of labels for which it is defined; `f1` for two classes alone.
METRICS: dict[str, tuple[str, tuple[ProblemType, ...]]] = {
    "accuracy": ("share of rows of which every label is predicted", (_SINGLE, _MULTI)),
    "f1": ("F1 of class 1 against class 0, as GLUE has it; 0 where undefined", (_SINGLE,)),
    "f1_macro": ("mean over the classes of the F1 of each against the others", (_SINGLE, _MULTI)),
    "f1_micro": ("F1 over all pairs of row and class", (_SINGLE, _MULTI)),
    "matthews_correlation": ("of classes (Matthews 1975), in [-1, 1]; 0 if undefined", (_SINGLE,)),
    "pearson": ("linear correlation, in [-1, 1]; 0 where one side is constant", (_VALUES,)),
    "spearman": ("correlation of ranks, in [-1, 1]; 0 where one side is constant", (_VALUES,)),
    "mse": ("mean of squared differences", (_VALUES,)),
}


def score(name: str, references: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Return one of `METRICS` of class numbers or values (N,), or of (N, num_classes) 0 and 1."""
    from scipy import stats
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(references, predictions))
    if name == "matthews_correlation":
        return float(metrics.matthews_corrcoef(references, predictions))
    if name == "mse":
        return float(metrics.mean_squared_error(references, predictions))
    if name.startswith("f1"):
        # scikit-learn takes one column of multi-label rows for two classes, 0 and 1, and would
        # average or count both.
        is_one_class = references.ndim == 2 and references.shape[1] == 1
        average = "binary" if is_one_class or name == "f1" else name.removeprefix("f1_")
        return float(metrics.f1_score(references, predictions, average=average, zero_division=0.0))
    if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0
    correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
    return float(correlation(references, predictions).statistic)


def offline_metric(name: str, *, is_multi_label: bool = False) -> evaluate.Metric:
    """Return one of `METRICS` as a metric of `evaluate`, which takes lists of 0 and 1 if told."""
    import datasets
    import evaluate

    description, problem_types = METRICS[name]

    class OfflineMetric(evaluate.Metric):  # type: ignore[misc]
        def _info(self) -> evaluate.MetricInfo:
            value: Any = datasets.Value("float64" if problem_types == (_VALUES,) else "int64")
            if is_multi_label:
                value = datasets.Sequence(value)
            return evaluate.MetricInfo(
                description=description,
                citation="",
                inputs_description="a class number, a value, or a row of 0 and 1 for each row",
                features=datasets.Features({"predictions": value, "references": value}),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {name: score(name, np.asarray(references), np.asarray(predictions))}

    # In memory: otherwise each call makes a file with a lock in the user's cache.
    return OfflineMetric(keep_in_memory=True)


def load_metrics(
    names: Sequence[str], problem_type: ProblemType, *, num_classes: int
) -> dict[str, evaluate.Metric]:
    """Return metrics by name: those of `METRICS`, else those of a local script or of the Hub.

    Raises:
        InputError: a metric does not suit the labels, or there is none of that name.
    """
    import evaluate

    loaded = {}
    for name in names:
        if name not in METRICS:
            try:
                loaded[name] = evaluate.load(name)
            except Exception as error:  # whatever the network, the Hub and a foreign script raise
                raise InputError(
                    f"the metric {name!r} is neither one of {', '.join(METRICS)} nor found as a "
                    f"script or on the Hub ({type(error).__name__})",
                    advice="change `metrics`",
                ) from error
        elif problem_type in METRICS[name][1] and (name != "f1" or num_classes == 2):
            loaded[name] = offline_metric(name, is_multi_label=problem_type == _MULTI)
        else:
            of_classes = "" if problem_type == _VALUES else f" of {num_classes} classes"
            what = problem_type.replace("_", " ") + of_classes
            raise InputError(
                f"the metric {name!r} is not defined for {what}", advice="change `metrics`"
            )
    return loaded


def compute_metrics(
    metrics: dict[str, evaluate.Metric], predictions: NDArray[Any], references: NDArray[Any]
) -> dict[str, float]:
    """Return every metric by name; those with a result of several numbers by `name_key`.

    Predictions and references are as for `score`.
    """
    results: dict[str, float] = {}
    if references.ndim == 2:
        references = references.astype(np.int64)
    for name, metric in metrics.items():
        found = metric.compute(predictions=predictions, references=references)
        numbers = {key: float(value) for key, value in found.items() if np.ndim(value) == 0}
        results |= {
            name if len(numbers) == 1 else f"{name}_{key}": value for key, value in numbers.items()
        }
    return results


def predict(logits: NDArray[np.floating[Any]], problem_type: ProblemType) -> NDArray[Any]:
    """Return what logits (N, num_labels) predict: as `score` takes it."""
    if problem_type == _VALUES:
        return np.asarray(logits[:, 0])
    if problem_type == _MULTI:
        return np.asarray((logits > 0).astype(np.int64))  # a probability above one half
    return np.asarray(logits.argmax(axis=1))


def is_better(score: float, than: float, metric: str) -> bool:
    """Return whether a score beats another one; NaN loses to every number and beats nothing."""
    if math.isnan(score) or math.isnan(than):
        return not math.isnan(score)
    return score < than if metric in SMALLER_IS_BETTER else score > than
