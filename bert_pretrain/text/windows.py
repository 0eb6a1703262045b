"""Cut documents into windows of a token budget, for `pairs` to pair.

All documents advance by one window at a time, so the Python loop runs once per window of the
longest document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, integers, uniform
from bert_pretrain.text.prepared import TokenStore

# int64 (N,) each: start and length of A, start and length of B, next_sentence_label.
Columns: TypeAlias = tuple[NDArray[np.int64], ...]

IS_NEXT, IS_RANDOM, NO_PAIR = 0, 1, -100  # values of next_sentence_label

_MAX_GROUP_SENTENCES = 2**22  # 32 MiB of positions at a time, however large the corpus


@dataclass(frozen=True)
class Outline:
    """Where the sentences of some documents start.

    Attributes:
        starts: int64 (S,), ascending global token positions of sentences; each run of documents is
            followed by the position of its end.
        document: int64 (D,), global indices of the selected documents.
        first: int64 (D,), index into `starts` of the first sentence of each selected document.
        end: int64 (D,), index into `starts` of the position after its last sentence.
    """

    starts: NDArray[np.int64]
    document: NDArray[np.int64]
    first: NDArray[np.int64]
    end: NDArray[np.int64]

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each selected document, int64 (D,)."""
        return self.starts[self.end] - self.starts[self.first]

    def bounds(self, place: int) -> NDArray[np.int64]:
        """Return where the sentences of a selected document start, and its end."""
        return self.starts[self.first[place] : self.end[place] + 1]

    @classmethod
    def join(cls, parts: Sequence[Outline]) -> Outline:
        """Return the outline of the documents of all parts."""
        before = running_total(np.array([len(part.starts) for part in parts])).tolist()
        return cls(
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.document for part in parts]),
            np.concatenate([p.first + shift for p, shift in zip(parts, before, strict=False)]),
            np.concatenate([p.end + shift for p, shift in zip(parts, before, strict=False)]),
        )


@dataclass(frozen=True)
class EpochSettings:
    """What the windows and pairs of an epoch depend on; `budget` is the most tokens of A and B."""

    budget: int
    short_seq_prob: float
    seed: int
    epoch: int


@dataclass(frozen=True)
class Windows:
    """Windows as columns of length N: A, then B directly after it.

    Attributes:
        document: int64, global index of the document.
        index: int64, number of the window within its document and epoch.
        a_start: int64, global token position of A.
        a_length: int64, tokens of A, at least 1.
        b_length: int64, tokens of B, 0 where nothing is paired.
        ends_sentence: bool, whether B ends where a sentence ends.
    """

    document: NDArray[np.int64]
    index: NDArray[np.int64]
    a_start: NDArray[np.int64]
    a_length: NDArray[np.int64]
    b_length: NDArray[np.int64]
    ends_sentence: NDArray[np.bool_]

    @property
    def b_start(self) -> NDArray[np.int64]:
        """Global token position of B, int64 (N,)."""
        return self.a_start + self.a_length

    @classmethod
    def chain(cls, parts: list[Windows]) -> Windows:
        """Join parts in the order of documents, whatever the shards that they come from."""
        empty = np.zeros(0, dtype=np.int64)
        parts = [cls(empty, empty, empty, empty, empty, empty.astype(np.bool_)), *parts]
        columns = {
            entry.name: np.concatenate([getattr(part, entry.name) for part in parts])
            for entry in fields(cls)
        }
        order = np.lexsort((columns["index"], columns["document"]))
        return cls(**{name: column[order] for name, column in columns.items()})


def shards_of(
    store: TokenStore, documents: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the shards that hold `documents` (sorted global indices): number, indices within it."""
    bounds = np.searchsorted(documents, store.document_bounds)
    for number in np.flatnonzero(np.diff(bounds)).tolist():
        wanted = documents[bounds[number] : bounds[number + 1]].astype(np.int64, copy=False)
        yield number, wanted - store.document_bounds[number]


def outlines(store: TokenStore, documents: NDArray[np.int64]) -> Iterator[Outline]:
    """Yield the outlines of `documents` (sorted global indices), those of many shards at a time.

    Of shards without any of them nothing is read.
    """
    parts: list[Outline] = []
    num_starts = 0  # long parts make few, long arrays
    for number, wanted in shards_of(store, documents):
        shard = store.shards[number]
        sentences = running_total(shard.sentences_per_document)
        begin, stop = int(sentences[wanted[0]]), int(sentences[wanted[-1] + 1])
        starts = shard.first_token + running_total(shard.sentence_lengths[:stop])[begin:]
        first, end = sentences[wanted] - begin, sentences[wanted + 1] - begin
        parts.append(Outline(starts, wanted + shard.first_document, first, end))
        num_starts += len(starts)
        if num_starts > _MAX_GROUP_SENTENCES:
            yield Outline.join(parts)
            parts, num_starts = [], 0
    if parts:
        yield Outline.join(parts)


def sentence_ends(store: TokenStore, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which global token positions (N,) are the position after a sentence's last token."""
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    ends = np.zeros(len(positions), dtype=np.bool_)
    bounds = np.searchsorted(ordered, store.token_bounds, side="right")
    for number in np.flatnonzero(np.diff(bounds)).tolist():
        low, high = bounds[number], bounds[number + 1]
        shard = store.shards[number]
        starts = running_total(shard.sentence_lengths) + shard.first_token
        found = starts[np.searchsorted(starts, ordered[low:high])]
        ends[order[low:high]] = found == ordered[low:high]
    return ends


def common_length(
    store: TokenStore,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    length: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the largest lengths at which two segments both end with a sentence or both do not.

    Args:
        store: the prepared corpus.
        first: int64 (P,), global token positions where segments start.
        second: int64 (P,), where those start that each is compared with.
        length: int64 (P,), most tokens of both.

    Returns:
        int64 (P,), at most `length`; 0 where there is none.
    """
    length = length.copy()
    unlike = np.arange(len(length))
    while len(unlike):
        ends_first = sentence_ends(store, first[unlike] + length[unlike])
        ends_second = sentence_ends(store, second[unlike] + length[unlike])
        unlike = unlike[ends_first != ends_second]
        length[unlike] -= 1
        unlike = unlike[length[unlike] > 0]
    return length


def cut_pairs(outline: Outline, settings: EpochSettings, *, is_even: bool = False) -> Windows:
    """Cut every document of at least two sentences into windows of two parts, A and B.

    A window starts with a sentence and takes as many tokens as its target (see `_targets`) allows;
    B starts with one of the sentences that start inside it, drawn uniformly. The next window starts
    with the sentence that the end of this one cuts. Two cases need their own lengths:

    - No sentence starts inside the window, because its first sentence reaches the target: A is the
      tail of that sentence, B the head of the one after it, at most half the target.
    - Only the document's last sentence is left: the closing window starts one sentence earlier.

    In both, A or B is clipped to keep the other one whole, so that every token of a sentence
    shorter than the budget is in some window. A longer sentence may lose the part that cannot stand
    in the budget beside another sentence.

    With `is_even` neither part is favoured: B starts with the sentence whose start is nearest to a
    place drawn uniformly. And A is not clipped, so that it begins with a sentence in any case and
    may exceed the budget: the caller cuts it at its end.
    """
    starts = outline.starts
    live = np.flatnonzero(outline.end - outline.first >= 2)
    document, end, num_tokens = outline.document[live], outline.end[live], outline.num_tokens[live]
    sentence, closing = outline.first[live], np.zeros(len(live), dtype=np.bool_)
    parts: list[Windows] = []
    index = 0
    while len(document):
        target = _targets(settings, document, num_tokens, index)
        begin, limit = starts[sentence], starts[end]
        stop = np.minimum(begin + target, limit)
        num_splits = np.searchsorted(starts, stop) - 1 - sentence  # starts strictly inside
        keys = (settings.seed, settings.epoch, Purpose.SPLIT, document, index)
        if is_even:
            split = _nearest_start(starts, integers(begin + 1, stop, *keys))
            split = np.clip(split, sentence + 1, sentence + np.maximum(num_splits, 1))
        else:
            split = sentence + 1 + integers(0, np.maximum(num_splits, 1), *keys)

        forced = closing | (num_splits == 0)
        split[forced] = sentence[forced] + 1
        b_start = starts[split]
        a_length, b_length = b_start - begin, stop - b_start
        a_length[forced], b_length[forced] = _forced_lengths(
            first=a_length[forced],
            rest=(limit - b_start)[forced],
            target=target[forced],
            closing=closing[forced],
            budget=settings.budget,
        )
        stop = b_start + b_length
        # The sentence that `stop` cuts, or that starts there.
        following = np.searchsorted(starts, stop, side="right") - 1
        number = np.full(len(document), index, dtype=np.int64)
        ends_sentence = starts[following] == stop
        if is_even:
            a_length = b_start - begin
        a_start = b_start - a_length
        parts.append(Windows(document, number, a_start, a_length, b_length, ends_sentence))
        live = np.flatnonzero((stop < limit) & ~closing)
        document, end, num_tokens = document[live], end[live], num_tokens[live]
        closing = following[live] == end - 1
        sentence = following[live] - closing
        index += 1
    return Windows.chain(parts)


def _nearest_start(starts: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of the start that is nearest to each position (N,), the later one if two."""
    later = np.searchsorted(starts, position)
    return later - (position - starts[later - 1] < starts[later] - position)


def cut_single(outline: Outline, settings: EpochSettings) -> Windows:
    """Cut every document into windows of one segment, as long as `_targets` says, without a gap."""
    document, num_tokens = outline.document, outline.num_tokens
    start, limit = outline.starts[outline.first], outline.starts[outline.end]
    parts: list[Windows] = []
    index = 0
    while len(document):
        length = np.minimum(_targets(settings, document, num_tokens, index), limit - start)
        number, no_b = np.full_like(length, index), np.zeros_like(length)
        parts.append(Windows(document, number, start, length, no_b, no_b.astype(np.bool_)))
        live = np.flatnonzero(start + length < limit)
        document, num_tokens, limit = document[live], num_tokens[live], limit[live]
        start = (start + length)[live]
        index += 1
    return Windows.chain(parts)


def _targets(
    settings: EpochSettings, document: NDArray[np.int64], num_tokens: NDArray[np.int64], index: int
) -> NDArray[np.int64]:
    """Draw the token target (N,) of window number `index` of each document.

    The target is the budget or, with probability `short_seq_prob`, uniform in [2, budget]. The
    first window of a document longer than the budget is uniform between what full windows leave
    over and the budget: windows lie elsewhere in another epoch, and are about as few. In a long
    document the cuts of two epochs meet again after some windows, until the next short one.
    """
    keys = (settings.seed, settings.epoch)
    budget = settings.budget
    target = np.full(len(document), budget, dtype=np.int64)
    if index == 0:
        left_over = np.where(num_tokens > budget, (num_tokens - 1) % budget + 1, budget)
        least = np.maximum(left_over, 2)
        target = integers(least, budget + 1, *keys, Purpose.FIRST_TARGET, document)
    is_short = uniform(*keys, Purpose.IS_SHORT, document, index) < settings.short_seq_prob
    short = document[is_short]
    target[is_short] = integers(2, budget + 1, *keys, Purpose.SHORT_TARGET, short, index)
    return target


def _forced_lengths(
    *,
    first: NDArray[np.int64],
    rest: NDArray[np.int64],
    target: NDArray[np.int64],
    closing: NDArray[np.bool_],
    budget: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lengths of A and B where B has to begin right after a window's first sentence.

    Args:
        first: tokens of that sentence.
        rest: tokens of the document after it.
        target: token target of the window.
        closing: True where the last sentence is kept whole rather than the window's first.
        budget: largest sum of the two lengths.
    """
    head = np.minimum(rest, target // 2)
    head = np.where(first < budget, np.minimum(head, budget - first), head)
    closing_head = np.where(rest < budget, rest, budget - np.minimum(first, budget // 2))
    b_length = np.where(closing, closing_head, head)
    return np.minimum(first, budget - b_length), b_length


def running_total(lengths: NDArray[Any]) -> NDArray[Any]:
    """Return 0 and the sums of the first 1, 2, ... numbers, (N + 1,), int64 or float64."""
    is_float = lengths.dtype.kind == "f"
    total = np.zeros(len(lengths) + 1, dtype=np.float64 if is_float else np.int64)
    np.cumsum(lengths, out=total[1:])
    return total
