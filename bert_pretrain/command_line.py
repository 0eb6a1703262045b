"""How every command of the package ends on bad input: one message, exit status 2, no traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from bert_pretrain.errors import InputError


@contextlib.contextmanager
def reporting_input_errors(*, debug: bool) -> Iterator[None]:
    """Turn an `InputError` into one message on standard error and `SystemExit(2)`.

    Args:
        debug: let the exception through, with its traceback.
    """
    try:
        yield
    except InputError as error:
        if debug:
            raise
        # All processes of a distributed run meet the same error; one reports it.
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
