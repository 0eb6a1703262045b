"""Micro-batches whose rows are compared: loss and gradient are those of one forward pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from trainers import first_update, image_trainer

from bert_pretrain.objectives.interface import LossTerm
from bert_pretrain.training.joint_loss import joint_gradients, mean_loss, stand_in
from bert_pretrain.training.sharding import DDP_OPTIONS

MINERS = ("random", "semi_hard", "hard", "all")
KINDS = (*(("triplet", negatives) for negatives in MINERS), ("nt_xent", "random"))
LOCAL = " with 2 local views"
KINDS += (("triplet" + LOCAL, "all"), ("nt_xent" + LOCAL, "random"))
SHARDED = (("nt_xent", "random"), ("nt_xent" + LOCAL, "random"))
NUM_PROCESSES = 2
TOLERANCE = 1e-5  # relative, float32


class SquaredSum:
    """A loss that couples all rows: the square of the sum of their products with their weights."""

    def rows(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"])

    def joint_terms(self, rows: Tensor, batches: list[dict[str, Tensor]]) -> dict[str, LossTerm]:
        weights = torch.cat([batch["weight"] for batch in batches])
        return {"square": LossTerm((rows * weights).sum() ** 2, weight=0.5)}


def test_gradients_of_rows_are_those_of_the_closed_form_and_reach_the_weights() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False)
    batches = [{"x": torch.randn(n, 3), "weight": torch.randn(n, 1)} for n in (2, 3)]
    coupling, counts = SquaredSum(), {"square": 4.0}
    rows = [coupling.rows(model, batch).detach() for batch in batches]
    terms, gradients = joint_gradients(coupling, rows, batches, counts)
    # 0.5 / 4 * s^2, with s = w . sum of weight * x
    direction = sum((batch["x"] * batch["weight"]).sum(dim=0) for batch in batches)
    s = (model.weight @ direction).detach()
    torch.testing.assert_close(mean_loss(terms, counts).detach(), (s**2 / 8).squeeze())
    for batch, gradient in zip(batches, gradients, strict=True):
        torch.testing.assert_close(gradient, s * batch["weight"] / 4)
    parts = [
        torch.autograd.grad(stand_in(coupling.rows(model, batch), gradient), model.weight)[0]
        for batch, gradient in zip(batches, gradients, strict=True)
    ]
    torch.testing.assert_close(sum(parts), (s * direction / 4)[None])


def make_update(folder: Path, kind: str, negatives: str, number: int) -> dict[str, Tensor]:
    """Return what an update of 8 images in a number of micro-batches a process comes to."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DDP_OPTIONS])
    return first_update(
        image_trainer(
            accelerator,
            folder,
            kind.removesuffix(LOCAL),
            negatives=negatives,
            num_local_views=2 * kind.endswith(LOCAL),
            num_micro_batches=number,
        )
    )


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("at-once")
    return {(kind, negatives): make_update(folder, kind, negatives, 1) for kind, negatives in KINDS}


def assert_is_that_of_one_pass(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert expected["gradient"].norm() > 0.1
    for name, value in expected.items():
        difference = (found[name] - value).norm() / value.norm().clamp(min=1e-6)
        assert difference < TOLERANCE, (name, float(difference))


@pytest.mark.parametrize("num_micro_batches", [3, 8])  # 2 + 3 + 3 images, and each alone
@pytest.mark.parametrize(("kind", "negatives"), KINDS)
def test_any_number_of_micro_batches_has_the_gradient_of_one(
    tmp_path: Path, at_once: Any, kind: str, negatives: str, num_micro_batches: int
) -> None:
    found = make_update(tmp_path, kind, negatives, num_micro_batches)
    assert_is_that_of_one_pass(found, at_once[kind, negatives])


def test_the_second_pass_drops_the_units_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the gradient would be that of other embeddings than the loss has compared."""
    trainer = image_trainer(Accelerator(cpu=True), tmp_path, "nt_xent", num_micro_batches=2)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    seen = []
    rows = type(trainer.objective.coupling).rows
    monkeypatch.setattr(
        type(trainer.objective.coupling),
        "rows",
        lambda *arguments: seen.append(rows(*arguments)) or seen[-1],
    )
    first_update(trainer)
    first, second, first_again, second_again = seen
    assert torch.equal(first, first_again) and torch.equal(second, second_again)
    assert first_again.requires_grad and not first.requires_grad


def work(rank: int, folder: str, port: int) -> None:
    """Run as one of two processes and leave the results in a file."""
    gloo.join(rank, port, num_processes=NUM_PROCESSES)
    results: dict[str, Any] = {}
    for sharded in (False, True):
        os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
        for kind, negatives in KINDS if not sharded else SHARDED:
            # 4 images a process: 1 + 1 + 2
            update = make_update(Path(folder), kind, negatives, 3)
            if sharded:
                update["gradient"] = update["gradient"].norm()  # each process has a part
            results[f"{kind} {negatives}{' sharded' * sharded}"] = update
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves early closes the connections of the others
    dist.destroy_process_group()


@pytest.mark.slow
def test_micro_batches_of_two_processes_have_the_gradient_of_one_pass(
    tmp_path: Path, at_once: Any
) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(work, args=(str(tmp_path), store.port), nprocs=NUM_PROCESSES)
    for rank in range(NUM_PROCESSES):
        results = torch.load(tmp_path / f"{rank}.pt")
        for kind, negatives in KINDS:
            found, expected = results[f"{kind} {negatives}"], at_once[kind, negatives]
            assert_is_that_of_one_pass(found, expected)
        for kind, negatives in SHARDED:
            sharded, expected = results[f"{kind} {negatives} sharded"], at_once[kind, negatives]
            torch.testing.assert_close(sharded["loss"], expected["loss"], rtol=TOLERANCE, atol=0)
