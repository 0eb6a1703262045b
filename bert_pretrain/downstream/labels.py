"""From the labels of a file to what a model is trained on, and the names of the classes on the way.

A `LabelSpace` is made from the training labels alone and then encodes those of every split, so that a class that only
the evaluation data have is found before anything is trained.
"""

from __future__ import annotations

import math
import re
from collections import Counter
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
_TRUTH_VALUES = {"false": 0, "true": 1}  # as JSON writes them, and with capitals pandas in a CSV file


@dataclass(frozen=True)
class LabelSpace:
    """The labels that a model tells apart.

    Attributes:
        problem_type: as transformers' configurations call it.
        names: of the classes in the order of their numbers; empty for regression.
        numbers: class number of each text, and of each numerical value, that labels have in the data.
        are_numbers: the classes are numbers to the data, so that a text means the number which it writes; otherwise
            texts of equal value, such as "3.1" and "3.10", are different classes.
    """

    problem_type: ProblemType
    names: tuple[str, ...]
    numbers: dict[str | float, int]
    are_numbers: bool = False

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
        number = self.numbers.get(_text_of(value))
        if number is None and (self.are_numbers or not isinstance(value, str)):
            numerical = _value_of(value)
            number = None if numerical is None else self.numbers.get(numerical)
        if number is None:
            known: list[Any] = [key for key in self.numbers if isinstance(key, str)] or list(self.numbers)
            listed = ", ".join(map(repr, known[:12])) + (", ..." * (len(known) > 12))
            raise InputError(
                f"row {place + 1} of {description} has the label {value!r}, which is not among those of the training "
                f"data ({listed}); repair the row, or change --label_column"
            )
        return number


def find_labels(
    labels: Sequence[Any],
    *,
    problem_type: ProblemType | None,
    names: Sequence[str] | None,
    description: str,
    is_typed: bool = True,
) -> LabelSpace:
    """Return the label space of the training labels.

    Args:
        labels: of the training rows: class numbers or names; numbers for regression; lists of classes, or one string
            with `LABEL_SEPARATOR` between them, for several labels a row.
        problem_type: None = lists are several labels, fractions are regression, anything else is classes.
        names: of the class numbers 0, 1, ..., where the labels may be numbers only.
        description: where they come from.
        is_typed: the data tell texts from numbers, as JSON does and CSV does not, so that "0.5" is a name.

    Raises:
        InputError: a label is missing, or there is one class only.
    """
    values = [tidy(label) for label in labels]
    if problem_type is None:
        problem_type = _guess(values, is_typed=is_typed)
    if problem_type == "regression":
        found_numbers = {as_number(value) for value in values}
        if len(found_numbers) == 1 and None not in found_numbers and not is_missing(values[0]):
            raise InputError(
                f"all {len(values):,} rows of {description} have the label {values[0]!r}, from which nothing can be "
                "learnt; change --train_file or --label_column"
            )
        return LabelSpace(problem_type, (), {})
    if problem_type == "multi_label_classification":
        found = [member for place, value in enumerate(values) for member in _members(value, place, description)]
    else:
        for place, value in enumerate(values):
            _refuse_missing(value, place, description)
            if isinstance(value, list):
                raise InputError(
                    f"row {place + 1} of {description} has a list of labels; pass --task multi_label for several labels"
                )
        found = values
    if names is None:
        space = _named_as_found(found, problem_type, description)
    else:
        space = _named(found, problem_type, names, description)
    smallest = 1 if problem_type == "multi_label_classification" else 2
    if len(set(map(_text_of, found))) < smallest:
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


def _named_as_found(labels: Sequence[Any], problem_type: ProblemType, description: str) -> LabelSpace:
    """Return the classes of these labels by the texts that they are: numbers in their order, then words."""
    found = {_text_of(label): label for label in labels}
    typed = [label for label in found.values() if not isinstance(label, str)]
    if len(set(typed)) < len(typed):
        raise InputError(f"{description} has labels that differ by type alone, such as 1 and true; make them equal")

    def place_in_order(text: str) -> tuple[bool, float, str]:
        number = as_number(found[text])
        return number is None, number or 0, text

    names = tuple(sorted(found, key=place_in_order))
    numbers_of: dict[str | float, int] = {name: number for number, name in enumerate(names)}
    values = [_value_of(found[name]) for name in names]
    how_often = Counter(values)
    numbers_of |= {value: n for n, value in enumerate(values) if value is not None and how_often[value] == 1}
    are_numbers = not any(isinstance(label, str) for label in labels)
    return LabelSpace(problem_type, names, numbers_of, are_numbers)


def _named(labels: Sequence[Any], problem_type: ProblemType, names: Sequence[str], description: str) -> LabelSpace:
    """Return the classes of these names, where the labels are either names or numbers of them."""
    by_name: dict[str | float, int] = {name: number for number, name in enumerate(names)}
    if len(by_name) < len(names) or not all(name.strip() for name in names):
        raise InputError(f"the label names {list(names)} are not all different, or not all there; change --label_names")
    are_texts = all(isinstance(label, str) for label in labels)
    is_named = are_texts and (
        all(label in by_name for label in labels) or all(as_number(label) is None for label in labels)
    )
    by_number: dict[str | float, int] = {number: number for number in range(len(names))}
    unknown = [
        label
        for label in labels
        if (label if is_named else as_number(label)) not in (by_name if is_named else by_number)
    ]
    if unknown:
        raise InputError(
            f"{description} has the label {min(map(_text_of, unknown))!r} but the classes are {', '.join(names)}"
            + ("" if is_named else f", numbered from 0 to {len(names) - 1}")
            + "; change --label_names, --task or --label_column"
        )
    return LabelSpace(problem_type, tuple(names), by_name if is_named else by_number, are_numbers=not is_named)


def tidy(label: Any) -> Any:
    """Return a label as Python has it: texts without space around them, and whole numbers as int."""
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
    """Return the number that a tidy label is, or is the text of; whole ones as int, None for what is no number."""
    if isinstance(label, str):
        return tidy(float(label)) if _NUMBER.fullmatch(label) else None
    if isinstance(label, int):
        return int(label)
    return label if isinstance(label, float) else None


def _text_of(label: Any) -> str:
    """Return a tidy label as a file of texts has it, which is the name of its class."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def _value_of(label: Any) -> int | float | None:
    """Return the number that a label means to a file of numbers or booleans."""
    return _TRUTH_VALUES.get(label.lower(), as_number(label)) if isinstance(label, str) else as_number(label)


def is_missing(label: Any) -> bool:
    """Return whether a row has no label: none at all, an empty text, or no number."""
    return label is None or label == "" or (isinstance(label, float) and math.isnan(label))


def _guess(values: Sequence[Any], *, is_typed: bool) -> ProblemType:
    if any(isinstance(value, list) for value in values):
        return "multi_label_classification"
    numbers = (value if is_typed else as_number(value) for value in values)
    if any(isinstance(number, float) and not math.isnan(number) for number in numbers):
        return "regression"
    return "single_label_classification"


def _members(value: Any, place: int, description: str) -> list[Any]:
    if value is None:
        _refuse_missing(value, place, description)
    if isinstance(value, str):
        return [member.strip() for member in value.split(LABEL_SEPARATOR) if member.strip()]
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
    number = as_number(value)
    if number is None or not abs(number) <= _LARGEST_VALUE:
        raise InputError(
            f"row {place + 1} of {description} has the label {value!r} but regression needs numbers of at most "
            f"{_LARGEST_VALUE:.1e}; change --task or --label_column"
        )
    if number == -100:
        # transformers counts such labels as none, so that the loss would be divided by the wrong number.
        raise InputError(
            f"row {place + 1} of {description} has the label -100, which means 'no label' to transformers; "
            "rescale the labels"
        )
    return float(number)


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
