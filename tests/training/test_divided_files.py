"""Files that several processes write together are those that one would have written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bert_pretrain.errors import MachineError
from bert_pretrain.training.divided_files import (
    DividedFile,
    Layout,
    Written,
    create,
    digest_of_parts,
    write_parts,
)

NAME = "model.safetensors"


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "z.weight": torch.randn(7, 3),
        "a.bias": torch.randn(7),
        "position_ids": torch.arange(5)[None],
        "num_batches_tracked": torch.tensor(3),
        "half": torch.randn(3, 3).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
    }


def write(folder: Path) -> list[Written]:
    """Write the tensors as two processes, the first of which has four rows of `z.weight`."""
    layout, whole = Layout(tensors()), tensors()
    header = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
    first, second = DividedFile(layout.size), DividedFile(layout.size)
    create(folder, {NAME: first})
    begin = layout.offset("z.weight", whole["z.weight"])
    rows = whole.pop("z.weight")
    second.parts.append((begin + 4 * 3 * 4, rows[4:].clone()))
    first.parts += [(0, header), (begin, rows[:4].clone())]
    first.parts += [(layout.offset(name, t), t) for name, t in whole.items() if t.numel()]
    # The later rows come first.
    written = write_parts(folder, {NAME: second})[NAME] + write_parts(folder, {NAME: first})[NAME]
    assert first.parts == second.parts == []
    return written


def test_the_file_is_that_of_the_library_to_the_last_byte(tmp_path: Path) -> None:
    write(tmp_path)
    save_file(tensors(), tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "expected").read_bytes()
    for name, tensor in load_file(tmp_path / NAME).items():
        assert torch.equal(tensor, tensors()[name])


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    written = write(tmp_path)
    expected = hashlib.sha256((tmp_path / NAME).read_bytes()).hexdigest()
    assert digest_of_parts(tmp_path / NAME, written) == expected


def lose_a_write(path: Path, written: list[Written]) -> None:
    content = bytearray(path.read_bytes())
    content[written[0].begin : written[0].end] = bytes(written[0].end - written[0].begin)
    path.write_bytes(content)


def flip_a_bit(path: Path, written: list[Written]) -> None:
    content = bytearray(path.read_bytes())
    content[written[-1].end - 1] ^= 1
    path.write_bytes(content)


def cut(path: Path, _: list[Written]) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def extend(path: Path, _: list[Written]) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def forget_a_process(_: Path, written: list[Written]) -> None:
    del written[0]


def write_twice(_: Path, written: list[Written]) -> None:
    written.append(written[0])


@pytest.mark.parametrize(
    "fault", [lose_a_write, flip_a_bit, cut, extend, forget_a_process, write_twice]
)
def test_what_is_not_what_the_processes_wrote_gets_no_digest(
    tmp_path: Path, fault: Callable[[Path, list[Written]], None]
) -> None:
    written = write(tmp_path)
    fault(tmp_path / NAME, written)
    with pytest.raises(MachineError, match="what the processes have written into it"):
        digest_of_parts(tmp_path / NAME, written)


def test_a_file_that_is_not_there_says_that_hosts_must_share_it(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"is not there.*`output_dir` must lie on"):
        write_parts(tmp_path, {NAME: DividedFile(8)})
    assert not list(tmp_path.iterdir())
