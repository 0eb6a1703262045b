"""Minimal pairs as they are read, and rows that are none.

Files of pairs enter; pairs leave, and which rows were left out, each for a named reason: one bad
row among thousands ends no evaluation, but a file of bad rows is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bert_pretrain.data.json_files import parse_object
from bert_pretrain.data.row_files import is_unicode, read_lines
from bert_pretrain.errors import InputError

# Of ours, and of BLiMP (Warstadt et al. 2020).
_FIELDS = (("good", "bad", "group"), ("sentence_good", "sentence_bad", "UID"))
_NAMED_ROWS = 5


class MinimalPair(NamedTuple):
    """An acceptable and an unacceptable sentence, what they test, and where they come from."""

    good: str
    bad: str
    group: str
    source: str


class LeftOut(NamedTuple):
    """A row that is not judged.

    Attributes:
        source: file and line.
        reason: the same words for all rows left out for it; they follow "rows with".
        problem: of this row; it follows the source.
    """

    source: str
    reason: str
    problem: str


def read_pairs(path: Path) -> tuple[list[MinimalPair], list[LeftOut]]:
    """Read pairs from a .jsonl file, plain or compressed; the group defaults to the file's name.

    Raises:
        InputError: the file cannot be read, holds no pair, or most of its rows are bad in the same
            way.
    """
    default_group = path.name.split(".jsonl")[0]
    pairs: list[MinimalPair] = []
    left_out: list[LeftOut] = []
    for number, line in enumerate(read_lines(path, parameter="pairs_file"), start=1):
        if line.strip():
            found = _as_pair(line, f"{path}, line {number}", default_group)
            if isinstance(found, MinimalPair):
                pairs.append(found)
            else:
                left_out.append(found)
    if not pairs and not left_out:
        raise InputError(f"{path} holds no pair", advice="pass another `pairs_file`")
    refuse_mostly_bad(left_out, len(pairs))
    return pairs, left_out


def _as_pair(line: str, source: str, default_group: str) -> MinimalPair | LeftOut:
    try:
        row = parse_object(line)
    except ValueError as error:
        return LeftOut(source, "no JSON object", str(error))
    names = next((names for names in _FIELDS if names[0] in row and names[1] in row), None)
    if names is None:
        problem = (
            f"has {', '.join(map(repr, row)) or 'nothing'} but must be an object with 'good' and "
            "'bad', or BLiMP's 'sentence_good' and 'sentence_bad'"
        )
        return LeftOut(source, "other fields", problem)
    good, bad, group = names
    pair = MinimalPair(row[good], row[bad], str(row.get(group, default_group)), source)
    for text in pair[:2]:
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            problem = f"has {text!r} for a sentence but must have text"
            return LeftOut(source, "a sentence without text", problem)
    if pair.good == pair.bad:  # a tie would be no verdict on the model
        problem = f"has {pair.good!r} twice but its sentences must differ"
        return LeftOut(source, "the same sentence twice", problem)
    return pair


def refuse_mostly_bad(left_out: Sequence[LeftOut], num_pairs: int) -> None:
    """Raise `InputError` if no pair is left, or more than half of all are left out for one reason.

    Args:
        left_out: rows that are none, of a file or of all.
        num_pairs: those that are left.
    """
    if not left_out:
        return
    total = num_pairs + len(left_out)
    [(reason, count)] = Counter(row.reason for row in left_out).most_common(1)
    if num_pairs and count <= total / 2:
        return
    example = next(row for row in left_out if row.reason == reason)
    raise InputError(
        f"{example.source}, {example.problem}; so do {count:,} of {total:,} rows",
        advice="repair `pairs_file` or pass another one",
    )


def describe_left_out(left_out: Sequence[LeftOut], num_pairs: int) -> str:
    """Return a sentence that counts and names the rows that were left out."""
    by_reason: dict[str, list[str]] = {}
    for row in left_out:
        by_reason.setdefault(row.reason, []).append(row.source)
    parts = [
        f"{len(sources):,} with {reason} ("
        + "; ".join(sources[:_NAMED_ROWS] + ["..."] * (len(sources) > _NAMED_ROWS))
        + ")"
        for reason, sources in by_reason.items()
    ]
    return f"left out of {num_pairs + len(left_out):,} rows: {', '.join(parts)}"
