"""Where a model is sharded every process writes its shards, and nothing is gathered."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny_task import Line, Silence, loop_state
from torch.distributed.tensor.debug import CommDebugMode
from torch.multiprocessing.spawn import ProcessException
from trainers import bert_objective, trainer_of

from bert_pretrain.commands.verify import verify
from bert_pretrain.data.run_folder import list_checkpoints, step_of
from bert_pretrain.errors import InputError, MachineError, TrainingError
from bert_pretrain.training import checkpoint_writing, saving
from bert_pretrain.training.checkpoint import find_checkpoint, load_tensors, read_state
from bert_pretrain.training.checkpoint_state import STATE_FILE, read_state_file, write_state
from bert_pretrain.training.checkpoint_writing import Retention
from bert_pretrain.training.saving import CheckpointSaver
from bert_pretrain.training.sharding import DDP_OPTIONS, DistributedModel, local
from bert_pretrain.training.snapshots import take_snapshot
from bert_pretrain.training.trainer import Trainer

pytestmark = pytest.mark.slow  # two real processes
NUM_PROCESSES = 2
OPTIMIZERS = ("adamw", "lamb", "muon")
DIVIDED = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
# Children of one that has imported what takes long.
multiprocessing.set_forkserver_preload(["transformers", "bert_pretrain.training.trainer"])


def make_trainer(accelerator: Accelerator, folder: Path, optimizer: str, **options: Any) -> Trainer:
    """Return a trainer of a BERT that has matrices with an odd number of rows."""
    folder.mkdir(exist_ok=True)
    objective = bert_objective(intermediate_size=97)
    options = {"max_steps": 4, "save_steps": 2, "ema_decay": 0.4, "num_micro_batches": 1} | options
    return trainer_of(accelerator, objective, folder, optimizer=optimizer, **options)


def step_path(folder: Path, step: int) -> Path:
    return folder / f"checkpoints/step-{step:06d}"


def digests(folder: Path, step: int) -> dict[str, str]:
    read_state(step_path(folder, step))  # it is whole
    return read_state_file(step_path(folder, step) / STATE_FILE)[1]


def go_on(
    accelerator: Accelerator, source: Path, folder: Path, optimizer: str, **options: Any
) -> Trainer:
    """Train from update 2 of another run to the end."""
    trainer = make_trainer(accelerator, folder, optimizer, **options)
    checkpoint = step_path(source, 2)
    trainer.load_checkpoint(checkpoint, read_state(checkpoint))
    trainer.train()
    return trainer


def copied(trainer: Trainer) -> dict[str, Any]:
    """Return what a process copies of a run, and what it exchanges with others for that."""
    with CommDebugMode() as exchanged:
        snapshot = take_snapshot(trainer.distributed, trainer.average)
    assert snapshot is not None
    parts = {name: file.parts for name, file in snapshot.divided.items()}
    return {
        "exchanges": exchanged.get_total_counts(),
        "sizes": {name: file.size for name, file in snapshot.divided.items()},
        "bytes": {n: sum(t.numel() * t.itemsize for _, t in p) for n, p in parts.items()},
        "own": sum(local(p).numel() for p in trainer.distributed.trained.parameters()),
    }


def failure(trainer: Trainer) -> tuple[str, int]:
    """Return why a run cannot go on, and its updates until then."""
    try:
        trainer.train()
    except MachineError as error:
        return str(error), trainer.step
    return "", trainer.step


def find_faults(accelerator: Accelerator, folder: Path) -> dict[str, tuple[str, int]]:
    """Let the second process alone be unable to write, in several ways."""
    is_second, found = not accelerator.is_main_process, {}
    write = saving.write_shards

    def full(snapshot: Any, place: Path, *, step: int) -> Any:
        if is_second and step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(snapshot, place, step=step)

    def losing(snapshot: Any, place: Path, *, step: int) -> Any:
        written = write(snapshot, place, step=step)
        if is_second and step == 4:
            path = place / "step-000004.tmp/model.safetensors"
            begin = written[path.name][-1].begin
            with path.open("r+b") as file:
                file.seek(begin)
                file.write(bytes(8))
        return written

    def elsewhere(snapshot: Any, place: Path, *, step: int) -> Any:
        return write(snapshot, place / "mine" if is_second else place, step=step)

    for name, fault in (("full", full), ("lost", losing), ("elsewhere", elsewhere)):
        saving.write_shards = fault
        trainer = make_trainer(accelerator, folder / name, "adamw", max_steps=20, ema_decay=0.0)
        found[name] = failure(trainer)
        saving.write_shards = write
    return found


def save_a_line(accelerator: Accelerator, folder: Path) -> None:
    """Save, and take up again, a model of which the second process has no row."""
    line = Line()
    optimizer = torch.optim.SGD(line.parameters(), lr=0.1, momentum=0.9)
    made = DistributedModel(accelerator, line, [optimizer])  # type: ignore[arg-type]
    saver = CheckpointSaver(
        made,
        None,
        folder / "line",
        write_config=lambda path: Silence().write_config(line, path),
        retention=Retention(0),
    )
    assert sum(local(p).numel() for p in line.parameters()) == 2 * accelerator.is_main_process
    saver.begin(loop_state(1))
    saver.settle()
    load_tensors(folder / "line/step-000001", made)
    # A process that fails cannot wait for the others.
    with pytest.raises(TrainingError, match="the loss"), saver.finishing():
        saver.begin(loop_state(2))
        raise TrainingError("the loss")


def begin_process(rank: int, port: int) -> Accelerator:
    gloo.join(rank, port, num_processes=NUM_PROCESSES)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DDP_OPTIONS])
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    return accelerator


def work(rank: int, name: str, port: int) -> None:
    """Run as one of two processes and leave the results in a file."""
    accelerator, folder = begin_process(rank, port), Path(name)
    results: dict[str, Any] = {}
    for optimizer in OPTIMIZERS:
        trainer = make_trainer(accelerator, folder / optimizer, optimizer)
        trainer.train()
        results[optimizer] = copied(trainer)
        go_on(accelerator, folder / optimizer, folder / f"{optimizer}-again", optimizer)
    go_on(accelerator, folder / "adamw-1", folder / "adamw-1-2", "adamw")
    results["faults"] = find_faults(accelerator, folder)
    save_a_line(accelerator, folder)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()  # a process that leaves early closes the connections of the others
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, and of two."""
    made = tmp_path_factory.mktemp("sharded")
    for optimizer in OPTIMIZERS:
        make_trainer(Accelerator(cpu=True), made / f"{optimizer}-1", optimizer).train()
    spawn(work, made)
    return made


def spawn(function: Any, folder: Path, *more: Any) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (str(folder), store.port, *more)
    torch.multiprocessing.start_processes(
        function, args=arguments, nprocs=NUM_PROCESSES, start_method="forkserver"
    )


def found_by_all(folder: Path, key: str) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt")[key] for rank in range(NUM_PROCESSES)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_process_holds_or_sends_what_another_one_has(folder: Path, optimizer: str) -> None:
    first, second = found_by_all(folder, optimizer)
    assert first["exchanges"] == second["exchanges"] == 0
    assert first["sizes"] == second["sizes"] and set(first["sizes"]) >= set(DIVIDED)
    for name, size in first["sizes"].items():
        assert first["bytes"][name] + second["bytes"][name] == size
        assert size == (step_path(folder / optimizer, 4) / name).stat().st_size
    # Its own shards are all that the second process copies, of the weights and of their average.
    copied_bytes = {second["bytes"][name] for name in ("model.safetensors", "ema.safetensors")}
    assert copied_bytes == {4 * second["own"]}
    assert 4 * second["own"] < first["sizes"]["model.safetensors"] / 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_continued_on_the_same_layout_is_the_same_to_the_last_bit(
    folder: Path, optimizer: str
) -> None:
    expected = digests(folder / optimizer, 4)
    assert set(DIVIDED) <= expected.keys()
    assert digests(folder / f"{optimizer}-again", 4) == expected


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_goes_on_from_two_processes_to_one_and_back(
    folder: Path, tmp_path: Path, optimizer: str
) -> None:
    go_on(Accelerator(cpu=True), folder / optimizer, tmp_path / "2-1", optimizer)
    alone = folder / f"{optimizer}-1"
    runs = [tmp_path / "2-1", folder / optimizer]
    runs += [folder / "adamw-1-2"] if optimizer == "adamw" else []
    for run in runs:
        for name in ("model.safetensors", "ema.safetensors"):
            expected = load_file(step_path(alone, 4) / name)
            found = load_file(step_path(run, 4) / name)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                # float32, and rates of 1e-3 over four updates.
                torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)
    # On one process the files are those of any run of one process.
    assert digests(tmp_path / "2-1", 4).keys() == digests(alone, 4).keys()
    assert "optimizer.safetensors" not in digests(alone, 4)
    states = [
        step_path(run, 4) / STATE_FILE for run in (alone, tmp_path / "2-1", folder / optimizer)
    ]
    assert [json.loads(path.read_text())["format_version"] for path in states] == [1, 1, 2]


def test_files_are_those_that_one_process_writes_of_whole_tensors(
    folder: Path, tmp_path: Path
) -> None:
    for name in DIVIDED:
        path = step_path(folder / "adamw", 4) / name
        save_file(load_file(path), tmp_path / name, metadata={"format": "pt"})
        assert path.read_bytes() == (tmp_path / name).read_bytes()
    moments = load_file(step_path(folder / "adamw", 4) / "optimizer.safetensors")
    trainer = make_trainer(Accelerator(cpu=True), tmp_path / "run", "adamw")
    load_tensors(step_path(folder / "adamw", 4), trainer.distributed)
    state = trainer.optimizers[0].optimizer.state_dict()["state"]
    assert len(moments) == 2 * len(state)
    for name, value in moments.items():
        number, key = name.split(".")
        assert torch.equal(state[int(number)][key], value)
        assert float(state[int(number)]["step"]) == 4


def test_a_process_without_a_row_has_its_part_in_a_checkpoint(folder: Path) -> None:
    saved = load_file(folder / "line/step-000001/model.safetensors")
    assert {name: value.tolist() for name, value in saved.items()} == {
        "weight": [[0.5]],
        "bias": pytest.approx([0.1]),
    }
    assert [path.name for path in list_checkpoints(folder / "line")] == ["step-000001"]
    read_state(folder / "line/step-000001")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the second process
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [Path.unlink, flip, cut])
@pytest.mark.parametrize("name", DIVIDED)
def test_a_file_that_is_not_whole_is_found_and_an_older_checkpoint_taken(
    folder: Path, tmp_path: Path, name: str, damage: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "adamw", run)
    assert find_checkpoint("latest", run / "checkpoints") == step_path(run, 4)
    states = {check.what: check.state for check in verify(run)}
    assert states["checkpoints/step-000004"] == "ok"
    damage(step_path(run, 4) / name)
    assert find_checkpoint("latest", run / "checkpoints") == step_path(run, 2)
    states = {check.what: check.state for check in verify(run)}
    assert states["checkpoints/step-000004"] == "damaged"
    assert states["checkpoints/step-000002"] == "ok"


@pytest.mark.parametrize(
    ("fault", "reason", "newest"),
    [
        ("full", "No space left on device", 2),
        ("lost", r"model.safetensors does not hold what the processes have written", 2),
        ("elsewhere", "is not there, though the first process has made it: `output_dir` must", 0),
    ],
)
def test_what_one_process_cannot_write_stops_all_after_the_same_update(
    folder: Path, fault: str, reason: str, newest: int
) -> None:
    messages, steps = zip(*(found[fault] for found in found_by_all(folder, "faults")), strict=True)
    for message in messages:
        assert reason in message
    failing = 0 if fault == "lost" else 1  # the first one completes what all have written
    name = "process 1" if failing else "the first process"
    assert messages[1 - failing] == f"{name} cannot save: {messages[failing]}"
    assert steps[0] == steps[1] and newest + 2 <= steps[0] <= newest + 4
    kept = [step_of(path) for path in list_checkpoints(folder / fault / "checkpoints")]
    assert kept == ([newest] if newest else [])
    if newest:
        read_state(step_path(folder / fault, newest))


def test_moments_of_another_optimiser_are_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-000004"
    shutil.copytree(step_path(folder / "adamw", 4), checkpoint)
    trainer = make_trainer(Accelerator(cpu=True), tmp_path / "run", "adamw")
    path = checkpoint / "optimizer.safetensors"
    for name, shape, reason in (
        ("999.exp_avg", (3,), "holds another optimiser"),
        ("first", (3,), "holds another optimiser"),
        ("0.exp_avg", (3,), r"has the shape \[3\] in a checkpoint"),
    ):
        save_file({name: torch.zeros(shape)}, path)
        with pytest.raises(InputError, match=reason):
            load_tensors(checkpoint, trainer.distributed)
    # A file that the checkpoint does not list is not its own.
    state, files = read_state_file(checkpoint / STATE_FILE)
    del files["optimizer.safetensors"]
    write_state(checkpoint / STATE_FILE, state, files)
    load_tensors(checkpoint, trainer.distributed)


KILLED = "killed"  # the file of a process that reached its end


def die(rank: int, name: str, port: int, fatal_rank: int, place: str, when: str) -> None:
    """Train as one of two processes, one of which is killed in the second checkpoint."""
    accelerator = begin_process(rank, port)
    module = saving if place == "write_shards" else checkpoint_writing
    original, num_calls = getattr(module, place), 0

    def killed(*arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        is_fatal = num_calls == 2 and rank == fatal_rank
        result = original(*arguments, **options) if when == "after" or not is_fatal else None
        if is_fatal:
            Path(name, KILLED).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, place, killed)
    make_trainer(accelerator, Path(name), "adamw", max_steps=6).train()


@pytest.mark.parametrize(
    ("rank", "place", "when"),
    [
        (1, "write_shards", "before"),
        (1, "write_shards", "after"),
        (0, "replace_folder", "before"),
    ],
)
def test_a_kill_of_one_process_while_it_writes_costs_no_other_checkpoint(
    tmp_path: Path, rank: int, place: str, when: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    # On a busy machine the other process may miss it before its parent does.
    with pytest.raises(ProcessException):
        spawn(die, run, rank, place, when)
    assert (run / KILLED).is_file()
    assert find_checkpoint("latest", run / "checkpoints") == step_path(run, 2)
    go_on(Accelerator(cpu=True), run, run, "adamw", max_steps=6)
    assert [step_of(path) for path in list_checkpoints(run / "checkpoints")] == [2, 4, 6]
    assert not list(run.rglob("*.tmp"))
