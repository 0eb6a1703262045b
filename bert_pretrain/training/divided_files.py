"""safetensors files that all processes of a run write together, each the rows that it holds.

Enters: tensors of which some are sharded by rows. Leaves: the file that `save_file` of safetensors
makes of the whole tensors, though no process has held one of them. In such a file the rows of a
tensor lie one after the other, so that a shard is one range of bytes; whoever reads the file need
not know that several have written it.

A file gets its length (`create`) before anybody writes, and is opened for writing alone: a host of
a network file system may otherwise fill the rest of a block that it extends, or has read, with what
it takes for its content. `digest_of_parts` then checks that all ranges have arrived.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bert_pretrain.errors import InputError, MachineError
from bert_pretrain.training.sharding import own_rows, shard_of

# The names that the format has for what a run saves.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BLOCK_SIZE = 2**20


class Written(NamedTuple):
    """A range of bytes of a file that a process has written, and its CRC-32."""

    begin: int
    end: int
    crc: int


@dataclass
class DividedFile:
    """What a process writes of a file.

    Attributes:
        size: of the whole file, in bytes.
        parts: where each begins, in bytes, and what is written there: contiguous, in host memory.
    """

    size: int
    parts: list[tuple[int, Tensor]] = field(default_factory=list)


class Layout:
    """Where everything is in a safetensors file.

    Attributes:
        header: the bytes that it begins with.
        size: of the whole file, in bytes.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Lay out tensors by their whole shapes; the same on every process.

        Args:
            tensors: by name, whole or sharded.
        """

        # As the library has them: no tensor lies across the boundaries of its numbers.
        def place(name: str) -> tuple[int, str]:
            return -tensors[name].dtype.itemsize, name

        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._begins, end = {}, 0
        for name in sorted(tensors, key=place):
            tensor = tensors[name]
            self._begins[name] = end
            end += tensor.numel() * tensor.dtype.itemsize
            offsets = [self._begins[name], end]
            shape = list(tensor.shape)
            kind = _NAMES[tensor.dtype]
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end

    def offset(self, name: str, tensor: Tensor) -> int:
        """Return where what this process has of a tensor begins, in bytes from the file's begin."""
        first = 0
        if isinstance(tensor, DTensor) and tensor.numel():
            first = own_rows(tensor).start * (tensor.numel() // tensor.shape[0])
        return len(self.header) + self._begins[name] + first * tensor.dtype.itemsize


def create(folder: Path, files: Mapping[str, DividedFile]) -> None:
    """Make files of their full length, without content; then all processes may write."""
    for name, file in files.items():
        with (folder / name).open("xb") as made:
            made.truncate(file.size)


def write_parts(folder: Path, files: Mapping[str, DividedFile]) -> dict[str, list[Written]]:
    """Write this process's parts into files that are there, and wait for the disk.

    The parts are let go.

    Returns:
        What was written, by file.

    Raises:
        MachineError: the files are not there.
    """
    return {name: _write(folder / name, file) for name, file in files.items()}


def _write(path: Path, file: DividedFile) -> list[Written]:
    written = []
    try:
        # Python's "wb" would cut the file, and "r+b" could read.
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise MachineError(
            f"{path} is not there, though the first process has made it: `output_dir` must lie on "
            "a file system that the hosts of a sharded run share"
        ) from error
    with os.fdopen(descriptor, "wb") as target:
        while file.parts:
            begin, tensor = file.parts.pop(0)
            content = tensor.reshape(-1).view(torch.uint8).numpy().data
            target.seek(begin)
            target.write(content)
            written.append(Written(begin, begin + len(content), zlib.crc32(content)))
        target.flush()
        os.fsync(target.fileno())
    return written


def digest_of_parts(path: Path, parts: Iterable[Written]) -> str:
    """Return the SHA-256 of a file after checking that it holds what all processes have written.

    Args:
        path: of the file.
        parts: of all processes.

    Raises:
        MachineError: it holds anything else.
    """
    digest, position = hashlib.sha256(), 0
    with path.open("rb") as file:
        for part in sorted(parts):
            crc = 0
            is_whole = part.begin == position
            while is_whole and position < part.end:
                content = file.read(min(_BLOCK_SIZE, part.end - position))
                is_whole = bool(content)
                crc = zlib.crc32(content, crc)
                digest.update(content)
                position += len(content)
            if not is_whole or crc != part.crc:
                raise MachineError(
                    f"{path} does not hold what the processes have written into it (from byte "
                    f"{part.begin:,}): the disk fails, or its file system cannot take one file "
                    "from several hosts"
                )
        if file.read(1):
            raise MachineError(f"{path} is longer than what the processes have written into it")
    return digest.hexdigest()


def read_like(file: Any, name: str, target: Tensor) -> Tensor:
    """Return what a process needs of a saved tensor, as `target` is: sharded or not.

    Of a sharded one no more than this process's rows is read.

    Args:
        file: as `safetensors.safe_open` opens it.
        name: of the tensor in it.
        target: tells shape, device and division; its dtype may be another.

    Raises:
        InputError: it has another shape.
    """
    rows = file.get_slice(name)
    if rows.get_shape() != list(target.shape):
        raise InputError(
            f"{name} has the shape {rows.get_shape()} in a checkpoint but {list(target.shape)} in "
            "the model",
            advice="pass another checkpoint to `resume_from_checkpoint`",
        )
    if not isinstance(target, DTensor):
        whole: Tensor = file.get_tensor(name)
        return whole.to(target.device)
    return shard_of(rows[own_rows(target)], target)
