"""Claims about batches: layout, that a row depends on itself alone, the stream of epochs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stores import store_of
from torch.utils.data import DataLoader

from bert_pretrain.data.loader import WindowReader, WindowRequest
from bert_pretrain.data.stream import Part, Place, TrainingStream, WholeEpochs
from bert_pretrain.text.collator import PretrainingCollator, computed_tokens
from bert_pretrain.text.layout import RowLayouts
from bert_pretrain.text.masking import MaskingRule, MaskingUnit
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch
from bert_pretrain.text.prepared import TokenStore

PAD, CLS, SEP, MASK = 0, 2, 3, 4
# Of a batch, not of its rows.
INDICES = {
    "token_index",
    "row_bounds",
    "read_index",
    "read_slot",
    "read_bounds",
    "masked_reads",
}
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
    return store_of(documents, word_starts=word_starts, documents_per_shard=9)


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
    store: TokenStore,
    *,
    unit: MaskingUnit = "token",
    evaluation: bool = False,
    seed: int = 5,
    few_shapes: bool = False,
) -> PretrainingCollator:
    rule = MaskingRule(
        mlm_probability=0.15, unit=unit, mask_token_id=MASK, ordinary_ids=np.arange(10, 6000)
    )
    return PretrainingCollator(
        store,
        rule,
        layouts=RowLayouts.of_bert(CLS, SEP),
        pad_token_id=PAD,
        seed=seed,
        evaluation=evaluation,
        few_shapes=few_shapes,
    )


def collate(
    collator: PretrainingCollator, plan: EpochPlan, rows: np.ndarray, epoch: int
) -> dict[str, torch.Tensor]:
    return collator.collate([(epoch, rows, plan.take(rows))])


def unmasked(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])


def padded(values: list[int]) -> list[int]:
    return values + [0] * (LENGTH - len(values))


def test_rows_are_cls_a_sep_b_sep_with_types_and_attention(store: TokenStore) -> None:
    plan = make_plan(store)
    rows = np.flatnonzero(plan.next_sentence_label != -100)
    batch = collate(make_collator(store), plan, rows, 0)
    bounds = dict.fromkeys(("row_bounds", "read_bounds"), torch.int32)
    dtypes = {key: value.dtype for key, value in batch.items()}
    assert dtypes == dict.fromkeys(batch, torch.int64) | bounds
    restored, plan = unmasked(batch), plan.take(rows)
    for row in range(len(plan)):
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
    batch = collate(make_collator(store), plan, np.arange(len(plan)), 0)
    assert "next_sentence_label" not in batch
    assert not batch["token_type_ids"].any()
    for row, restored in enumerate(unmasked(batch).tolist()):
        length = int(plan.a_length[row])
        a = list(range(plan.a_start[row] + 10, plan.a_start[row] + 10 + length))
        assert restored == padded([CLS, *a, SEP])
        assert batch["attention_mask"][row].sum() == length + 2


def test_a_batch_without_any_pair_has_labels_that_ask_for_none(store: TokenStore) -> None:
    """So that every process calls the model alike, whichever rows it has."""
    documents = np.arange(store.num_documents)
    options = {"max_seq_length": LENGTH, "short_seq_prob": 0.2, "seed": 5, "epoch": 0}
    plan = plan_epoch(store, documents, pair_mode="exact", **options)  # type: ignore[arg-type]
    single = np.flatnonzero(plan.next_sentence_label == -100)[:4]
    assert len(single) == 4
    batch = collate(make_collator(store), plan, single, 0)
    assert batch["next_sentence_label"].tolist() == [-100] * 4
    assert not batch["token_type_ids"].any()
    for row, restored in enumerate(unmasked(batch).tolist()):
        start, length = int(plan.a_start[single[row]]), int(plan.a_length[single[row]])
        assert restored == padded([CLS, *range(start + 10, start + 10 + length), SEP])


def test_masked_positions_have_a_static_width_that_holds_every_label(store: TokenStore) -> None:
    plan = make_plan(store)
    batch = collate(make_collator(store), plan, np.arange(len(plan)), 0)
    assert batch["masked_positions"].shape == (len(plan), round(LENGTH * 0.15))
    for positions, labels in zip(batch["masked_positions"], batch["labels"], strict=True):
        found = torch.nonzero(labels != -100).flatten().tolist()
        assert positions[positions >= 0].tolist() == found


@pytest.mark.parametrize("unit", ["token", "whole_word", "span"])
def test_a_row_does_not_depend_on_the_other_rows(store: TokenStore, unit: MaskingUnit) -> None:
    plan, collator = make_plan(store), make_collator(store, unit=unit)
    rows = np.array([17, 3, 99, 0])
    together = collate(collator, plan, rows, 2)
    for place, row in enumerate(rows):
        alone = collate(collator, plan, np.array([row]), 2)
        of_rows = set(together) - INDICES
        assert all(torch.equal(alone[key][0], together[key][place]) for key in of_rows)


def test_whole_words_follow_the_word_starts_of_the_corpus(store: TokenStore) -> None:
    plan, collator = make_plan(store), make_collator(store, unit="whole_word")
    rows = np.arange(len(plan))
    selected = collate(collator, plan, rows, 0)["labels"].numpy() != -100
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
        collate(collator, plan, rows, e)["labels"]
        for collator in (training, evaluation)
        for e in (0, 1)
    ]
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])
    other_seed = collate(make_collator(store, seed=6), plan, rows, 0)["labels"]
    assert not torch.equal(masks[0], other_seed)


def test_a_pickled_collator_makes_the_same_batch(store: TokenStore) -> None:
    plan, rows, collator = make_plan(store), np.arange(8), make_collator(store)
    copy, plan_copy = pickle.loads(pickle.dumps((collator, plan)))
    expected, found = collate(collator, plan, rows, 1), collate(copy, plan_copy, rows, 1)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_cut_batch_ends_with_its_longest_row_and_loses_nothing(store: TokenStore) -> None:
    whole, cut = make_collator(store), make_collator(store)
    cut.cuts_padding = True
    plan = make_plan(store)
    lengths = plan.a_length + plan.b_length + 3
    rows = np.argsort(lengths)[:6]  # short ones
    expected, batch = collate(whole, plan, rows, 0), collate(cut, plan, rows, 0)
    width = batch["input_ids"].shape[1]
    assert lengths[rows].max() <= width < lengths[rows].max() + 8 <= LENGTH
    for name in ("input_ids", "token_type_ids", "attention_mask", "labels"):
        assert torch.equal(batch[name], expected[name][:, :width])
        assert not (expected[name][:, width:] > 0).any()
    assert torch.equal(batch["masked_positions"], expected["masked_positions"])
    places = (batch["token_index"] if "token_index" in batch else torch.arange(6 * width))[
        batch["read_index"]
    ]
    labels = batch["labels"].flatten()[places[batch["masked_reads"]]]
    assert sorted(labels[labels >= 0]) == sorted(expected["labels"][expected["labels"] >= 0])


def plan_of_length(length: int) -> EpochPlan:
    zeros = np.zeros(length, dtype=np.int64)
    lengths = zeros.astype(np.int32)
    return EpochPlan(zeros, lengths, zeros, lengths, zeros.astype(np.int8), 0, LENGTH)


def make_stream(plan_for_epoch: Callable[[int], EpochPlan]) -> TrainingStream[EpochPlan]:
    return TrainingStream(WholeEpochs(plan_for_epoch), collator=None, identity={})


def flat(parts: list[Part]) -> list[tuple[int, int]]:
    return [(epoch, row) for epoch, rows, _ in parts for row in rows.tolist()]


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
    stream, place = make_stream(plan_for_epoch), Place()
    for count in counts:
        # A fresh stream that enters at the same place gives the same, as after an interruption.
        resumed = make_stream(plan_for_epoch).take(place, count)
        parts, place = stream.take(place, count)
        assert flat(parts) == list(islice(everything, count))
        assert flat(resumed[0]) == flat(parts)
        assert resumed[1] == place


def test_stream_keeps_two_plans_and_makes_each_once() -> None:
    made: list[int] = []

    def plan_for_epoch(epoch: int) -> EpochPlan:
        made.append(epoch)
        return plan_of_length(5)

    stream, place = make_stream(plan_for_epoch), Place()
    for _ in range(10):
        parts, place = stream.take(place, 3)
        for epoch, _, _ in parts:
            stream.plan(epoch)
    assert made == list(range(6))
    assert len(stream._plans) <= 2


def as_stored(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of a batch that are computed, and among them those that are read."""
    index = batch.get("token_index", torch.arange(batch["input_ids"].numel()))
    return index, index[batch["read_index"]]


def test_all_real_tokens_are_computed_and_little_padding(store: TokenStore) -> None:
    plan = make_plan(store)
    for num_rows in (1, 7, 200):
        batch = collate(make_collator(store), plan, np.arange(num_rows), 0)
        index, _ = as_stored(batch)
        real = torch.nonzero(batch["attention_mask"].flatten()).flatten()
        assert len(set(index.tolist())) == len(index)
        assert set(real.tolist()) <= set(index.tolist())
        assert len(index) < len(real) + 64 or len(index) == num_rows * LENGTH
        assert len(index) % 64 == 0 or len(index) == num_rows * LENGTH


@pytest.mark.parametrize("few_shapes", [False, True])
def test_a_loss_reads_cls_and_every_masked_token_row_after_row(
    store: TokenStore, few_shapes: bool
) -> None:
    plan = make_plan(store)
    batch = collate(make_collator(store, few_shapes=few_shapes), plan, np.arange(50), 0)
    _, read = as_stored(batch)
    first, masked = read[batch["read_bounds"][:50]], read[batch["masked_reads"]]
    assert first.tolist() == [row * LENGTH for row in range(50)]
    assert len(first) + len(masked) == len(read)
    labels = batch["labels"].flatten()[masked]
    everything = torch.nonzero(batch["labels"].flatten() != -100).flatten()
    assert masked[labels != -100].tolist() == everything.tolist()
    # What fills up reads [CLS], whose label counts for nothing.
    assert (masked[labels == -100] % LENGTH == 0).all()
    num_slots = 1 + batch["masked_positions"].shape[1]
    assert len(set(batch["read_slot"].tolist())) == len(batch["read_slot"])
    assert torch.equal(batch["read_slot"] // num_slots, read // LENGTH)
    bounds = batch["read_bounds"].tolist()
    for row in range(50):
        assert set((read[bounds[row] : bounds[row + 1]] // LENGTH).tolist()) == {row}


@pytest.mark.parametrize("num_rows", [3, 30, 240])
def test_bounds_keep_rows_and_pieces_of_padding_apart(store: TokenStore, num_rows: int) -> None:
    collator = make_collator(store, few_shapes=True)
    plan = make_plan(store)
    rows = np.flatnonzero(plan.next_sentence_label != -100)[:num_rows]
    batch = collate(collator, plan, rows, 0)
    index, read = as_stored(batch)
    bounds, lengths = batch["row_bounds"].tolist(), batch["attention_mask"].sum(dim=1).tolist()
    assert bounds[0] == 0
    for row, length in enumerate(lengths):
        places = index[bounds[row] : bounds[row + 1]]
        assert places.tolist() == list(range(row * LENGTH, row * LENGTH + length))
    padding = np.diff(bounds[num_rows:])
    assert bounds[-1] == len(index) > sum(lengths)
    assert (padding <= LENGTH).all()
    assert batch["read_bounds"].shape == batch["row_bounds"].shape
    assert set(batch["read_bounds"][num_rows:].tolist()) == {len(read)}


def test_reads_that_follow_from_the_tokens_hold_the_masks_of_the_shortest_rows() -> None:
    # So many that rounding up alone would not make room for all.
    num_rows, row_length, num_slots = 128, 32, 5
    real = np.arange(row_length) < np.full((num_rows, 1), 4)
    masked = np.where(np.arange(num_slots) < 1, 1, -1).repeat(num_rows).reshape(-1, num_rows).T
    found = computed_tokens(real.astype(int), masked, num_shapes=16, has_static_reads=True)
    # A masked token of each row, as few as there is one of: more than 15 % of four tokens.
    rows = np.arange(num_rows)
    assert set(rows * (1 + num_slots) + 1) <= set(found["read_slot"])


@given(st.data())
def test_few_shapes_are_few_and_the_reads_follow_from_the_tokens(data: st.DataObject) -> None:
    num_rows, row_length, probability = 64, 32, 0.15
    num_slots = max(1, round(row_length * probability))
    reads_of: dict[int, set[int]] = {}
    for _ in range(4):
        lengths = np.array(
            data.draw(st.lists(st.integers(4, row_length), min_size=num_rows, max_size=num_rows))
        )
        real = np.arange(row_length) < lengths[:, None]
        # At most what the collator masks of a row, see `mask_tokens`.
        counts = np.clip(np.round(lengths * probability), 1, num_slots).astype(int)
        masked = np.where(np.arange(num_slots) < counts[:, None], 1 + np.arange(num_slots), -1)
        found = computed_tokens(real.astype(int), masked, num_shapes=16, has_static_reads=True)
        num_tokens = len(found.get("token_index", real.ravel()))
        assert num_tokens % (num_rows * row_length // 16) == 0
        reads_of.setdefault(num_tokens, set()).add(len(found["read_index"]))
        rows, columns = np.nonzero(masked >= 0)
        assert set(rows * (1 + num_slots) + 1 + columns) <= set(found["read_slot"])
    assert all(len(reads) == 1 for reads in reads_of.values())


def test_a_batch_over_the_end_of_an_epoch_has_the_rows_of_both(store: TokenStore) -> None:
    collator, plans = make_collator(store), [make_plan(store, epoch=epoch) for epoch in (0, 1)]
    last, first = np.arange(len(plans[0]) - 3, len(plans[0])), np.arange(2)
    both = collator.collate([(0, last, plans[0].take(last)), (1, first, plans[1].take(first))])
    parts = collate(collator, plans[0], last, 0), collate(collator, plans[1], first, 1)
    for key in set(both) - INDICES:
        assert torch.equal(both[key], torch.cat([part[key] for part in parts]))
    _, read = as_stored(both)
    labels = both["labels"].flatten()[read[both["masked_reads"]]]
    assert (labels != -100).sum() == sum(int((p["labels"] != -100).sum()) for p in parts)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_worker_processes_make_the_batches_of_this_process(
    store: TokenStore, start_method: str
) -> None:
    plan, collator = make_plan(store), make_collator(store)
    requests = [
        WindowRequest([[(0, rows, plan.take(rows))]], Place())
        for rows in np.split(np.arange(24), 3)
    ]
    loader = DataLoader(
        WindowReader(collator),
        batch_size=None,
        sampler=requests,
        num_workers=1,
        multiprocessing_context=start_method,
    )
    for window, request in zip(loader, requests, strict=True):
        expected = WindowReader(collator)[request]
        assert window.num_units == expected.num_units
        for key, value in expected.micro_batches[0].items():
            assert torch.equal(window.micro_batches[0][key], value)
