"""Epochs of a large corpus in blocks of documents, so that no plan is over all of it.

Documents and settings enter; for every block the planner of its rows leaves, for the loader. The
documents are cut once into pieces, runs of neighbours of about equal size. An epoch is the pieces
in a random order of its own, and a block is the next few hundred of them: pairs are matched and
rows are mixed within it. So a block is a sample of the whole corpus, other in every epoch; its text
lies in few places of the disk; and to plan it takes seconds and a few hundred megabytes however
large the corpus is, unless it is of few huge documents: a piece has one at least, and a block has
16 pieces. A corpus that fits in one block is planned as a whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.data.stream import first_row
from bert_pretrain.text.layout import BERT_COUNTS, SpecialCounts
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch, refuse_unpairable
from bert_pretrain.text.prepared import PreparedCorpus, TokenStore
from bert_pretrain.text.windows import running_total, shards_of

# Rows of a block, as estimated: planned in 2 to 3 seconds and at most 300 MB, however large the
# corpus (benchmarks/epoch_planning.py). As to quality a sixtieth would do: next-sentence accuracy
# was 0.3 to 0.5 points lower with blocks of 4,096 rows than with one plan, and not measurably with
# 16,384 (benchmarks/block_quality.py).
ROWS_PER_BLOCK: dict[PairMode, int] = {
    "exact": 2**20,
    "sop": 2**20,
    "none": 2**20,
    "google": 2**18,
}
# A block is a sample of so many places, each some thousand rows long.
PIECES_PER_BLOCK = 256
# Fewer of them would be too few documents to pair, where each is longer than a piece should be.
MIN_PIECES_PER_BLOCK = 16
# Rows whose plan takes about as long as the start of a process, half a second. Where there are
# several blocks, each has as many.
_ROWS_WORTH_A_PROCESS: dict[PairMode, int] = {
    "exact": 2**18,
    "sop": 2**18,
    "none": 2**19,
    "google": 2**16,
}


@dataclass(frozen=True)
class TextBlocks:
    """The blocks of every epoch over some documents; for the settings see `plan_epoch`.

    Attributes:
        store: the prepared corpus.
        documents: int64 (D,), sorted global indices of the documents of one split.
        max_seq_length: tokens of a row.
        short_seq_prob: probability of a shorter one.
        pair_mode: how rows are made of documents.
        seed: of the run.
        rows_per_block: what is planned at once, as estimated; 0 = as `ROWS_PER_BLOCK` says.
        same_document_partners: whether pairs may be of distant places of one document.
        which: what to call the documents in a message.
        num_special_tokens: of a row.
    """

    store: TokenStore
    documents: NDArray[np.int64]
    max_seq_length: int
    short_seq_prob: float
    pair_mode: PairMode
    seed: int
    rows_per_block: int = 0
    same_document_partners: bool = False
    which: str = "given"
    num_special_tokens: SpecialCounts = BERT_COUNTS

    @property
    def block_size(self) -> int:
        """Rows planned at once, as estimated."""
        return self.rows_per_block or ROWS_PER_BLOCK[self.pair_mode]

    @property
    def num_blocks(self) -> int:
        """Blocks of every epoch, at least 1."""
        num_pieces = len(self._bounds) - 1
        wanted = -(-int(self.num_rows) // self.block_size)
        return max(1, min(wanted, num_pieces // MIN_PIECES_PER_BLOCK))

    @property
    def are_made_ahead(self) -> bool:
        """Whether a plan takes longer than to start a process, which maps the corpus by itself."""
        num_rows = self.num_rows / self.num_blocks
        return self.store.path is not None and num_rows >= _ROWS_WORTH_A_PROCESS[self.pair_mode]

    def planner(self, epoch: int, block: int) -> Callable[[], EpochPlan]:
        """Return what makes the plan of a block, a pure function that can be pickled.

        It raises the `InputError` of `plan_epoch` where the documents allow no pairs. One of
        several blocks may have none, as long as the documents of all of them could.

        Raises:
            InputError: of several blocks there is none that pairs could be made of.
        """
        is_whole = self.num_blocks == 1
        if not is_whole:
            self.check()
        return partial(
            plan_epoch,
            self.store,
            self.documents_of(epoch, block),
            max_seq_length=self.max_seq_length,
            short_seq_prob=self.short_seq_prob,
            pair_mode=self.pair_mode,
            seed=self.seed,
            epoch=epoch,
            first_row=first_row(block),
            num_special_tokens=self.num_special_tokens,
            same_document_partners=self.same_document_partners,
            needs_pairs=is_whole,
            which=self.which,
        )

    def check(self) -> None:
        """Raise `InputError` if there are no documents, or none that pairs could be made of."""
        refuse_unpairable(
            self.store,
            self.documents,
            self.pair_mode,
            same_document_partners=self.same_document_partners,
            which=self.which,
        )

    def documents_of(self, epoch: int, block: int) -> NDArray[np.int64]:
        """Return the documents of a block, sorted; a document is in one block of each epoch."""
        num_blocks, num_pieces = self.num_blocks, len(self._bounds) - 1
        if num_blocks == 1:
            return self.documents
        order = permutation(num_pieces, self.seed, epoch, Purpose.BLOCK_ORDER)
        begin, end = (num_pieces * number // num_blocks for number in (block, block + 1))
        bounds = self._bounds
        pieces = [slice(bounds[i], bounds[i + 1]) for i in np.sort(order[begin:end]).tolist()]
        return np.concatenate([self.documents[piece] for piece in pieces])

    @cached_property
    def num_rows(self) -> float:
        """Rows of an epoch, estimated: as many as its tokens fill, and one for every document.

        The store tells for nothing how many sentences a document has, but not how many tokens.
        """
        shards = shards_of(self.store, self.documents)
        return sum(float(self._rows_of(*shard).sum()) for shard in shards)

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        """Where pieces begin in `documents`, and the end, int64 (P + 1,)."""
        if self.num_rows <= self.block_size:
            return np.array([0, len(self.documents)])
        rows_per_piece = self.block_size / PIECES_PER_BLOCK
        begin, piece, low, found = 0.0, -1, 0, []
        for number, wanted in shards_of(self.store, self.documents):
            begins = begin + running_total(self._rows_of(number, wanted))
            pieces = (begins[:-1] // rows_per_piece).astype(np.int64)
            found.append(low + np.flatnonzero(np.diff(pieces, prepend=piece)))
            begin, piece, low = float(begins[-1]), int(pieces[-1]), low + len(wanted)
        return np.concatenate([*found, [low]])

    def _rows_of(self, shard: int, wanted: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the estimated rows of documents of a shard."""
        sentences = self.store.shards[shard].sentences_per_document[wanted]
        return np.asarray(1 + sentences * self._rows_per_sentence)

    @cached_property
    def _rows_per_sentence(self) -> float:
        num_sentences = sum(len(shard.sentence_lengths) for shard in self.store.shards)
        return self.store.num_tokens / max(1, num_sentences) / self.max_seq_length


def training_blocks(
    corpus: PreparedCorpus,
    *,
    max_seq_length: int,
    short_seq_prob: float,
    pair_mode: PairMode,
    seed: int,
    same_document_partners: bool = False,
    num_special_tokens: SpecialCounts = BERT_COUNTS,
) -> TextBlocks:
    """Return the blocks of rows to train on."""
    return TextBlocks(
        corpus.store,
        corpus.train_documents,
        max_seq_length,
        short_seq_prob,
        pair_mode,
        seed,
        same_document_partners=same_document_partners,
        which="training",
        num_special_tokens=num_special_tokens,
    )


def evaluation_rows(
    store: TokenStore,
    documents: NDArray[np.int64],
    *,
    max_seq_length: int,
    pair_mode: PairMode,
    seed: int,
    same_document_partners: bool = False,
    num_special_tokens: SpecialCounts = BERT_COUNTS,
    max_rows: int = 0,
) -> tuple[EpochPlan, NDArray[np.int64]]:
    """Return the plan of rows to evaluate on, as long as they can be, and those of it to be judged.

    All rows of `documents`, which are held out, are planned at once, unless few of more than a
    block of them are wanted: then a block, which is a sample as those of training are. Judged are
    at most `max_rows` (0 = all), a random subset that is always the same, ascending, int64.

    Raises:
        InputError: the documents allow no pairs.
    """
    block_size = ROWS_PER_BLOCK[pair_mode]
    is_sample_enough = 0 < max_rows <= block_size // 8
    blocks = TextBlocks(
        store,
        documents,
        max_seq_length,
        0.0,
        pair_mode,
        seed,
        block_size if is_sample_enough else sys.maxsize,
        same_document_partners,
        "held-out",
        num_special_tokens,
    )
    plan = blocks.planner(0, 0)()
    order = permutation(len(plan), seed, Purpose.EVALUATION_ROW)
    return plan, np.sort(order[: max_rows or len(order)])
