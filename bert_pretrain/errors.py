"""The exceptions that the command line turns into one message and an exit status; all others are bugs."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what is wrong, the value met, what is allowed, and which flag to change. The
    command line prints it without a traceback (`--debug` shows one) and exits with status 2;
    library callers catch it as a `ValueError`.
    """


def first_line(error: BaseException) -> str:
    """Return what is to be quoted of a foreign exception: the first line of its message, or its type without one."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class TrainingError(RuntimeError):
    """A run cannot go on, though nothing given to it was wrong in itself: it diverged.

    The message says where, and from what and how to continue. The command line prints it like an
    `InputError` and exits with status 1.
    """
