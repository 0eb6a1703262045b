"""Text as data: nothing that a document says speaks to the machine.

A document may hold `[MASK]` or `</s>` as letters: a manual of this package does. A tokenizer takes
them for its own special tokens and puts their ids inside a segment. Here they are cut like any
other text. Special tokens that somebody added beside those of the machine (`<speaker>`, `[E1]`)
stand for something in the text, and stay one piece.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bert_pretrain.text.tokenizers import bare_backend, role_names

# Model inputs, and what an encoding calls them.
_COLUMNS = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}


def protected_token_ids(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Return the sorted ids of special tokens that a text may hold: those without a role, (S,).

    They are never hidden, nor shown in place of another token.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = added.union(tokenizer.all_special_tokens) - role_names(tokenizer)
    return np.array(sorted(tokenizer.convert_tokens_to_ids(list(names))), dtype=np.int64)


def literal_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Return a copy of the Rust tokenizer, with all its ids, to which names of roles are letters.

    A special token has its name also in the vocabulary, where a model that looks up whole words or
    pieces would find it; so it gets another name, which no text contains.
    """
    state = json.loads(bare_backend(tokenizer).to_str())
    secret = secrets.token_hex(16)
    names = {name: f"{secret}-{n}" for n, name in enumerate(sorted(role_names(tokenizer)))}
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model: dict[str, Any] = state["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in vocabulary.items()}
    else:  # of a unigram model, with scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if (unknown := model.get("unk_token")) is not None:
        model["unk_token"] = names.get(unknown, unknown)
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            (first, second)
            for first, second in model["merges"]
            if names.keys().isdisjoint((first, second, first + second.removeprefix(prefix)))
        ]
    return Tokenizer.from_str(json.dumps(state))


def encode_with_masks(
    tokenizer: PreTrainedTokenizerFast, text: str, *, marks: Sequence[str]
) -> list[int]:
    """Return the ids of a text without special tokens, but for a mask token at each of `marks`."""
    backend = literal_backend(tokenizer)
    # By its name there it takes the spaces around it away, or leaves them, as it always does.
    mask = str(backend.id_to_token(tokenizer.mask_token_id))
    marked = re.sub("|".join(map(re.escape, marks)), lambda _: mask, text)
    return backend.encode(marked, add_special_tokens=False).ids


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[str],
    second: Sequence[str] | None,
    *,
    max_length: int,
) -> dict[str, list[list[int]]]:
    """Return the model inputs of texts or pairs, as the tokenizer returns them of harmless text.

    Args:
        tokenizer: of the model. One that is not fast takes its own names for letters only if it has
            no special tokens of somebody else.
        first: N texts.
        second: the other halves of N pairs.
        max_length: most tokens of a row; of a pair the longer text is cut.
    """
    return RowEncoder(tokenizer, max_length=max_length).encode(first, second).inputs


class EncodedRows(NamedTuple):
    """Model inputs of N rows by name, and how many of the rows were cut."""

    inputs: dict[str, list[list[int]]]
    num_cut: int


class RowEncoder:
    """Encodes texts or pairs, as `encode_rows` does, as often as asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        """See the arguments of `encode_rows`."""
        self._tokenizer, self._max_length = tokenizer, max_length
        self._backend: Tokenizer | None = None
        if tokenizer.is_fast:
            self._backend = literal_backend(tokenizer)
            self._backend.enable_truncation(max_length, direction=tokenizer.truncation_side)

    def encode(self, first: Sequence[str], second: Sequence[str] | None = None) -> EncodedRows:
        """Return the model inputs of texts, or of the pairs that they make with others."""
        if self._backend is None:
            return self._encode_slowly(first, second)
        texts = list(first) if second is None else list(zip(first, second, strict=True))
        encodings = self._backend.encode_batch(texts)
        inputs = {
            name: [getattr(encoding, column) for encoding in encodings]
            for name, column in _COLUMNS.items()
            if name in self._tokenizer.model_input_names
        }
        return EncodedRows(inputs, sum(bool(encoding.overflowing) for encoding in encodings))

    def _encode_slowly(self, first: Sequence[str], second: Sequence[str] | None) -> EncodedRows:
        how: dict[str, Any] = {
            "split_special_tokens": len(protected_token_ids(self._tokenizer)) == 0,
            "verbose": False,
        }
        inputs = dict(
            self._tokenizer(first, second, truncation=True, max_length=self._max_length, **how)
        )
        num_cut = 0
        for place, row in enumerate(inputs["input_ids"]):
            if len(row) >= self._max_length:
                whole = self._tokenizer(first[place], second and second[place], **how)
                num_cut += len(whole["input_ids"]) > self._max_length
        return EncodedRows(inputs, num_cut)
