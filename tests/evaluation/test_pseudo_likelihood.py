"""Pseudo-log-likelihood: its numbers are those of a loop that masks one position at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from bert_pretrain.evaluation import pseudo_likelihood
from bert_pretrain.evaluation.pseudo_likelihood import (
    EncodedSentence,
    encode_sentences,
    pseudo_log_likelihoods,
    score_reader,
)
from bert_pretrain.text.tokenizers import load_tokenizer

MASK = 4
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SENTENCES = [
    "The files are old.",
    "The files is old.",
    "The files are old.",  # twice
    "Unbelievably, preprocessing multidimensional arrays doesn't help.",
    "Unbelievably, preprocessing multidimensional arrays doesn't helped.",
    "No.",
]


def make_model(cls: Any, config_class: Any, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = config_class(
        **(SMALL | {"vocab_size": 8192, "initializer_range": 0.5, "pad_token_id": 0} | fields)
    )
    model: PreTrainedModel = cls(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero when new, so that forgetting one would not be seen
            torch.nn.init.normal_(parameter, std=0.5)
    return model


BERT = (BertForMaskedLM, BertConfig)
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (*BERT, {}),
    "one layer": (*BERT, {"num_hidden_layers": 1}),
    "both heads": (BertForPreTraining, BertConfig, {}),
    "roberta": (RobertaForMaskedLM, RobertaConfig, {}),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig, DISTILBERT),
    "electra": (ElectraForMaskedLM, ElectraConfig, {"embedding_size": 16}),
    "modernbert": (
        ModernBertForMaskedLM,
        ModernBertConfig,
        {
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "reference_compile": False,
        },
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


@pytest.fixture(scope="module")
def sentences() -> list[EncodedSentence]:
    return encode_sentences(load_tokenizer(None), SENTENCES)


@torch.no_grad()
def naive(model: PreTrainedModel, sentence: EncodedSentence, *, within_word: bool) -> float:
    """Add up log-probabilities by one stock forward per position, with all scores everywhere."""
    total = 0.0
    ids, words = sentence.input_ids.tolist(), sentence.words.tolist()
    for position in range(len(ids)):
        if words[position] == -1:
            continue
        hidden = list(ids)
        for later in range(position, len(ids)):
            if later == position or (within_word and words[later] == words[position]):
                hidden[later] = MASK
        output = model(input_ids=torch.tensor([hidden]))
        scores = output.prediction_logits if "prediction_logits" in output else output.logits
        total += float(scores[0, position].log_softmax(-1)[ids[position]])
    return total


@pytest.mark.parametrize("name", MODELS)
def test_sums_are_those_of_a_loop_over_positions(
    name: str, sentences: list[EncodedSentence]
) -> None:
    cls, config_class, fields = MODELS[name]
    model = make_model(cls, config_class, **fields)
    found = pseudo_log_likelihoods(model, sentences, mask_token_id=MASK, tokens_per_batch=64)
    for sums, within_word in zip(found, (False, True), strict=True):
        expected = [naive(model, sentence, within_word=within_word) for sentence in sentences]
        assert np.abs(expected).min() > 1
        np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in ("bert", "one layer", "both heads")]
)
def test_other_architectures_score_the_vocabulary_once_a_row(name: str) -> None:
    cls, config_class, fields = MODELS[name]
    model = make_model(cls, config_class, **fields)
    shapes = []
    model.get_output_embeddings().register_forward_hook(
        lambda _m, _a, output: shapes.append(output.shape[:-1])
    )
    read = score_reader(model)
    shapes.clear()
    assert read(torch.arange(5, 19).view(2, 7), torch.tensor([1, 6])).shape == (2, 8192)
    assert shapes == [(2, 1)]


def test_a_head_that_needs_all_positions_gets_them(sentences: list[EncodedSentence]) -> None:
    class Mixing(RobertaForMaskedLM):  # type: ignore[misc]
        def __init__(self, config: RobertaConfig) -> None:
            super().__init__(config)
            self.lm_head.register_forward_pre_hook(
                lambda _m, args: (args[0] + args[0].mean(1, keepdim=True),)
            )

    model = make_model(Mixing, RobertaConfig)
    found = pseudo_log_likelihoods(model, sentences[:2], mask_token_id=MASK)
    assert found[0] == pytest.approx(
        [naive(model, s, within_word=False) for s in sentences[:2]], abs=1e-3
    )


def test_words_are_the_tokenizers_and_only_pieces_of_one_word_hide_each_other(
    sentences: list[EncodedSentence],
) -> None:
    tokenizer = load_tokenizer(None)
    for text, sentence in zip(SENTENCES, sentences, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(sentence.input_ids.tolist())
        assert (sentence.words[[0, -1]] == -1).all() and (sentence.words[1:-1] >= 0).all()
        starts = [not token.startswith("##") for token in tokens[2:-1]]
        assert (np.diff(sentence.words[1:-1]) > 0).tolist() == starts, text
    found = pseudo_log_likelihoods(make_model(*BERT), sentences, mask_token_id=MASK)
    has_pieces = [len(set(s.words.tolist())) < len(s.words) - 1 for s in sentences]
    assert (found[0] != found[1]).tolist() == has_pieces
    assert any(has_pieces) and not all(has_pieces)


def test_neither_batches_nor_company_change_the_numbers(
    sentences: list[EncodedSentence], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(*BERT)
    together = pseudo_log_likelihoods(model, sentences, mask_token_id=MASK)
    monkeypatch.setattr(pseudo_likelihood, "_TOKENS_PER_CHUNK", 1)
    monkeypatch.setattr(pseudo_likelihood, "_SCORES_PER_CHUNK", 1)
    alone = [
        pseudo_log_likelihoods(model, [s], mask_token_id=MASK, tokens_per_batch=1)
        for s in sentences
    ]
    np.testing.assert_allclose(together[0], [one[0, 0] for one in alone], rtol=1e-5)
    assert together[0, 0] == together[0, 2]


def test_the_row_that_two_sentences_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six words, one of them different: 6 + 6 masked rows, of which one is shared."""
    rows = []
    original = pseudo_likelihood.score_reader

    def counting(model: PreTrainedModel) -> Any:
        read = original(model)
        return lambda ids, positions: (rows.extend(ids.tolist()), read(ids, positions))[1]

    monkeypatch.setattr(pseudo_likelihood, "score_reader", counting)
    first = EncodedSentence(
        np.array([2, 10, 11, 12, 13, 14, 15, 3]), np.array([-1, 0, 1, 2, 3, 4, 4, -1])
    )
    second = first._replace(input_ids=np.array([2, 10, 99, 12, 13, 14, 15, 3]))
    pseudo_log_likelihoods(make_model(*BERT), [first, second, first], mask_token_id=MASK)
    # Token by token 6 + 6 - 1, within words one more each: both pieces of the last word hidden.
    assert len(rows) == 11 + 2


def test_bfloat16_comes_close(sentences: list[EncodedSentence]) -> None:
    model = make_model(*BERT, initializer_range=0.1)
    exact = pseudo_log_likelihoods(model, sentences, mask_token_id=MASK)
    coarse = pseudo_log_likelihoods(model, sentences, mask_token_id=MASK, bf16=True)
    assert 0 < np.abs(coarse[0] - exact[0]).max() < 0.02 * np.abs(exact[0]).max()
    assert next(model.parameters()).dtype == torch.float32
