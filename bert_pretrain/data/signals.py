"""Signals that ask a run to stop: noted by the process that trains, waited out by its helpers.

A terminal and a batch system send them to every process of a run, so processes that work for the
one that trains must not end before it has finished its update and saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

# Windows has not all of them. SIGUSR1 is what SLURM sends by --signal before the time is over.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
FOLLOWS_PARENT = "BERT_PRETRAIN_FOLLOWS_PARENT"  # set for programs that end with their parent
STOP_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_SECONDS_OF_A_HELPER = 10.0  # after SIGTERM, for the update that its process is making
_SECONDS_BETWEEN_LOOKS = 1.0  # at the launcher


class StopRequest:
    """Notes the first stop signal of this process; a SIGINT after it ends the process at once.

    Others after it mean no more than the first: a batch system may tell both a launcher and its
    processes, to which the launcher then passes on what it was told.

    Attributes:
        number: of the signal; 0 = none has come.
    """

    def __init__(self, *, grace_seconds: float = 0.0) -> None:
        """Note signals from `taken` on.

        Args:
            grace_seconds: after which a process that is still there is ended; 0 = never.
        """
        self.number = 0
        self._grace_seconds = grace_seconds

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take signals in this block; afterwards they do what they did before."""
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if number == signal.SIGINT:  # a person in a hurry
                end_by(number)
            return
        self.number = number
        if self._grace_seconds:
            timer = threading.Timer(self._grace_seconds, os._exit, [exit_status(number)])
            timer.daemon = True
            timer.start()


def stop_with_launcher() -> None:
    """Let the end of the launcher be a SIGTERM to this process; without a launcher do nothing.

    torchrun, and accelerate by it, puts each process into a session of its own: if the launcher is
    killed they hear nothing of it, train on, and keep whoever starts the run again from its folder.
    """
    # nohup and the like may leave a run alone
    if not {"TORCHELASTIC_RUN_ID", FOLLOWS_PARENT} & os.environ.keys():
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def exit_status(number: int) -> int:
    """Return the status of a program that a signal has ended, as shells count it."""
    return 128 + number


def end_by(number: int) -> None:
    """End this process as if it had never taken the signal."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(signal.Signals(number))


def outlive_stop_signals() -> None:
    """Let a helper process go on after a stop signal; its parent ends it.

    SIGTERM is also how a parent ends its helpers, so it is obeyed, but later.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
        signal.signal(
            signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, _SECONDS_OF_A_HELPER)
        )
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
