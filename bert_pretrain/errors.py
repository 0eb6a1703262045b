"""The exceptions that a command turns into one message and an exit status; all others are bugs."""

from __future__ import annotations

import json
import os
import re
from typing import Any

_PARAMETER = re.compile(r"`(\w+)`")  # in messages
# HF_TOKEN, AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_KEY, GITHUB_PAT, PGPASSWORD, DB_PASSWD, ...
_SECRET_NAME = re.compile(
    r".*(?:passw(?:or)?d|passwd|secret|credentials?).*|(?:.*_)?(?:token|pat|(?:[a-z]+_)?api_?key|"
    r"(?:access|account|auth|encryption|license|private|secret|shared|signing|storage)_key)",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8  # characters; shorter ones are too often words
REMOVED = "[removed]"


class InputError(ValueError):
    """Something the user gave cannot be used.

    Its texts know parameters, not flags: the name of a parameter stands between backquotes, and who
    shows the message says how each is spelt (a command: as its flag). Library callers catch it as a
    `ValueError`.

    Attributes:
        problem: what is wrong, with the value met and what is allowed.
        advice: what to change; "" where the problem says it.
        parameter: the one at fault, by name; None where it is not one alone.
        value: of that parameter.
        allowed: what it may be, in words that follow "must be".
    """

    def __init__(
        self,
        problem: str,
        *,
        advice: str = "",
        parameter: str | None = None,
        value: Any = None,
        allowed: str = "",
    ) -> None:
        """Keep what a message is made of; see the class."""
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem = problem
        self.advice = advice
        self.parameter = parameter
        self.value = value
        self.allowed = allowed

    @classmethod
    def out_of_range(cls, parameter: str, value: Any, allowed: str, advice: str = "") -> InputError:
        """Return the error of one parameter whose value is not allowed."""
        return cls(
            f"`{parameter}` is {value!r} but must be {allowed}",
            advice=advice or f"change `{parameter}`",
            parameter=parameter,
            value=value,
            allowed=allowed,
        )


class TrainingError(RuntimeError):
    """A run cannot go on, though nothing given to it was wrong in itself: it diverged.

    The message says where, and from what and how to continue; it names parameters as an
    `InputError` does.
    """


class MachineError(RuntimeError):
    """The machine does not do what was asked of it, such as writing to a disk that is full."""


class RunStoppedError(Exception):
    """A signal has asked a run to stop, and it has saved; the message says how to go on.

    Attributes:
        number: of the signal.
    """

    def __init__(self, message: str, *, number: int) -> None:
        """Keep the message, which names parameters as an `InputError` does, and the signal."""
        super().__init__(message)
        self.number = number


def spell(message: str, **spellings: str) -> str:
    """Return a message with every parameter spelt as a flag, `seed` as --seed.

    Args:
        message: of an `InputError` or a `TrainingError`, or a warning written like theirs.
        spellings: of parameters that a command's flags call otherwise, such as
            `model_name_or_path="--model"`.
    """
    return _PARAMETER.sub(lambda found: spellings.get(found[1], f"--{found[1]}"), message)


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign exception's message, or its type if it has none.

    What stands between backquotes there is no parameter of ours, see `spell`.
    """
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.replace("`", "'")


def is_secret_name(name: str) -> bool:
    """Return whether what goes by a name, such as HF_TOKEN, is nobody else's business."""
    return _SECRET_NAME.fullmatch(name) is not None


def hide_secrets(text: str) -> str:
    """Return a text without the values of this environment's secrets, such as HF_TOKEN's."""
    for name, secret in os.environ.items():
        if len(secret) >= _SHORTEST_SECRET and is_secret_name(name):
            text = text.replace(secret, REMOVED)
    return text


def without_secrets(record: Any) -> Any:
    """Return a JSON-able record as JSON gives it back, without this environment's secrets."""
    return json.loads(hide_secrets(json.dumps(record, ensure_ascii=False)))
