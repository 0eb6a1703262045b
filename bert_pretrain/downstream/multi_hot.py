"""Labels of a row as a list of one 0 or 1 for each class, the form in which transformers' multi-label heads take them.

Such lists are told from lists of class numbers by their equal lengths and by numbers that come
twice, which no set of classes has. Two classes may leave it open: [0, 1] is both. As class numbers
such rows would all be alike, so that there would be nothing to learn; they are read as multi-hot
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.downstream.label_values import refuse_missing
from bert_pretrain.errors import InputError


def multi_hot_width(values: Sequence[Any], *, description: str) -> int:
    """Return the number of classes of multi-hot labels; 0 where the labels are none.

    Args:
        values: tidy labels of the training rows.
        description: where they come from.

    Raises:
        InputError: they can be nothing but multi-hot, and a row has another length or no list.
    """
    lists = [value for value in values if isinstance(value, list)]
    if not lists or not all(_is_zero_or_one(member) for row in lists for member in row):
        return 0
    width = len(lists[0])
    for place, value in enumerate(values):
        if isinstance(value, list) and len(value) == width:
            continue
        if all(len(set(row)) == len(row) for row in lists):
            return 0
        refuse_missing(value, place, description)
        other = f"a list of {len(value)}" if isinstance(value, list) else f"the label {value!r}"
        raise InputError(
            f"row {place + 1} of {description} has {other} but row {values.index(lists[0]) + 1} "
            f"one of {width} zeros and ones",
            advice="with one of them for each class all lists must be equally long, and as class "
            "numbers they must not come twice in a row; repair the row, or change "
            "`label_column`",
        )
    return width if width > 1 else 0


def encode_multi_hot(values: Sequence[Any], width: int, *, description: str) -> NDArray[np.float32]:
    """Return tidy multi-hot labels as float32 (N, width) of 0 and 1.

    Raises:
        InputError: a row has no label, or anything but a list of so many zeros and ones.
    """
    for place, value in enumerate(values):
        refuse_missing(value, place, description)
        if (
            not isinstance(value, list)
            or len(value) != width
            or not all(map(_is_zero_or_one, value))
        ):
            raise InputError(
                f"row {place + 1} of {description} has the label {value!r}, but those of the "
                f"training rows are lists of {width} places, each 0 or 1 for one class",
                advice="repair the row, or change `label_column`",
            )
    return np.array(values, np.float32).reshape(len(values), width)


def _is_zero_or_one(member: Any) -> bool:
    return isinstance(member, int) and member in (0, 1)
