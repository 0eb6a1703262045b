"""Minimal pairs: which of two sentences, one of them unacceptable, a model finds more likely.

Pairs of files (`pair_files`) or our own templates, and a model with its tokenizer, enter; scores
and accuracies leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.evaluation.pair_files import LeftOut, MinimalPair
from bert_pretrain.evaluation.pseudo_likelihood import (
    VARIANTS,
    EncodedSentence,
    encode_sentences,
    pseudo_log_likelihoods,
)
from bert_pretrain.evaluation.statistics import Interval, wilson_interval

PAIRS_PER_GROUP = 50  # of our own
_NUM_TRIALS = 16  # pairs on which the error of bfloat16 is measured
_SIGMAS = 3.0


@dataclass(frozen=True)
class PairScores:
    """Scores of N pairs.

    Attributes:
        good: float64 (2, N), pseudo-log-likelihood in nats of the acceptable sentences, a row for
            each of `VARIANTS`.
        bad: float64 (2, N), of the unacceptable ones.
        num_tokens: int64 (2, N), tokens scored of the acceptable sentences and of the others.
        is_rescored: bool (N,), True where bfloat16 was asked for and float32 was used.
        error: root mean square of the error that bfloat16 makes in good - bad, in nats; 0.0 where
            all is float32.
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


def leave_out_unscorable(
    pairs: Sequence[MinimalPair], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> tuple[list[MinimalPair], list[LeftOut]]:
    """Return the pairs that can be scored, and the others.

    A sentence without a token or of more than `max_length` tokens cannot.
    """
    scorable, left_out = [], []
    sentences = encode_sentences(tokenizer, [sentence for pair in pairs for sentence in pair[:2]])
    for number, pair in enumerate(pairs):
        found = [
            _why_unscorable(sentences[2 * number + side], pair, side, max_length) for side in (0, 1)
        ]
        if reason := found[0] or found[1]:
            left_out.append(reason)
        else:
            scorable.append(pair)
    return scorable, left_out


def _why_unscorable(
    sentence: EncodedSentence, pair: MinimalPair, side: int, max_length: int
) -> LeftOut | None:
    if not (sentence.words >= 0).any():
        problem = f"has {pair[side]!r}, of which the tokenizer leaves nothing"
        return LeftOut(pair.source, "a sentence without tokens", problem)
    if len(sentence.input_ids) > max_length:
        problem = f"has {len(sentence.input_ids)} tokens but the model takes {max_length}"
        return LeftOut(pair.source, "a sentence longer than the model takes", problem)
    return None


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
        pairs: at least one, each of which can be scored, see `leave_out_unscorable`.
        bf16: whether to compute in bfloat16. Its error is measured on some pairs, and pairs closer
            than three times that error are scored again in float32.
    """
    sentences = encode_sentences(tokenizer, [sentence for pair in pairs for sentence in pair[:2]])

    def score(rows: NDArray[np.int64], *, bf16: bool) -> NDArray[np.float64]:
        """Return sums (2 variants, N, 2 sentences)."""
        found = pseudo_log_likelihoods(
            model,
            [sentences[2 * row + side] for row in rows for side in (0, 1)],
            mask_token_id=tokenizer.mask_token_id,
            bf16=bf16,
        )
        return found.reshape(len(VARIANTS), len(rows), 2)

    sums = score(np.arange(len(pairs)), bf16=bf16)
    is_rescored = np.zeros(len(pairs), dtype=bool)
    error = 0.0
    if bf16:
        trials = np.unique(np.linspace(0, len(pairs) - 1, _NUM_TRIALS).round().astype(np.int64))
        exact = score(trials, bf16=False)
        error = float(np.sqrt(np.square(np.diff(exact - sums[:, trials], axis=2)).mean()))
        is_rescored |= (np.abs(np.diff(sums, axis=2)[:, :, 0]) < _SIGMAS * error).any(axis=0)
        is_rescored[trials] = False
        sums[:, trials] = exact
        if is_rescored.any():
            sums[:, is_rescored] = score(np.flatnonzero(is_rescored), bf16=False)
        is_rescored[trials] = True
    num_tokens = np.array([(sentence.words >= 0).sum() for sentence in sentences]).reshape(-1, 2).T
    return PairScores(sums[:, :, 0], sums[:, :, 1], num_tokens, is_rescored, error)


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
        num_pairs, num_ties = int(rows.sum()), int((good == bad)[rows].sum())
        num_right = float((good > bad)[rows].sum() + num_ties / 2)
        interval = wilson_interval(num_right, num_pairs)
        return GroupAccuracy(name, num_right / num_pairs, interval, num_pairs, num_ties)

    names = np.array(groups)
    by_group = [judge(name, names == name) for name in dict.fromkeys(groups)]
    return judge("all", np.ones(len(names), dtype=bool)), by_group


# Words that are common both in prose and in documentation.
_THINGS = ("file", "list", "name", "model", "table", "image", "number", "method")
_PLACES = ("group", "page", "set")
_ADJECTIVES = ("new", "small", "different", "valid", "simple", "large")
_PERSONS = ("man", "woman", "boy", "girl", "king", "queen")
_PAST = ("found", "helped", "saw", "called", "lost", "asked", "taught", "hid", "stopped", "changed")
_PARTICIPLES = {
    "given": "give",
    "taken": "take",
    "written": "write",
    "seen": "see",
    "known": "know",
}
_SOME, _NONE = ("everyone", "somebody", "someone"), ("nobody", "no one", "no user")


def template_pairs() -> list[MinimalPair]:
    """Return `PAIRS_PER_GROUP` English pairs of each of six groups, for a look without a download.

    They are this package's own, so their figures do not compare with BLiMP's.
    """
    groups: dict[str, list[MinimalPair]] = {}
    for group, good, bad in _templates():
        groups.setdefault(group, []).append(MinimalPair(good, bad, group, f"template {group}"))
    found = []
    for pairs in groups.values():
        distinct = list(dict.fromkeys(pairs))
        # Evenly spread over all combinations, so that every word is used.
        places = [number * len(distinct) // PAIRS_PER_GROUP for number in range(PAIRS_PER_GROUP)]
        found += [distinct[place] for place in places]
    return found


def _templates() -> Iterator[tuple[str, str, str]]:
    """Yield the group, the good and the bad sentence of every combination of words."""
    group = "subject-verb agreement"
    for thing, adjective in product(_THINGS, _ADJECTIVES):
        yield group, f"the {thing} is {adjective} .", f"the {thing} are {adjective} ."
        yield group, f"the {thing}s are {adjective} .", f"the {thing}s is {adjective} ."
    group = "agreement across a phrase"
    for thing, place, adjective in product(_THINGS, _PLACES, _ADJECTIVES):
        subject = f"the {thing} in the {place}s"
        yield group, f"{subject} is {adjective} .", f"{subject} are {adjective} ."
        subject = f"the {thing}s in the {place}"
        yield group, f"{subject} are {adjective} .", f"{subject} is {adjective} ."
    group = "determiner-noun agreement"
    for thing, adjective in product(_THINGS, _ADJECTIVES):
        yield group, f"we use this {adjective} {thing} .", f"we use this {adjective} {thing}s ."
        yield group, f"we use these {adjective} {thing}s .", f"we use these {adjective} {thing} ."
    group = "reflexive pronoun"
    for number, person in enumerate(_PERSONS):
        # Each form is right as often as wrong, so that its frequency decides nothing.
        good, bad = ("herself", "himself") if number % 2 else ("himself", "herself")
        for verb in _PAST:
            yield group, f"the {person} {verb} {good} .", f"the {person} {verb} {bad} ."
    group = "participle"
    for thing, (good, bad) in product(_THINGS, _PARTICIPLES.items()):
        yield group, f"the {thing} has been {good} .", f"the {thing} has been {bad} ."
        yield group, f"the {thing}s have been {good} .", f"the {thing}s have been {bad} ."
    group = "negative polarity"
    for none, some, participle, thing in product(_NONE, _SOME, _PARTICIPLES, _THINGS):
        for noun in (thing, f"{thing}s"):
            ending = f"has ever {participle} the {noun} ."
            yield group, f"{none} {ending}", f"{some} {ending}"
