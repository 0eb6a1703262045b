"""What the machine can do, and the record of it in run.json."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bert_pretrain.errors import hide_secrets

_PACKAGE = Path(__file__).parent
# Of mallopt, in bytes: pieces from which on the system is asked, and what may lie free.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_PACKAGES = (
    "bert-pretrain",
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "accelerate",
    "numpy",
)


def native_precision() -> str:
    """Return `bf16` where processor or GPU computes in bfloat16 natively, else `no`.

    A processor without such instructions emulates them, about a hundred times slower than float32.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if torch.accelerator.is_available():
        return "no"
    return "bf16" if _computes_in_bfloat16() else "no"


def _computes_in_bfloat16() -> bool:
    """Return whether the processor has AVX512-BF16."""
    if hasattr(torch.cpu, "get_capabilities"):  # not in older versions of torch
        return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


# Dense products in bfloat16, FLOP/s, as the makers' data sheets give them (without sparsity). The
# first whose words a card's name contains counts, so that longer ones come first.
_PEAK_BF16 = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A10": 125e12,
    "A30": 165e12,
    "RTX A6000": 155e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "MI250": 362e12,
}


def known_peak_flops(name: str) -> float | None:
    """Return the data sheet's peak of a GPU in bfloat16, FLOP/s; None if it is not in the table."""
    known = (peak for card, peak in _PEAK_BF16.items() if re.search(rf"\b{card}\b", name))
    return None if "Laptop" in name else next(known, None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s that model FLOP utilisation (MFU) is a share of.

    On a GPU of the table it is the peak of dense products in bfloat16, whatever the run computes
    in, so that runs can be compared; elsewhere what a matrix product in `dtype` reaches on the
    device, with this process's threads.
    """
    if device.type == "cuda" and (known := known_peak_flops(torch.cuda.get_device_name(device))):
        return known
    # A processor is fastest where the factors fit its cache, and in a time so short that others
    # do not come between.
    size = 512 if device.type == "cpu" else 8192
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(50):  # the fastest counts: others may use the machine meanwhile
        begun = time.perf_counter()
        # Reading one number waits for the device.
        (left @ right)[0, 0].item()
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)


def default_device() -> torch.device:
    """Return the accelerator if one is there, else the processor."""
    # A torch that is built for CUDA names it as its accelerator on a machine without a GPU too.
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")


def loader_workers(device: torch.device, *, decodes_images: bool = False) -> int:
    """Return the worker processes that make batches for a process, where nobody said how many.

    A CPU that trains has no core to spare for them. Beside a GPU four make several million tokens a
    second; images are decoded on all cores.
    """
    if device.type != "cuda":
        return 0
    return max(1, cpu_threads(0) - 1 if decodes_images else min(4, cpu_threads(0) - 1))


def cpu_threads(requested: int) -> int:
    """Return the threads a process should use on CPU.

    Launchers set OMP_NUM_THREADS to 1, which would leave a laptop's other cores idle.

    Args:
        requested: the user's number; 0 = the cores this process may use, shared among the local
            processes.
    """
    if requested:
        return requested
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next update; with glibc on Linux alone.

    It returns large pieces to the system at once, which clears them anew for the next activations.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, 2**30)
            library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_resident_bytes() -> int | None:
    """Return the most memory that this process has held; None where the system does not tell.

    Linux hands `getrusage`'s peak on to programs that a process starts, so that a small one has
    that of its parent; VmHWM is the program's own.
    """
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
            return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest  # bytes there, else KiB


def describe_run() -> dict[str, Any]:
    """Return versions, the package's code, command line and hardware."""
    return {
        "command": [hide_secrets(word) for word in sys.argv],
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        **_describe_git(),
        "code_sha256": code_sha256(),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
    }


@functools.cache  # lest a record name code that has been edited since it was imported
def code_sha256() -> str:
    """Return the SHA-256 of the package's Python files and of their names below it."""
    sha256 = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        name, content = str(path.relative_to(_PACKAGE)), path.read_bytes()
        sha256.update(f"{name} {len(content)}\n".encode() + content)
    return sha256.hexdigest()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _describe_git() -> dict[str, Any]:
    """Return the revision of the package's checkout and whether its code is that; else None."""
    # An installed package may lie in a repository that is not its own.
    if not _git("ls-files", Path(__file__).name):
        return {"git_revision": None, "git_is_changed": None}
    changes = _git("status", "-s", ".")
    return {
        "git_revision": _git("rev-parse", "HEAD"),
        "git_is_changed": None if changes is None else bool(changes),
    }


def _git(*words: str) -> str | None:
    """Return what git says of the package's folder; None if it cannot."""
    command = ["git", "-C", str(_PACKAGE), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
