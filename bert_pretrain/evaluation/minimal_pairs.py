"""Minimal pairs: which of two sentences, one of them unacceptable, a model finds more likely.

Files of pairs and a model with its tokenizer enter; scores and accuracies leave. A line of a file
is our own {good, bad, group}, or BLiMP's {sentence_good, sentence_bad, UID} (Warstadt et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.data.row_files import read_json_lines
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.language_models import longest_row
from bert_pretrain.evaluation.pseudo_likelihood import (
    EncodedSentence,
    encode_sentences,
    pseudo_log_likelihoods,
)
from bert_pretrain.evaluation.statistics import Interval, wilson_interval

VARIANTS = ("token", "within_word")
_FIELDS = (("good", "bad", "group"), ("sentence_good", "sentence_bad", "UID"))
_NUM_TRIALS = 16  # pairs on which the error of bfloat16 is measured
_SIGMAS = 3.0


class MinimalPair(NamedTuple):
    """An acceptable and an unacceptable sentence, what they test, and where they come from."""

    good: str
    bad: str
    group: str
    source: str


@dataclass(frozen=True)
class PairScores:
    """Scores of N pairs.

    Attributes:
        good: float64 (2, N), pseudo-log-likelihood in nats of the acceptable sentences, a row for
            each of `VARIANTS`.
        bad: float64 (2, N), of the others.
        num_tokens: int64 (2, N), tokens scored of the acceptable sentences and of the others.
        is_rescored: bool (N,), True where bfloat16 was too coarse to decide and float32 was used.
        error: standard deviation of good - bad in bfloat16 against float32, nats; 0.0 where all is
            float32.
    """

    good: NDArray[np.float64]
    bad: NDArray[np.float64]
    num_tokens: NDArray[np.int64]
    is_rescored: NDArray[np.bool_]
    error: float


class GroupAccuracy(NamedTuple):
    """The share of a group's pairs that is judged right (a tie is half), and its interval."""

    group: str
    accuracy: float
    interval: Interval
    num_pairs: int
    num_ties: int


def read_pairs(path: Path) -> list[MinimalPair]:
    """Read pairs from a .jsonl file, or a .jsonl.gz; the group defaults to the file's name.

    Raises:
        InputError: the file cannot be read, or a line holds no pair.
    """
    default_group = path.name.split(".jsonl")[0]
    pairs = [
        _as_pair(row, f"{path}, line {number},", default_group)
        for number, row in read_json_lines(path, parameter="pairs_file")
    ]
    if not pairs:
        raise InputError(f"{path} holds no pair", advice="pass another `pairs_file`")
    return pairs


def _as_pair(row: dict[str, Any], place: str, default_group: str) -> MinimalPair:
    names = next((names for names in _FIELDS if names[0] in row and names[1] in row), None)
    if names is None:
        raise InputError(
            f"{place} has {', '.join(map(repr, row)) or 'nothing'} but must be an object with "
            "'good' and 'bad', or BLiMP's 'sentence_good' and 'sentence_bad'",
            advice="repair `pairs_file`",
        )
    good, bad, group = names
    pair = MinimalPair(row[good], row[bad], str(row.get(group, default_group)), place)
    unusable = [text for text in pair[:2] if not isinstance(text, str) or not text.strip()]
    if unusable:
        problem = f"{unusable[0]!r} for a sentence but must have text"
    elif pair.good == pair.bad:
        problem = f"{pair.good!r} twice but its sentences must differ"
    else:
        return pair
    raise InputError(f"{place} has {problem}", advice="repair `pairs_file`")


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[MinimalPair],
    *,
    bf16: bool,
) -> PairScores:
    """Score both sentences of every pair.

    Args:
        model: a masked language model in evaluation mode.
        tokenizer: the model's.
        pairs: at least one.
        bf16: whether to compute in bfloat16. Its error is measured on some pairs, and pairs closer
            than three standard deviations of it are scored again in float32.

    Raises:
        InputError: a sentence is too long, has a [MASK], or has no token.
    """
    sentences = encode_sentences(tokenizer, [sentence for pair in pairs for sentence in pair[:2]])
    _check_sentences(sentences, pairs, tokenizer.mask_token_id, longest_row(model))

    def score(
        rows: NDArray[np.int64], *, bf16: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return sums (2 variants, N, 2 sentences) and numbers of tokens (N, 2)."""
        chosen = [sentences[2 * row + side] for row in rows for side in (0, 1)]
        found = pseudo_log_likelihoods(
            model, chosen, mask_token_id=tokenizer.mask_token_id, bf16=bf16
        )
        sums = np.stack([found.token, found.within_word]).reshape(2, len(rows), 2)
        return sums, found.num_tokens.reshape(len(rows), 2)

    everything = np.arange(len(pairs))
    sums, num_tokens = score(everything, bf16=bf16)
    is_rescored = np.zeros(len(pairs), dtype=bool)
    error = 0.0
    if bf16:
        trials = np.unique(np.linspace(0, len(pairs) - 1, _NUM_TRIALS).round().astype(np.int64))
        exact, _ = score(trials, bf16=False)
        error = float(np.sqrt(np.square(np.diff(exact - sums[:, trials], axis=2)).mean()))
        is_close = np.abs(np.diff(sums, axis=2)[:, :, 0]) < _SIGMAS * error
        is_rescored |= is_close.any(axis=0)
        is_rescored[trials] = False
        sums[:, trials] = exact
        if is_rescored.any():
            sums[:, is_rescored], _ = score(np.flatnonzero(is_rescored), bf16=False)
        is_rescored[trials] = True
    return PairScores(sums[:, :, 0], sums[:, :, 1], num_tokens.T, is_rescored, error)


def _check_sentences(
    sentences: list[EncodedSentence],
    pairs: Sequence[MinimalPair],
    mask_token_id: int,
    max_length: int,
) -> None:
    for number, sentence in enumerate(sentences):
        pair = pairs[number // 2]
        text, length = pair[number % 2], len(sentence.input_ids)
        if mask_token_id in sentence.input_ids:
            problem = f"a [MASK] in {text!r}, but minimal pairs are whole sentences"
        elif not (sentence.words >= 0).any():
            problem = f"{text!r}, of which the tokenizer leaves nothing"
        elif length > max_length:
            problem = f"a sentence of {length} tokens but the model takes {max_length}"
        else:
            continue
        raise InputError(f"{pair.source} has {problem}", advice="change `pairs_file`")


def accuracies(
    groups: Sequence[str], good: NDArray[np.float64], bad: NDArray[np.float64]
) -> tuple[GroupAccuracy, list[GroupAccuracy]]:
    """Return the accuracy over all pairs, and that of each group in the order of first appearance.

    Args:
        groups: of N pairs.
        good: float64 (N,), scores of the acceptable sentences; the higher score of a pair wins.
        bad: float64 (N,), of the others.
    """

    def judge(name: str, rows: NDArray[np.bool_]) -> GroupAccuracy:
        num_ties = int((good == bad)[rows].sum())
        num_right = float((good > bad)[rows].sum() + num_ties / 2)
        num_pairs = int(rows.sum())
        return GroupAccuracy(
            name, num_right / num_pairs, wilson_interval(num_right, num_pairs), num_pairs, num_ties
        )

    names = np.array(groups)
    by_group = [judge(name, names == name) for name in dict.fromkeys(groups)]
    return judge("all", np.ones(len(names), dtype=bool)), by_group
