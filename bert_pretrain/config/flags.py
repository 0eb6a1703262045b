"""How flags are declared, parsed and checked; every command uses it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import HfArgumentParser

from bert_pretrain.errors import InputError, first_line

AnyDataclass = TypeVar("AnyDataclass")


AUTO = -1  # the program chooses
# Of the files that a flag `json` writes: of evaluate and worth-it, of verify, of neighbours.
_WRITTEN_KEYS = ({"figures"}, {"is_whole", "checks"}, {"embeddings", "results"})
_LARGEST_FIGURES = 2**26  # bytes; somebody's data may not fit into the memory
MOST = 10**9  # of whatever is counted, measured or waited for: longer than any run


class CountOrAuto(int):
    """The type of a flag that is a number or the word auto."""

    def __new__(cls, text: str | int) -> CountOrAuto:
        """Read it; argparse calls this, and turns a `ValueError` into its own message."""
        if text == "auto":
            return super().__new__(cls, AUTO)
        number = super().__new__(cls, text)
        if number == AUTO and isinstance(text, str):
            raise ValueError
        return number

    def __str__(self) -> str:
        return "auto" if self == AUTO else super().__repr__()


CountOrAuto.__name__ = "number or auto"  # as argparse calls it in its messages


class LevelRange(str):
    """LOW:HIGH, the grey levels of an image that become black and white, or auto.

    Attributes:
        numbers: both; none for auto.
    """

    numbers: tuple[float, ...]

    def __new__(cls, text: str) -> LevelRange:
        """Read it.

        Raises:
            InputError: it has neither form, or LOW is not below HIGH.
        """
        numbers: tuple[float, ...] = ()
        with contextlib.suppress(ValueError):
            numbers = tuple(float(number) for number in text.split(":")) if text != "auto" else ()
        if text != "auto" and not (len(numbers) == 2 and numbers[0] < numbers[1]):
            raise InputError.out_of_range(
                "pixel_range",
                text,
                "auto, or LOW:HIGH with LOW below HIGH",
                "pass `pixel_range` one such as 0:4095 or 0:1",
            )
        made = super().__new__(cls, text)
        made.numbers = numbers
        return made

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both levels; None for auto."""
        return (self.numbers[0], self.numbers[1]) if self.numbers else None


@dataclass(frozen=True)
class Range:
    """The numbers that a flag may be."""

    low: float
    high: float = MOST
    low_included: bool = True
    high_included: bool = True
    or_auto: bool = False  # whether the flag is a `CountOrAuto`

    def __contains__(self, value: float) -> bool:
        if self.or_auto and value == AUTO:
            return True
        is_above = value >= self.low if self.low_included else value > self.low
        return is_above and (value <= self.high if self.high_included else value < self.high)

    def __str__(self) -> str:
        or_auto = " or auto" if self.or_auto else ""
        if self.high == MOST:
            low = f"{'at least' if self.low_included else 'greater than'} {self.low}"
            return f"{low}, at most {MOST:,}{or_auto}"
        left, right = "[" if self.low_included else "(", "]" if self.high_included else ")"
        return f"in {left}{self.low}, {self.high}{right}{or_auto}"


def at_least(low: float) -> Range:
    """Return the range of `low` and all above it, up to `MOST`."""
    return Range(low)


def above(low: float) -> Range:
    """Return the range of all above `low`, up to `MOST`."""
    return Range(low, low_included=False)


NON_NEGATIVE, POSITIVE, ONE_OR_MORE = at_least(0), above(0), at_least(1)
SHARE = Range(0, 1)
SHARE_BELOW_ONE = Range(0, 1, high_included=False)
# Where memory or processes are taken for it, a slip of the finger would end in a crash or hang.
# Each is several times what anybody has reported.
SEEDS = Range(0, 2**32 - 1)  # what NumPy takes as a seed
THREADS = Range(0, 2**10)  # no machine has more cores
WORKERS = Range(0, 2**8)  # processes, each with a copy of the program in memory
WIDTH = 2**16  # numbers of an embedding
PIXELS = Range(0, 2**13)  # of a side
TOKENS = Range(8, 2**17)  # of a row
ROWS = Range(1, 2**16)  # of a forward pass
ROWS_OF_UPDATE = Range(0, 2**20)  # drawn and held together


def flag(
    default: Any, help_text: str, allowed: Range | None = None, *, aliases: Sequence[str] = ()
) -> Any:
    """Declare a flag as a field of a dataclass.

    Args:
        default: its default; `dataclasses.MISSING` = it must be given.
        help_text: what `--help` says of it; the range is added.
        allowed: the range of a number.
        aliases: other spellings.
    """
    metadata: dict[str, Any] = {"help": help_text, "aliases": list(aliases)}
    if allowed is not None:
        metadata |= {"help": f"{help_text} Must be {allowed}.", "allowed": allowed}
        metadata["action"] = _StoreIgnoringRange
    return field(default=default, metadata=metadata)


def flags(help_text: str) -> Any:
    """Declare a flag that takes a list; without it the value is None."""
    return field(default=None, metadata={"help": help_text, "nargs": "+"})


class _StoreIgnoringRange(argparse.Action):
    """Store a value; the range, which the parser passes on with all metadata, is not used here."""

    def __init__(self, *args: Any, allowed: Range, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, values)


def parse_flags(parser: HfArgumentParser, arguments: Sequence[str]) -> tuple[Any, ...]:
    """Return the parser's dataclasses, filled from the command line, with every value in its range.

    Raises:
        InputError: the parser does not know a flag, one that must be given is missing, or a value
            cannot be read, is none of the choices, or is out of range.
    """
    for word in arguments:
        if word.startswith("--") and word.endswith("=--"):  # argparse makes an empty list of it
            name = _parameter(word.removesuffix("=--")).replace("-", "_")
            raise InputError(f"`{name}` is '--', which is no value", advice=f"change `{name}`")
    parser.exit_on_error = False
    parser.error = _raise  # its own prints a page of usage
    try:
        *groups, unknown = parser.parse_args_into_dataclasses(
            args=list(arguments), return_remaining_strings=True, look_for_args_file=False
        )
    except argparse.ArgumentError as error:
        if isinstance(error.__context__, InputError):  # it says more than argparse does
            raise error.__context__ from None
        raise _in_our_words(error) from None
    if unknown:
        raise InputError(
            f"unknown arguments {' '.join(unknown)}", advice="--help lists what is allowed"
        )
    check_ranges(*groups)
    return tuple(groups)


def _raise(message: str) -> NoReturn:
    raise argparse.ArgumentError(None, message)


def _in_our_words(error: argparse.ArgumentError) -> InputError:
    """Return what argparse says of a command line as an `InputError`."""
    if missing := re.search(r"required: (.+)", error.message):
        names = ", ".join(f"`{_parameter(name)}`" for name in missing[1].split(", "))
        return InputError(f"{names} must be given", advice="--help says what each is")
    if error.argument_name is None:
        return InputError(error.message, advice="--help lists what is allowed")
    name = _parameter(error.argument_name)
    if found := re.fullmatch(r"invalid choice: (.+?) \(choose from (.+)\)", error.message):
        choices = found[2].replace("'", "")
        return InputError(
            f"`{name}` is {found[1]} but must be one of {choices}", advice=f"change `{name}`"
        )
    if found := re.fullmatch(r"invalid (.+) value: (.+)", error.message, re.DOTALL):
        kind = {"int": "whole number", "float": "number"}.get(found[1], found[1])
        return InputError(f"`{name}` is {found[2]} but must be a {kind}", advice=f"change `{name}`")
    if found := re.match(r"Truthy value expected: got (.+) but expected", error.message, re.DOTALL):
        return InputError(
            f"`{name}` is {found[1]!r} but must be 1 or 0, true or false, yes or no",
            advice=f"change `{name}`",
        )
    if "expected" in error.message and "argument" in error.message:
        return InputError(
            f"`{name}` has no value", advice="put one behind it, by = if it begins with -"
        )
    return InputError(f"`{name}`: {error.message.rstrip('.')}", advice=f"change `{name}`")


def _parameter(option: str) -> str:
    return option.split("/")[0].lstrip("-")  # of --max_steps/--max-steps


def check_ranges(*groups: Any) -> None:
    """Check all values of these flags.

    Raises:
        InputError: a number is out of its range or not finite, or a text is empty or none that
            UTF-8 can write.
    """
    for group in groups:
        for entry in dataclasses.fields(group):
            value, allowed = getattr(group, entry.name), entry.metadata.get("allowed")
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    _check_text(entry.name, text)
            # Those of a schedule have one range, see `config.schedules`.
            for number in getattr(value, "numbers", (value,)):
                _check_range(entry.name, number, allowed)


def _check_text(name: str, text: str) -> None:
    """Raise `InputError` for what no name, path or text can be."""
    if not text:  # it would mean the current folder, or nothing
        raise InputError.out_of_range(name, text, "a text that is not empty", f"leave `{name}` out")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a byte that the system could not decode
        raise InputError.out_of_range(name, text, "text in UTF-8") from error


def _check_range(name: str, value: Any, allowed: Range | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError.out_of_range(name, value, "a finite number")
    if allowed is None or value is None or value in allowed:
        return
    advice = ""
    if allowed.high <= 1 and 2 <= value < 100 and value / 100 in allowed:
        advice = f"for {value:g} % pass `{name}` {value / 100:g}"
    raise InputError.out_of_range(name, value, str(allowed), advice)


def pick(target: type[AnyDataclass], *groups: Any, **others: Any) -> AnyDataclass:
    """Fill a dataclass of another room with the flags of some groups that its fields are named by.

    Args:
        target: the dataclass.
        groups: of flags.
        others: fields that are no flags, or that differ from them.
    """
    values = {
        entry.name: getattr(group, entry.name)
        for group in groups
        for entry in dataclasses.fields(target)  # type: ignore[arg-type]  # it is a dataclass
        if hasattr(group, entry.name)
    }
    return target(**values | others)


def check_source(options: Any) -> None:
    """Raise `InputError` if `data_files` and `dataset_name` both name the data."""
    if options.data_files and options.dataset_name:
        raise InputError(
            f"`data_files` and `dataset_name` {options.dataset_name!r} both name the data",
            advice="pass one",
        )


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise `InputError` unless seeds are different numbers, each in the range of a seed."""
    if len(set(seeds)) < len(seeds) or not all(seed in SEEDS for seed in seeds):
        raise InputError.out_of_range("seeds", seeds, f"different numbers in 0..{SEEDS.high}")


def check_json_target(path: str | None) -> None:
    """Raise `InputError` if a file for figures, where one is asked for, cannot be made there.

    A file that is there is replaced if it is one of figures, but not if it is anything else.
    """
    if path is None:
        return
    target = Path(path).absolute()
    # A device or a pipe would be replaced by the file.
    is_other = target.exists() and not target.is_file()
    if is_other or not target.parent.is_dir():
        raise InputError(
            f"`json` is {path!r} but must be a file, in a folder that exists",
            advice="pass another file as `json`",
        )
    if target.exists() and not _holds_figures(target):
        raise InputError(
            f"`json` is {path!r}, a file that no command like this one wrote",
            advice="pass another file as `json`, or remove that one",
        )


def _holds_figures(path: Path) -> bool:
    """Return whether a file is empty, or was written for a flag `json`."""
    try:
        if path.stat().st_size > _LARGEST_FIGURES:
            return False
        content = path.read_bytes()
        found = json.loads(content) if content else {"figures": {}}
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and any(keys <= found.keys() for keys in _WRITTEN_KEYS)


def check_license(identifier: str | None) -> None:
    """Raise `InputError` unless a licence, if one is given, has the form of the Hub's names."""
    if identifier is not None and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", identifier) is None:
        raise InputError(
            f"{identifier!r} is no identifier of a licence",
            advice="pass `hub_license` one such as apache-2.0, cc-by-4.0, other",
        )


def check_repo_id(repo_id: str, *, parameter: str) -> None:
    """Raise `InputError` unless the Hub allows a repository of that name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        # It goes on with an argument of a function of the Hub's library.
        reason = first_line(error).partition(" Use ")[0]
        raise InputError(
            f"{repo_id!r} cannot be the name of a repository ({reason})",
            advice=f"pass owner/name or name as `{parameter}`",
        ) from error


def given_flags(arguments: Sequence[str]) -> set[str]:
    """Return the names of the flags on a command line."""
    return {
        argument[2:].split("=")[0].replace("-", "_")  # --max-steps is --max_steps
        for argument in arguments
        if argument.startswith("--")
    }
