"""In every mode a run has the curve of the plain one, and continues bit for bit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from runs import metrics
from safetensors.torch import load_file
from trainers import attend_by_bounds, bert_objective, trainer_of

from bert_pretrain.models import attention_kernels
from bert_pretrain.training.checkpoint import read_state
from bert_pretrain.training.trainer import Trainer

# All but the plain one have an average of the weights too.
MODES = ("plain", "packed", "accumulated", "checkpointed", "compiled", "packed and compiled")
QUICK_OF_LAMB = ("accumulated", "packed and compiled")
# float32; Muon's iteration amplifies rounding.
TOLERANCE = {"adamw": 1e-5, "lamb": 1e-5, "muon": 1e-4}


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.compiler.reset()
    torch.compiler.set_stance("default")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setitem(attention_kernels.KERNELS, "by_bounds", opaque)
    yield
    torch.compiler.set_stance("default")


# Like the kernels of a GPU, one operation to a compiler.
opaque = torch.library.custom_op("tests::attend_by_bounds", attend_by_bounds, mutates_args=())


@opaque.register_fake
def _(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("tests::attend_by_bounds_backward", mutates_args=())
def opaque_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
) -> list[torch.Tensor]:
    gradients = [torch.zeros_like(state) for state in (query, key, value)]
    bounds = zip(query_bounds.tolist(), key_bounds.tolist(), strict=True)
    scale = 1 / math.sqrt(key.shape[-1])
    for (query_begin, key_begin), (query_end, key_end) in pairwise(bounds):
        asking, held = slice(query_begin, query_end), slice(key_begin, key_end)
        q, k, v, g = query[asking], key[held], value[held], gradient[asking]
        weights = (torch.einsum("qhd,khd->hqk", q, k) * scale).softmax(-1)
        of_weights = torch.einsum("qhd,khd->hqk", g, v)
        inner = (of_weights * weights).sum(-1, keepdim=True)
        of_scores = weights * (of_weights - inner) * scale
        gradients[0][asking] = torch.einsum("hqk,khd->qhd", of_scores, k)
        gradients[1][held] = torch.einsum("hqk,qhd->khd", of_scores, q)
        gradients[2][held] = torch.einsum("hqk,qhd->khd", weights, g)
    return gradients


@opaque_backward.register_fake
def _(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object
) -> list[torch.Tensor]:
    return [torch.empty_like(state) for state in (query, key, value)]


def _keep(ctx: object, inputs: tuple, output: torch.Tensor) -> None:
    *tensors, ctx.longest_query, ctx.longest_key = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: object, gradient: torch.Tensor) -> tuple:
    lengths = ctx.longest_query, ctx.longest_key
    parts = opaque_backward(gradient.contiguous(), *ctx.saved_tensors, *lengths)
    return (*parts, None, None, None, None)


opaque.register_autograd(_backward, setup_context=_keep)


def trainer_in(mode: str, folder: Path, optimizer: str) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    objective = bert_objective()
    make_model: Callable[[], torch.nn.Module] = objective._make_model

    def changed() -> torch.nn.Module:
        model = make_model()
        if "packed" in mode:
            model.attention = "by_bounds"
        if mode == "checkpointed":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    objective._make_model = changed
    folder.mkdir(exist_ok=True)
    trainer = trainer_of(
        Accelerator(cpu=True),
        objective,
        folder,
        optimizer=optimizer,
        max_steps=6,
        save_steps=3,
        num_micro_batches=4 if mode == "accumulated" else 2,
        ema_decay=0.0 if mode == "plain" else 0.5,
        is_compiled="compiled" in mode,
    )
    if trainer.is_compiled:
        trainer.check_compiled("on")
    return trainer


@pytest.mark.parametrize(
    ("mode", "optimizer"),
    [
        pytest.param(
            mode,
            optimizer,
            # LAMB's arithmetic is AdamW's, but for its norms.
            marks=[pytest.mark.slow] * (optimizer == "lamb" and mode not in QUICK_OF_LAMB),
        )
        for mode in MODES
        for optimizer in TOLERANCE
    ],
)
def test_every_mode_has_one_curve_and_continues_to_the_last_bit(
    tmp_path: Path, mode: str, optimizer: str
) -> None:
    trainer_in("averaged", tmp_path / "plain", optimizer).train()
    trainer_in(mode, tmp_path / "mode", optimizer).train()
    found, expected = metrics(tmp_path / "mode"), metrics(tmp_path / "plain")
    for row, plain in zip(found, expected, strict=True):
        own = row["split"] == "validation" and mode != "plain"
        for key in ("loss", "mlm_loss", "nsp_loss", *["ema_loss", "ema_mlm_loss"] * own):
            assert row[key] == pytest.approx(plain[key], rel=TOLERANCE[optimizer]), key
    # As if it had been ended after the third update.
    last = tmp_path / "mode/checkpoints/step-000006"
    weights = [load_file(path) for path in sorted(last.glob("*.safetensors"))]
    assert len(weights) == (1 if mode == "plain" else 2)
    shutil.rmtree(last)
    checkpoint = tmp_path / "mode/checkpoints/step-000003"
    resumed = trainer_in(mode, tmp_path / "mode", optimizer)
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    resumed.train()
    assert metrics(tmp_path / "mode") == found
    for path, expected_weights in zip(sorted(last.glob("*.safetensors")), weights, strict=True):
        again = load_file(path)
        assert all(torch.equal(again[name], value) for name, value in expected_weights.items())
