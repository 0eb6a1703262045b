"""What one label of a row is: a text, a number, none, or a list; and what is refused as no label of any kind."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from bert_pretrain.data.row_files import is_unicode
from bert_pretrain.errors import InputError

LABEL_SEPARATOR = (
    "|"  # between the labels of a multi-label row that is one string, as in a CSV file
)
_LARGEST_VALUE = float(np.finfo(np.float32).max)
_NUMBER = re.compile(
    r"-?(0|[1-9]\d{0,14})(\.\d+)?"
)  # not "007", which is a name that happens to have digits
_TRUTH_VALUES = {
    "false": 0,
    "true": 1,
}  # as JSON writes them, and with capitals pandas in a CSV file


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


def text_of(label: Any) -> str:
    """Return a tidy label as a file of texts has it, which is the name of its class."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def value_of(label: Any) -> int | float | None:
    """Return the number that a label means to a file of numbers or booleans."""
    return (
        _TRUTH_VALUES.get(label.lower(), as_number(label))
        if isinstance(label, str)
        else as_number(label)
    )


def is_missing(label: Any) -> bool:
    """Return whether a row has no label: none at all, an empty text, or no number."""
    return label is None or label == "" or (isinstance(label, float) and math.isnan(label))


def members_of(value: Any, place: int, description: str) -> list[Any]:
    """Return the labels of a row that may have several.

    Raises:
        InputError: it has none at all (an empty list is one of no label), or one of them is no
            label.
    """
    if value is None:
        refuse_missing(value, place, description)
    if isinstance(value, str):
        return [member.strip() for member in value.split(LABEL_SEPARATOR) if member.strip()]
    members = value if isinstance(value, list) else [value]
    for member in members:
        refuse_missing(member, place, description)
        if isinstance(member, list):
            raise InputError(
                f"row {place + 1} of {description} has the label {value!r}, a list within a list",
                advice="flatten it or change `label_column`",
            )
    return members


def regression_value(value: Any, place: int, description: str) -> float:
    """Return the number of a row.

    Raises:
        InputError: the label is no number that regression can be trained on.
    """
    refuse_missing(value, place, description)
    number = as_number(value)
    if number is None or not abs(number) <= _LARGEST_VALUE:
        raise InputError(
            f"row {place + 1} of {description} has the label {value!r} but regression needs "
            f"numbers of at most {_LARGEST_VALUE:.1e}",
            advice="change `task` or `label_column`",
        )
    if number == -100:
        # transformers counts such labels as none, so that the loss would be divided by the wrong
        # number.
        raise InputError(
            f"row {place + 1} of {description} has the label -100, which means 'no label' to "
            "transformers",
            advice="rescale the labels",
        )
    return float(number)


def refuse_missing(value: Any, place: int, description: str) -> None:
    """Refuse what is no label of a class: nothing, or neither a text nor a number (nor a list, which others take)."""
    if value is not None and not isinstance(value, str | int | float | list):
        raise InputError(
            f"row {place + 1} of {description} has the label {value!r}, which is neither a text "
            "nor a number",
            advice="change `label_column` or convert it",
        )
    if isinstance(value, str) and not is_unicode(value):
        raise InputError(
            f"row {place + 1} of {description} has the label {value!r}, which is no valid Unicode",
            advice="repair the row",
        )
    if is_missing(value):
        raise InputError(
            f"row {place + 1} of {description} has no label ({value!r})",
            advice="remove the row or repair it",
        )
