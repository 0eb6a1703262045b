"""Programs of this package that another one starts, each in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = str(Path(__file__).parents[2])


def environment() -> dict[str, str]:
    """Return this process's environment, in which Python also finds a checkout not installed."""
    python_path = filter(None, [_ROOT, os.environ.get("PYTHONPATH")])
    return os.environ | {"PYTHONPATH": os.pathsep.join(python_path)}
