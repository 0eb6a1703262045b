"""What every command of the package shares: how flags are declared and parsed, and how bad input ends it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any

from transformers import HfArgumentParser

from bert_pretrain.errors import InputError, TrainingError


def flag(default: Any, help_text: str, *, aliases: Sequence[str] = ()) -> Any:
    """Declare a flag as a dataclass field with its default, help and other spellings."""
    return field(default=default, metadata={"help": help_text, "aliases": list(aliases)})


def flags(help_text: str) -> Any:
    """Declare a flag that takes a list; not given it is None."""
    return field(default=None, metadata={"help": help_text, "nargs": "+"})


def parse_flags(parser: HfArgumentParser, arguments: Sequence[str]) -> tuple[Any, ...]:
    """Return the parser's dataclasses, filled from the command line.

    Raises:
        InputError: there is a flag that the parser does not know.
    """
    *groups, unknown = parser.parse_args_into_dataclasses(
        args=list(arguments), return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise InputError(f"unknown arguments {' '.join(unknown)}; --help lists what is allowed")
    return tuple(groups)


@contextlib.contextmanager
def reporting_input_errors(*, debug: bool) -> Iterator[None]:
    """Turn an `InputError` or a `TrainingError` into one message on standard error and `SystemExit` 2 or 1.

    Args:
        debug: let the exception through, with its traceback.
    """
    try:
        yield
    except (InputError, TrainingError) as error:
        if debug:
            raise
        # All processes of a distributed run meet the same error; one reports it.
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
