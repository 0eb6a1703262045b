"""A tokenizer that a model was not trained with is refused, however alike it looks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizer_kinds import BRACKETS
from transformers import AutoConfig, BertTokenizer, PreTrainedTokenizerFast

from bert_pretrain.errors import InputError
from bert_pretrain.text.foreign_tokenizer import refuse_foreign_tokenizer

VOCABULARY = [*BRACKETS, *(f"word{number}" for number in range(193))]


def of(pieces: list[str]) -> PreTrainedTokenizerFast:
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The folder of a model with a tokenizer of 200 pieces, two of them placeholders."""
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    of([*VOCABULARY, "[unused0]", "[unused1]"]).save_pretrained(tmp_path)
    return str(tmp_path)


def test_its_own_tokenizer_with_added_tokens_or_named_placeholders_is_taken(model: str) -> None:
    own = [*VOCABULARY, "[unused0]", "[unused1]"]
    refuse_foreign_tokenizer(of(own), model)
    refuse_foreign_tokenizer(of([*own, "covfefe"]), model)
    refuse_foreign_tokenizer(of([*VOCABULARY, "covfefe", "[unused1]"]), model)
    added = of(own)
    added.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    refuse_foreign_tokenizer(added, model)


@pytest.mark.parametrize(
    ("pieces", "share"),
    [
        ([*VOCABULARY[:99], *VOCABULARY[100:]], "50.0 % of the 198"),  # one less in the middle
        (VOCABULARY[:99], "50.0 %"),  # smaller
        ([*VOCABULARY[:5], *VOCABULARY[:4:-1]], "97.0 %"),  # all but one in another order
        ([*VOCABULARY[:197], "other"], "0.5 %"),
    ],
)
def test_other_pieces_are_refused_with_their_share(
    model: str, pieces: list[str], share: str
) -> None:
    with pytest.raises(InputError) as refused:
        refuse_foreign_tokenizer(of(pieces), model)
    assert share in str(refused.value) and "`force_tokenizer`" in str(refused.value)


def test_other_special_tokens_are_refused(model: str) -> None:
    tokenizer = of([*VOCABULARY, "[unused0]", "[unused1]"])
    tokenizer.pad_token = "[UNK]"
    tokenizer.mask_token = "[unused1]"
    with pytest.raises(InputError, match=r"the mask and pad token of .* is another one"):
        refuse_foreign_tokenizer(tokenizer, model)


def test_a_model_without_a_tokenizer_has_none_to_compare_with(tmp_path: Path) -> None:
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    refuse_foreign_tokenizer(of(BRACKETS), str(tmp_path))
    refuse_foreign_tokenizer(of(BRACKETS), str(tmp_path / "nowhere"))
