"""Flags whose value changes in the course of a run: row lengths, the rate of masking, batch sizes.

Each is a type that argparse calls on the text. A `Lengths` is also its longest length and a `Rates`
its first rate, so that code which knows no schedule reads a number.
"""

from __future__ import annotations

import contextlib

from bert_pretrain.errors import InputError

_TOLERANCE = 1e-6  # of a sum of shares


class Lengths(int):
    """Tokens of a row: a number, or LENGTH:SHARE,... for phases of a run; as int the longest.

    Attributes:
        numbers: the length of each phase.
        shares: of the updates that each phase has; they add up to 1.
    """

    numbers: tuple[int, ...]
    shares: tuple[float, ...]

    def __new__(cls, text: str | int) -> Lengths:
        """Read it.

        Raises:
            InputError: it has neither form, or the shares do not add up to 1.
        """
        phases = [part.partition(":") for part in str(text).split(",")]
        numbers: list[int] = []
        shares: list[float] = []
        with contextlib.suppress(ValueError):
            numbers = [int(number) for number, _, _ in phases]
            is_alone = len(phases) == 1 and not phases[0][1]
            shares = [1.0] if is_alone else [float(share) for _, _, share in phases]
        if not shares or not all(0 < share <= 1 for share in shares):
            raise InputError.out_of_range(
                "max_seq_length",
                text,
                "a number, or LENGTH:SHARE,... with shares in (0, 1]",
                "pass `max_seq_length` one such as 128 or 128:0.9,512:0.1",
            )
        if abs(sum(shares) - 1) > _TOLERANCE:
            raise InputError(
                f"the shares of `max_seq_length` {text} add up to {sum(shares):g} but must add up "
                "to 1",
                advice="change them, as in 128:0.9,512:0.1",
                parameter="max_seq_length",
            )
        made = super().__new__(cls, max(numbers))
        made.numbers, made.shares = tuple(numbers), tuple(shares)
        return made

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]  # what copies it, not int
        return (str(self.as_given),)

    @property
    def as_given(self) -> int | str:
        """What a record keeps: the number, or the text of the phases."""
        pairs = zip(self.numbers, self.shares, strict=True)
        return int(self) if len(self.numbers) == 1 else ",".join(f"{n}:{s!r}" for n, s in pairs)


class Rates(float):
    """A share of tokens: a number, or FIRST:LAST, linear over a run; as float the first.

    Attributes:
        numbers: the first and the last, or the only one.
    """

    numbers: tuple[float, ...]

    def __new__(cls, text: str | float) -> Rates:
        """Read it.

        Raises:
            InputError: it has neither form.
        """
        numbers: tuple[float, ...] = ()
        with contextlib.suppress(ValueError):
            numbers = tuple(float(number) for number in str(text).split(":"))
        if len(numbers) not in (1, 2):
            raise InputError.out_of_range(
                "mlm_probability",
                text,
                "a number, or FIRST:LAST",
                "pass `mlm_probability` one such as 0.15 or 0.3:0.15",
            )
        made = super().__new__(cls, numbers[0])
        made.numbers = numbers
        return made

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]  # what copies it, not float
        return (str(self.as_given),)

    @property
    def last(self) -> float | None:
        """The rate at the end of a run; None where it does not change."""
        return self.numbers[1] if len(self.numbers) == 2 else None

    @property
    def as_given(self) -> float | str:
        """What a record keeps: the number, or the text of both."""
        return float(self) if len(self.numbers) == 1 else ":".join(map(repr, self.numbers))


class Ramp(str):
    """START:SHARE, the rows of the first update and the share of the updates over which they rise.

    Attributes:
        start: at least 1.
        share: in (0, 1].
    """

    start: int
    share: float

    def __new__(cls, text: str) -> Ramp:
        """Read it.

        Raises:
            InputError: it has another form, or a number is out of its range.
        """
        start, share = 0, 0.0
        before, _, after = text.partition(":")
        with contextlib.suppress(ValueError):
            start, share = int(before), float(after)
        if start < 1 or not 0 < share <= 1:
            raise InputError.out_of_range(
                "batch_size_ramp",
                text,
                "START:SHARE, rows and a share in (0, 1]",
                "pass `batch_size_ramp` one such as 8:0.3",
            )
        made = super().__new__(cls, f"{start}:{share!r}")  # however it was written
        made.start, made.share = start, share
        return made
