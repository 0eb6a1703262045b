"""The one exception that a user can cause; the command line turns it into one message and exit code 2."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what is wrong, the value met, what is allowed, and which flag to change. The command line prints
    it without a traceback (`--debug` shows one) and exits with status 2; library callers catch it as a `ValueError`.
    """
