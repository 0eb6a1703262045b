"""From the labels of a file to what a model is trained on, and the names of the classes on the way.

A `LabelSpace` is made from the training labels alone and then encodes those of every split, so that
a class that only the evaluation data have is found before anything is trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.downstream.label_values import (
    as_number,
    is_missing,
    members_of,
    refuse_missing,
    regression_value,
    text_of,
    tidy,
    value_of,
)
from bert_pretrain.downstream.multi_hot import encode_multi_hot, multi_hot_width
from bert_pretrain.downstream.tasks import ProblemType
from bert_pretrain.errors import InputError

_MAX_CLASSES = 10_000


@dataclass(frozen=True)
class LabelSpace:
    """The labels that a model tells apart.

    Attributes:
        problem_type: as transformers' configurations call it.
        names: of the classes in the order of their numbers; empty for regression.
        numbers: class number of each text, and of each numerical value, that labels have in the
            data.
        are_numbers: the classes are numbers to the data, so that a text means the number which it
            writes; otherwise texts of equal value, such as "3.1" and "3.10", are different classes.
        is_multi_hot: the labels of a row are a list of one 0 or 1 for each class.
    """

    problem_type: ProblemType
    names: tuple[str, ...]
    numbers: dict[str | float, int]
    are_numbers: bool = False
    is_multi_hot: bool = False

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
            return np.array(
                [regression_value(value, place, description) for place, value in enumerate(values)],
                np.float32,
            )
        if self.problem_type == "single_label_classification":
            return np.array(
                [self._number_of(value, place, description) for place, value in enumerate(values)],
                np.int64,
            )
        if self.is_multi_hot:
            return encode_multi_hot(values, len(self.names), description=description)
        encoded = np.zeros((len(values), len(self.names)), np.float32)
        for place, value in enumerate(values):
            for member in members_of(value, place, description):
                encoded[place, self._number_of(member, place, description)] = 1
        return encoded

    def _number_of(self, value: Any, place: int, description: str) -> int:
        refuse_missing(value, place, description)
        number = self.numbers.get(text_of(value))
        if number is None and (self.are_numbers or not isinstance(value, str)):
            numerical = value_of(value)
            number = None if numerical is None else self.numbers.get(numerical)
        if number is None:
            known: list[Any] = [key for key in self.numbers if isinstance(key, str)] or list(
                self.numbers
            )
            listed = ", ".join(map(repr, known[:12])) + (", ..." * (len(known) > 12))
            raise InputError(
                f"row {place + 1} of {description} has the label {value!r}, which is not among "
                f"those of the training data ({listed})",
                advice="repair the row, or change `label_column`",
            )
        return number


def find_labels(
    labels: Sequence[Any],
    *,
    problem_type: ProblemType | None,
    names: Sequence[str] | None,
    description: str,
    is_typed: bool = True,
    are_class_numbers: bool = False,
) -> LabelSpace:
    """Return the label space of the training labels.

    Args:
        labels: of the training rows: class numbers or names; numbers for regression; for several
            labels a row lists of classes, one string with `label_values.LABEL_SEPARATOR` between
            them, or lists of one 0 or 1 for each class.
        problem_type: None = lists are several labels, fractions are regression, anything else is
            classes.
        names: of the class numbers 0, 1, ..., where the labels may be numbers only.
        description: where they come from.
        is_typed: the data tell texts from numbers, as JSON does and CSV does not, so that "0.5" is
            a name.
        are_class_numbers: the data say themselves that numbers are those of classes, so that no
            list is multi-hot.

    Raises:
        InputError: a label is missing, or there is one class only.
    """
    values = [tidy(label) for label in labels]
    if problem_type is None:
        problem_type = _guess(values, is_typed=is_typed)
        if not is_typed and names is None and problem_type == "single_label_classification":
            values = _as_numbers(values)
    if problem_type == "regression":
        _refuse_one_value(values, description)
        return LabelSpace(problem_type, (), {})
    if problem_type == "multi_label_classification":
        width = 0 if are_class_numbers else multi_hot_width(values, description=description)
        if width:
            return _multi_hot_space(values, width, names, description)
        found = [
            member
            for place, value in enumerate(values)
            for member in members_of(value, place, description)
        ]
    else:
        for place, value in enumerate(values):
            refuse_missing(value, place, description)
            if isinstance(value, list):
                raise InputError(
                    f"row {place + 1} of {description} has a list of labels",
                    advice="pass `task` multi_label for several labels",
                )
        found = values
    if names is None:
        space = _named_as_found(found, problem_type, description)
    else:
        space = _named(found, problem_type, names, description)
    smallest = 1 if problem_type == "multi_label_classification" else 2
    if len(set(map(text_of, found))) < smallest:
        what = (
            f"all {len(values):,} rows of {description} have the label {values[0]!r}, but there "
            "must be two classes to "
            "tell apart"
            if found
            else f"none of the {len(values):,} rows of {description} has a label"
        )
        raise InputError(f"{what}", advice="change `train_file` or `label_column`")
    _refuse_too_many(len(space.names), description)
    return space


def _refuse_one_value(values: list[Any], description: str) -> None:
    """Raise `InputError` if all rows have the same number, however it is written."""
    numbers = set(map(as_number, values))
    if len(numbers) > 1 or None in numbers or is_missing(values[0]):
        return
    are_written_alike = len(set(map(text_of, values))) == 1
    where = "`train_file` or `label_column`" + (
        "" if are_written_alike else ", or pass `task` classification"
    )
    value = repr(values[0]) + ("" if are_written_alike else " as a number")
    raise InputError(
        f"all {len(values):,} rows of {description} have the label {value}, from which nothing can "
        "be learnt",
        advice=f"change {where}",
    )


def _multi_hot_space(
    values: list[Any], width: int, names: Sequence[str] | None, description: str
) -> LabelSpace:
    """Return the classes of lists of so many zeros and ones: the i-th place is the class i."""
    if names is not None and len(names) != width:
        raise InputError(
            f"the labels of {description} are lists of {width} zeros and ones, one for each class, "
            f"but there are {len(names)} label names ({', '.join(names)})",
            advice="change `label_names` or `label_column`",
        )
    if not any(map(any, values)):
        raise InputError(
            f"none of the {len(values):,} rows of {description} has a label: their lists hold "
            "zeros alone",
            advice="change `train_file` or `label_column`",
        )
    _refuse_too_many(width, description)
    places = list(range(width))
    space = _named(
        places, "multi_label_classification", names or tuple(map(str, places)), description
    )
    return dataclasses.replace(space, is_multi_hot=True)


def _refuse_too_many(num_classes: int, description: str) -> None:
    if num_classes > _MAX_CLASSES:
        raise InputError(
            f"{description} has {num_classes:,} different labels, more than {_MAX_CLASSES:,}",
            advice="change `label_column`, or pass `task` regression",
        )


def _as_numbers(cells: list[Any]) -> list[Any]:
    """Return cells that are all numbers as such, unless different ones such as "1.0" and "1.00" would become one."""
    numbers = list(map(as_number, cells))
    return cells if None in numbers or len(set(numbers)) < len(set(cells)) else numbers


def _named_as_found(
    labels: Sequence[Any], problem_type: ProblemType, description: str
) -> LabelSpace:
    """Return the classes of these labels by the texts that they are: numbers in their order, then words."""
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
    numbers_of: dict[str | float, int] = {name: number for number, name in enumerate(names)}
    values = [value_of(found[name]) for name in names]
    how_often = Counter(values)
    numbers_of |= {
        value: n for n, value in enumerate(values) if value is not None and how_often[value] == 1
    }
    are_numbers = not any(isinstance(label, str) for label in labels)
    return LabelSpace(problem_type, names, numbers_of, are_numbers)


def _named(
    labels: Sequence[Any], problem_type: ProblemType, names: Sequence[str], description: str
) -> LabelSpace:
    """Return the classes of these names, where the labels are either names or numbers of them."""
    by_name: dict[str | float, int] = {name: number for number, name in enumerate(names)}
    if len(by_name) < len(names) or not all(name.strip() for name in names):
        raise InputError(
            f"the label names {list(names)} are not all different, or not all there",
            advice="change `label_names`",
        )
    are_texts = all(isinstance(label, str) for label in labels)
    is_named = are_texts and (
        all(label in by_name for label in labels)
        or all(as_number(label) is None for label in labels)
    )
    by_number: dict[str | float, int] = {number: number for number in range(len(names))}
    unknown = [
        label
        for label in labels
        if (label if is_named else as_number(label)) not in (by_name if is_named else by_number)
    ]
    if unknown:
        raise InputError(
            f"{description} has the label {min(map(text_of, unknown))!r} but the classes are "
            f"{', '.join(names)}"
            + ("" if is_named else f", numbered from 0 to {len(names) - 1}")
            + "; change `label_names`, `task` or `label_column`"
        )
    return LabelSpace(
        problem_type, tuple(names), by_name if is_named else by_number, are_numbers=not is_named
    )


def _guess(values: Sequence[Any], *, is_typed: bool) -> ProblemType:
    if any(isinstance(value, list) for value in values):
        return "multi_label_classification"
    numbers = (value if is_typed else as_number(value) for value in values)
    if any(isinstance(number, float) and not math.isnan(number) for number in numbers):
        return "regression"
    return "single_label_classification"
