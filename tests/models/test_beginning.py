"""A new encoder begins with heads that look at neighbours, and is else as transformers makes it."""

from __future__ import annotations

import itertools

import pytest
import torch
from small_encoders import SMALL, small_config
from transformers import AutoModelForMaskedLM, BertConfig, BertModel, PreTrainedModel

from bert_pretrain.models.beginning import (
    begin_with_neighbours,
    neighbours,
    turned_back,
    wave_frequencies,
)


def make_encoder(*, width: int = 128, num_heads: int = 4, num_positions: int = 96) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=500,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=num_heads,
        intermediate_size=64,
        max_position_embeddings=num_positions,
        attn_implementation="eager",
    )
    return BertModel(config).eval()


@pytest.mark.parametrize(("width", "num_positions"), [(128, 512), (64, 96), (33, 16)])
def test_turned_keys_read_a_position_as_queries_read_the_one_before(
    width: int, num_positions: int
) -> None:
    encoder = make_encoder(width=width, num_heads=1, num_positions=num_positions)
    begin_with_neighbours(encoder)
    table = encoder.embeddings.position_embeddings.weight.detach().double()
    table[:, width // 2 * 2 :] = 0  # an odd column has no partner to turn with
    rows = torch.randn(5, width, dtype=torch.float64)
    frequencies = wave_frequencies(width).double()
    for offset in (-2, 1, 3):
        found = turned_back(rows, frequencies * offset) @ table.T
        expected = rows @ table.T
        places = range(max(0, offset), num_positions + min(0, offset))
        for place in places:
            torch.testing.assert_close(
                found[:, place], expected[:, place - offset], rtol=0, atol=1e-4
            )


def seen_neighbours(encoder: PreTrainedModel) -> list[int]:
    """Return how many tokens on the first half of the first layer's heads look most."""
    tokens = torch.randint(5, encoder.config.vocab_size, (8, 60))
    with torch.no_grad():
        attention = encoder(tokens, output_attentions=True).attentions[0].mean(0)
    num_looking = len(attention) // 2
    assert attention[num_looking:].max() < 0.1  # the others look everywhere
    return [
        max(range(-9, 10), key=lambda k: float(weights.diagonal(k)[9:-9].mean()))
        for weights in attention[:num_looking]
    ]


@pytest.mark.parametrize(("width", "num_heads"), [(256, 4), (768, 12)])
def test_half_of_the_heads_look_at_a_neighbour_each(width: int, num_heads: int) -> None:
    encoder = make_encoder(width=width, num_heads=num_heads)
    begin_with_neighbours(encoder)
    assert seen_neighbours(encoder) == list(itertools.islice(neighbours(), num_heads // 2))


WITH_POSITIONS = {
    "bert", "camembert", "distilbert", "electra", "ernie", "megatron-bert", "mpnet", "roberta",
    "xlm-roberta",
}  # fmt: skip


@pytest.mark.parametrize("model_type", SMALL)
def test_encoders_with_a_table_of_positions_begin_so_and_others_as_they_were(
    model_type: str,
) -> None:
    overrides = {"hidden_size": 256, "num_attention_heads": 4, "attn_implementation": "eager"}
    if model_type == "electra":
        overrides["embedding_size"] = 256
    config = small_config(model_type, **overrides)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    begin_with_neighbours(model)
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert bool(changed) == (model_type in WITH_POSITIONS)
    if changed:
        assert seen_neighbours(model.base_model) == [-1, 1]
        positions = model.base_model.embeddings.position_embeddings
        padding = [] if positions.padding_idx is None else [positions.padding_idx]
        assert (positions.weight == 0).all(dim=1).nonzero().flatten().tolist() == padding


def test_a_table_narrower_than_the_layers_is_left_alone() -> None:
    model = AutoModelForMaskedLM.from_config(small_config("electra"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    begin_with_neighbours(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_nothing_else_of_the_encoder_changes() -> None:
    ours, stock = make_encoder(), make_encoder()
    begin_with_neighbours(ours)
    for name, value in stock.state_dict().items():
        is_ours = name.endswith(("position_embeddings.weight", "query.weight", "key.weight"))
        assert torch.equal(ours.state_dict()[name], value) is not is_ours, name


def test_positions_are_as_large_as_words() -> None:
    encoder = make_encoder()
    begin_with_neighbours(encoder)
    embeddings = encoder.embeddings
    sizes = [
        table.weight[1:].pow(2).mean().sqrt().item()
        for table in (embeddings.position_embeddings, embeddings.word_embeddings)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
