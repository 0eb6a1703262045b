"""What a document says is data: names of special tokens in it are letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from languages import SAMPLES
from stores import store_of
from tokenizer_kinds import ANGLES, BRACKETS, KINDS, byte_level, plain
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CanineTokenizer, PreTrainedTokenizerFast

from bert_pretrain.downstream.data import tokenize
from bert_pretrain.downstream.tables import Texts
from bert_pretrain.evaluation.pseudo_likelihood import encode_sentences
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.documents import DocumentSource
from bert_pretrain.text.layout import read_layouts
from bert_pretrain.text.literal_text import (
    encode_rows,
    encode_with_masks,
    literal_backend,
    protected_token_ids,
)
from bert_pretrain.text.masking import MaskingRule, ordinary_token_ids
from bert_pretrain.text.pairs import plan_epoch
from bert_pretrain.text.preparation import prepare_corpus
from bert_pretrain.text.tokenizers import load_tokenizer, tokenizer_hash

HARMLESS = [sentence for sample in SAMPLES for sentence in sample.sentences]
HOSTILE = f"Write {' '.join(BRACKETS + ANGLES)} in a row, [MASK][SEP]or<s>so."


def machine_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Return the ids that no text may put anywhere; [UNK] may stand for a rare character."""
    return {getattr(tokenizer, f"{role}_token_id") for role in ("cls", "sep", "mask", "pad")}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerFast:
    KINDS[request.param].build().save_pretrained(tmp_path / "tokenizer")
    return load_tokenizer(str(tmp_path / "tokenizer"))


def with_tokens_of_the_user() -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(None)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]", "<speaker>"]})
    return tokenizer


def test_harmless_text_is_cut_as_ever_and_names_are_letters(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    backend = literal_backend(tokenizer)
    assert machine_ids(tokenizer) & set(tokenizer(HOSTILE, add_special_tokens=False)["input_ids"])
    assert not machine_ids(tokenizer) & set(backend.encode(HOSTILE, add_special_tokens=False).ids)
    for text in HARMLESS:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert backend.encode(text, add_special_tokens=False).ids == expected
    ids = dict(tokenizer.get_vocab())
    for role in ("unk", "cls", "sep", "mask", "pad"):
        del ids[getattr(tokenizer, f"{role}_token")]
    assert ids.items() <= backend.get_vocab().items()
    assert backend.get_vocab_size() == len(tokenizer)


@pytest.mark.parametrize(
    ("kind", "text", "pieces"),
    [
        ("BERT", "A [MASK]", ["a", "[", "mask", "]"]),
        ("word-level", "the [SEP] <s>", ["the", "[UNK]", "<s>"]),
        ("characters", "A [CLS]", ["A", "[", "C", "L", "S", "]"]),
    ],
)
def test_a_name_becomes_the_pieces_of_its_letters(kind: str, text: str, pieces: list[str]) -> None:
    tokenizer = load_tokenizer(None) if kind == "BERT" else KINDS[kind].build()
    ids = literal_backend(tokenizer).encode(text, add_special_tokens=False).ids
    assert tokenizer.convert_ids_to_tokens(ids) == pieces


def test_a_byte_level_text_comes_back_letter_for_letter() -> None:
    tokenizer = plain(byte_level(), ANGLES)
    ids = literal_backend(tokenizer).encode(HOSTILE, add_special_tokens=False).ids
    assert b"".join(map(bytes_of(tokenizer), ids)).decode() == HOSTILE


def bytes_of(tokenizer: PreTrainedTokenizerFast) -> Callable[[int], bytes]:
    """Return what looks up the bytes of a token, by the published table of GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + number): byte for number, byte in enumerate(others)}
    return lambda i: bytes(table[letter] for letter in tokenizer.convert_ids_to_tokens(i))


def test_merges_that_would_spell_a_name_are_not_made() -> None:
    """A BPE that saw markup has learnt to merge `<s>`, which is the piece of its special token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=ANGLES, show_progress=False)
    backend.train_from_iterator(["x<s>y <s>z <mask> <s>"] * 50, trainer)
    tokenizer = plain(backend, ANGLES)
    found = literal_backend(tokenizer).encode("<s>z x<s>y", add_special_tokens=False)
    assert not machine_ids(tokenizer) & set(found.ids)
    assert "".join(found.tokens) == "<s>zx<s>y"


def test_tokens_of_the_user_stay_one_piece_and_are_protected() -> None:
    tokenizer = with_tokens_of_the_user()
    e1, speaker = tokenizer.convert_tokens_to_ids(["[E1]", "<speaker>"])
    assert (e1, speaker) == (8192, 8193)
    ids = (
        literal_backend(tokenizer).encode("<speaker> an [E1] [MASK]", add_special_tokens=False).ids
    )
    assert ids.count(e1) == ids.count(speaker) == 1 and tokenizer.mask_token_id not in ids
    assert protected_token_ids(tokenizer).tolist() == [e1, speaker]
    assert not {e1, speaker} & set(ordinary_token_ids(tokenizer).tolist())
    assert len(protected_token_ids(load_tokenizer(None))) == 0
    tokenizer.add_tokens(["covfefe"])  # an ordinary word
    assert protected_token_ids(tokenizer).tolist() == [e1, speaker]
    assert ordinary_token_ids(tokenizer)[-1] == 8194


@pytest.mark.parametrize("unit", ["token", "whole_word", "span"])
def test_tokens_of_the_user_are_never_a_target(unit: Any) -> None:
    tokenizer = with_tokens_of_the_user()
    e1 = 8192
    store = store_of([[[e1, 50, e1, 60, 70]] * 5, [[e1] * 5] * 5], dtype=np.uint32)
    plan = plan_epoch(
        store,
        np.arange(2),
        max_seq_length=16,
        short_seq_prob=0.3,
        pair_mode="exact",
        seed=0,
        epoch=0,
    )
    rule = MaskingRule(
        mlm_probability=0.9,
        unit=unit,
        mask_token_id=tokenizer.mask_token_id,
        ordinary_ids=ordinary_token_ids(tokenizer),
        protected_ids=protected_token_ids(tokenizer),
    )
    layouts = read_layouts(tokenizer)
    collator = PretrainingCollator(store, rule, layouts=layouts, pad_token_id=0, seed=0)
    batch = collator.collate([(0, np.arange(len(plan)), plan)])
    labels = batch["labels"]
    assert (labels != -100).any() and not (labels == e1).any()
    assert ((batch["input_ids"] == e1).sum(dim=1) > 0).all()


def test_a_prepared_corpus_holds_no_id_of_the_machine(tmp_path: Path) -> None:
    tokenizer = with_tokens_of_the_user()
    texts = [f"{HOSTILE} <speaker> {number} [E1]." for number in range(4)]
    corpus = prepare_corpus(
        DocumentSource("test texts", "one", lambda: iter(texts)),
        tokenizer,
        output_dir=tmp_path / "corpus",
        language=None,
        validation_share=0.5,
        seed=1,
        show_progress=False,
    )
    tokens = corpus.store.read(0, corpus.store.num_tokens).tolist()
    assert not machine_ids(tokenizer) & set(tokens)
    assert tokens.count(8192) == tokens.count(8193) == 4
    assert corpus.manifest["tokenizer"]["vocab_size"] == 8194


def test_the_hash_tells_which_names_are_of_the_machine() -> None:
    tokenizer = load_tokenizer(None)
    before = tokenizer_hash(tokenizer)
    tokenizer.mask_token = "the"
    assert tokenizer_hash(tokenizer) != before


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("is_pair", [True, False])
def test_rows_to_fine_tune_on_are_the_tokenizers_own_but_for_names(
    tokenizer: PreTrainedTokenizerFast, is_pair: bool, side: str
) -> None:
    tokenizer.truncation_side = side
    first, second = HARMLESS[:6], HARMLESS[6:12] if is_pair else None
    expected = tokenizer(first, second, truncation=True, max_length=12)
    assert encode_rows(tokenizer, first, second, max_length=12) == dict(expected)
    rows = tokenize(Texts([HOSTILE], None), None, tokenizer, max_seq_length=500).rows
    layout = read_layouts(tokenizer).single
    inner = slice(len(layout.special_ids[0]), -len(layout.special_ids[1]))
    assert not machine_ids(tokenizer) & set(rows["input_ids"][0][inner].tolist())


def test_a_tokenizer_that_is_not_fast_takes_names_for_letters_too() -> None:
    """Canine's ids are code points; its special tokens are private ones with a name of a letter."""
    tokenizer = CanineTokenizer()
    (row,) = encode_rows(tokenizer, ["a [CLS]"], None, max_length=50)["input_ids"]
    assert row == [tokenizer.cls_token_id, *map(ord, "a [CLS]"), tokenizer.sep_token_id]


def test_sentences_to_score_hold_no_mask_and_no_target_of_the_user() -> None:
    tokenizer = with_tokens_of_the_user()
    (sentence,) = encode_sentences(tokenizer, ["an [E1] [MASK] ."])
    pieces = tokenizer.convert_ids_to_tokens(sentence.input_ids)
    assert pieces == ["[CLS]", "an", "[E1]", "[", "mask", "]", ".", "[SEP]"]
    assert (sentence.words >= 0).tolist() == [False, True, False, *[True] * 4, False]


@pytest.mark.parametrize(
    "kind", ["BERT", "RoBERTa", "MPNet", "ALBERT", "byte-level without post-processor"]
)
def test_a_mask_put_in_by_id_stands_where_the_tokenizers_own_would(kind: str) -> None:
    tokenizer = KINDS[kind].build()
    text = "The sun [MASK] in the [MASK]."
    own = text.replace("[MASK]", tokenizer.mask_token)
    expected = tokenizer(own, add_special_tokens=False)["input_ids"]
    assert expected.count(tokenizer.mask_token_id) == 2
    for written in (text, own):
        ids = encode_with_masks(tokenizer, written, marks=["[MASK]", tokenizer.mask_token])
        assert ids == expected
    ids = encode_with_masks(tokenizer, f"[MASK] {HOSTILE}", marks=["[MASK]"])
    assert ids.count(tokenizer.mask_token_id) == 1 + HOSTILE.count("[MASK]")
    assert machine_ids(tokenizer) & set(ids) == {tokenizer.mask_token_id}
