"""Claims about batches: layout, that a row depends on itself alone, the stream of epochs."""

from __future__ import annotations

import pickle
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from bert_pretrain.data.loader import TrainingStream
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.masking import MaskingRule, MaskingUnit
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.sentence_pairs import EpochPlan, PairMode, plan_epoch

PAD, CLS, SEP, MASK = 0, 2, 3, 4
LENGTH = 32


@pytest.fixture(scope="module")
def store() -> TokenStore:
    """40 documents whose token ids count up from 10, so that an id tells its global position."""
    generator = np.random.default_rng(0)
    documents, word_starts, next_id = [], [], 10
    for _ in range(40):
        document = []
        for length in generator.integers(1, 20, 12).tolist():
            document.append(list(range(next_id, next_id + length)))
            next_id += length
        documents.append(document)
        word_starts.append([generator.integers(0, 2, len(s)).tolist() for s in document])
    return TokenStore.from_documents(documents, word_starts=word_starts, documents_per_shard=9)


def make_plan(store: TokenStore, mode: PairMode = "exact", epoch: int = 0) -> EpochPlan:
    return plan_epoch(
        store,
        np.arange(store.num_documents),
        max_seq_length=LENGTH,
        short_seq_prob=0.2,
        pair_mode=mode,
        seed=5,
        epoch=epoch,
    )


def make_collator(
    store: TokenStore, *, unit: MaskingUnit = "token", evaluation: bool = False, seed: int = 5
) -> PretrainingCollator:
    rule = MaskingRule(
        mlm_probability=0.15, unit=unit, mask_token_id=MASK, ordinary_ids=np.arange(10, 6000)
    )
    return PretrainingCollator(
        store,
        rule,
        cls_token_id=CLS,
        sep_token_id=SEP,
        pad_token_id=PAD,
        max_seq_length=LENGTH,
        seed=seed,
        evaluation=evaluation,
    )


def unmasked(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


def padded(values: list[int]) -> list[int]:
    return values + [0] * (LENGTH - len(values))


def test_rows_are_cls_a_sep_b_sep_with_types_and_attention(store: TokenStore) -> None:
    plan = make_plan(store)
    rows = np.arange(len(plan))
    batch = make_collator(store)(plan, rows, 0)
    assert {key: value.dtype for key, value in batch.items()} == dict.fromkeys(batch, torch.int64)
    restored = unmasked(batch)
    for row in rows.tolist():
        a_length, b_length = int(plan.a_length[row]), int(plan.b_length[row])
        # Ids count up from 10, so the ids of a segment follow from where it starts.
        a = list(range(plan.a_start[row] + 10, plan.a_start[row] + 10 + a_length))
        b = list(range(plan.b_start[row] + 10, plan.b_start[row] + 10 + b_length))
        assert restored[row].tolist() == padded([CLS, *a, SEP, *b, SEP])
        types = [0] * (a_length + 2) + [1] * (b_length + 1)
        assert batch["token_type_ids"][row].tolist() == padded(types)
        assert batch["attention_mask"][row].tolist() == padded([1] * (a_length + b_length + 3))
        follows = plan.b_start[row] == plan.a_start[row] + plan.a_length[row]
        assert batch["next_sentence_label"][row].item() == (0 if follows else 1)


def test_single_segments_are_cls_a_sep_without_a_pair_label(store: TokenStore) -> None:
    plan = make_plan(store, "none")
    batch = make_collator(store)(plan, np.arange(len(plan)), 0)
    assert "next_sentence_label" not in batch
    assert not batch["token_type_ids"].any()
    for row, restored in enumerate(unmasked(batch).tolist()):
        length = int(plan.a_length[row])
        a = list(range(plan.a_start[row] + 10, plan.a_start[row] + 10 + length))
        assert restored == padded([CLS, *a, SEP])
        assert batch["attention_mask"][row].sum() == length + 2


def test_masked_positions_have_a_static_width_that_holds_every_label(store: TokenStore) -> None:
    plan = make_plan(store)
    batch = make_collator(store)(plan, np.arange(len(plan)), 0)
    assert batch["masked_positions"].shape == (len(plan), round(LENGTH * 0.15))
    for positions, labels in zip(batch["masked_positions"], batch["labels"], strict=True):
        found = torch.nonzero(labels != -100).flatten().tolist()
        assert positions[positions >= 0].tolist() == found


@pytest.mark.parametrize("unit", ["token", "whole_word", "span"])
def test_a_row_does_not_depend_on_the_other_rows(store: TokenStore, unit: MaskingUnit) -> None:
    plan, collator = make_plan(store), make_collator(store, unit=unit)
    rows = np.array([17, 3, 99, 0])
    together = collator(plan, rows, 2)
    for place, row in enumerate(rows):
        alone = collator(plan, np.array([row]), 2)
        assert all(torch.equal(alone[key][0], together[key][place]) for key in together)


def test_whole_words_follow_the_word_starts_of_the_corpus(store: TokenStore) -> None:
    plan, collator = make_plan(store), make_collator(store, unit="whole_word")
    rows = np.arange(len(plan))
    selected = collator(plan, rows, 0)["labels"].numpy() != -100
    num_joined = 0
    for row in rows.tolist():
        begin = 1
        for start, length in ((plan.a_start, plan.a_length), (plan.b_start, plan.b_length)):
            size = int(length[row])
            starts = store.read_word_starts(int(start[row]), size)
            inner = np.flatnonzero(starts[1:] == 0) + begin + 1  # tokens that continue a word
            # A row of n tokens selects one token if 0.15 n rounds to at most 1: then words are cut.
            if selected[row].sum() > 2:
                num_joined += int((selected[row, inner] & selected[row, inner - 1]).sum())
                assert (selected[row, inner] == selected[row, inner - 1]).all()
            begin += size + 1
    assert num_joined > 50


def test_training_masks_change_every_epoch_and_evaluation_masks_never(store: TokenStore) -> None:
    plan, rows = make_plan(store), np.arange(64)
    training, evaluation = make_collator(store), make_collator(store, evaluation=True)
    masks = [
        collator(plan, rows, e)["labels"] for collator in (training, evaluation) for e in (0, 1)
    ]
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])
    other_seed = make_collator(store, seed=6)(plan, rows, 0)["labels"]
    assert not torch.equal(masks[0], other_seed)


def test_a_pickled_collator_makes_the_same_batch(store: TokenStore) -> None:
    plan, rows, collator = make_plan(store), np.arange(8), make_collator(store)
    copy, plan_copy = pickle.loads(pickle.dumps((collator, plan)))
    expected, found = collator(plan, rows, 1), copy(plan_copy, rows, 1)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def plan_of_length(length: int) -> EpochPlan:
    zeros = np.zeros(length, dtype=np.int64)
    lengths = zeros.astype(np.int32)
    return EpochPlan(zeros, lengths, zeros, lengths, zeros.astype(np.int8), num_unpaired=0)


def flat(parts: list[tuple[int, np.ndarray]]) -> list[tuple[int, int]]:
    return [(epoch, row) for epoch, rows in parts for row in rows.tolist()]


@given(
    st.lists(st.integers(1, 7), min_size=30, max_size=30),
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_stream_drops_and_repeats_nothing_over_epoch_ends(
    plan_lengths: list[int], counts: list[int]
) -> None:
    def plan_for_epoch(epoch: int) -> EpochPlan:
        return plan_of_length(plan_lengths[epoch % 30])

    everything = chain.from_iterable(
        ((epoch, row) for row in range(plan_lengths[epoch % 30])) for epoch in range(200)
    )
    stream, place = TrainingStream(plan_for_epoch), (0, 0)
    for count in counts:
        # A fresh stream that enters at the same place gives the same, as after an interruption.
        resumed = TrainingStream(plan_for_epoch).take(*place, count)
        parts, place = stream.take(*place, count)
        assert flat(parts) == list(islice(everything, count))
        assert flat(resumed[0]) == flat(parts)
        assert resumed[1] == place


def test_stream_keeps_two_plans_and_makes_each_once() -> None:
    made: list[int] = []

    def plan_for_epoch(epoch: int) -> EpochPlan:
        made.append(epoch)
        return plan_of_length(5)

    stream, place = TrainingStream(plan_for_epoch), (0, 0)
    for _ in range(10):
        parts, place = stream.take(*place, 3)
        for epoch, _ in parts:
            stream.plan(epoch)
    assert made == list(range(6))
    assert len(stream._plans) <= 2


def test_a_spawned_worker_makes_the_same_batch(store: TokenStore) -> None:
    collator, plan = make_collator(store), make_plan(store)
    rows = np.arange(6)
    parts = [(epoch, rows, plan.take(rows)) for epoch in (0, 1)]
    loader = DataLoader(
        [parts],  # type: ignore[arg-type]  # a list is a data set
        batch_size=None,
        collate_fn=collator.collate,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    (batch,), expected = list(loader), collator.collate(parts)
    assert batch.keys() == expected.keys()
    for name, value in batch.items():
        assert torch.equal(value, expected[name]), name
