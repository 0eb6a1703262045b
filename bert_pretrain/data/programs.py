"""Programs of this package that another one starts, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from bert_pretrain.data.signals import FOLLOWS_PARENT, STOP_SIGNALS

_ROOT = str(Path(__file__).parents[2])


def environment() -> dict[str, str]:
    """Return this process's environment, in which Python also finds a checkout not installed."""
    python_path = filter(None, [_ROOT, os.environ.get("PYTHONPATH")])
    return os.environ | {"PYTHONPATH": os.pathsep.join(python_path)}


def run_program(command: Sequence[str], own: Mapping[str, str]) -> int:
    """Run a program to its end and return its status, negative if a signal has ended it.

    A signal that asks this process to stop goes on to the program, once, and its end is awaited: a
    run saves. If this process is killed, the program stops by itself. For the main thread.
    """
    # In a session of its own, so that a terminal's Ctrl-C reaches it by this process alone.
    environment = dict(own) | {FOLLOWS_PARENT: "1"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:

        def hand_on(number: int, _: FrameType | None) -> None:
            if os.name != "nt":  # there a console tells both
                process.send_signal(number)

        before = {number: signal.signal(number, hand_on) for number in STOP_SIGNALS}
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
