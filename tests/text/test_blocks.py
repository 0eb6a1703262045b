"""Claims about epochs in blocks: what a block holds, how a run goes on from any place in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import store_of

from bert_pretrain.data import stream as streams
from bert_pretrain.data.course import Course
from bert_pretrain.data.loader import training_windows
from bert_pretrain.data.stream import Part, Place, TrainingStream
from bert_pretrain.errors import InputError
from bert_pretrain.text import blocks as text_blocks
from bert_pretrain.text.blocks import MIN_PIECES_PER_BLOCK, TextBlocks
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.layout import RowLayouts
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch
from bert_pretrain.text.prepared import TokenStore

LENGTH = 32
COLUMNS = ("a_start", "a_length", "b_start", "b_length", "next_sentence_label")


def draw_documents(num_documents: int, seed: int = 0) -> list[list[list[int]]]:
    generator = np.random.default_rng(seed)
    return [
        [[7] * int(n) for n in generator.integers(2, 12, 2 + generator.poisson(5))]
        for _ in range(num_documents)
    ]


def make_blocks(
    store: TokenStore, rows: int, *, mode: PairMode = "exact", seed: int = 3
) -> TextBlocks:
    documents = np.arange(store.num_documents)
    return TextBlocks(store, documents, LENGTH, 0.1, mode, seed, rows_per_block=rows)


@pytest.fixture(scope="module")
def store() -> TokenStore:
    return store_of(draw_documents(120), documents_per_shard=9)


@pytest.fixture(scope="module")
def store_on_disk(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The same documents, mapped from a file."""
    path: Path = tmp_path_factory.mktemp("corpus") / "corpus.arrow"
    documents = draw_documents(120)
    ids = [list(chain.from_iterable(document)) for document in documents]
    columns = {
        "input_ids": pa.array(ids, pa.list_(pa.uint16())),
        "word_starts": pa.array([[1] * len(row) for row in ids], pa.list_(pa.uint8())),
        "sentence_lengths": pa.array(
            [[len(s) for s in document] for document in documents], pa.list_(pa.uint32())
        ),
    }
    table = pa.table(columns)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    return TokenStore.open(path)


def assert_same(plan: EpochPlan, other: EpochPlan) -> None:
    assert plan.num_unpaired == other.num_unpaired
    for name in COLUMNS:
        assert np.array_equal(getattr(plan, name), getattr(other, name)), name


def document_of(store: TokenStore, positions: np.ndarray) -> np.ndarray:
    sizes = [
        sum(shard.sentence_lengths[first:end])
        for shard in store.shards
        for first, end in zip(
            np.cumsum(shard.sentences_per_document) - shard.sentences_per_document,
            np.cumsum(shard.sentences_per_document),
            strict=True,
        )
    ]
    return np.searchsorted(np.cumsum(sizes), positions, side="right")


@pytest.mark.parametrize(
    ("mode", "digest"),
    [
        ("exact", "fd74618823edf651"),
        ("google", "e773318786db6ad2"),
        ("none", "7b567a91aa76f0f6"),
    ],
)
def test_plans_are_those_of_all_runs_so_far(mode: PairMode, digest: str) -> None:
    """The digests are of the plans of the first version: no blocks, no segments beside pairs."""
    lengths = [
        [1 + (7 * document + 13 * sentence) % 17 for sentence in range(1 + document * 5 % 11)]
        for document in range(200)
    ]
    store = store_of([[[7] * n for n in document] for document in lengths], documents_per_shard=30)
    plan = make_blocks(store, rows=10_000, mode=mode).planner(2, 0)()
    if mode != "none":
        plan = plan.take(np.flatnonzero(plan.next_sentence_label != -100))
    content = b"".join(getattr(plan, name).astype("<i8").tobytes() for name in COLUMNS)
    assert sha256(content).hexdigest()[:16] == digest


@pytest.mark.parametrize("mode", ["exact", "google", "sop", "none"])
def test_a_corpus_that_fits_in_one_block_is_planned_as_a_whole(
    store: TokenStore, mode: PairMode
) -> None:
    blocks = make_blocks(store, rows=10_000, mode=mode)
    assert blocks.num_blocks == 1
    for epoch in (0, 5):
        whole = plan_epoch(
            store,
            np.arange(120),
            max_seq_length=LENGTH,
            short_seq_prob=0.1,
            pair_mode=mode,
            seed=3,
            epoch=epoch,
        )
        assert_same(blocks.planner(epoch, 0)(), whole)
        (part,), place = TrainingStream(blocks, None, identity={}).take(  # type: ignore[arg-type]
            Place(epoch), len(whole)
        )
        assert part[1].tolist() == list(range(len(whole)))
        assert place == Place(epoch, 0, len(whole))


@given(st.integers(17, 90), st.integers(20, 200), st.integers(0, 3), st.integers(0, 9))
@settings(max_examples=40)
def test_every_document_is_in_one_block_of_an_epoch(
    num_documents: int, rows: int, epoch: int, seed: int
) -> None:
    store = store_of(draw_documents(num_documents, seed), documents_per_shard=5)
    chosen = np.sort(np.random.default_rng(seed).permutation(num_documents)[: num_documents - 3])
    blocks = replace(make_blocks(store, rows, seed=seed), documents=chosen)
    found = [blocks.documents_of(epoch, block) for block in range(blocks.num_blocks)]
    assert sorted(np.concatenate(found).tolist()) == chosen.tolist()
    for documents in found:
        assert len(documents) >= min(len(chosen), MIN_PIECES_PER_BLOCK)
        assert (np.diff(documents) > 0).all()


def test_single_segments_of_all_blocks_partition_the_corpus(store: TokenStore) -> None:
    blocks = make_blocks(store, rows=60, mode="none")
    assert blocks.num_blocks > 3
    plans = [blocks.planner(1, block)() for block in range(blocks.num_blocks)]
    seen = [
        position
        for plan in plans
        for start, length in zip(plan.a_start.tolist(), plan.a_length.tolist(), strict=True)
        for position in range(start, start + length)
    ]
    assert sorted(seen) == list(range(store.num_tokens))


def test_partners_are_other_documents_of_the_same_block(store: TokenStore) -> None:
    blocks = make_blocks(store, rows=80)
    num_random = 0
    for block in range(blocks.num_blocks):
        plan = blocks.planner(0, block)()
        plan = plan.take(np.flatnonzero(plan.next_sentence_label != -100))
        a, b = document_of(store, plan.a_start), document_of(store, plan.b_start)
        is_random = plan.next_sentence_label == 1
        assert (a[is_random] != b[is_random]).all()
        assert (a[~is_random] == b[~is_random]).all()
        assert set(a.tolist()) | set(b.tolist()) <= set(blocks.documents_of(0, block).tolist())
        num_random += int(is_random.sum())
    assert num_random > 100


def test_blocks_hold_other_documents_in_other_epochs_and_under_other_seeds(
    store: TokenStore,
) -> None:
    blocks = make_blocks(store, rows=80)
    first = set(blocks.documents_of(0, 0).tolist())
    for other in (blocks.documents_of(1, 0), replace(blocks, seed=4).documents_of(0, 0)):
        assert len(first & set(other.tolist())) < 0.7 * len(first)


def test_a_block_is_a_sample_of_many_places(store: TokenStore) -> None:
    """Its documents are spread over the corpus and not a run of neighbours."""
    documents = make_blocks(store, rows=80).documents_of(0, 0)
    assert documents.min() < 24 and documents.max() >= 96
    assert np.diff(documents).max() < 40


def test_blocks_are_about_equal_in_rows(store: TokenStore) -> None:
    blocks = make_blocks(store, rows=80)
    sizes = [len(blocks.planner(0, block)()) for block in range(blocks.num_blocks)]
    # At 16 documents a block; a block of training has at least a hundred times as many.
    assert max(sizes) < 2 * min(sizes)
    stream = TrainingStream(blocks, None, identity={})  # type: ignore[arg-type]
    assert abs(stream.rows_per_epoch() / sum(sizes) - 1) < 0.3


def test_few_long_documents_are_one_block() -> None:
    """Partners are other documents, of which a block must hold enough, however long they are."""
    store = store_of([[[7] * 10] * 300] * 30)
    assert make_blocks(store, rows=64).num_blocks == 30 // MIN_PIECES_PER_BLOCK
    store = store_of([[[7] * 10] * 300] * 3)
    assert make_blocks(store, rows=64).num_blocks == 1


class Untouchable:
    """Lengths that may be counted and not read."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.length = len(lengths)

    def __len__(self) -> int:
        return self.length

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise AssertionError("read")

    __getitem__ = __array__


@pytest.mark.parametrize("mode", ["exact", "google", "none"])
def test_a_block_reads_only_the_shards_of_its_documents(mode: PairMode) -> None:
    store = store_of(draw_documents(120), documents_per_shard=3)
    blocks = make_blocks(store, rows=80, mode=mode)
    expected, documents = blocks.planner(0, 0)(), blocks.documents_of(0, 0)
    needed = set((documents // 3).tolist())
    assert len(needed) < len(store.shards)
    shards = [
        shard
        if number in needed
        else replace(shard, sentence_lengths=Untouchable(shard.sentence_lengths))  # type: ignore[arg-type]
        for number, shard in enumerate(store.shards)
    ]
    assert_same(replace(blocks, store=TokenStore(shards)).planner(0, 0)(), expected)


def make_collator(store: TokenStore) -> PretrainingCollator:
    rule = MaskingRule(
        mlm_probability=0.15, unit="token", mask_token_id=4, ordinary_ids=np.arange(10, 600)
    )
    return PretrainingCollator(
        store, rule, layouts=RowLayouts.of_bert(2, 3), pad_token_id=0, seed=3
    )


def make_stream(store: TokenStore, rows: int = 80) -> TrainingStream[EpochPlan]:
    return TrainingStream(make_blocks(store, rows), make_collator(store), identity={})


def windows(
    store: TokenStore, place: Place, count: int, *, processes: int = 1, micro_batches: int = 1
) -> list[tuple[Place, dict[str, torch.Tensor]]]:
    """Return whole windows, put together from the shares of all processes."""
    shares = [
        islice(
            training_windows(
                make_stream(store),
                place,
                course=Course(24),
                num_processes=processes,
                process_index=process,
                num_micro_batches=micro_batches,
                num_workers=0,
            ),
            count,
        )
        for process in range(processes)
    ]
    found = []
    for parts in zip(*shares, strict=True):
        batches = [batch for part in parts for batch in part.micro_batches]
        names = ("input_ids", "labels", "next_sentence_label")
        joined = {name: torch.cat([batch[name] for batch in batches]) for name in names}
        found.append((parts[0].next_place, joined))
    return found


def test_a_run_goes_on_from_any_place_as_if_it_had_not_stopped(store: TokenStore) -> None:
    whole = windows(store, Place(), 60)
    places = [Place(), *(place for place, _ in whole)]
    # Over several blocks, and over the end of an epoch.
    assert len({place[:2] for place in places}) > 6 and places[-1].epoch >= 1
    layouts = [(1, 1), (2, 1), (2, 3), (1, 4)]
    for number in range(0, 56, 3):
        processes, micro_batches = layouts[number % 4]
        resumed = windows(
            store, places[number], 4, processes=processes, micro_batches=micro_batches
        )
        for (place, batch), (other_place, other) in zip(
            resumed, whole[number : number + 4], strict=True
        ):
            assert place == other_place
            assert all(torch.equal(batch[name], other[name]) for name in batch)


def numbered_rows(parts: Sequence[Part]) -> list[tuple[int, int]]:
    return [(epoch, row) for epoch, rows, _ in parts for row in rows.tolist()]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12))
@settings(max_examples=10)
def test_no_row_of_a_block_is_dropped_or_repeated(counts: list[int]) -> None:
    store = store_of(draw_documents(60), documents_per_shard=9)
    blocks = make_blocks(store, rows=80)
    stream, place = TrainingStream(blocks, None, identity={}), Place()  # type: ignore[arg-type]
    taken: list[tuple[int, int]] = []
    starts: list[int] = []
    for count in counts:
        parts, place = stream.take(place, count)
        taken += numbered_rows(parts)
        starts += [start for *_, plan in parts for start in plan.a_start.tolist()]
    expected, expected_starts = [], []
    for epoch in range(100):
        for block in range(blocks.num_blocks):
            if len(expected) >= len(taken):
                break
            plan = blocks.planner(epoch, block)()
            expected += [(epoch, block * 2**32 + row) for row in range(len(plan))]
            expected_starts += plan.a_start.tolist()
    assert taken == expected[: len(taken)]
    assert starts == expected_starts[: len(taken)]
    assert len(set(taken)) == len(taken)


def test_the_same_row_has_other_masks_in_other_blocks_and_epochs(store: TokenStore) -> None:
    collator, plan = make_collator(store), make_blocks(store, 80).planner(0, 0)()
    rows = np.arange(40)
    labels = [
        collator.collate([(epoch, streams.first_row(block) + rows, plan.take(rows))])["labels"]
        for epoch, block in ((0, 0), (0, 1), (1, 0))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        alike = [torch.equal(*pair) for pair in zip(labels[one], labels[other], strict=True)]
        assert sum(alike) < 10


def test_blocks_are_not_shuffled_alike() -> None:
    """Were they, the rows of equal documents would be in the same order in both."""
    store = store_of([[[7] * 29]] * 400)
    blocks = make_blocks(store, rows=200, mode="none")
    assert blocks.num_blocks > 1
    plans = [blocks.planner(0, block)() for block in (0, 1)]
    size = min(map(len, plans))
    ranks = [np.argsort(plan.a_start[:size]) for plan in plans]
    # A correlation of independent orders has the deviation 1 / sqrt(size).
    assert abs(np.corrcoef(*ranks)[0, 1]) < 4 / np.sqrt(size)


def test_epochs_are_counted_by_blocks(store: TokenStore) -> None:
    stream = make_stream(store)
    num_blocks, size = stream.blocks.num_blocks, len(stream.plan(2, 1))
    assert stream.num_epochs(Place(2, 1, 0)) == 2 + 1 / num_blocks
    assert stream.num_epochs(Place(2, 1, size)) == pytest.approx(2 + 2 / num_blocks)
    # Also where the plan is no longer in memory.
    stream.take(Place(5), 1000)
    assert stream.num_epochs(Place(2, 1, size // 2)) == 2 + (1 + size // 2 / size) / num_blocks


@pytest.mark.slow
def test_plans_made_ahead_by_a_process_are_those_made_here(
    store: TokenStore, store_on_disk: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(
        streams,
        "begin_ahead",
        lambda job, begin=streams.begin_ahead: begun.append(job) or begin(job),
    )
    monkeypatch.setitem(text_blocks._ROWS_WORTH_A_PROCESS, "exact", 1)
    ahead, inline = make_stream(store_on_disk, rows=200), make_stream(store, rows=200)
    assert ahead.blocks.num_blocks == 2
    assert ahead.blocks.are_made_ahead and not inline.blocks.are_made_ahead
    place = other_place = Place()
    while place.epoch == 0:
        parts, place = ahead.take(place, 150)
        others, other_place = inline.take(other_place, 150)
        assert numbered_rows(parts) == numbered_rows(others)
        for (*_, plan), (*_, other) in zip(parts, others, strict=True):
            assert_same(plan, other)
    # The first is made here, every later one by a process, and only the one that is next.
    assert len(begun) == place.epoch * ahead.blocks.num_blocks + place.block + 1


def test_small_plans_are_made_where_they_are_needed(store_on_disk: TokenStore) -> None:
    assert not make_blocks(store_on_disk, 10_000).are_made_ahead
    assert not make_blocks(store_on_disk, 80).are_made_ahead


def test_an_error_of_a_process_arrives_as_if_it_were_made_here(
    store_on_disk: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(text_blocks._ROWS_WORTH_A_PROCESS, "exact", 1)
    good = make_blocks(store_on_disk, 10_000)
    with pytest.raises(InputError) as inline:
        replace(good, documents=np.arange(1)).planner(1, 0)()
    stream = TrainingStream(good, None, identity={})  # type: ignore[arg-type]
    bad = replace(good, documents=np.arange(1)).planner(1, 0)
    monkeypatch.setattr(streams, "begin_ahead", lambda _, begin=streams.begin_ahead: begin(bad))
    _, place = stream.take(Place(), len(stream.plan(0)))
    with pytest.raises(InputError) as remote:
        stream.take(place, 1)
    assert str(remote.value) == str(inline.value)
    assert remote.value.advice == inline.value.advice


def test_a_place_of_two_numbers_is_refused_with_advice() -> None:
    with pytest.raises(
        InputError, match=r"\[4, 17\] but must be an epoch, a block, a row, a phase"
    ):
        Place.of([4, 17])
