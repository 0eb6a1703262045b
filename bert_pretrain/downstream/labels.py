"""Labels: from the cells of a file to the numbers that a model is trained on.

A `LabelSpace`, which `tasks.find_labels` makes from the training rows alone, encodes the labels of
every split; a class that evaluation rows alone have is found before anything is trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.row_files import is_unicode
from bert_pretrain.errors import InputError

# As transformers' configurations call them, so that the stock heads choose the stock loss.
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

LABEL_SEPARATOR = "|"  # between the labels of a row in one cell, as in a CSV file
_LARGEST_VALUE = float(np.finfo(np.float32).max)
# "007" is a name that happens to consist of digits.
_NUMBER = re.compile(
    r"-?(0|[1-9]\d{0,14})"
    r"|[+-]?(0|[1-9]\d{0,14})?\.\d+([eE][+-]?\d+)?"
    r"|[+-]?[1-9][eE][+-]\d+"  # as Python writes 0.00001
)
# As JSON writes them, and pandas, with a capital, in a CSV file.
_TRUTH_VALUES = {"false": 0, "true": 1}


def tidy(label: Any) -> Any:
    """Return a label as Python has it: texts stripped, whole numbers as int, arrays as lists."""
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, bool | np.bool_):
        return bool(label)
    if isinstance(label, int | np.integer):
        return int(label)
    if isinstance(label, float | np.floating):
        return int(label) if float(label).is_integer() else float(label)
    if isinstance(label, list | tuple | np.ndarray):
        return [tidy(member) for member in label]
    return label


def as_number(label: Any) -> int | float | None:
    """Return the number that a tidy label is or writes, whole ones as int; None for others."""
    if isinstance(label, str):
        return tidy(float(label)) if _NUMBER.fullmatch(label) else None
    if isinstance(label, int):
        return int(label)
    return label if isinstance(label, float) else None


def value_of(label: Any) -> int | float | None:
    """Return the number that a tidy label means to a file of numbers or of booleans."""
    truth = _TRUTH_VALUES.get(label.lower()) if isinstance(label, str) else None
    return as_number(label) if truth is None else truth


def text_of(label: Any) -> str:
    """Return a tidy label as a file of texts writes it, which is the name of its class."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def is_missing(label: Any) -> bool:
    """Return whether a row has no label: None, an empty text, or NaN."""
    return label is None or label == "" or (isinstance(label, float) and math.isnan(label))


def is_zero_or_one(label: Any) -> bool:
    """Return whether a tidy label is 0, 1, false or true."""
    return isinstance(label, int) and label in (0, 1)


def check_label(label: Any, row: str) -> None:
    """Raise `InputError`, which names the row, unless a tidy label is a text, number or list."""
    if label is not None and not isinstance(label, str | int | float | list):
        raise InputError(
            f"{row} has the label {label!r}, which is neither a text nor a number",
            advice="change `label_column` or convert it",
        )
    if isinstance(label, str) and not is_unicode(label):
        raise InputError(
            f"{row} has the label {label!r}, which is not valid Unicode", advice="repair the row"
        )
    if is_missing(label):
        raise InputError(f"{row} has no label ({label!r})", advice="remove the row or repair it")


def check_class(label: Any, row: str) -> Any:
    """Return a tidy label; raise `InputError` as `check_label` does, and if it is a list."""
    check_label(label, row)
    if isinstance(label, list):
        raise InputError(
            f"{row} has the label {label!r}, a list where one class was expected",
            advice="pass `task` multi_label or multi_hot for lists of labels, or flatten lists "
            "within lists",
        )
    return label


def members_of(label: Any, row: str) -> list[Any]:
    """Return the classes of a row that may have several: none of an empty list or text."""
    if isinstance(label, str):
        return [member.strip() for member in label.split(LABEL_SEPARATOR) if member.strip()]
    members = label if isinstance(label, list) else [label]
    return [check_class(member, row) for member in members]


def guess_problem_type(labels: Sequence[Any], *, is_typed: bool) -> ProblemType:
    """Return the kind of tidy labels: lists are several classes, fractions values, others a class.

    The text "0.5" is a name where the data are typed.
    """
    if any(isinstance(label, list) for label in labels):
        return "multi_label_classification"
    numbers = (label if is_typed else as_number(label) for label in labels)
    if any(isinstance(number, float) and not math.isnan(number) for number in numbers):
        return "regression"
    return "single_label_classification"


def describe_guess(labels: Sequence[Any], *, description: str, is_typed: bool) -> list[str]:
    """Return at most one note: labels guessed to be classes may be meant in another way."""
    if is_typed:
        numbers = [as_number(tidy(label)) if isinstance(label, str) else None for label in labels]
        if None not in numbers and any(isinstance(number, float) for number in numbers):
            return [
                f"labels: those of {description} are texts that look like numbers and are read as "
                "names of classes; if they are values, pass `task` regression"
            ]
    elif num_divided := sum(LABEL_SEPARATOR in str(label) for label in labels):
        return [
            f"labels: {num_divided:,} of the {len(labels):,} labels of {description} contain "
            f"{LABEL_SEPARATOR!r} and are read as names of classes; if it divides several labels "
            "of a row, pass `task` multi_label"
        ]
    return []


@dataclass(frozen=True)
class LabelSpace:
    """The labels that a model tells apart.

    Attributes:
        names: of the classes in the order of their numbers; empty for regression.
        numbers: class number of each text, and of each numerical value, in the data.
        are_numbers: the classes are numbers in the data, so that a text means the number which it
            writes; otherwise texts of equal value, such as "3.1" and "3.10", are different classes.
        is_multi_hot: the label of a row is a list of one 0 or 1 for each class.
    """

    problem_type: ProblemType
    names: tuple[str, ...]
    numbers: dict[str | float, int]
    are_numbers: bool = False
    is_multi_hot: bool = False

    def __post_init__(self) -> None:
        """Refuse names that are empty or not all different."""
        if len(set(self.names)) < len(self.names) or not all(map(str.strip, self.names)):
            raise InputError(
                f"the label names {list(self.names)} are not all different, or not all there",
                advice="change `label_names`",
            )

    @property
    def num_outputs(self) -> int:
        """Return the width of the model's last layer."""
        return len(self.names) or 1

    def encode(self, labels: Sequence[Any], *, description: str) -> NDArray[Any]:
        """Return labels of the data as the stock heads take them.

        Returns:
            int64 (N,) class numbers; float32 (N,) values; or float32 (N, num_classes) of 0 and 1.

        Raises:
            InputError: a label is missing, or was not among the training labels.
        """
        rows = [
            (tidy(label), f"row {number} of {description}")
            for number, label in enumerate(labels, start=1)
        ]
        if self.problem_type == "regression":
            return np.array([_regression_value(*row) for row in rows], np.float32)
        if self.problem_type == "single_label_classification":
            return np.array([self._class_number(*row) for row in rows], np.int64)
        if self.is_multi_hot:
            return np.array([self._multi_hot(*row) for row in rows], np.float32)
        encoded = np.zeros((len(rows), len(self.names)), np.float32)
        for place, (label, row) in enumerate(rows):
            classes = [self._class_number(member, row) for member in members_of(label, row)]
            encoded[place, classes] = 1
        return encoded

    def _class_number(self, label: Any, row: str) -> int:
        check_class(label, row)
        number = self.numbers.get(text_of(label))
        if number is None and (self.are_numbers or not isinstance(label, str)):
            value = value_of(label)
            number = None if value is None else self.numbers.get(value)
        if number is not None:
            return number
        texts = [key for key in self.numbers if isinstance(key, str)]
        known = [repr(key) for key in texts or self.numbers]
        listed = ", ".join(known[:12]) + (", ..." * (len(known) > 12))
        raise InputError(
            f"{row} has the label {label!r}, which is not among those of the training data "
            f"({listed})",
            advice="repair the row, or change `label_column`",
        )

    def _multi_hot(self, label: Any, row: str) -> list[int]:
        check_label(label, row)
        width = len(self.names)
        if isinstance(label, list) and len(label) == width and all(map(is_zero_or_one, label)):
            return label
        raise InputError(
            f"{row} has the label {label!r}, but multi-hot labels of these training rows are "
            f"lists of {width} places, each 0 or 1 for one class",
            advice="repair the row, or change `label_column` or `task`",
        )


def _regression_value(label: Any, row: str) -> float:
    check_label(label, row)
    number = as_number(label)
    if number is None or not abs(number) <= _LARGEST_VALUE:
        raise InputError(
            f"{row} has the label {label!r} but regression needs numbers of at most "
            f"{_LARGEST_VALUE:.1e}",
            advice="change `task` or `label_column`",
        )
    if number == -100:
        # transformers would not count such a row, and divide the loss by too few.
        raise InputError(
            f"{row} has the label -100, which means 'no label' to transformers",
            advice="rescale the labels",
        )
    return float(number)
