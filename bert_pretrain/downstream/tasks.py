"""Tasks: a kind of labels with its columns and metrics, those of GLUE by name.

A task and the labels of the training rows enter; the `LabelSpace` of all splits leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_pretrain.downstream.labels import (
    LabelSpace,
    ProblemType,
    as_number,
    check_class,
    guess_problem_type,
    is_missing,
    is_zero_or_one,
    members_of,
    text_of,
    tidy,
    value_of,
)
from bert_pretrain.errors import InputError

DEFAULT_METRICS: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "f1_macro"),
    "multi_label_classification": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("pearson", "spearman", "mse"),
}
_MAX_CLASSES = 10_000


@dataclass(frozen=True)
class Task:
    """A kind of labels with the columns and metrics that go with it.

    Attributes:
        problem_type: None = decided by the labels that are found.
        is_multi_hot: the label of a row is a list of one 0 or 1 for each class.
        text_columns: one column, or two for pairs; None = `text` and, where there is one,
            `text_pair`.
        label_names: names of the class numbers 0, 1, ... of data that only number them.
        metrics: the first one chooses the checkpoint; None = `DEFAULT_METRICS`.
        dataset: id and configuration on the Hub, read where no data is named.
        evaluation_splits: the validation and the test split of that data set.
    """

    problem_type: ProblemType | None = None
    is_multi_hot: bool = False
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


KINDS = {
    "auto": Task(),
    "classification": Task("single_label_classification"),
    "multi_label": Task("multi_label_classification"),
    "multi_hot": Task("multi_label_classification", is_multi_hot=True),
    "regression": Task("regression"),
}
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
    """Return the task of a name: a kind of labels, or one of GLUE's; else raise `InputError`."""
    tasks = KINDS | GLUE
    if name not in tasks:
        raise InputError.out_of_range(
            "task", name, f"one of {', '.join(KINDS)}, or of GLUE {', '.join(GLUE)}"
        )
    return tasks[name]


def find_labels(
    labels: Sequence[Any],
    task: Task,
    *,
    description: str,
    names: Sequence[str] | None = None,
    is_typed: bool = True,
    are_class_numbers: bool = False,
) -> LabelSpace:
    """Return the label space of the training labels.

    Args:
        labels: class numbers or names; values; lists of classes, or texts with `LABEL_SEPARATOR`
            between them; zeros and ones if the task is multi-hot.
        task: where its problem type is None, `guess_problem_type` decides.
        description: names the file or split in messages.
        names: of the class numbers 0, 1, ..., where the labels may be numbers only.
        is_typed: the data tell texts from numbers, so that the text "0.5" is a name.
        are_class_numbers: the data declare their numbers as class numbers.

    Raises:
        InputError: a label is missing, there is one class only, or lists have two readings.
    """
    values = list(map(tidy, labels))
    problem_type = task.problem_type
    if problem_type is None:
        problem_type = guess_problem_type(values, is_typed=is_typed)
        if not is_typed and names is None and problem_type == "single_label_classification":
            numbers = list(map(as_number, values))
            # As texts, "1.0" and "1.00" are two classes.
            if None not in numbers and len(set(numbers)) == len(set(values)):
                values = numbers
    if problem_type == "regression":
        _refuse_one_value(values, description)
        return LabelSpace(problem_type, (), {})
    if task.is_multi_hot:
        return _multi_hot_space(values, names, description)
    is_multi_label = problem_type == "multi_label_classification"
    if is_multi_label and not are_class_numbers:
        _refuse_ambiguous_lists(values, description, is_asked_for=task.problem_type is not None)
    found = []
    for number, value in enumerate(values, start=1):
        row = f"row {number} of {description}"
        found += members_of(value, row) if is_multi_label else [check_class(value, row)]
    if names is None:
        space = _named_as_found(found, problem_type, description)
    else:
        space = _named_by_number(found, problem_type, names, description)
    _check_found(found, len(values), space, description)
    return space


def _refuse_ambiguous_lists(values: list[Any], description: str, *, is_asked_for: bool) -> None:
    """Refuse lists of class numbers that may be multi-hot; if asked for, those that must be."""
    lists = [value for value in values if isinstance(value, list)]
    widths = {len(row) for row in lists}
    if (
        len(widths) != 1
        or max(widths) < 2
        or not all(is_zero_or_one(member) for row in lists for member in row)
        or (is_asked_for and all(len(set(row)) == len(row) for row in lists))
    ):
        return
    raise InputError(
        f"the labels of {description} are lists of {max(widths)} zeros and ones, such as "
        f"{lists[0]}",
        advice="pass `task` multi_hot if a 1 in place i means the class i, `task` multi_label if "
        "they are the numbers of a row's classes, each of which comes once",
    )


def _multi_hot_space(
    values: list[Any], names: Sequence[str] | None, description: str
) -> LabelSpace:
    """Return the classes of lists of one 0 or 1 for each: place i is the class i."""
    width = next((len(value) for value in values if isinstance(value, list)), 0)
    if not width:
        raise InputError(
            f"the labels of {description}, such as {values[0]!r}, are not the lists of zeros and "
            "ones of multi-hot labels",
            advice="change `task` or `label_column`",
        )
    names = tuple(names or map(str, range(width)))
    space = LabelSpace("multi_label_classification", names, {}, is_multi_hot=True)
    if len(names) != width:
        raise InputError(
            f"the labels of {description} are lists of {width} zeros and ones, one for each class, "
            f"but there are {len(names)} label names ({', '.join(names)})",
            advice="change `label_names` or `label_column`",
        )
    encoded = space.encode(values, description=description)
    classes = np.flatnonzero(encoded.any(axis=0)).tolist()
    _check_found(classes, len(values), space, description)
    return space


def _named_as_found(
    labels: Sequence[Any], problem_type: ProblemType, description: str
) -> LabelSpace:
    """Return the classes of these labels by their texts: numbers in their order, then words."""
    found = {text_of(label): label for label in labels}
    typed = [label for label in found.values() if not isinstance(label, str)]
    if len(set(typed)) < len(typed):
        raise InputError(
            f"{description} has labels that differ by type alone, such as 1 and true",
            advice="make them equal",
        )

    def place_in_order(text: str) -> tuple[bool, float, str]:
        number = as_number(found[text])
        return number is None, number or 0, text

    names = tuple(sorted(found, key=place_in_order))
    numbers: dict[str | float, int] = {name: number for number, name in enumerate(names)}
    values = [value_of(found[name]) for name in names]
    how_often = Counter(values)
    for number, value in enumerate(values):
        if value is not None and how_often[value] == 1:
            numbers[value] = number
    are_numbers = not any(isinstance(label, str) for label in labels)
    return LabelSpace(problem_type, names, numbers, are_numbers)


def _named_by_number(
    labels: Sequence[Any], problem_type: ProblemType, names: Sequence[str], description: str
) -> LabelSpace:
    """Return the classes of these names, where the labels are either the names or their numbers."""
    by_name: dict[str | float, int] = {name: number for number, name in enumerate(names)}
    by_number: dict[str | float, int] = {number: number for number in range(len(names))}
    is_named = all(isinstance(label, str) for label in labels) and (
        all(label in by_name for label in labels)
        or all(as_number(label) is None for label in labels)
    )
    numbers = by_name if is_named else by_number
    space = LabelSpace(problem_type, tuple(names), numbers, are_numbers=not is_named)
    keys = labels if is_named else map(as_number, labels)
    unknown = [label for label, key in zip(labels, keys, strict=True) if key not in numbers]
    if unknown:
        numbered = "" if is_named else f", numbered from 0 to {len(names) - 1}"
        raise InputError(
            f"{description} has the label {min(map(text_of, unknown))!r} but the classes are "
            f"{', '.join(names)}{numbered}",
            advice="change `label_names`, `task` or `label_column`",
        )
    return space


def _refuse_one_value(values: list[Any], description: str) -> None:
    """Refuse values of regression that are all the same number, however it is written."""
    numbers = set(map(as_number, values))
    if len(numbers) > 1 or None in numbers or is_missing(values[0]):
        return
    how, otherwise = "", ""
    if len(set(map(text_of, values))) > 1:
        how, otherwise = " as a number", ", or pass `task` classification"
    raise InputError(
        f"all {len(values):,} rows of {description} have the label {values[0]!r}{how}, from which "
        "nothing can be learnt",
        advice=f"change `train_file` or `label_column`{otherwise}",
    )


def _check_found(found: list[Any], num_rows: int, space: LabelSpace, description: str) -> None:
    """Raise `InputError` unless the number of classes that rows have can be learnt."""
    num_classes, advice = len(space.names), "change `train_file` or `label_column`"
    if num_classes > _MAX_CLASSES:
        raise InputError(
            f"{description} has {num_classes:,} different labels, more than {_MAX_CLASSES:,}",
            advice="change `label_column`, or pass `task` regression",
        )
    if not found:
        problem = f"none of the {num_rows:,} rows of {description} has a label"
        raise InputError(problem, advice=advice)
    is_single = space.problem_type == "single_label_classification"
    if is_single and len(set(map(text_of, found))) < 2:
        raise InputError(
            f"all {num_rows:,} rows of {description} have the label {found[0]!r}, but there must "
            "be two classes to tell apart",
            advice=advice,
        )
