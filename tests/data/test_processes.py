"""Losses and shared work of several processes are those of one process on the joint batch."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bert_pretrain.data.processes import compute_shared, gather_rows
from bert_pretrain.losses.contrastive import nt_xent_loss, triplet_loss
from bert_pretrain.models.batch_norm import SharedBatchNorm2d, share_batch_statistics

# Rows of each process; both splits over 3 processes are measured by the same processes.
SPLITS = {"2 equal": [4, 4], "3 unequal": [4, 1, 3], "3 with an empty one": [5, 0, 3]}
LOSSES = ["nt_xent", "random", "semi_hard", "hard", "all"]
NUM_ROWS, INPUT_DIM, DIM = 8, 10, 6


def joint_batch() -> dict[str, Tensor]:
    """One image occurs twice, in rows that lie on different processes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randn(NUM_ROWS, 2, INPUT_DIM, generator=generator),
        "ids": torch.tensor([5, 1, 7, 2, 9, 3, 1, 4]),
        "offsets": torch.randint(0, 2**62, (NUM_ROWS,), generator=generator),
    }


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUT_DIM, 12), nn.Tanh(), nn.Linear(12, DIM))


def loss_sum(name: str, model: nn.Module, batch: dict[str, Tensor], gather: Any) -> Tensor:
    """The loss of this process's rows against those of all; `model` is called once."""
    views = model(batch["images"].flatten(0, 1)).unflatten(0, (-1, 2))  # (b, 2, D)
    ids = {"candidate_ids": gather(batch["ids"])}
    if name == "nt_xent":
        return nt_xent_loss(views, gather(views), view_ids=batch["ids"], temperature=0.2, **ids)[0]
    anchors, positives = views.unbind(1)
    return triplet_loss(
        anchors,
        positives,
        gather(anchors),
        anchor_ids=batch["ids"],
        margin=1.0,
        distance="l2",
        negatives=name,  # type: ignore[arg-type]
        offsets=batch["offsets"],
        **ids,
    ).sum


def gradients(model: nn.Module) -> Tensor:
    return torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


def measure(
    model: nn.Module, batch: dict[str, Tensor], gather: Any, num_processes: int
) -> dict[str, Any]:
    """Sums and gradients of all losses, with the convention of the trainer."""
    measured = {}
    for name in LOSSES:
        model.zero_grad()
        loss = loss_sum(name, model, batch, gather)
        # Each process multiplies by the number of processes, because their gradients are averaged.
        (loss / NUM_ROWS * num_processes).backward()
        measured[name] = (loss.detach(), gradients(model))
    return measured


def detached_gather(rows: Tensor) -> Tensor:
    return gather_rows(rows.detach())


def detached_gather_with_own_rows(rows: Tensor) -> Tensor:
    """The usual repair: only the own rows keep their gradient."""
    begin = int(gather_rows(torch.tensor([len(rows)]))[: dist.get_rank()].sum())
    gathered = gather_rows(rows.detach())
    return torch.cat([gathered[:begin], rows, gathered[begin + len(rows) :]])


def check_gather_alone(rank: int, counts: list[int]) -> dict[str, Any]:
    """Gather numbered rows with and without known counts, and differentiate a weighted sum."""
    begin = sum(counts[:rank])
    own = torch.arange(begin, begin + counts[rank])
    rows = own[:, None, None].expand(-1, 2, 3).double().requires_grad_()
    num_collectives, originals = [], (dist.all_gather, dist.all_gather_object)

    def counted(original: Any) -> Any:
        return lambda *args, **kwargs: (num_collectives.append(1), original(*args, **kwargs))[1]

    dist.all_gather, dist.all_gather_object = map(counted, originals)
    known = gather_rows(rows, num_rows_per_rank=counts)
    num_with_counts = len(num_collectives)
    unknown = gather_rows(rows)
    dist.all_gather, dist.all_gather_object = originals
    weights = (rank + 1) * torch.arange(NUM_ROWS).double()
    (gradient,) = torch.autograd.grad((known * weights[:, None, None]).sum(), rows)
    return {
        "known": known.detach(),
        "unknown": unknown.detach(),
        "ids": gather_rows(own),
        "transposed": gather_rows(rows.detach().transpose(1, 2).requires_grad_()).detach(),
        "gradient": gradient,
        "num_collectives": (num_with_counts, len(num_collectives) - num_with_counts),
    }


def check_shared_work() -> dict[int, tuple[list[tuple[int, int]], Tensor]]:
    """Share out rows in blocks of 4; by number of rows: what this process did, and all rows."""
    found = {}
    for num_rows in (1, 4, 6, 41):
        calls = []

        def compute(begin: int, end: int, calls: Any = calls) -> Tensor:
            calls.append((begin, end))
            return torch.arange(begin, end).square()[:, None].float().requires_grad_()

        found[num_rows] = (calls, compute_shared(compute, num_rows, rows_per_block=4))
    return found


def convolutions() -> nn.Module:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 1, 2))


def normalise(
    model: nn.Module, own: slice, num_processes: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Train on own rows twice; return outputs, gradients of rows and parameters, and buffers."""
    generator = torch.Generator().manual_seed(2)
    # A mean far above the deviation, of which a difference of squares would leave nothing.
    rows = torch.randn(NUM_ROWS, 2, 6, 5, generator=generator) + torch.linspace(
        30, 90, NUM_ROWS
    ).view(-1, 1, 1, 1)
    weights = torch.randn(NUM_ROWS, 1, 3, 2, generator=generator)
    rows, weights = rows[own].requires_grad_(), weights[own]
    for _ in range(2):
        model.zero_grad()
        rows.grad = None
        outputs = model(rows)
        # Gradients of parameters are averaged over processes.
        ((outputs * weights).sum() * num_processes).backward()
    assert rows.grad is not None
    buffers = [buffer.clone() for buffer in model.buffers()]
    return outputs.detach(), rows.grad / num_processes, gradients(model), buffers


def work(rank: int, splits: dict[str, list[int]], folder: str, port: int) -> None:
    """Run as one of several processes and leave the results in a file."""
    torch.set_num_threads(1)
    num_processes = len(next(iter(splits.values())))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_processes)
    assert dist.get_world_size() == num_processes
    model = DistributedDataParallel(make_model())
    variants = {
        "gather_rows": gather_rows,
        "detached": detached_gather,
        "own rows": detached_gather_with_own_rows,
    }
    for name, counts in splits.items():
        begin = sum(counts[:rank])
        batch = {key: value[begin : begin + counts[rank]] for key, value in joint_batch().items()}
        results: dict[str, Any] = {
            key: measure(model, batch, g, num_processes) for key, g in variants.items()
        }
        results |= {
            "world_size": dist.get_world_size(),
            "alone": check_gather_alone(rank, counts),
            "shared": check_shared_work(),
        }
        if 0 not in counts:
            shared = convolutions()
            share_batch_statistics(shared)
            own = slice(begin, begin + counts[rank])
            results["normalised"] = normalise(
                DistributedDataParallel(shared, broadcast_buffers=False), own, num_processes
            )
        torch.save(results, f"{folder}/{name} {rank}.pt")
    dist.barrier()  # a process that leaves early closes the connections of the others
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each process measured, by split."""
    folder: Path = tmp_path_factory.mktemp("processes")
    results = {}
    for num_processes in (2, 3):
        # Held by this process, so that no port is guessed and the store outlives all who use it.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        splits = {name: counts for name, counts in SPLITS.items() if len(counts) == num_processes}
        torch.multiprocessing.spawn(
            work, args=(splits, str(folder), store.port), nprocs=num_processes
        )
        for name in splits:
            results[name] = [
                torch.load(folder / f"{name} {rank}.pt") for rank in range(num_processes)
            ]
            assert [result["world_size"] for result in results[name]] == [
                num_processes
            ] * num_processes
    return results


@pytest.fixture(params=SPLITS)
def processes(
    request: pytest.FixtureRequest, measured: dict[str, list[Any]]
) -> tuple[list[int], list[Any]]:
    """How many rows each process held, and what each of them measured."""
    return SPLITS[request.param], measured[request.param]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return measure(make_model(), joint_batch(), gather_rows, 1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_all_processes_is_that_of_one_on_the_joint_batch(
    processes: tuple[list[int], list[Any]], reference: dict[str, Any], loss: str
) -> None:
    _, results = processes
    expected_sum, expected_gradient = reference[loss]
    assert expected_gradient.norm() > 0.01
    torch.testing.assert_close(
        sum(result["gather_rows"][loss][0] for result in results), expected_sum
    )
    for result in results:
        assert relative_error(result["gather_rows"][loss][1], expected_gradient) < 1e-6  # float32


@pytest.mark.parametrize("variant", ["detached", "own rows"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_gather_without_gradient_gives_the_right_loss_and_the_wrong_gradient(
    processes: tuple[list[int], list[Any]], reference: dict[str, Any], loss: str, variant: str
) -> None:
    _, results = processes
    expected_sum, expected_gradient = reference[loss]
    torch.testing.assert_close(sum(result[variant][loss][0] for result in results), expected_sum)
    assert relative_error(results[0][variant][loss][1], expected_gradient) > 0.05


def test_rows_arrive_in_rank_order_and_gradients_are_summed_over_ranks(
    processes: tuple[list[int], list[Any]],
) -> None:
    counts, results = processes
    numbers = torch.arange(NUM_ROWS)
    expected = numbers[:, None, None].expand(-1, 2, 3).double()
    # Rank r weighs row i by (r + 1) i.
    expected_gradient = expected * sum(range(1, len(counts) + 1))
    for end, count, result in zip(accumulate(counts), counts, results, strict=True):
        alone = result["alone"]
        assert torch.equal(alone["known"], expected)
        assert torch.equal(alone["unknown"], expected)
        assert torch.equal(alone["transposed"], expected.transpose(1, 2))
        assert torch.equal(alone["ids"], numbers)
        assert torch.equal(alone["gradient"], expected_gradient[end - count : end])
        assert alone["num_collectives"] == (1, 2)  # counts that are known are not asked for


def test_shared_work_is_done_once_in_whole_blocks_and_all_get_all_of_it(
    processes: tuple[list[int], list[Any]],
) -> None:
    _, results = processes
    for num_rows in (1, 4, 6, 41):
        expected = torch.arange(num_rows).square()[:, None].float()
        parts = []
        for result in results:
            ((call,), rows) = result["shared"][num_rows]
            assert torch.equal(rows, expected)
            assert not rows.requires_grad
            parts.append(call)
        # Processes without a block compute one row to learn its shape.
        busy = [part for part in parts if part != (0, 1)] or [(0, 1)]
        assert [begin for begin, _ in busy] == [0, *(end for _, end in busy[:-1])]
        assert busy[-1][1] == num_rows
        assert all(begin % 4 == 0 for begin, _ in busy)
        if num_rows == 41:
            assert len(busy) == len(results)
            longest = max(end - begin for begin, end in busy)
            assert longest <= 4 * -(-11 // len(results))  # 11 blocks


def test_batch_normalisation_of_all_processes_is_torchs_on_the_joint_batch(
    measured: dict[str, list[Any]],
) -> None:
    outputs, of_rows, of_parameters, buffers = normalise(convolutions(), slice(None), 1)
    for name, results in measured.items():
        if name == "3 with an empty one":  # no forward pass is without a row
            continue
        found = [result["normalised"] for result in results]
        # float32, of values up to 90 times their deviation.
        exactly = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(torch.cat([part[0] for part in found]), outputs, **exactly)
        torch.testing.assert_close(torch.cat([part[1] for part in found]), of_rows, **exactly)
        for part in found:
            torch.testing.assert_close(part[2], of_parameters, rtol=1e-4, atol=1e-3)
            for buffer, first, expected in zip(part[3], found[0][3], buffers, strict=True):
                assert torch.equal(buffer, first)  # on all processes the same
                torch.testing.assert_close(buffer, expected, rtol=1e-5, atol=1e-5)


def test_a_process_alone_normalises_as_torch_does() -> None:
    shared = convolutions()
    share_batch_statistics(shared)
    assert isinstance(shared[1], SharedBatchNorm2d)
    assert shared.state_dict().keys() == convolutions().state_dict().keys()
    ours, theirs = (normalise(model, slice(None), 1) for model in (shared, convolutions()))
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert torch.equal(mine, other)
    assert all(torch.equal(*pair) for pair in zip(ours[3], theirs[3], strict=True))


def test_shared_work_of_one_process_is_done_at_once() -> None:
    rows = compute_shared(lambda begin, end: torch.arange(begin, end), 9, rows_per_block=4)
    assert rows.tolist() == list(range(9))


def test_a_process_alone_gets_its_rows_back() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    assert gather_rows(rows, num_rows_per_rank=[3]) is rows


def test_one_process_of_a_group_of_one_gets_its_rows_back() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        rows = torch.randn(3, 2)
        assert gather_rows(rows) is rows
    finally:
        dist.destroy_process_group()
