"""Faster forms against transformers' own."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import ConvNextV2Config, ConvNextV2Model
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN

from bert_pretrain.models.fast_paths import GlobalResponseNorm, use_fast_response_norm


@pytest.fixture
def model() -> ConvNextV2Model:
    torch.manual_seed(0)
    config = ConvNextV2Config(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], patch_size=2, image_size=16
    )
    model = ConvNextV2Model(config).eval()
    for module in model.modules():
        if isinstance(
            module, ConvNextV2GRN
        ):  # zero in a new model, where they would hide a mistake
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return model


def test_response_norm_has_the_outputs_and_gradients_of_transformers(
    model: ConvNextV2Model,
) -> None:
    fast = copy.deepcopy(model)
    use_fast_response_norm(fast)
    assert sum(type(module) is GlobalResponseNorm for module in fast.modules()) == 3
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(fast(pixels).last_hidden_state, model(pixels).last_hidden_state)
    # The other form of the sum, in float64, where rounding hides nothing.
    outputs = [m.double()(pixels.double()).last_hidden_state for m in (model, fast)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-10)
    for output in outputs:
        output.square().sum().backward()
    for (name, expected), found in zip(model.named_parameters(), fast.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-8, atol=1e-8, msg=name)


def test_response_norm_keeps_names_and_stays_in_bfloat16(model: ConvNextV2Model) -> None:
    keys, parameters = set(model.state_dict()), dict(model.named_parameters())
    stock = [module for module in model.modules() if isinstance(module, ConvNextV2GRN)]
    use_fast_response_norm(model)
    assert set(model.state_dict()) == keys
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    assert all(type(module) is ConvNextV2GRN for module in stock)  # replaced, not changed
    norm = next(module for module in model.modules() if isinstance(module, GlobalResponseNorm))
    states = torch.randn(2, 4, 4, norm.weight.shape[-1]).bfloat16()
    assert norm(states).dtype is torch.bfloat16
    expected = ConvNextV2GRN.forward(norm, states.float())
    # bfloat16 keeps 8 bits: two roundings of values of about 5
    torch.testing.assert_close(norm(states).float(), expected, rtol=0.02, atol=0.04)
