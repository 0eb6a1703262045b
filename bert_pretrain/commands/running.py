"""How every command ends on bad input: one message in the spelling of its flags, and a status."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from bert_pretrain.data.signals import exit_status
from bert_pretrain.errors import (
    InputError,
    MachineError,
    RunStoppedError,
    TrainingError,
    hide_secrets,
    spell,
)

# Errors of the system, which are no bugs of this program; a name that is too long is its user's.
_OF_THE_MACHINE = {
    errno.ENOSPC,
    errno.EFBIG,  # as beyond a quota or a limit of file sizes
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENAMETOOLONG,
    getattr(errno, "EDQUOT", errno.ENOSPC),  # Windows has none
}


@contextlib.contextmanager
def reporting_input_errors(*, debug: bool, **spellings: str) -> Iterator[None]:
    """Turn an `InputError` into one message and status 2, a `TrainingError` into status 1.

    So does what the machine refuses, such as a full disk. Neither a message nor a traceback shows a
    secret of the environment, such as HF_TOKEN's value.

    A run that a signal stopped ends with 128 and the signal's number, as shells count it, and so
    does whatever else is interrupted from the keyboard.

    Args:
        debug: let the exception through, with its traceback.
        spellings: of parameters that this command's flags call otherwise, see
            `bert_pretrain.errors.spell`.
    """
    sys.excepthook = _print_traceback
    threading.excepthook = _print_traceback_of_thread
    try:
        yield
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("interrupted\n")
        raise SystemExit(exit_status(signal.SIGINT)) from None
    except OSError as error:
        if debug or error.errno not in _OF_THE_MACHINE:
            raise
        is_name = error.errno == errno.ENAMETOOLONG  # the one of them that a flag can cure
        advice = "; pass shorter names" if is_name else ""
        sys.stderr.write(hide_secrets(f"{_process()}error: the system refuses: {error}{advice}\n"))
        raise SystemExit(2 if is_name else 1) from None
    except (InputError, TrainingError, MachineError, RunStoppedError) as error:
        if debug:
            raise
        # The processes of a run usually meet the same error; each says so, in a line of its own,
        # because an error that one process alone meets would otherwise end the run in silence.
        message = hide_secrets(spell(str(error), **spellings))
        if isinstance(error, RunStoppedError):
            if not _process():  # all processes have stopped together
                sys.stderr.write(f"{message}\n")
            raise SystemExit(exit_status(error.number)) from None
        sys.stderr.write(f"{_process()}error: {message}\n")
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None


def _print_traceback(*raised: Any) -> None:
    sys.stderr.write(hide_secrets("".join(traceback.format_exception(*raised))))


def _print_traceback_of_thread(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_type is not SystemExit:  # with which a thread ends itself
        _print_traceback(raised.exc_type, raised.exc_value, raised.exc_traceback)


def _process() -> str:
    """Return what a line begins with that another process than the first writes."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "
