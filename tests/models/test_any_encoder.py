"""Encoders other than BERT against transformers' own classes, the oracle of every value here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small_encoders import VOCAB, small_config
from trainers import bert_objective
from transformers import AutoConfig, AutoModelForMaskedLM

from bert_pretrain.errors import InputError
from bert_pretrain.models.any_encoder import (
    HEADS,
    is_scored_everywhere,
    may_be_cut,
    stock_class,
    with_losses,
)
from bert_pretrain.models.flops import TextFlops
from bert_pretrain.models.loading import build_text_model, check_text_model, num_positions
from bert_pretrain.models.text_encoder_config import (
    ARCHITECTURES,
    BERT_SIZES,
    is_named,
    named_config,
)
from bert_pretrain.text import collator
from bert_pretrain.text.collator import computed_tokens
from bert_pretrain.text.tokenizers import load_tokenizer

ROWS, LENGTH = 5, 24
TOKENIZER = load_tokenizer(None)


def make_batch(*, with_pairs: bool) -> dict[str, torch.Tensor]:
    """Rows of different lengths with different numbers of masked tokens, none in the last."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, VOCAB, (ROWS, LENGTH), generator=generator)
    lengths = LENGTH - 3 * torch.arange(ROWS)
    real = torch.arange(LENGTH) < lengths[:, None]
    input_ids[~real] = 0
    labels = torch.full_like(input_ids, -100)
    masked = np.full((ROWS, ROWS), -1)
    for row in range(ROWS - 1):
        columns = torch.randperm(int(lengths[row]) - 1, generator=generator)[: row + 1] + 1
        labels[row, columns] = input_ids[row, columns]
        masked[row, : row + 1] = np.sort(columns.numpy())
    batch = {
        "input_ids": input_ids,
        "attention_mask": real.long(),
        "token_type_ids": (real & (torch.arange(LENGTH) > 7)).long(),
        "labels": labels,
        "masked_positions": torch.from_numpy(masked),
    }
    if with_pairs:
        batch["next_sentence_label"] = torch.arange(ROWS) % 2
    indices = computed_tokens(batch["attention_mask"].numpy(), masked)
    return batch | {name: torch.from_numpy(array) for name, array in indices.items()}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("is_indexed", [True, False])
def test_losses_and_gradients_equal_those_of_the_full_head(
    name: str, is_indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every class of the table, also with segments, padding and unused slots."""
    monkeypatch.setattr(collator, "READ_MULTIPLE", 8)
    stock_type = getattr(transformers, name)
    config = small_config(stock_type.config_class.model_type)
    torch.manual_seed(0)
    stock = stock_type(config).eval()  # their dropout is another matter
    ours = with_losses(stock_type)(copy.deepcopy(config)).eval()
    ours.load_state_dict(stock.state_dict())
    assert type(ours).__name__ == name
    with_pairs = HEADS[name].relationship is not None
    batch = make_batch(with_pairs=with_pairs)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if getattr(config, "type_vocab_size", 0) == 2 and name != "MPNetForMaskedLM":
        inputs["token_type_ids"] = batch["token_type_ids"]
    scores, *others = stock(**inputs, return_dict=False)
    expected = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch["labels"].flatten())
    if with_pairs:
        labels = batch["next_sentence_label"]
        expected = expected + torch.nn.functional.cross_entropy(others[0], labels)
    expected.backward()
    plain = ("input_ids", "attention_mask", "token_type_ids", "labels", "next_sentence_label")
    given = batch if is_indexed else {key: batch[key] for key in plain if key in batch}
    output = ours(**given)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)
    assert int(output.mlm_count) == int((batch["labels"] != -100).sum())
    theirs = dict(stock.named_parameters())
    for key, parameter in ours.named_parameters():
        wanted = theirs[key].grad
        if wanted is None:
            assert parameter.grad is None, key
            continue
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", HEADS)
def test_only_where_padding_changes_nothing_may_a_batch_be_cut(name: str) -> None:
    """The oracle is the class itself: a row's states with more padding and with less."""
    stock_type = getattr(transformers, name)
    torch.manual_seed(0)
    model = stock_type(small_config(stock_type.config_class.model_type)).eval()
    ids = torch.randint(5, VOCAB, (1, LENGTH))
    real = (torch.arange(LENGTH) < 16).long()[None]
    ids = ids * real
    with torch.no_grad():
        long = model(input_ids=ids, attention_mask=real)[0][:, :16]
        short = model(input_ids=ids[:, :16], attention_mask=real[:, :16])[0]
    is_equal = torch.allclose(long, short, rtol=1e-4, atol=1e-5)
    assert is_equal == may_be_cut(with_losses(stock_type))


@pytest.mark.parametrize("name", HEADS)
def test_all_that_a_loss_trains_is_trained_and_nothing_else(name: str) -> None:
    """As the program builds it: what has no gradient is frozen, tables made by a formula too."""
    stock_type = getattr(transformers, name)
    config = small_config(stock_type.config_class.model_type, vocab_size=200)
    with_pairs = HEADS[name].relationship is not None
    objective = bert_objective(with_pairs=with_pairs, build=lambda: with_losses(stock_type)(config))
    model = objective.build_model()
    assert model.training
    rows = objective.held_out.rows
    batch = objective.held_out.collator.collate([(0, rows, objective.held_out.plan.take(rows))])
    for term in objective.loss_terms(model, batch).values():
        term.sum.backward(retain_graph=True)
    assert any(parameter.requires_grad for parameter in model.parameters())
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, key
    assert objective.useful_flops(batch) > 0


def test_without_pairs_the_heads_for_pairs_are_frozen_and_nothing_else() -> None:
    """A parameter that no loss reaches would end distributed training with an error."""
    model = bert_objective(with_pairs=False).build_model()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    heads = ("bert.pooler.dense", "cls.seq_relationship")
    assert frozen == {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}


def test_a_class_of_another_name_keeps_its_head() -> None:
    """FSDP renames the class of a model, by which the head was once looked up."""
    model = with_losses(transformers.RobertaForMaskedLM)(small_config("roberta")).eval()
    batch = make_batch(with_pairs=False)
    expected = model(**batch).loss
    model.__class__ = type("FSDPRobertaForMaskedLM", (type(model),), {})
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0]))
    assert torch.equal(model(**batch).loss, expected)
    assert rows == [len(batch["masked_reads"])]


def test_the_head_reads_the_masked_tokens_alone() -> None:
    stock_type = transformers.RobertaForMaskedLM
    model = with_losses(stock_type)(small_config("roberta"))
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0]))
    batch = make_batch(with_pairs=False)
    model(**batch)
    assert rows == [len(batch["masked_reads"])]
    assert len(batch["masked_reads"]) < ROWS * LENGTH / 2


def test_a_class_that_is_not_in_the_table_scores_everywhere_and_has_the_same_loss() -> None:
    stock_type = transformers.NystromformerForMaskedLM
    config = AutoConfig.for_model(
        "nystromformer",
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_landmarks=LENGTH,
        segment_means_seq_len=LENGTH,
    )
    torch.manual_seed(0)
    ours = with_losses(stock_type)(config).eval()
    assert is_scored_everywhere(ours)
    batch = make_batch(with_pairs=False)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        scores = stock_type.forward(ours, **{name: batch[name] for name in names}).logits
        loss = ours(**batch).loss
    expected = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_named_sizes_have_about_the_parameters_of_bert(architecture: str) -> None:
    sizes = {}
    for name in ("mini", f"{architecture}-mini"):
        assert is_named(name)
        config = named_config(name, vocab_size=8192, pad_token_id=0)
        with torch.device("meta"):
            model = AutoModelForMaskedLM.from_config(config)
        sizes[name] = model.num_parameters()
        assert (num_positions(model) or 512) >= 512
        assert config.num_hidden_layers == BERT_SIZES["mini"][0]
    first, second = sizes["mini"], sizes[f"{architecture}-mini"]
    if architecture != "albert":  # whose layers share their parameters
        assert second == pytest.approx(first, rel=0.05)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_what_the_flag_says_and_the_config_keeps_its_own(
    architecture: str, tmp_path: Path
) -> None:
    flags = {"tokenizer": TOKENIZER, "max_seq_length": 32, "with_pairs": False}
    name = f"{architecture}-tiny"
    ids = torch.arange(5, 29)[None]
    stock = named_config(name, vocab_size=1, pad_token_id=0).to_dict()
    source: dict[str, Any] = {"config_name": name, "model_name_or_path": None}
    for _ in ("new", "continued"):
        model = build_text_model(**source, dropout=0.0, **flags).train()
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids)[0], model(input_ids=ids)[0])
        dropping = build_text_model(**source, dropout=0.5, **flags).train()
        with torch.no_grad():
            assert not torch.equal(dropping(input_ids=ids)[0], dropping(input_ids=ids)[0])
        for key, value in dropping.config.to_dict().items():
            if "dropout" in key:
                assert value == stock[key], key
        model.save_pretrained(tmp_path)
        source = {"config_name": "unused", "model_name_or_path": str(tmp_path)}


def test_relative_positions_set_no_limit() -> None:
    check_text_model("deberta-v2-tiny", None, 1024, with_pairs=False)
    with pytest.raises(InputError, match="512 positions"):
        check_text_model("roberta-tiny", None, 1024, with_pairs=False)


def test_a_whole_number_is_a_dropout_too(tmp_path: Path) -> None:
    fields = {"attention_dropout": 0, "num_hidden_layers": 1, "hidden_size": 64}
    config = AutoConfig.for_model("modernbert", num_attention_heads=1, **fields)
    config.save_pretrained(tmp_path)
    model = build_text_model(
        config_name=str(tmp_path),
        model_name_or_path=None,
        tokenizer=TOKENIZER,
        max_seq_length=32,
        dropout=0.4,
        with_pairs=False,
    )
    assert model.base_model.layers[0].attn.attention_dropout == 0.4
    assert model.config.attention_dropout == 0


def test_roberta_places_its_first_token_after_the_padding_id() -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.pad_token_id = 7
    model = build_text_model(
        config_name="roberta-tiny",
        model_name_or_path=None,
        tokenizer=tokenizer,
        max_seq_length=512,
        dropout=0.0,
        with_pairs=False,
    )
    assert num_positions(model) == 512
    with torch.no_grad():
        model(input_ids=torch.full((1, 512), 9))


@pytest.mark.parametrize("architecture", ["roberta", "modernbert", "deberta-v2"])
def test_without_a_head_for_pairs_next_sentences_are_refused_with_both_ways_out(
    architecture: str,
) -> None:
    with pytest.raises(InputError, match="no next-sentence head") as caught:
        check_text_model(f"{architecture}-mini", None, 64, with_pairs=True)
    assert "`objective` mlm" in str(caught.value)
    assert "albert-" in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("modernbert", {"hidden_size": 30, "num_attention_heads": 4}, "cannot build a modernbert"),
        ("vit", {}, "no encoder of type 'vit' that predicts masked words"),
        ("bart", {}, "no encoder of type 'bart'"),
        ("perceiver", {}, "no encoder of type 'perceiver'"),
        ("modernvbert", {}, "no encoder of type 'modernvbert'"),
        ("gpt2", {}, "no encoder of type 'gpt2'"),
        ("distilbert", {"max_position_embeddings": 40}, "the model has 40 positions"),
        ("roberta", {"max_position_embeddings": 40, "pad_token_id": 1}, "has 38 positions"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_refused(
    model_type: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(model_type, **fields).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        check_text_model(str(tmp_path), None, 64, with_pairs=False)


def test_a_head_for_pairs_has_two_classes_whatever_the_model_was_fine_tuned_for(
    tmp_path: Path,
) -> None:
    small_config("albert", num_labels=5, vocab_size=len(TOKENIZER)).save_pretrained(tmp_path)
    model = build_text_model(
        config_name=str(tmp_path),
        model_name_or_path=None,
        tokenizer=TOKENIZER,
        max_seq_length=32,
        dropout=0.0,
        with_pairs=True,
    )
    assert model.sop_classifier.classifier.out_features == 2


def test_the_class_for_pairs_is_that_of_pretraining() -> None:
    albert = small_config("albert")
    assert stock_class(albert, with_pairs=True) is transformers.AlbertForPreTraining
    assert stock_class(albert, with_pairs=False) is transformers.AlbertForMaskedLM
    assert stock_class(small_config("electra"), with_pairs=True) is None


def test_useful_operations_know_of_shared_layers_and_local_attention() -> None:
    """A layer used twice counts twice; a window is what a token attends to."""
    lengths = torch.tensor([LENGTH])

    def layers_and_attention(model_type: str, **fields: Any) -> float:
        with torch.device("meta"):
            config = small_config(model_type, **fields)
            model = AutoModelForMaskedLM.from_config(config)
        return TextFlops.of(model).count(lengths, 0)

    one, two, three = (layers_and_attention("albert", num_hidden_layers=n) for n in (1, 2, 3))
    assert three - two == two - one > 0
    local = layers_and_attention("modernbert")
    whole = layers_and_attention("modernbert", local_attention=2 * LENGTH)
    assert whole - local == 12 * 32 * LENGTH * (LENGTH - 9)  # 4 to either side and itself
