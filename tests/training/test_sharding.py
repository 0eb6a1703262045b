"""Several processes do together what one does: real ones, on gloo."""

from __future__ import annotations

import copy
import errno
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from tiny_task import line_trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bert_pretrain.errors import InputError, MachineError, TrainingError
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.text_encoder_config import named_config
from bert_pretrain.objectives.interface import LossTerm
from bert_pretrain.training import muon, saving
from bert_pretrain.training.ema import WeightAverage
from bert_pretrain.training.muon import Muon, assign_owners
from bert_pretrain.training.optimizers import build_optimizers
from bert_pretrain.training.sharding import (
    DDP_OPTIONS,
    DistributedModel,
    check_launcher,
    like,
    local,
    sharding_units,
    without_accelerates_fsdp,
)

NUM_PROCESSES = 2
# Odd numbers of rows, so that shards are unequal, and shapes of which one process gets more.
SHAPES = [(17, 40), (17, 40), (17, 40), (40, 19), (32, 32), (16, 64), (64, 16)]


def tiny_bert() -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(
        named_config(
            "tiny",
            vocab_size=53,  # odd, as above
            pad_token_id=0,
            hidden_size=32,
            num_attention_heads=2,
            intermediate_size=48,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def batch(step: int, rows: slice = slice(None)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(5, 53, (8, 12), generator=generator)
    labels = torch.where(torch.arange(12) % 3 == 0, ids, -100)
    pairs = torch.randint(0, 2, (8,), generator=generator)
    whole = {"input_ids": ids, "labels": labels, "next_sentence_label": pairs}
    return {name: value[rows] for name, value in whole.items()}


def train_bert(accelerator: Accelerator, name: str, *, num_steps: int = 3) -> DistributedModel:
    """Make updates of 8 rows in two micro-batches of all processes."""
    return train_averaged(accelerator, name, num_steps=num_steps)[0]


def train_averaged(
    accelerator: Accelerator, name: str, *, num_steps: int = 3
) -> tuple[DistributedModel, WeightAverage]:
    """Make the updates of `train_bert`, with the average of the weights."""
    model = tiny_bert()
    optimizers = build_optimizers(
        model, name=name, weight_decay=0.1, adam_betas=(0.9, 0.98), adam_epsilon=1e-6
    )
    made = DistributedModel(accelerator, model, optimizers)
    average = WeightAverage(made, 0.4)
    share = 4 // accelerator.num_processes
    for step in range(num_steps):
        for micro_batch in range(2):
            begin = 4 * micro_batch + share * accelerator.process_index
            with made.synchronized(is_last=micro_batch == 1):
                output = made.module(**batch(step, slice(begin, begin + share)))
                loss = (output.mlm_loss / 32 + output.nsp_loss / 8) * accelerator.num_processes
                loss.backward()  # the test has no trainer
        made.clip_grad_norm(0.5)
        for optimizer in made.optimizers:
            optimizer.optimizer.found_inf = torch.tensor(float(step == 1))  # is left out
            for group in optimizer.param_groups:
                group["lr"] = 1e-2
            optimizer.step()
            optimizer.zero_grad()
        average.update(step + 1)
    return made, average


def iterate_matrices() -> tuple[list[Tensor], list[int]]:
    """Make two updates of plain matrices; return them, and how many this process iterated."""
    torch.manual_seed(1)
    matrices = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = Muon([{"params": matrices}], lr=0.1, iteration_dtype=torch.float32)
    counts: list[int] = []
    original = muon.orthogonalize

    def counted(stacked: Tensor, **kwargs: Any) -> Tensor:
        counts.append(len(stacked))
        return original(stacked, **kwargs)

    muon.orthogonalize = counted
    for _ in range(2):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape)
        optimizer.step()
    muon.orthogonalize = original
    return [matrix.detach() for matrix in matrices], counts


def count_reductions(accelerator: Accelerator, folder: Path) -> dict[str, int]:
    """Count the gradient reductions of 4 updates of 2 micro-batches, with and without shards."""
    trainer = line_trainer(accelerator, folder)
    found = {"buckets": 0}

    def hook(_, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations as objects
        found["buckets"] += 1
        reduced = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return reduced.then(lambda future: future.value()[0] / NUM_PROCESSES)

    assert isinstance(trainer.model, DistributedDataParallel)
    trainer.model.register_comm_hook(None, hook)
    trainer.train()
    return found | {"steps": trainer.step}


def fail_on_one_process(accelerator: Accelerator, folder: Path) -> tuple[str, list[Tensor]]:
    """Train where the last process alone meets an infinite loss, whose gradient is finite."""
    trainer = line_trainer(accelerator, folder)
    loss_terms = trainer.objective.loss_terms

    def terms(model: nn.Module, rows: dict[str, Tensor]) -> dict[str, LossTerm]:
        made = loss_terms(model, rows)
        if model.training and trainer.step == 1 and accelerator.process_index == 1:
            made["line"].sum = made["line"].sum + torch.tensor(math.inf)
        return made

    trainer.objective.loss_terms = terms  # type: ignore[method-assign]
    try:
        trainer.train()
        message = ""
    except TrainingError as error:
        message = str(error)
    return message, [p.detach().clone() for p in trainer.model.parameters()]


def fail_to_save(accelerator: Accelerator, folder: Path) -> tuple[str, int]:
    """Train where the first process alone, which writes, finds the disk full."""

    def refused(*_: Any, **__: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = line_trainer(accelerator, folder, max_steps=20, save_steps=2)
    write, saving.write_checkpoint = saving.write_checkpoint, refused
    try:
        trainer.train()
        message = ""
    except MachineError as error:
        message = str(error)
    finally:
        saving.write_checkpoint = write
    return message, trainer.step


def stop_at_a_loss(accelerator: Accelerator, folder: Path) -> int:
    """Return the updates of a run in which the last process would not have stopped by itself."""
    trainer = line_trainer(accelerator, folder, max_steps=8)
    goal = math.inf if accelerator.is_main_process else 1e-9
    trainer.schedule = replace(trainer.schedule, stop_at_loss=goal)
    trainer.train()
    return trainer.step


def describe(made: DistributedModel) -> dict[str, Any]:
    """Return what a test asks of a sharded BERT."""
    model = made.trained
    optimizer = made.optimizers[0].optimizer  # of the table
    table = model.bert.embeddings.word_embeddings.weight
    moments = optimizer.state[table]["exp_avg"]
    numbers = torch.arange(table.numel()).view(table.shape).float()
    shard = like(numbers, table)
    return {
        "all_sharded": all(isinstance(p, DTensor) for p in model.parameters()),
        "placements": {str(p.placements) for p in model.parameters()},
        "local_rows": table.to_local().shape[0],
        "local_moments": moments.to_local().shape[0],
        "local_numbers": sum(p.to_local().numel() for p in model.parameters()),
        "numbers": sum(p.numel() for p in model.parameters()),
        "like": torch.equal(shard.full_tensor(), numbers)
        and shard.to_local().shape == table.to_local().shape,
        "bytes_per_number": shard.to_local().untyped_storage().nbytes() / shard.to_local().numel(),
        "is_tied": model.cls.predictions.decoder.weight is table,
        "outline": (
            type(made.outline).__name__,
            {p.device.type for p in made.outline.parameters()},
        ),
    }


def averaged_weights(accelerator: Accelerator) -> dict[str, Any]:
    """Return the average of an AdamW run, and whether the trained weights are there afterwards."""
    made, average = train_averaged(accelerator, "adamw")
    before = weights(made)
    with average.applied() as plain:
        assert type(plain) is BertForPreTraining
        found = {name: value.detach().clone() for name, value in plain.named_parameters()}
        assert plain.cls.predictions.decoder.weight is plain.bert.embeddings.word_embeddings.weight
    is_back = all(map(torch.equal, before.values(), weights(made).values()))
    num_held = sum(local(value).numel() for value in average.values.values())
    return {"values": found, "is_back": is_back, "num_held": num_held}


def weights(made: DistributedModel) -> dict[str, Tensor]:
    plain = made.plain()
    assert plain.cls.predictions.decoder.weight is plain.bert.embeddings.word_embeddings.weight
    assert type(plain) is BertForPreTraining
    return {name: value.detach().clone() for name, value in plain.named_parameters()}


def work(rank: int, folder: str, port: int) -> None:
    """Run as one of two processes and leave the results in a file."""
    gloo.join(rank, port, num_processes=NUM_PROCESSES)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DDP_OPTIONS])
    assert accelerator.num_processes == NUM_PROCESSES
    results: dict[str, Any] = {
        "matrices": iterate_matrices(),
        "reductions": count_reductions(accelerator, Path(folder) / f"count{rank}"),
        "stopped": stop_at_a_loss(accelerator, Path(folder) / f"stop{rank}"),
        "full": fail_to_save(accelerator, Path(folder) / f"full{rank}"),
        "failure": fail_on_one_process(accelerator, Path(folder) / f"fail{rank}"),
    }
    for name in ("adamw", "lamb", "muon"):
        copied = train_bert(accelerator, name)
        results[f"ddp {name}"] = weights(copied)
        results["views"] = copied.module.gradient_as_bucket_view
    results["ddp average"] = averaged_weights(accelerator)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    # torch 2.13 has renamed it.
    single = "reduce_scatter_single"
    name_of_scatter = single if hasattr(dist, single) else "reduce_scatter_tensor"
    scattered, reduce_scatter = [], getattr(dist, name_of_scatter)

    def counted(*args: Any, **kwargs: Any) -> Any:
        scattered.append(1)
        return reduce_scatter(*args, **kwargs)

    setattr(dist, name_of_scatter, counted)
    for name in ("adamw", "lamb", "muon"):
        made = train_bert(accelerator, name)
        results |= {f"fsdp {name}": weights(made), f"shards {name}": describe(made)}
    results["scattered"] = (len(scattered), 1 + len(sharding_units(tiny_bert())))
    results["fsdp average"] = averaged_weights(accelerator)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves early closes the connections of the others
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("sharding")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(work, args=(str(folder), store.port), nprocs=NUM_PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(NUM_PROCESSES)]


def test_each_matrix_is_iterated_by_one_process_and_all_get_the_same(
    measured: list[dict[str, Any]],
) -> None:
    (first, counts), (second, other_counts) = (found["matrices"] for found in measured)
    assert sum(counts) + sum(other_counts) == 2 * len(SHAPES)  # in two updates
    assert counts and other_counts
    assert all(map(torch.equal, first, second))
    alone, all_counts = iterate_matrices()
    assert sum(all_counts) == 2 * len(SHAPES)
    for found, expected in zip(first, alone, strict=True):
        # float32 in other batches of matrices; five iterations amplify the rounding.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_make_the_updates_of_one(
    measured: list[dict[str, Any]], layout: str, name: str
) -> None:
    expected = weights(train_bert(Accelerator(cpu=True), name))
    start = dict(tiny_bert().named_parameters())
    first, second = (found[f"{layout} {name}"] for found in measured)
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        # float32, and a rate of 1e-2 over two updates.
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-6, msg=key)
    moved = [float((value - start[key]).detach().abs().max()) for key, value in expected.items()]
    assert max(moved) > 1e-2


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_have_the_average_of_one(measured: list[dict[str, Any]], layout: str) -> None:
    expected = averaged_weights(Accelerator(cpu=True))
    first, second = (found[f"{layout} average"] for found in measured)
    for key, value in expected["values"].items():
        assert torch.equal(first["values"][key], second["values"][key]), key
        # float32, and a rate of 1e-2 over two updates.
        torch.testing.assert_close(first["values"][key], value, rtol=1e-4, atol=1e-6, msg=key)
    assert first["is_back"] and second["is_back"] and expected["is_back"]
    whole = sum(p.numel() for p in tiny_bert().parameters())
    held = [first["num_held"], second["num_held"]]
    assert held == [whole, whole] if layout == "ddp" else sum(held) == whole
    start = dict(tiny_bert().named_parameters())
    trained = weights(train_bert(Accelerator(cpu=True), "adamw"))
    for other in (start, trained):  # it is neither
        gap = max(float((v - other[k]).detach().abs().max()) for k, v in expected["values"].items())
        assert gap > 1e-3


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_parameters_and_moments_are_divided_among_processes(
    measured: list[dict[str, Any]], name: str
) -> None:
    first, second = (found[f"shards {name}"] for found in measured)
    for found in (first, second):
        assert found["all_sharded"] and found["is_tied"] and found["like"]
        assert found["bytes_per_number"] == 4  # float32, and nothing of the whole is kept
        assert found["placements"] == {"(Shard(dim=0),)"}
        assert found["local_moments"] == found["local_rows"]
        assert found["outline"] == ("BertForPreTraining", {"meta"})
    assert (first["local_rows"], second["local_rows"]) == (27, 26)  # of 53
    assert first["local_numbers"] + second["local_numbers"] == first["numbers"]
    assert first["numbers"] == sum(p.numel() for p in tiny_bert().parameters())


def test_gradients_are_reduced_once_a_window(measured: list[dict[str, Any]]) -> None:
    for found in measured:
        # A bucket holds the whole line: one reduction an update, not one a micro-batch.
        assert found["reductions"] == {"buckets": 4, "steps": 4}
        assert found["views"]
        num_scattered, num_units = found["scattered"]
        assert num_units == 3  # two layers, and the rest
        assert num_scattered == 3 * 3 * num_units  # three runs of three updates


def test_a_failure_on_one_process_stops_all_before_the_update(
    measured: list[dict[str, Any]],
) -> None:
    (message, first), (other_message, second) = (found["failure"] for found in measured)
    assert "update 2 is not finite" in message
    assert "nor is the loss of process 1 in forward pass 0, process 1 in forward pass 1" in message
    assert message == other_message
    assert all(torch.isfinite(value).all() for value in first)
    assert all(map(torch.equal, first, second))


def test_a_disk_that_the_first_process_finds_full_stops_all_after_the_same_update(
    measured: list[dict[str, Any]],
) -> None:
    (message, step), (other_message, other_step) = (found["full"] for found in measured)
    assert "No space left on device" in message
    assert other_message == f"the first process cannot save: {message}"
    assert step == other_step and 2 <= step <= 4


def test_all_processes_stop_at_a_loss_together(measured: list[dict[str, Any]]) -> None:
    assert [found["stopped"] for found in measured] == [2, 2]  # the first evaluation is then


def test_owners_are_balanced_and_the_same_for_all() -> None:
    shapes = [torch.Size(shape) for shape in [(64, 64)] * 8 + [(64, 256)] * 4]
    owners = assign_owners(shapes, 4)
    # Each process: one large matrix and two small ones.
    for process in range(4):
        mine = [shapes[i] for i, owner in enumerate(owners) if owner == process]
        assert sorted(mine) == [(64, 64), (64, 64), (64, 256)]
    assert assign_owners(shapes[:1], 3) == [0]  # the others have none


def test_embeddings_that_the_output_layer_shares_are_no_unit() -> None:
    model = tiny_bert()
    assert sharding_units(model) == list(model.bert.encoder.layer)[::-1]


def test_the_gradient_norm_is_right_for_a_long_table() -> None:
    table = nn.Linear(512, 8192, bias=True)
    torch.manual_seed(0)
    gradients = [torch.randn(p.shape) * 1e-3 for p in table.parameters()]
    exact = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    naive = float(torch.nn.utils.get_total_norm(gradients))
    assert abs(naive / exact - 1) > 1e-5  # what torch comes to on a processor
    optimizer = torch.optim.SGD(table.parameters())
    made = DistributedModel(Accelerator(cpu=True), table, [optimizer])  # type: ignore[arg-type]
    for parameter, gradient in zip(table.parameters(), gradients, strict=True):
        parameter.grad = copy.deepcopy(gradient)
    assert float(made.clip_grad_norm(exact / 2)) == pytest.approx(exact, rel=1e-7)
    for parameter, gradient in zip(table.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version is 1 but must be 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "`gradient_checkpointing`"),
    ],
)
def test_what_is_not_carried_out_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], match: str
) -> None:
    for name, value in ({"ACCELERATE_USE_FSDP": "true"} | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=match):
        check_launcher(mixed_precision="no")


def test_deepspeed_is_refused_with_what_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match=r"DeepSpeed.*configs/accelerate/zero2.yaml"):
        check_launcher(mixed_precision="no")


def test_fp16_is_refused_under_fsdp_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launcher(mixed_precision="fp16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="`mixed_precision` is fp16"):
        check_launcher(mixed_precision="fp16")


def test_the_launchers_wish_is_hidden_from_accelerate_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with without_accelerates_fsdp():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
