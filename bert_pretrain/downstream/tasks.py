"""What a downstream task is: its kind of labels, its columns and its metrics; and the tasks of GLUE by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bert_pretrain.errors import InputError

# As transformers' configurations call them, so that the stock heads choose the stock loss.
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

DEFAULT_METRICS: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "f1_macro"),
    "multi_label_classification": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("pearson", "spearman", "mse"),
}
PROBLEM_TYPES: dict[str, ProblemType] = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True)
class Task:
    """A kind of labels with the columns and metrics that go with it.

    Attributes:
        problem_type: None = decided by the labels that are found.
        text_columns: one column, or two for pairs; None = `text` and, where there is one,
            `text_pair`.
        label_names: names of the class numbers 0, 1, ... of data that only number them.
        metrics: the first one chooses the checkpoint; None = `DEFAULT_METRICS`.
        dataset: id and configuration on the Hub, read where no data is named.
        evaluation_splits: the validation and the test split of that data set.
    """

    problem_type: ProblemType | None = None
    text_columns: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    dataset: tuple[str, str] | None = None
    evaluation_splits: tuple[str, str] = ("validation", "test")


def _glue(name: str, columns: str, names: str, metrics: str, suffix: str = "") -> Task:
    return Task(
        problem_type="single_label_classification" if names else "regression",
        text_columns=tuple(columns.split()),
        label_names=tuple(names.split()) or None,
        metrics=tuple(metrics.split()),
        dataset=("nyu-mll/glue", name),
        evaluation_splits=("validation" + suffix, "test" + suffix),
    )


# Source: Wang et al. 2019, "GLUE", table 1, for the metrics; the class names are those of the data
# set on the Hub.
GLUE = {
    "cola": _glue("cola", "sentence", "unacceptable acceptable", "matthews_correlation accuracy"),
    "sst2": _glue("sst2", "sentence", "negative positive", "accuracy"),
    "mrpc": _glue("mrpc", "sentence1 sentence2", "not_equivalent equivalent", "accuracy f1"),
    "stsb": _glue("stsb", "sentence1 sentence2", "", "pearson spearman"),
    "qqp": _glue("qqp", "question1 question2", "not_duplicate duplicate", "accuracy f1"),
    "mnli": _glue(
        "mnli", "premise hypothesis", "entailment neutral contradiction", "accuracy", "_matched"
    ),
    "qnli": _glue("qnli", "question sentence", "entailment not_entailment", "accuracy"),
    "rte": _glue("rte", "sentence1 sentence2", "entailment not_entailment", "accuracy"),
    "wnli": _glue("wnli", "sentence1 sentence2", "not_entailment entailment", "accuracy"),
}


def find_task(name: str) -> Task:
    """Return the task of a name: `auto`, a kind of labels, or one of GLUE's.

    Raises:
        InputError: there is none of that name.
    """
    if name in GLUE:
        return GLUE[name]
    if name != "auto" and name not in PROBLEM_TYPES:
        raise InputError(
            f"task is {name!r} but must be auto, {', '.join(PROBLEM_TYPES)}, or of GLUE "
            f"{', '.join(GLUE)}",
            advice="change `task`",
        )
    return Task(problem_type=PROBLEM_TYPES.get(name))
