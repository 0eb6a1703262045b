"""From the labels of a file to what a model is trained on, and the names of the classes on the way.

A `LabelSpace` is made from the training labels alone and then encodes those of every split, so that a class that only
the evaluation data have is found before anything is trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.row_files import is_unicode
from bert_pretrain.downstream.tasks import ProblemType
from bert_pretrain.errors import InputError

LABEL_SEPARATOR = "|"  # between the labels of a multi-label row that is one string, as in a CSV file
_MAX_CLASSES = 10_000
_LARGEST_VALUE = float(np.finfo(np.float32).max)
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?")  # not "007", which is a name that happens to have digits


@dataclass(frozen=True)
class LabelSpace:
    """The labels that a model tells apart.

    Attributes:
        problem_type: as transformers' configurations call it.
        names: of the classes in the order of their numbers; empty for regression.
        numbers: class number of each value that labels have in the data.
    """

    problem_type: ProblemType
    names: tuple[str, ...]
    numbers: dict[Any, int]

    @property
    def num_outputs(self) -> int:
        """Return the width of the model's last layer."""
        return len(self.names) or 1

    def encode(self, labels: Sequence[Any], *, description: str) -> NDArray[Any]:
        """Return the labels as the stock heads take them.

        Args:
            labels: as in the data.
            description: where they come from.

        Returns:
            int64 (N,) class numbers; float32 (N,) values; or float32 (N, num_classes) of 0 and 1.

        Raises:
            InputError: a label is missing, or none of the training labels.
        """
        values = [tidy(label) for label in labels]
        if self.problem_type == "regression":
            return np.array([_number(value, place, description) for place, value in enumerate(values)], np.float32)
        if self.problem_type == "single_label_classification":
            return np.array(
                [self._number_of(value, place, description) for place, value in enumerate(values)], np.int64
            )
        encoded = np.zeros((len(values), len(self.names)), np.float32)
        for place, value in enumerate(values):
            for member in _members(value, place, description):
                encoded[place, self._number_of(member, place, description)] = 1
        return encoded

    def _number_of(self, value: Any, place: int, description: str) -> int:
        _refuse_missing(value, place, description)
        try:
            return self.numbers[value]
        except (KeyError, TypeError):
            listed = ", ".join(repr(name) for name in list(self.numbers)[:12]) + (", ..." * (len(self.numbers) > 12))
            raise InputError(
                f"row {place + 1} of {description} has the label {value!r}, which is not among those of the training "
                f"data ({listed}); repair the row, or change --label_column"
            ) from None


def find_labels(
    labels: Sequence[Any],
    *,
    problem_type: ProblemType | None,
    names: Sequence[str] | None,
    description: str,
) -> LabelSpace:
    """Return the label space of the training labels.

    Args:
        labels: of the training rows: class numbers or names; numbers for regression; lists of classes, or one string
            with `LABEL_SEPARATOR` between them, for several labels a row.
        problem_type: None = lists are several labels, fractions are regression, anything else is classes.
        names: of the class numbers 0, 1, ..., where the labels may be numbers only.
        description: where they come from.

    Raises:
        InputError: a label is missing, or there is one class only.
    """
    values = [tidy(label) for label in labels]
    if problem_type is None:
        problem_type = _guess(values)
    if problem_type == "regression":
        if all(value == values[0] for value in values) and not is_missing(values[0]):
            raise InputError(
                f"all {len(values):,} rows of {description} have the label {values[0]!r}, from which nothing can be "
                "learnt; change --train_file or --label_column"
            )
        return LabelSpace(problem_type, (), {})
    if problem_type == "multi_label_classification":
        found = {member for place, value in enumerate(values) for member in _members(value, place, description)}
    else:
        for place, value in enumerate(values):
            _refuse_missing(value, place, description)
            if isinstance(value, list):
                raise InputError(
                    f"row {place + 1} of {description} has a list of labels; pass --task multi_label for several labels"
                )
        found = set(values)
    space = _named(found, problem_type, names, description)
    smallest = 1 if problem_type == "multi_label_classification" else 2
    if len(found) < smallest:
        what = (
            f"all {len(values):,} rows of {description} have the label {values[0]!r}, but there must be two classes to "
            "tell apart"
            if found
            else f"none of the {len(values):,} rows of {description} has a label"
        )
        raise InputError(f"{what}; change --train_file or --label_column")
    if len(space.names) > _MAX_CLASSES:
        raise InputError(
            f"{description} has {len(space.names):,} different labels, more than {_MAX_CLASSES:,}; "
            "change --label_column, or pass --task regression"
        )
    return space


def _named(found: set[Any], problem_type: ProblemType, names: Sequence[str] | None, description: str) -> LabelSpace:
    if names is None:
        ordered = sorted(found, key=lambda value: (isinstance(value, str), value))
        texts = [str(value) for value in ordered]
        if len(set(texts)) < len(texts):
            raise InputError(f"{description} has labels that differ by type alone, such as 1 and '1'; make them equal")
        return LabelSpace(problem_type, tuple(texts), {value: number for number, value in enumerate(ordered)})
    by_number, by_name = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    if len(by_name) < len(names) or not all(name.strip() for name in names):
        raise InputError(f"the label names {list(names)} are not all different, or not all there; change --label_names")
    is_named = all(isinstance(value, str) for value in found)
    unknown = found - (by_name.keys() if is_named else by_number.keys())
    if unknown:
        raise InputError(
            f"{description} has the label {min(map(str, unknown))!r} but the classes are {', '.join(names)}"
            + ("" if is_named else f", numbered from 0 to {len(names) - 1}")
            + "; change --label_names, --task or --label_column"
        )
    return LabelSpace(problem_type, tuple(names), by_name if is_named else {number: number for number in by_number})


def tidy(label: Any) -> Any:
    """Return a label as Python has it: whole numbers as int, also where a file has 1.0 or the text "1"."""
    if isinstance(label, str):
        label = label.strip()
        return tidy(float(label)) if _NUMBER.fullmatch(label) else label
    if isinstance(label, bool | np.integer):
        return int(label)
    if isinstance(label, float | np.floating):
        return int(label) if float(label).is_integer() else float(label)
    if isinstance(label, list | tuple | np.ndarray):
        return [tidy(member) for member in label]
    return label


def is_missing(label: Any) -> bool:
    """Return whether a row has no label: none at all, an empty text, or no number."""
    return label is None or label == "" or (isinstance(label, float) and math.isnan(label))


def _guess(values: Sequence[Any]) -> ProblemType:
    if any(isinstance(value, list) for value in values):
        return "multi_label_classification"
    if any(isinstance(value, float) and not math.isnan(value) for value in values):
        return "regression"
    return "single_label_classification"


def _members(value: Any, place: int, description: str) -> list[Any]:
    if value is None:
        _refuse_missing(value, place, description)
    if isinstance(value, str):
        return [tidy(member) for member in value.split(LABEL_SEPARATOR) if member.strip()]
    members = value if isinstance(value, list) else [value]
    for member in members:
        _refuse_missing(member, place, description)
        if isinstance(member, list):
            raise InputError(
                f"row {place + 1} of {description} has the label {value!r}, a list within a list; flatten it or change "
                "--label_column"
            )
    return members


def _number(value: Any, place: int, description: str) -> float:
    _refuse_missing(value, place, description)
    if not isinstance(value, int | float) or not abs(value) <= _LARGEST_VALUE:
        raise InputError(
            f"row {place + 1} of {description} has the label {value!r} but regression needs numbers of at most "
            f"{_LARGEST_VALUE:.1e}; change --task or --label_column"
        )
    if value == -100:
        # transformers counts such labels as none, so that the loss would be divided by the wrong number.
        raise InputError(
            f"row {place + 1} of {description} has the label -100, which means 'no label' to transformers; "
            "rescale the labels"
        )
    return float(value)


def _refuse_missing(value: Any, place: int, description: str) -> None:
    """Refuse what is no label of a class: nothing, or neither a text nor a number (nor a list, which others take)."""
    if value is not None and not isinstance(value, str | int | float | list):
        raise InputError(
            f"row {place + 1} of {description} has the label {value!r}, which is neither a text nor a number; "
            "change --label_column or convert it"
        )
    if isinstance(value, str) and not is_unicode(value):
        raise InputError(
            f"row {place + 1} of {description} has the label {value!r}, which is no valid Unicode; repair the row"
        )
    if is_missing(value):
        raise InputError(f"row {place + 1} of {description} has no label ({value!r}); remove the row or repair it")
