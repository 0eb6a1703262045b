"""How every command ends on bad input: one message in the spelling of its flags, and a status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from bert_pretrain.errors import InputError, TrainingError, spell


@contextlib.contextmanager
def reporting_input_errors(*, debug: bool, **spellings: str) -> Iterator[None]:
    """Turn an `InputError` into one message and status 2, a `TrainingError` into status 1.

    Args:
        debug: let the exception through, with its traceback.
        spellings: of parameters that this command's flags call otherwise, see
            `bert_pretrain.errors.spell`.
    """
    try:
        yield
    except (InputError, TrainingError) as error:
        if debug:
            raise
        # The processes of a run usually meet the same error; each says so, in a line of its own,
        # because an error that one process alone meets would otherwise end the run in silence.
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"process {rank}: "
        sys.stderr.write(f"{where}error: {spell(str(error), **spellings)}\n")
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
