"""Faster layers of convolutional encoders against torch's and transformers' own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel, ConvNextV2Config, ConvNextV2Model
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN

from bert_pretrain.models.fast_layers import (
    LARGEST_SMALL_MAP,
    DepthwiseConvolution,
    GlobalResponseNorm,
    PatchConvolution,
    use_fast_layers,
)

sizes = st.integers(1, 9)
kernels = st.sampled_from([1, 3, 5, 7])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_the_same(stock: nn.Conv2d, kind: type[nn.Conv2d], states: Tensor) -> None:
    """Compare outputs and all gradients in float64, where rounding hides nothing."""
    model = nn.Sequential(stock.double())
    fast = copy.deepcopy(model)
    use_fast_layers(fast)
    assert type(fast[0]) is kind
    found = []
    for each in (model, fast):
        own = states.clone().requires_grad_()
        output = each(own)
        weights = normal(*output.shape, seed=1)
        gradients = torch.autograd.grad((output * weights).sum(), [own, *each.parameters()])
        found.append([output.detach(), *gradients])
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)


@given(sizes, sizes, kernels, kernels, st.booleans(), st.booleans())
def test_a_depthwise_convolution_has_the_outputs_and_gradients_of_torch(
    height: int, width: int, rows: int, columns: int, has_bias: bool, is_last: bool
) -> None:
    stock = nn.Conv2d(
        4, 4, (rows, columns), padding=(rows // 2, columns // 2), groups=4, bias=has_bias
    )
    states = normal(3, 4, height, width)
    if is_last:  # as ConvNext's maps lie in memory
        states = states.contiguous(memory_format=torch.channels_last)
    assert_the_same(stock, DepthwiseConvolution, states)


@given(sizes, sizes, st.integers(1, 4), st.integers(2, 4), st.booleans())
def test_a_convolution_of_patches_has_the_outputs_and_gradients_of_torch(
    height: int, width: int, rows: int, columns: int, has_bias: bool
) -> None:
    stock = nn.Conv2d(3, 5, (rows, columns), stride=(rows, columns), bias=has_bias)
    states = normal(2, 3, height, width)
    if height < rows or width < columns:
        model = nn.Sequential(stock.double())
        use_fast_layers(model)
        with pytest.raises(RuntimeError, match="Kernel size"):
            model(states)
    else:
        assert_the_same(stock, PatchConvolution, states)


def test_other_convolutions_and_large_maps_stay_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=2),
        nn.Conv2d(4, 4, 3, padding=2, groups=4, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 2, stride=2, padding=1),
        nn.Conv2d(4, 4, 4, stride=2),
        nn.Conv2d(4, 4, 1),
    )
    use_fast_layers(others)
    assert all(type(module) is nn.Conv2d for module in others)
    fast = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, groups=2))
    use_fast_layers(fast)
    for side, is_own in ((8, True), (9, False)):
        assert (side**2 <= LARGEST_SMALL_MAP) is is_own
        convolved = fast[0](torch.zeros(1, 2, side, side))
        assert ("SmallDepthwise" in repr(convolved.grad_fn.next_functions)) is is_own


def make_model(kind: str) -> ConvNextModel | ConvNextV2Model:
    torch.manual_seed(0)
    config_class, model_class = {
        "convnext": (ConvNextConfig, ConvNextModel),
        "convnextv2": (ConvNextV2Config, ConvNextV2Model),
    }[kind]
    model = model_class(
        config_class(num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], patch_size=2, image_size=16)
    )
    for module in model.modules():
        if isinstance(module, ConvNextV2GRN):  # 0 in a new model, which would hide a mistake
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("kind", ["convnext", "convnextv2"])
def test_a_model_keeps_its_outputs_gradients_and_names(kind: str) -> None:
    model = make_model(kind).double()
    fast = copy.deepcopy(model)
    keys, parameters = set(fast.state_dict()), dict(fast.named_parameters())
    use_fast_layers(fast)
    types = [type(module) for module in fast.modules()]
    assert types.count(DepthwiseConvolution) == 3
    assert types.count(PatchConvolution) == 2
    assert types.count(GlobalResponseNorm) == (3 if kind == "convnextv2" else 0)
    assert set(fast.state_dict()) == keys
    for name, parameter in fast.named_parameters():
        assert parameter is parameters[name]
    outputs = [each(normal(4, 3, 16, 16)).last_hidden_state for each in (model, fast)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-10)
    for output in outputs:
        output.square().sum().backward()
    for (name, expected), found in zip(model.named_parameters(), fast.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-8, atol=1e-8, msg=name)


def test_what_was_replaced_is_left_as_it_was_and_its_notes_are_kept() -> None:
    model = make_model("convnextv2")
    stock = [module for module in model.modules() if isinstance(module, ConvNextV2GRN | nn.Conv2d)]
    # Without transformers' note on each module, a model around it would draw its weights anew.
    noted = [vars(module)["_is_hf_initialized"] for module in model.modules()]
    use_fast_layers(model)
    assert {type(module) for module in stock} == {ConvNextV2GRN, nn.Conv2d}
    assert [vars(module)["_is_hf_initialized"] for module in model.modules()] == noted


def test_response_norm_stays_in_bfloat16() -> None:
    model = make_model("convnextv2")
    use_fast_layers(model)
    norm = next(module for module in model.modules() if isinstance(module, GlobalResponseNorm))
    states = normal(2, 4, 4, norm.weight.shape[-1]).bfloat16()
    assert norm(states).dtype is torch.bfloat16
    expected = ConvNextV2GRN.forward(norm, states.float())
    # bfloat16 keeps 8 bits: two roundings of values of about 5
    torch.testing.assert_close(norm(states).float(), expected, rtol=0.02, atol=0.04)


def test_response_norm_of_a_map_of_zeros_has_a_gradient() -> None:
    norm = GlobalResponseNorm(2)
    nn.init.ones_(norm.weight)
    states = torch.stack([torch.zeros(1, 3, 3), torch.ones(1, 3, 3)], dim=-1).requires_grad_()
    norm(states).sum().backward()
    assert states.grad is not None and states.grad.isfinite().all()
    expected = states.detach().clone().requires_grad_()
    ConvNextV2GRN.forward(norm, expected).sum().backward()
    torch.testing.assert_close(states.grad, expected.grad)


def test_autocast_takes_torchs_own_convolutions() -> None:
    model = make_model("convnext")
    fast = copy.deepcopy(model)
    use_fast_layers(fast)
    pixels = normal(2, 3, 16, 16).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = [each(pixels).last_hidden_state for each in (model, fast)]
    assert torch.equal(*outputs)
