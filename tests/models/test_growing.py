"""Models with more tokens and positions: what they computed before they compute still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small_encoders import VOCAB, small_config
from transformers import AutoModelForMaskedLM, PreTrainedModel

from bert_pretrain.errors import InputError
from bert_pretrain.models.any_encoder import HEADS, num_token_types, with_losses
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.growing import grown
from bert_pretrain.models.loading import build_text_model, check_text_model, check_tokenizer
from bert_pretrain.models.positions import first_position, num_positions, position_table
from bert_pretrain.text.tokenizers import load_tokenizer

NAMES = [*HEADS, "BertForPreTraining"]
# Those whose rows can be told a place by a table that is learnt.
WITH_TABLE = [name for name in NAMES if not name.startswith(("Deberta", "ModernBert", "RoFormer"))]
IDS = torch.arange(5, 25)[None]


def small_model(name: str, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "BertForPreTraining":
        model = BertForPreTraining(small_config("bert", **overrides))
    else:
        stock = getattr(transformers, name)
        config = small_config(stock.config_class.model_type, **overrides)
        model = with_losses(stock)(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin as 0, which any mistake would leave
            parameter += 0.02 * torch.randn_like(parameter) * parameter.requires_grad
    return model.eval()


def scores(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=input_ids)[0]


@pytest.mark.parametrize("name", NAMES)
def test_new_tokens_score_the_mean_of_the_old_ones_and_those_score_as_before(
    name: str, tmp_path: Path
) -> None:
    """A score is linear in a token's row and bias, so the mean row scores the mean."""
    model = small_model(name)
    before = scores(model, IDS)
    larger = grown(model, {"vocab_size": VOCAB + 3}, positions="no")
    found = scores(larger, IDS)
    torch.testing.assert_close(found[..., :VOCAB], before, rtol=1e-5, atol=1e-6)
    mean = before.mean(dim=-1, keepdim=True).expand(-1, -1, 3)
    torch.testing.assert_close(found[..., VOCAB:], mean, rtol=1e-4, atol=1e-5)
    table = larger.get_input_embeddings().weight
    old = model.get_input_embeddings().weight
    torch.testing.assert_close(table[VOCAB:], old.mean(dim=0).expand(3, -1))
    assert model.config.vocab_size == VOCAB and torch.equal(scores(model, IDS), before)
    check_that_stock_loads(larger, tmp_path)


def check_that_stock_loads(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    stock_type = getattr(transformers, type(model).__name__)
    stock, loading = stock_type.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    longest = torch.full((1, num_positions(model) or 99), 6)
    with torch.no_grad():
        loaded = stock.eval()(input_ids=longest)[0]
    torch.testing.assert_close(loaded, scores(model, longest), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_TABLE)
def test_repeated_positions_begin_again(name: str, tmp_path: Path) -> None:
    model = small_model(name)
    count, first = num_positions(model), first_position(position_table(model))
    assert count == 64 - first
    sizes = {"max_position_embeddings": 64 + 2 * count}
    larger = grown(model, sizes, positions="repeat")
    assert num_positions(larger) == 3 * count
    torch.testing.assert_close(scores(larger, IDS), scores(model, IDS), rtol=1e-5, atol=1e-6)
    old, new = (position_table(each).weight for each in (model, larger))
    assert torch.equal(new[:64], old)
    assert torch.equal(new[64 : 64 + count], old[first:]) and torch.equal(new[-1], old[-1])
    check_that_stock_loads(larger, tmp_path)


@pytest.mark.parametrize("name", ["BertForPreTraining", "RobertaForMaskedLM", "AlbertForMaskedLM"])
def test_interpolated_positions_keep_their_ends_and_lie_on_lines_between(
    name: str, tmp_path: Path
) -> None:
    model = small_model(name)
    table = position_table(model)
    first = first_position(table)
    count = 64 - first
    larger = grown(model, {"max_position_embeddings": 64 + 37}, positions="interpolate")
    old = table.weight.detach().numpy()
    new = position_table(larger).weight.detach().numpy()
    assert len(new) == 101 and np.array_equal(new[:first], old[:first])
    places = np.linspace(0, count - 1, count + 37)
    for column in range(old.shape[1]):
        expected = np.interp(places, np.arange(count), old[first:, column])
        np.testing.assert_allclose(new[first:, column], expected, rtol=1e-4, atol=1e-6)
    check_that_stock_loads(larger, tmp_path)


@pytest.mark.parametrize("name", ["RoFormerForMaskedLM", "ModernBertForMaskedLM"])
@pytest.mark.parametrize("how", ["repeat", "interpolate"])
def test_positions_by_a_formula_go_on_by_it(name: str, how: Any, tmp_path: Path) -> None:
    model = small_model(name)
    larger = grown(model, {"max_position_embeddings": 128}, positions=how)
    assert num_positions(larger) == 128
    torch.testing.assert_close(scores(larger, IDS), scores(model, IDS), rtol=1e-5, atol=1e-6)
    fresh = small_model(name, max_position_embeddings=128)
    shapes = {key: value.shape for key, value in fresh.state_dict().items()}
    state = {key: value for key, value in model.state_dict().items() if value.shape == shapes[key]}
    fresh.load_state_dict(state, strict=False)
    long = torch.arange(128)[None] % VOCAB
    assert torch.equal(scores(larger, long), scores(fresh, long))
    check_that_stock_loads(larger, tmp_path)


def test_both_grow_at_once_where_they_are_as_many(tmp_path: Path) -> None:
    model = small_model("BertForPreTraining", vocab_size=64)
    sizes = {"vocab_size": 96, "max_position_embeddings": 96}
    larger = grown(model, sizes, positions="repeat")
    table = position_table(larger).weight
    assert torch.equal(table[64:], table[:32])
    words = larger.get_input_embeddings().weight
    torch.testing.assert_close(words[64:], words[:64].mean(dim=0).expand(32, -1))


def test_where_something_else_depends_on_positions_it_is_refused() -> None:
    model = small_model("DebertaForMaskedLM", position_biased_input=True, max_relative_positions=-1)
    with pytest.raises(InputError, match=r"rel_embeddings.*`max_seq_length`"):
        grown(model, {"max_position_embeddings": 128}, positions="repeat")
    larger = grown(model, {"vocab_size": VOCAB + 1}, positions="repeat")
    assert larger.config.vocab_size == VOCAB + 1


def saved(folder: Path, model_type: str, **fields: Any) -> str:
    AutoModelForMaskedLM.from_config(small_config(model_type, **fields)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_checkpoint_grows_to_tokenizer_and_rows_when_it_is_told_to(
    model_type: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(None)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    name = saved(tmp_path / "small", model_type, vocab_size=8192)
    options: dict[str, Any] = {
        "config_name": "unused",
        "model_name_or_path": name,
        "tokenizer": tokenizer,
        "max_seq_length": 100,
        "dropout": 0.0,
        "with_pairs": False,
    }
    with pytest.raises(InputError, match=r"8,193 rows .* has 8,192.*`resize_vocab`"):
        build_text_model(**options)
    with pytest.raises(InputError, match=r"is 100 but .*`grow_positions` repeat or interpolate"):
        build_text_model(**options, resize_vocab=True)
    with pytest.raises(InputError, match="`grow_positions`"):
        check_text_model("unused", name, 100, with_pairs=False)
    outline = check_text_model("unused", name, 100, with_pairs=False, grow_positions="repeat")
    assert num_positions(outline) < 100
    model = build_text_model(**options, resize_vocab=True, grow_positions="interpolate")
    assert num_positions(model) == 100 and model.config.vocab_size == 8193
    assert scores(model, torch.full((1, 100), 8192)).shape == (1, 100, 8193)
    tokens = {"labels": torch.full((1, 100), 8192), "attention_mask": torch.ones(1, 100).long()}
    assert model(input_ids=torch.full((1, 100), 8192), **tokens).loss.isfinite()


def test_a_new_model_is_not_told_to_grow() -> None:
    with pytest.raises(InputError) as refused:
        check_text_model("tiny", None, 1024, with_pairs=True)
    assert "grow_positions" not in str(refused.value)


def test_a_model_that_pads_with_another_id_takes_a_tokenizer_by_force_alone() -> None:
    tokenizer = load_tokenizer(None)
    config = small_config("roberta", pad_token_id=1, vocab_size=9000)
    flags = {"resize_vocab": False, "force_tokenizer": False}
    with pytest.raises(InputError, match=r"id 0 but .* with 1 .*`force_tokenizer`"):
        check_tokenizer(config, tokenizer, **flags)
    check_tokenizer(config, tokenizer, **flags | {"force_tokenizer": True})
    config.pad_token_id = None
    check_tokenizer(config, tokenizer, **flags)


def test_by_force_the_model_takes_the_special_ids(tmp_path: Path) -> None:
    name = saved(tmp_path, "roberta", vocab_size=9000, pad_token_id=1, max_position_embeddings=66)
    options: dict[str, Any] = {"config_name": "unused", "model_name_or_path": name}
    options |= {"dropout": 0.0, "with_pairs": False, "max_seq_length": 64}
    model = build_text_model(**options, tokenizer=load_tokenizer(None), force_tokenizer=True)
    config = model.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 2, 3)
    assert scores(model, torch.full((1, 64), 9)).isfinite().all()


@pytest.mark.parametrize(
    ("model_type", "fields", "expected"),
    [
        ("bert", {}, 2),
        ("bert", {"type_vocab_size": 1}, 1),
        ("roberta", {}, 1),
        ("distilbert", {}, 0),
        ("modernbert", {}, 0),
        ("albert", {"type_vocab_size": 4}, 4),
    ],
)
def test_the_number_of_token_types_is_that_of_the_table(
    model_type: str, fields: dict[str, int], expected: int
) -> None:
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(small_config(model_type, **fields))
    assert num_token_types(model) == expected
