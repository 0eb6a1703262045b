"""Work made ahead by a process of its own, so that it takes no time from this one.

NumPy and Python hold the interpreter's lock, for which a thread that launches kernels would have to
wait; hence no thread. A process lives for one job: it imports what the job needs and nothing of
the program (multiprocessing would import its main module, torch and all), sends its result back
and ends. It also ends within a second or so after its parent, however that ended.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from bert_pretrain.data.signals import outlive_stop_signals
from bert_pretrain.errors import MachineError

Result = TypeVar("Result")

_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from bert_pretrain.data.ahead import serve; serve()"
)
_NICENESS = 5  # what is ahead of need may wait for what trains
_SECONDS_BETWEEN_LOOKS = 0.5


class RemoteError(Exception):
    """Where an exception was raised, as text: the cause of one that another process sent."""


def begin_ahead(job: Callable[[], Result]) -> Future[Result]:
    """Let another process do a job.

    Args:
        job: can be pickled, as can its result and its errors.

    Returns:
        Its result, or the error that it raised; a `MachineError` if the process was ended.
    """
    future: Future[Result] = Future()
    request = pickle.dumps(sys.path) + pickle.dumps(job)
    # The thread waits and copies. As a daemon it does not keep a program that ends from ending.
    Thread(target=_fetch, args=(request, future), daemon=True).start()
    return future


def _fetch(request: bytes, future: Future[Result]) -> None:
    """Run the process and hand on what it answers."""
    try:
        command = [sys.executable, "-c", _PROGRAM, str(os.getpid())]
        done = subprocess.run(command, input=request, stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise MachineError(
                f"a process that worked ahead ended with status {done.returncode} and no result "
                "(a negative one is a signal; -9 is often a lack of memory)"
            )
        result, error, trace = pickle.loads(done.stdout)
        if error is not None:
            raise error from RemoteError(trace)
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def serve() -> None:
    """Do the job that stdin gives and write what came of it to stdout; the process's program."""
    outlive_stop_signals()
    Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    if hasattr(os, "nice"):  # not on Windows
        os.nice(_NICENESS)
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what the job prints is no part of the answer
        try:
            outcome: tuple[Any, Exception | None, str] = (pickle.load(sys.stdin.buffer)(), None, "")
        except Exception as error:
            outcome = (None, error, traceback.format_exc())
        answer.write(pickle.dumps(outcome, protocol=pickle.HIGHEST_PROTOCOL))


def _end_with(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
