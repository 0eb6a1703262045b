"""Images that are not decoded yet: a row of a source, and a source that is read again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Label: TypeAlias = "int | str | None"


@dataclass(frozen=True)
class ImageRow:
    """One image as it is stored.

    Attributes:
        name: what to call it before a user: a path, or a file and the row in it, counted from 0.
        content: pixels uint8 (H, W); or `bytes` and `path` as `datasets.Image(decode=False)` gives
            them, either None; or None where the row holds no image.
        label: class number, -1 or None where there is none, or class name.
    """

    name: str
    content: NDArray[np.uint8] | dict[str, Any] | None
    label: Label


@dataclass(frozen=True)
class ImageSource:
    """Images that can be read again and again, always in the same order.

    Attributes:
        description: what the source is, for people.
        fingerprint: changes when the images may have changed.
        num_rows: how many rows a pass has.
        label_names: name of each class number, where the source tells them.
        is_embedded: whether the images come with an installed package and are few.
        read: starts a new pass over the rows.
    """

    description: str
    fingerprint: str
    num_rows: int
    label_names: tuple[str, ...] | None
    is_embedded: bool
    read: Callable[[], Iterator[ImageRow]]
