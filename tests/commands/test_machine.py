"""What a run computes on: what cannot be had is refused, what is left open is settled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bert_pretrain.commands import machine
from bert_pretrain.commands.machine import (
    batch_layout,
    build_accelerator,
    check_batch_norm,
    compiles,
    plan_course,
    settle_layout,
)
from bert_pretrain.config.pretraining import PretrainingConfig, parse_config
from bert_pretrain.errors import InputError
from bert_pretrain.models.batch_norm import SharedBatchNorm2d
from bert_pretrain.training.layout import BatchLayout

AUTO = ("--per_device_train_batch_size", "auto")


def processes(number: int = 1, device: str = "cpu") -> Any:
    return SimpleNamespace(num_processes=number, device=torch.device(device), print=lambda *_: None)


def test_bfloat16_is_refused_on_a_gpu_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "native_precision", lambda: "no")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(InputError, match=r"`mixed_precision` is 'bf16'.*fp16 or no on Tesla V100"):
        build_accelerator(parse_config(["--mixed_precision", "bf16"]))


@pytest.mark.parametrize(
    ("flags", "number", "expected"),
    [
        ((), 1, (32, 1)),
        ((), 2, (32, 1)),
        (AUTO, 1, (32, 1)),
        ((*AUTO, "--global_batch_size", "256"), 2, (256, 4)),
        (("--per_device_train_batch_size", "8"), 2, (16, 1)),
        (("--per_device_train_batch_size", "8", "--global_batch_size", "64"), 2, (64, 4)),
        (("--gradient_accumulation_steps", "4"), 2, (256, 4)),
    ],
)
def test_the_rows_of_an_update_do_not_depend_on_the_processes_unless_asked_to(
    flags: tuple[str, ...], number: int, expected: tuple[int, int]
) -> None:
    layout = batch_layout(parse_config(flags), processes(number))
    assert (layout.global_batch_size, layout.num_micro_batches) == expected
    assert layout.num_workers == 0


@pytest.mark.parametrize(
    ("flags", "number", "problem"),
    [
        ("--batch_size_ramp 4:0.5", 8, "begins with 4 row"),
        ("--batch_size_ramp 3:0.5 --per_device_train_batch_size 1 --global_batch_size 32", 2, "2"),
        ("--batch_size_ramp 32:0.5 --per_device_train_batch_size 8", 1, "but an update has 8"),
    ],
)
def test_a_ramp_that_cannot_be_divided_is_refused(flags: str, number: int, problem: str) -> None:
    config = parse_config([*flags.split(), "--max_steps", "10"])
    with pytest.raises(InputError, match=rf"`batch_size_ramp`.*{problem}"):
        batch_layout(config, processes(number))


@pytest.mark.parametrize("num_epochs", ["0.5", "3"])
def test_phases_have_as_many_updates_as_their_epochs_take(num_epochs: str) -> None:
    config = parse_config(["--num_train_epochs", num_epochs, "--max_seq_length", "24:0.75,48:0.25"])
    rows: Any = SimpleNamespace(rows_per_epoch=[1000, 480].__getitem__)
    layout = batch_layout(config, processes())
    course = plan_course(config, rows, layout)
    # Count the epochs that the updates take, and those that one more or one fewer would.
    taken = []
    for max_steps in (course.max_steps - 1, course.max_steps, course.max_steps + 1):
        shares = (0.75, 0.25)
        taken.append(sum(max_steps * s * 32 / n for s, n in zip(shares, (1000, 480), strict=True)))
    wanted = float(num_epochs)
    assert abs(taken[1] - wanted) <= min(abs(taken[0] - wanted), abs(taken[2] - wanted))
    assert course.phase(course.max_steps - 1) == 1 and course.phase(0) == 0


def test_one_phase_has_the_updates_of_its_epochs() -> None:
    config = parse_config(["--num_train_epochs", "1"])
    rows: Any = SimpleNamespace(rows_per_epoch=lambda _: 1000)
    assert plan_course(config, rows, batch_layout(config, processes())).max_steps == 31  # 1000 / 32


class Card:
    """A trainer on a GPU that takes so many rows at once."""

    def __init__(self, rows: int, layout: BatchLayout) -> None:
        self.accelerator = processes(2, "cuda")
        self.layout = layout
        self.is_compiled = False
        self.model = torch.nn.Linear(2, 2)
        self.rows = rows

    def try_pass(self, rows: int) -> None:
        if rows > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")


def settled(config: PretrainingConfig, monkeypatch: pytest.MonkeyPatch, rows: int) -> BatchLayout:
    device = SimpleNamespace(
        get_device_properties=lambda _: SimpleNamespace(total_memory=2**40),
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda _: None,
        max_memory_reserved=lambda _: 0,
    )
    card = Card(rows, batch_layout(config, processes(2, "cuda")))
    monkeypatch.setattr(torch, "cuda", device)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    settle_layout(config, card)  # type: ignore[arg-type]
    return card.layout


@pytest.mark.parametrize(("rows", "num_micro_batches"), [(500, 1), (128, 1), (100, 2), (16, 8)])
def test_auto_takes_the_rows_that_fit_and_keeps_those_of_an_update(
    monkeypatch: pytest.MonkeyPatch, rows: int, num_micro_batches: int
) -> None:
    config = parse_config([*AUTO, "--global_batch_size", "256"])
    layout = settled(config, monkeypatch, rows)
    assert layout.global_batch_size == 256
    assert layout.num_micro_batches == num_micro_batches


def test_auto_is_refused_where_it_would_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"`per_device_train_batch_size` is auto.*under FSDP"):
        batch_layout(parse_config(AUTO), processes(2))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    batch_layout(parse_config(AUTO), processes(2))
    contrastive = parse_config([*AUTO, "--objective", "contrastive"])
    batch_layout(contrastive, processes())
    with pytest.raises(InputError, match=r"`per_device_train_batch_size` is auto.*contrastive"):
        batch_layout(contrastive, processes(2))


def test_images_of_an_update_are_compared_however_many_a_forward_pass_has() -> None:
    flags = ["--objective", "contrastive", "--per_device_train_batch_size", "1"]
    layout = batch_layout(parse_config([*flags, "--global_batch_size", "4"]), processes())
    assert layout.num_micro_batches == 4
    with pytest.raises(InputError, match="an update has a single row"):
        batch_layout(parse_config(flags), processes())


@pytest.mark.parametrize(
    ("flags", "device", "is_sharded", "problem"),
    [
        ("--gradient_accumulation_steps 2", "cpu", False, "2 micro-batches.*batch_size` 32, a"),
        ("--per_device_train_batch_size auto", "cuda", False, "batch_size` is auto.*a number"),
        ("", "cpu", True, "FSDP does not keep"),
        ("", "cpu", False, "a kind that is not brought together over processes"),
    ],
)
def test_batch_normalisation_is_refused_where_its_rows_would_not_be_together(
    flags: str, device: str, is_sharded: bool, problem: str
) -> None:
    config = parse_config([*flags.split(), "--global_batch_size", "64"])
    layout = batch_layout(config, processes(2))

    def trainer(*layers: torch.nn.Module) -> Any:
        distributed = SimpleNamespace(outline=torch.nn.Sequential(*layers), is_sharded=is_sharded)
        return SimpleNamespace(
            accelerator=processes(2, device), layout=layout, distributed=distributed
        )

    convolution = torch.nn.Conv2d(3, 4, 1)
    check_batch_norm(config, trainer(convolution))
    norm = torch.nn.BatchNorm1d(4) if "a kind" in problem else SharedBatchNorm2d(4)
    with pytest.raises(InputError, match=f"batch normalisation.*{problem}.*`config_name`"):
        check_batch_norm(config, trainer(convolution, norm))


def test_batch_normalisation_is_trained_on_several_processes() -> None:
    config = parse_config(["--global_batch_size", "64"])
    distributed = SimpleNamespace(outline=SharedBatchNorm2d(4), is_sharded=False)
    layout = batch_layout(config, processes(2))
    assert layout.num_micro_batches == 1
    trainer: Any = SimpleNamespace(accelerator=processes(2), layout=layout, distributed=distributed)
    check_batch_norm(config, trainer)


def test_a_sharded_model_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    on = parse_config(["--torch_compile", "on"])
    assert compiles(on, processes(2))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"`torch_compile` is on.*FSDP"):
        compiles(on, processes(2))
    hours = parse_config(["--recipe", "hours"])
    assert not compiles(hours, processes(2, "cuda"))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert compiles(hours, processes(2, "cuda"))
