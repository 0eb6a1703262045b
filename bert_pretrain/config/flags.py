"""How flags are declared and parsed; every command uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

from transformers import HfArgumentParser

from bert_pretrain.errors import InputError


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
        raise InputError(
            f"unknown arguments {' '.join(unknown)}", advice="--help lists what is allowed"
        )
    return tuple(groups)
