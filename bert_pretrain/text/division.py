"""Which text is held out, and the cut of long documents between both parts.

Counts of tokens and digests of documents enter, which do not depend on the documents' order. What
is held out is a share of the *tokens*:

- A document that alone is more than half of what is to be held out, and has sentences enough, is
  long. It gives that share of its own sentences, at its beginning or at its end as its digest says:
  one run, cut between two sentences, which becomes a document of its own. So each part holds it
  once, and no sentence is in both.
- Of the others, whole ones are held out in the order of their digests, as long as each brings them
  nearer to that share of their tokens. One that is longer than that share is passed over.

At least two documents of four are held out, and two of four that have two sentences or more, so
that pairs can be formed of both parts; the shortest are added if need be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.unread import document_runs
from bert_pretrain.text.windows import outlines, running_total

# A document of fewer is held out as a whole or not at all: its parts would be a few sentences.
_LEAST_SENTENCES_TO_CUT = 32
_LEAST_SENTENCES_HELD_OUT = 2


@dataclass(frozen=True)
class Division:
    """What is held out of some documents.

    Attributes:
        whole: int64 (W,), sorted indices of documents that are held out as they are.
        cut: int64 (C,), sorted indices of documents to be cut in two.
        first_part: int64 (C,), sentences of the first part of each of these.
        is_last_held_out: bool (C,), whether the second part is held out, not the first.
        held_out_share: float64 (C,), share of its tokens that is held out.
    """

    whole: NDArray[np.int64]
    cut: NDArray[np.int64]
    first_part: NDArray[np.int64]
    is_last_held_out: NDArray[np.bool_]
    held_out_share: NDArray[np.float64]

    @property
    def held_out(self) -> NDArray[np.int64]:
        """Sorted indices of the held-out documents, int64, once the cut ones are two each."""
        moved = self.whole + np.searchsorted(self.cut, self.whole)
        parts = self.cut + np.arange(len(self.cut)) + self.is_last_held_out
        return np.sort(np.concatenate([moved, parts]))

    def held_out_sum(self, sizes: NDArray[np.int64]) -> int:
        """Return how much of some sizes of the uncut documents, (D,), is held out, rounded."""
        return round(float(sizes[self.whole].sum() + self.held_out_share @ sizes[self.cut]))


def divide(store: TokenStore, digests: list[bytes], validation_share: float) -> Division:
    """Choose what is held out; see the module.

    Args:
        store: all documents.
        digests: of each, of the seed and its text.
        validation_share: share of the tokens to hold out, in [0, 0.5).
    """
    none = np.zeros(0, dtype=np.int64)
    if validation_share == 0:
        return Division(none, none, none, none.astype(np.bool_), none.astype(np.float64))
    documents = np.arange(store.num_documents, dtype=np.int64)
    num_tokens = document_runs(store, documents).lengths
    num_sentences = np.concatenate([shard.sentences_per_document for shard in store.shards])
    is_long = num_tokens > validation_share * store.num_tokens / 2
    is_long &= num_sentences >= _LEAST_SENTENCES_TO_CUT
    cut, others = np.flatnonzero(is_long), np.flatnonzero(~is_long)
    others = np.array(sorted(others.tolist(), key=digests.__getitem__), dtype=np.int64)
    whole = _choose(num_tokens[others], validation_share)
    for of_sentences, of_few_documents in ((2, 0), (1, 1)):
        usable = np.flatnonzero(num_sentences[others] >= of_sentences)
        # What is cut is in both parts.
        least = 2 if len(usable) + 2 * len(cut) >= 4 else of_few_documents
        missing = least - len(cut) - len(np.intersect1d(whole, usable))
        if missing > 0:
            more = np.setdiff1d(usable, whole)
            more = more[np.argsort(num_tokens[others[more]], kind="stable")]
            whole = np.concatenate([whole, more[:missing]])
    is_last = np.array([digests[number][-1] % 2 == 1 for number in cut.tolist()], dtype=np.bool_)
    first_part, held_out_share = _cut_in_two(store, cut, is_last, validation_share)
    return Division(np.sort(others[whole]), cut, first_part, is_last, held_out_share)


def _choose(num_tokens: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Return which of some documents, in this order, hold about a share of their tokens."""
    wanted = share * int(num_tokens.sum())
    chosen: list[int] = []
    held_out = 0
    for place in range(len(num_tokens)):  # of many documents, the first few
        count = int(num_tokens[place])
        if count > wanted:
            continue
        if held_out + count / 2 >= wanted:
            break
        chosen.append(place)
        held_out += count
    return np.array(chosen, dtype=np.int64)


def _cut_in_two(
    store: TokenStore, cut: NDArray[np.int64], is_last: NDArray[np.bool_], share: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return `first_part` and `held_out_share` of a division."""
    first_part: list[int] = []
    held_out: list[float] = []
    for outline in outlines(store, cut):
        for place in range(len(outline.document)):
            ends = outline.bounds(place) - outline.bounds(place)[0]
            wanted = share * int(ends[-1])
            if is_last[len(first_part)]:
                number = int(np.searchsorted(ends, ends[-1] - wanted, side="right")) - 1
            else:
                number = int(np.searchsorted(ends, wanted))
            most = len(ends) - 1 - _LEAST_SENTENCES_HELD_OUT
            number = min(max(number, _LEAST_SENTENCES_HELD_OUT), most)
            of_first = float(ends[number] / ends[-1])
            held_out.append(1 - of_first if is_last[len(first_part)] else of_first)
            first_part.append(number)
    return np.array(first_part, dtype=np.int64), np.array(held_out, dtype=np.float64)


def write_divided(source: Path, target: Path, division: Division) -> None:
    """Copy the Arrow file of a corpus, a record batch at a time, with its long documents cut."""
    with (
        pa.memory_map(str(source)) as mapped,
        pa.ipc.open_stream(mapped) as reader,
        pa.ipc.new_stream(str(target), reader.schema) as writer,
    ):
        first_document = 0
        for batch in reader:
            writer.write_batch(_cut_batch(batch, first_document, division))
            first_document += batch.num_rows


def _cut_batch(batch: pa.RecordBatch, first_document: int, division: Division) -> pa.RecordBatch:
    """Return a record batch in which some documents, rows of lists, are two."""
    bounds = [first_document, first_document + batch.num_rows]
    chosen = slice(*np.searchsorted(division.cut, bounds).tolist())
    rows = division.cut[chosen] - first_document
    if not len(rows):
        return batch
    sentences = batch.column("sentence_lengths")
    at_sentence = sentences.offsets.to_numpy()[rows] + division.first_part[chosen]
    ends = running_total(sentences.values.to_numpy())
    first_token = batch.column("input_ids").offsets.to_numpy()[rows]
    at_token = first_token + ends[at_sentence] - ends[sentences.offsets.to_numpy()[rows]]
    columns = []
    for name in batch.schema.names:
        column = batch.column(name)
        at = at_sentence if name == "sentence_lengths" else at_token
        offsets = np.sort(np.concatenate([column.offsets.to_numpy(), at])).astype(np.int32)
        columns.append(pa.ListArray.from_arrays(offsets, column.values, type=column.type))
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
