"""Where the time of an update goes: a trace of some updates, and a table.

The trainer wraps the parts of an update in `section`; without `--profile` that costs nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

_FIRST = 5  # updates that warm up: they make kernels, handles and buffers
# Names that collectives have in a trace; their time is part of the section that they run in.
_COMMUNICATION = ("nccl", "gloo", "c10d")


class StepProfiler:
    """Profiles `num_steps` updates after the first few of a session, then writes what it found."""

    def __init__(self, num_steps: int, folder: Path, device: torch.device) -> None:
        """Plan it; 0 updates = profile nothing.

        Args:
            num_steps: updates to profile.
            folder: where trace.json and table.txt go.
            device: of the model.
        """
        self._num_steps = num_steps
        self._folder = folder
        self._device = device
        self._step = 0
        self._profile: Any = None
        self._begun = 0.0
        self._host: dict[str, float] = defaultdict(float)
        self._inside = 0.0  # seconds of the sections inside the one that is open
        self._marks: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the time of a block under a name, on the host and on the device."""
        if self._profile is None:
            yield
            return
        mark, inside = self._mark(), self._inside
        self._inside = 0.0
        begun = time.perf_counter()
        with record_function(name):
            yield
        seconds = time.perf_counter() - begun
        self._host[name] += seconds - self._inside  # what sections inside took is theirs
        self._inside = inside + seconds
        self._marks.append((name, mark, self._mark()))

    def step(self) -> str | None:
        """Say that an update is done; returns the table after the last one that is profiled."""
        self._step += 1
        num_done = self._step - _FIRST
        if self._profile is not None and num_done == self._num_steps:
            return self._finish(num_done)
        if self._num_steps and num_done == 0:
            self._start()
        return None

    def close(self) -> str | None:
        """End the profile of a session that ends earlier; returns the table of what there was."""
        num_done = self._step - _FIRST
        if self._profile is not None and num_done > 0:
            return self._finish(num_done)
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
        if self._num_steps and num_done <= 0:
            self._num_steps = 0  # said once
            return f"no profile: the first {_FIRST} updates warm up, and there was no other"
        return None

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize(self._device)
        self._profile = profile(activities=activities)
        self._profile.start()
        self._begun = time.perf_counter()

    def _finish(self, num_steps: int) -> str:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - self._begun
        trace, self._profile = self._profile, None
        trace.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(self._folder / "trace.json"))
        table = self._table(seconds, trace, num_steps)
        (self._folder / "table.txt").write_text(table + "\n")
        return f"{table}\nthe trace is in {self._folder / 'trace.json'}"

    def _table(self, seconds: float, trace: Any, num_steps: int) -> str:
        """Return milliseconds an update by section; the device's own only where there is one."""
        device: dict[str, float] = defaultdict(float)
        for name, begin, end in self._marks:
            if begin is not None:
                device[name] += begin.elapsed_time(end) / 1e3
        per_step = 1e3 / num_steps
        lines = [f"{num_steps} updates, {seconds * per_step:.2f} ms each; ms an update:"]
        lines.append(f"{'':14} {'host':>9}" + (f" {'device':>9}" if device else ""))
        for name, value in self._host.items():
            line = f"{name:14} {value * per_step:9.2f}"
            lines.append(line + (f" {device[name] * per_step:9.2f}" if device else ""))
        rest = seconds - sum(self._host.values())
        lines.append(f"{'other':14} {rest * per_step:9.2f}")
        collectives = [event for event in trace.key_averages() if _is_communication(event.key)]
        if collectives:
            host = sum(event.self_cpu_time_total for event in collectives) / 1e6
            line = f"{'communication':14} {host * per_step:9.2f}"
            if device:
                held = sum(event.self_device_time_total for event in collectives) / 1e6
                line += f" {held * per_step:9.2f}"
            lines.append(line + "  (part of the above, or beside it)")
        return "\n".join(lines)

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return None
        return torch.cuda.current_stream(self._device).record_event(
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        )


def _is_communication(name: str) -> bool:
    return any(word in name.lower() for word in _COMMUNICATION)
