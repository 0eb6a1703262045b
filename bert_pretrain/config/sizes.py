"""The size of images as a flag: one number, or height x width."""

from __future__ import annotations

import re
from typing import ClassVar, TypeVar

from bert_pretrain.errors import InputError

Size = TypeVar("Size", bound="ImageSize")


class ImageSize(int):
    """Pixels of an image: the side of a square, or HEIGHTxWIDTH; as int the height.

    Attributes:
        numbers: height and width, or the only side.
    """

    flag: ClassVar[str] = "image_size"
    numbers: tuple[int, ...]

    def __new__(cls: type[Size], text: str | int) -> Size:
        """Read it.

        Raises:
            InputError: it has neither form, or one of two sides is 0.
        """
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text).strip())
        numbers = tuple(int(number) for number in found.groups() if number) if found else ()
        if not numbers or (len(numbers) == 2 and 0 in numbers):
            raise InputError.out_of_range(cls.flag, text, "a number, or HEIGHTxWIDTH such as 64x96")
        if len(set(numbers)) == 1:
            numbers = numbers[:1]
        made = super().__new__(cls, numbers[0])
        made.numbers = numbers
        return made

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]  # what copies it, not int
        return (str(self.as_given),)

    @property
    def as_given(self) -> int | str:
        """What a record keeps: the number, or the text."""
        return int(self) if len(self.numbers) == 1 else "x".join(map(str, self.numbers))

    @property
    def sides(self) -> int | tuple[int, int]:
        """What reads images takes: the side of a square, or height and width."""
        return int(self) if len(self.numbers) == 1 else (self.numbers[0], self.numbers[1])


class LocalViewSize(ImageSize):
    """The same of a local view."""

    flag = "local_view_size"
