"""Texts to vectors: tokens of a window, sorted by length, through the model, back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bert_pretrain.data.row_files import is_unicode
from bert_pretrain.data.threads import map_ahead
from bert_pretrain.embedding.embedder import Embedder, OnBadRow, Window
from bert_pretrain.embedding.rows import Row
from bert_pretrain.errors import InputError
from bert_pretrain.models.embedding import Pooling, pool
from bert_pretrain.text.literal_text import RowEncoder

ROWS_OF_A_WINDOW = 4096
# Also of the most letters, so that long documents do not fill the memory.
_LETTERS_OF_A_WINDOW = 2**25


class _Encoded(NamedTuple):
    """A window's rows that have tokens, with ids and token types of each, int64 (L,)."""

    rows: list[Row]
    input_ids: list[NDArray[np.int64]]
    token_type_ids: list[NDArray[np.int64]] | None
    num_read: int
    num_cut: int
    bad: list[tuple[Row, str]]


@dataclass(eq=False)
class TextEmbedder(Embedder):
    """Embeds texts by pooling the last layer's states.

    Attributes:
        tokenizer: of the model.
        pooling: see `models.embedding.pool`.
        max_seq_length: tokens of a row, special ones included; longer texts are cut.
    """

    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    max_seq_length: int

    kind: ClassVar[Literal["text", "image"]] = "text"

    @cached_property
    def _encoder(self) -> RowEncoder:
        return RowEncoder(self.tokenizer, max_length=self.max_seq_length)

    def windows(
        self,
        rows: Iterator[Row],
        *,
        batch_size: int,
        on_bad: OnBadRow,
        advance: Callable[[int], object] = lambda _: None,
    ) -> Iterator[Window]:
        """See `Embedder`. A bad row holds no text, or no token."""
        # The tokenizer has threads of its own; this one lets it work beside the model.
        for encoded in map_ahead(self._encode, _divided(rows), num_threads=1, num_ahead=1):
            if encoded.bad and on_bad == "error":
                row, reason = encoded.bad[0]
                raise InputError(
                    f"{row.name} {reason}",
                    advice="repair it, pass another `text_column`, or `on_bad_text` skip",
                )
            advance(len(encoded.bad))
            embeddings = np.empty((0, 0), dtype=np.float32)
            if encoded.rows:
                embeddings = self._embed(encoded, batch_size, advance)
                self._refuse_not_finite(encoded.rows, embeddings)
            skipped = [f"{row.name} {reason}" for row, reason in encoded.bad]
            yield Window(encoded.rows, embeddings, encoded.num_read, encoded.num_cut, skipped)

    def row_of(self, number: int, content: Any) -> Row:
        """Return one of several texts as a row."""
        return Row("the texts", number, content)

    def _encode(self, rows: list[Row]) -> _Encoded:
        bad = [(row, reason) for row in rows if (reason := _why_not(row.content))]
        texts = [row for row in rows if not _why_not(row.content)]
        inputs, num_cut = self._encoder.encode([row.content for row in texts])
        ids = [np.array(row, dtype=np.int64) for row in inputs["input_ids"]]
        bad += [(row, "has no token") for row, own in zip(texts, ids, strict=True) if not len(own)]
        places = [place for place, own in enumerate(ids) if len(own)]
        types = inputs.get("token_type_ids")
        return _Encoded(
            [texts[place] for place in places],
            [ids[place] for place in places],
            None if types is None else [np.array(types[p], dtype=np.int64) for p in places],
            len(rows),
            num_cut,
            bad,
        )

    def _embed(
        self, encoded: _Encoded, batch_size: int, advance: Callable[[int], object]
    ) -> NDArray[np.float32]:
        """Return embeddings in the order of the rows, computed from the longest to the shortest.

        Rows of one batch are then of about one length, and what does not fit into memory shows in
        the first one.
        """
        lengths = np.array([len(row) for row in encoded.input_ids])
        order = np.argsort(-lengths, kind="stable")

        def batches() -> Iterator[dict[str, Tensor]]:
            for first in range(0, len(order), batch_size):
                places = order[first : first + batch_size]
                yield self._batch(encoded, places)
                advance(len(places))

        sorted_embeddings = self._compute(self._forward, batches())
        embeddings = np.empty_like(sorted_embeddings)
        embeddings[order] = sorted_embeddings
        return embeddings

    def _batch(self, encoded: _Encoded, places: NDArray[np.intp]) -> dict[str, Tensor]:
        """Return padded model inputs (B, L) of some rows, on the device.

        Padding stands on the right, whatever the tokenizer's side is: there it moves no position.
        """
        columns = {"input_ids": (encoded.input_ids, self.tokenizer.pad_token_id)}
        if encoded.token_type_ids is not None:
            types = (encoded.token_type_ids, self.tokenizer.pad_token_type_id)
            columns["token_type_ids"] = types
        lengths = np.array([len(encoded.input_ids[place]) for place in places])
        is_real = np.arange(lengths.max()) < lengths[:, None]  # (B, L)
        batch = {"attention_mask": torch.from_numpy(is_real.astype(np.int64))}
        for name, (rows, padding) in columns.items():
            padded = np.full(is_real.shape, padding, dtype=np.int64)
            padded[is_real] = np.concatenate([rows[place] for place in places])
            batch[name] = torch.from_numpy(padded)
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def _forward(self, batch: dict[str, Tensor]) -> Tensor:
        states = self.model(**batch).last_hidden_state
        return pool(states, batch["attention_mask"], self.pooling)


def _divided(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield windows of rows that are not yet embedded."""
    window: list[Row] = []
    num_letters = 0
    for row in rows:
        window.append(row)
        num_letters += len(row.content) if isinstance(row.content, str) else 0
        if len(window) == ROWS_OF_A_WINDOW or num_letters >= _LETTERS_OF_A_WINDOW:
            yield window
            window, num_letters = [], 0
    if window:
        yield window


def _why_not(content: Any) -> str:
    """Return why what a cell holds is no text, "" if it is one."""
    if isinstance(content, str):
        return "" if is_unicode(content) else "holds half a character, as \\ud83d in JSON"
    return f"holds {content!r:.80}, which is not a text"
