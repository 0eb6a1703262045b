"""Whether pretraining pays on one's own labels: arms compared by cross-validation, and a verdict.

Labelled rows and encoders enter; accuracies of each fold leave, and what they say of more labels
and of more pretraining. Every row is predicted once, by models that did not see its label.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.sources import Splits
from bert_pretrain.downstream.training import FinetuningRecipe
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import Labels
from bert_pretrain.evaluation.label_efficiency_arms import CurveTask, make_arm
from bert_pretrain.evaluation.statistics import Interval, fold_interval, format_interval

MAX_FOLDS = 5
HALF, ALL = "half", "all"  # shares of the labels that a fold may learn from
_SMALL_GAIN = 0.01  # of accuracy: less is not worth the trouble


class Fold(NamedTuple):
    """Sorted places of the rows to learn from and of those to predict, int64."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Contestant:
    """A way to learn, one of the curve's arms on an encoder.

    Attributes:
        arm: a name of `label_efficiency_arms.ARMS`.
        model: folder or Hub id.
    """

    title: str
    arm: str
    model: str


@dataclass(frozen=True)
class Scores:
    """Accuracies of a contestant by share of the labels, a number for each fold."""

    contestant: Contestant
    by_share: dict[str, list[float]]


def divide(labels: Labels, rows: Sequence[bytes], names: Sequence[str], *, seed: int) -> list[Fold]:
    """Return up to five folds, class by class at random; equal rows are all in one.

    Args:
        labels: class numbers (N,).
        rows: what each row says, or a digest of it.
        names: of the classes.
        seed: of the draw.

    Raises:
        InputError: a class has one row, which cannot be both learnt from and predicted.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    _, groups = np.unique(np.array(rows, dtype=object), return_inverse=True)
    numbers = np.unique(labels)
    counts = np.array([len(np.unique(groups[labels == number])) for number in numbers])
    if counts.min() < 2:
        name = names[int(numbers[counts.argmin()])]
        raise InputError(
            f"the class {name!r} has a single row, but cross-validation needs two of every class",
            advice="label more rows of it in `train_file`, or take its row out",
        )
    splitter = StratifiedGroupKFold(
        min(MAX_FOLDS, int(counts.min())), shuffle=True, random_state=seed % 2**32
    )
    return [Fold(*places) for places in splitter.split(labels, labels, groups)]


def half_of(places: NDArray[np.int64], labels: Labels, *, seed: int) -> NDArray[np.int64]:
    """Return half of some rows, sorted: of each class half, rounded up."""
    chosen = []
    for number in np.unique(labels[places]):
        members = places[labels[places] == number]
        order = permutation(len(members), seed, Purpose.SPLIT, int(number))
        chosen.append(members[order[: math.ceil(len(members) / 2)]])
    return np.sort(np.concatenate(chosen))


def cross_validate(
    contestants: Sequence[Contestant],
    splits: Splits,
    folds: Sequence[Fold],
    recipe: FinetuningRecipe,
    *,
    seed: int,
    scratch_folder: Path,
    on_scores: Callable[[Scores], None] = lambda scores: None,
) -> list[Scores]:
    """Let every contestant learn from half and from all labels of each fold.

    Args:
        contestants: compared on the same rows.
        splits: the rows, all of them in `train`.
        folds: from `divide`.
        recipe: of those that train.
        seed: of heads, order and halves.
        scratch_folder: for files that a training needs while it runs.
        on_scores: called with the scores of a contestant as soon as all its folds are done.
    """
    labels = splits.rows["train"].labels
    assert labels is not None
    found = []
    for contestant in contestants:
        scores = Scores(contestant, {HALF: [], ALL: []})
        for number, fold in enumerate(folds):
            task = CurveTask(
                model=contestant.model,
                splits=_with_test(splits, fold.test),
                labels=labels,
                recipe=recipe,
                augmentation="none",
                scratch_folder=scratch_folder,
            )
            learn = make_arm(contestant.arm, task)
            half = half_of(fold.train, labels, seed=seed + number)
            for share, places in ((HALF, half), (ALL, fold.train)):
                hits = learn(places, seed + number) == labels[fold.test]
                scores.by_share[share].append(float(hits.mean()))
        on_scores(scores)
        found.append(scores)
    return found


def _with_test(splits: Splits, test: NDArray[np.int64]) -> Splits:
    rows, texts = splits.rows["train"], splits.texts["train"]
    return dataclasses.replace(
        splits,
        rows={"train": rows, "test": rows.subset(test)},
        texts={"train": texts, "test": texts.subset(test)},
    )


def gain(better: Sequence[float], worse: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the mean difference of two rows of fold accuracies and its interval."""
    return fold_interval([a - b for a, b in zip(better, worse, strict=True)])


def verdict(difference: float, interval: Interval | None, *, num_rows: int) -> str:
    """Return whether a gain is one: yes, no, or how many labels it would take to tell."""
    shown = format_interval(difference, interval, sign="+")
    low, high = interval or (-math.inf, math.inf)
    if low > 0:
        return f"yes: {shown}"
    if high < _SMALL_GAIN:
        return f"no: {shown}"
    text = f"cannot be told from {num_rows:,} labels: {shown}"
    if interval is None or abs(difference) < _SMALL_GAIN:
        return text
    # The width of the interval falls with the square root of the rows.
    needed = math.ceil(num_rows * ((high - difference) / abs(difference)) ** 2)
    return f"{text}; a difference as large would show with some {needed:,}"
