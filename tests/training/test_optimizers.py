"""Optimisers against torch's own."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.text_encoder_config import named_config
from bert_pretrain.training.muon import Muon, orthogonalize
from bert_pretrain.training.optimizers import build_optimizers


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
    model = BertForPreTraining(named_config("tiny", vocab_size=50, pad_token_id=0))
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


def test_a_flagged_update_leaves_no_trace_in_the_next_one() -> None:
    results = []
    for gradients in ([1.0, float("nan"), 2.0], [1.0, 2.0]):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(16, 20))
        direction = torch.randn(16, 20)
        optimizer = Muon([parameter], lr=0.1, iteration_dtype=torch.float32)
        for size in gradients:
            parameter.grad = size * direction
            optimizer.found_inf = (~torch.isfinite(parameter.grad).all()).float()
            optimizer.step()
        results.append(parameter.detach())
    assert torch.isfinite(results[0]).all()
    assert torch.equal(*results)


def test_the_compiled_iteration_is_the_written_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    results = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 40), (40, 16))]
        optimizer = Muon(parameters, lr=0.1, iteration_dtype=torch.float32, is_compiled=is_compiled)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        results.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)  # float32


def test_every_parameter_is_optimised_once_and_only_matrices_decay() -> None:
    model = BertForPreTraining(named_config("tiny", vocab_size=50, pad_token_id=0))
    for name in ("adamw", "lamb", "muon"):
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
