"""Optimisers against torch's own, and the schedule against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert_pretrain.models.bert import BertForPreTraining, bert_config
from bert_pretrain.training.optimizers import (
    Muon,
    build_optimizers,
    learning_rate_at,
    orthogonalize,
)


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16)])
def test_muon_is_torchs_up_to_its_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    results = []
    for make in (
        lambda p: torch.optim.Muon([p], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        lambda p: Muon([p], lr=0.01, weight_decay=0.1, iteration_dtype=torch.float32),
    ):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make(parameter)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        results.append(parameter.detach() - start)
    # bfloat16 keeps 8 bits; five iterations of the quintic amplify its rounding to a few per cent.
    assert torch.linalg.norm(results[0] - results[1]) < 0.06 * torch.linalg.norm(results[0])


def test_orthogonalised_singular_values_are_near_one() -> None:
    torch.manual_seed(0)
    matrices = orthogonalize(
        torch.randn(3, 20, 50), coefficients=(3.4445, -4.7750, 2.0315), num_iterations=5, eps=1e-7
    )
    values = torch.linalg.svdvals(matrices)
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_flagged_update_changes_no_parameter() -> None:
    model = BertForPreTraining(bert_config("tiny", vocab_size=50, pad_token_id=0))
    optimizers = build_optimizers(
        model, name="muon", weight_decay=0.1, adam_betas=(0.9, 0.98), adam_epsilon=1e-6
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.found_inf = torch.ones(())
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_every_parameter_is_optimised_once_and_only_matrices_decay() -> None:
    model = BertForPreTraining(bert_config("tiny", vocab_size=50, pad_token_id=0))
    for name in ("adamw", "muon"):
        optimizers = build_optimizers(
            model, name=name, weight_decay=0.1, adam_betas=(0.9, 0.98), adam_epsilon=1e-6
        )
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        ids = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
        for group in groups:
            assert all(
                (parameter.ndim >= 2) == (group["weight_decay"] > 0)
                for parameter in group["params"]
            )
    muon = {id(parameter) for parameter in optimizers[1].param_groups[0]["params"]}
    assert id(model.bert.encoder.layer[0].attention.self.query.weight) in muon
    assert id(model.bert.embeddings.word_embeddings.weight) not in muon
    assert id(model.cls.seq_relationship.weight) not in muon


def test_the_schedules_reach_their_corners() -> None:
    linear = {"num_steps": 100, "warmup_steps": 10, "schedule": "linear", "peak": 2.0}
    assert learning_rate_at(0, **linear) == pytest.approx(0.2)
    assert learning_rate_at(9, **linear) == learning_rate_at(10, **linear) == 2.0
    assert learning_rate_at(55, **linear) == pytest.approx(1.0)
    stable = {"num_steps": 100, "warmup_steps": 10, "schedule": "stable_decay", "decay_share": 0.4}
    assert learning_rate_at(60, **stable) == 1.0
    assert learning_rate_at(80, **stable) == pytest.approx(0.5)
    assert learning_rate_at(100, **stable) == 0.0


@given(st.floats(0, 1), st.integers(1, 500), st.integers(0, 50), st.floats(0.01, 1))
def test_rates_lie_between_zero_and_the_peak(
    place: float, length: int, warmup: int, share: float
) -> None:
    for schedule in ("linear", "stable_decay"):
        rate = learning_rate_at(
            place * length,
            num_steps=length,
            warmup_steps=warmup,
            schedule=schedule,
            decay_share=share,
            peak=3.0,
        )
        assert 0 <= rate <= 3.0
