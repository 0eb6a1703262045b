"""Rows of training are those of the exported tokenizer, whatever tokenizer it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from languages import SAMPLES
from stores import store_of
from tokenizer_kinds import BRACKETS, KINDS, plain, with_template, wordpiece
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from bert_pretrain.errors import InputError
from bert_pretrain.models.any_encoder import num_token_types
from bert_pretrain.models.loading import check_text_model
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.layout import fit_token_types, read_layouts
from bert_pretrain.text.literal_text import literal_backend
from bert_pretrain.text.masking import MaskingRule, ordinary_token_ids
from bert_pretrain.text.pairs import EpochPlan, plan_epoch, plan_neighbours
from bert_pretrain.text.tokenizers import load_tokenizer, vocabulary_size
from bert_pretrain.text.windows import NO_PAIR

PAIRS = [(first, second) for sample in SAMPLES[:2] for first, second in [sample.sentences[:2]]]
LENGTH = 200  # characters are tokens of one of the kinds


def write_config(folder: Path, model_type: str, vocab_size: int) -> None:
    types = {"deberta-v2": {"type_vocab_size": 0}, "roberta": {"type_vocab_size": 1}}
    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "pad_token_id": 0,
    }
    fields |= types.get(model_type.removeprefix("xlm-"), {})
    AutoConfig.for_model(model_type, **fields).save_pretrained(folder)


def as_the_program_loads_it(name: str, folder: Path) -> PreTrainedTokenizerFast:
    kind = KINDS[name]
    kind.build().save_pretrained(folder / "given")
    tokenizer = load_tokenizer(str(folder / "given"))
    write_config(folder / "model", kind.model_type, vocabulary_size(tokenizer))
    outline = check_text_model(str(folder / "model"), None, 16, with_pairs=False)
    assert fit_token_types(tokenizer, num_token_types(outline)) is kind.tells_types
    return tokenizer


def rows_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, np.ndarray]:
    """Return what the collator makes of a pair of each of PAIRS and of its first half alone."""
    backend = literal_backend(tokenizer)
    ids = [backend.encode(text, add_special_tokens=False).ids for pair in PAIRS for text in pair]
    store = store_of([[sentence] for sentence in ids])
    starts, lengths = np.array(store_starts(ids)), np.array([len(sentence) for sentence in ids])
    first, second = np.arange(0, len(ids), 2), np.arange(1, len(ids), 2)
    zeros = np.zeros(len(first), dtype=np.int64)
    plan = EpochPlan(
        a_start=np.tile(starts[first], 2),
        a_length=np.tile(lengths[first], 2).astype(np.int32),
        b_start=np.concatenate([starts[second], zeros]),
        b_length=np.concatenate([lengths[second], zeros]).astype(np.int32),
        next_sentence_label=np.concatenate([zeros, zeros + NO_PAIR]).astype(np.int8),
        num_unpaired=0,
        row_length=LENGTH,
    )
    rule = MaskingRule(
        mlm_probability=0.3,
        mask_token_id=tokenizer.mask_token_id,
        ordinary_ids=ordinary_token_ids(tokenizer),
    )
    collator = PretrainingCollator(
        store,
        rule,
        layouts=read_layouts(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        seed=1,
    )
    batch = collator.collate([(0, np.arange(len(plan)), plan)])
    made = {key: batch[key].numpy() for key in ("input_ids", "token_type_ids", "attention_mask")}
    labels = batch["labels"].numpy()
    return made | {"unmasked": np.where(labels == -100, made["input_ids"], labels)}


def store_starts(ids: list[list[int]]) -> list[int]:
    return [sum(map(len, ids[:number])) for number in range(len(ids))]


@pytest.mark.parametrize("name", KINDS)
def test_a_row_before_masking_is_what_the_exported_tokenizer_makes_of_the_pair(
    name: str, tmp_path: Path
) -> None:
    tokenizer = as_the_program_loads_it(name, tmp_path)
    tokenizer.save_pretrained(tmp_path / "model")  # beside config.json, as an export
    exported = AutoTokenizer.from_pretrained(tmp_path / "model")
    kind = KINDS[name]
    made = rows_of(tokenizer)
    texts: list[tuple[str, ...]] = [*PAIRS, *((first,) for first, _ in PAIRS)]
    for row, segments in enumerate(texts):
        encoded = exported(*segments)
        length = len(encoded["input_ids"])
        assert made["unmasked"][row, :length].tolist() == encoded["input_ids"]
        assert (made["unmasked"][row, length:] == tokenizer.pad_token_id).all()
        assert made["attention_mask"][row].sum() == length
        types = encoded.get("token_type_ids", [0] * length)
        assert made["token_type_ids"][row, :length].tolist() == types
        assert ("token_type_ids" in encoded) is kind.tells_types
        # By the names that this test knows: the export might be wrong as the training is.
        ids = [exported(text, add_special_tokens=False)["input_ids"] for text in segments]
        parts = {"A": ids[0], "B": ids[-1]}
        expected = [
            token_id
            for word in (kind.pair if len(segments) == 2 else kind.single).split()
            for token_id in parts.get(word) or [exported.convert_tokens_to_ids(word)]
        ]
        assert encoded["input_ids"] == expected


@pytest.mark.parametrize("name", KINDS)
def test_special_tokens_of_the_layout_are_never_predicted(name: str, tmp_path: Path) -> None:
    tokenizer = as_the_program_loads_it(name, tmp_path)
    made = rows_of(tokenizer)
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    is_changed = made["unmasked"] != made["input_ids"]
    assert is_changed.any() and not special & set(made["unmasked"][is_changed].tolist())


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_planned_for_as_many_special_tokens_as_the_tokenizer_adds(
    name: str, tmp_path: Path
) -> None:
    tokenizer = as_the_program_loads_it(name, tmp_path)
    added = [tokenizer.num_special_tokens_to_add(pair=is_pair) for is_pair in (False, True)]
    assert list(read_layouts(tokenizer).num_special_tokens) == added


@pytest.mark.parametrize("name", ["RoBERTa", "T5", "BERT"])
def test_planned_rows_fill_a_row_with_the_special_tokens_that_there_are(
    name: str, tmp_path: Path
) -> None:
    counts = read_layouts(as_the_program_loads_it(name, tmp_path)).num_special_tokens
    store = store_of([[[7]] * 300] * 6)
    documents = np.arange(store.num_documents)
    options: dict[str, Any] = {"max_seq_length": 32, "seed": 0, "num_special_tokens": counts}
    for mode in ("exact", "google", "sop"):
        plan = plan_epoch(store, documents, short_seq_prob=0.0, epoch=0, pair_mode=mode, **options)
        assert (plan.a_length + plan.b_length).max() == 32 - counts.pair
    single = plan_epoch(store, documents, short_seq_prob=0.0, epoch=0, pair_mode="none", **options)
    assert single.a_length.max() == 32 - counts.single
    hard, _ = plan_neighbours(store, documents, **options)
    assert (hard.a_length + hard.b_length).max() == 32 - counts.pair


def drops_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    with_template(tokenizer.backend_tokenizer, "[CLS] [SEP]", "[CLS] $A [SEP] $B [SEP]")


def repeats_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    with_template(tokenizer.backend_tokenizer, "[CLS] $A $A", "[CLS] $A [SEP] $B [SEP]")


def turns_the_pair_round(tokenizer: PreTrainedTokenizerFast) -> None:
    with_template(tokenizer.backend_tokenizer, "[CLS] $A [SEP]", "[CLS] $B [SEP] $A [SEP]")


def adds_an_unknown_id(tokenizer: PreTrainedTokenizerFast) -> None:
    other = with_template(wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), "$A", "$A $B")
    other.add_tokens([f"[FILLER{number}]" for number in range(5000)])  # so its id is beyond ours
    other.add_special_tokens(["[END]"])
    with_template(other, "$A [END]", "$A $B [END]")
    tokenizer.backend_tokenizer.post_processor = other.post_processor


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (drops_the_text, r"lays A out as '\[CLS\] \[SEP\]'"),
        (repeats_the_text, r"lays A out as '\[CLS\] A A'"),
        (turns_the_pair_round, r"lays A and B out as '\[CLS\] B \[SEP\] A \[SEP\]'"),
        (adds_an_unknown_id, r"adds a special token with the id \d+, which is none of its tokens"),
    ],
)
def test_a_layout_that_no_row_can_have_is_refused(
    spoil: Callable[[PreTrainedTokenizerFast], None], expected: str, tmp_path: Path
) -> None:
    tokenizer = plain(wordpiece(), BRACKETS)
    spoil(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{expected}.*`tokenizer_name`"):
        load_tokenizer(str(tmp_path))


def test_names_that_mean_something_in_a_template_do_no_harm(tmp_path: Path) -> None:
    names = ["[PAD]", "[UNK]", "$A: the beginning", "the end:1", "[MASK]"]
    plain(wordpiece(names), names).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    the = tokenizer("the", add_special_tokens=False)["input_ids"]
    assert tokenizer("the", "the")["input_ids"] == [2, *the, 3, *the, 3]
