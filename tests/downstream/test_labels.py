"""What labels mean: classes, several classes, multi-hot lists, values; what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bert_pretrain.downstream.labels import LabelSpace
from bert_pretrain.downstream.tasks import Task, find_labels, find_task
from bert_pretrain.errors import InputError

SINGLE, MULTI, VALUES = "single_label_classification", "multi_label_classification", "regression"


def space(
    labels: list[Any],
    problem_type: Any = None,
    names: Any = None,
    *,
    is_typed: bool = True,
    is_multi_hot: bool = False,
) -> LabelSpace:
    task = Task(problem_type, is_multi_hot=is_multi_hot)
    return find_labels(labels, task, names=names, description="train.csv", is_typed=is_typed)


@pytest.mark.parametrize(
    ("labels", "problem_type", "names", "encoded"),
    [
        (["b", "a", "b"], SINGLE, ("a", "b"), [1, 0, 1]),
        ([10, 9, 10], SINGLE, ("9", "10"), [1, 0, 1]),
        (["10", "9", "10"], SINGLE, ("9", "10"), [1, 0, 1]),
        ([1.0, 0.0, 1.0], SINGLE, ("0", "1"), [1, 0, 1]),
        ([True, False, True], SINGLE, ("false", "true"), [1, 0, 1]),
        (["007", "7", "007"], SINGLE, ("7", "007"), [1, 0, 1]),
        ([0.5, 2, 1], VALUES, (), [0.5, 2.0, 1.0]),
        (
            ["3.10", "3.1", "250.0", "250.00"],
            SINGLE,
            ("3.1", "3.10", "250.0", "250.00"),
            [1, 0, 2, 3],
        ),
        ([["x"], ["y", "x"], []], MULTI, ("x", "y"), [[1, 0], [1, 1], [0, 0]]),
    ],
)
def test_labels_are_recognised(
    labels: list[Any], problem_type: str, names: tuple[str, ...], encoded: list[Any]
) -> None:
    found = space(labels)
    assert (found.problem_type, found.names) == (problem_type, names)
    assert found.encode(labels, description="train.csv").tolist() == encoded


def test_fractions_in_a_text_file_are_values_unless_they_are_said_to_be_classes() -> None:
    cells = ["0.50", "2", "0.5"]
    found = space(cells, is_typed=False)
    assert (found.problem_type, found.encode(cells, description="d").tolist()) == (
        VALUES,
        [0.5, 2.0, 0.5],
    )
    # As Python, pandas and people write them.
    for cells, values in (
        (["1e-05", "0.53", "2"], [1e-5, 0.53, 2.0]),
        (["+.5", "-.25", "1.5e-3"], [0.5, -0.25, 0.0015]),
    ):
        found = space(cells, is_typed=False)
        assert found.problem_type == VALUES
        assert found.encode(cells, description="d").tolist() == pytest.approx(values)
    cells = ["0.50", "2", "0.5"]
    found = space(cells, SINGLE, is_typed=False)
    assert (found.names, found.encode(cells, description="d").tolist()) == (
        ("0.5", "0.50", "2"),
        [1, 2, 0],
    )
    assert space(["10", "9"], is_typed=False).names == ("9", "10")
    # Whole numbers are classes, and numbers to all files, unless two classes would become one.
    found = space(["1.0", "0.0"], is_typed=False)
    assert (found.names, found.encode(["1", "0.0"], description="d").tolist()) == (
        ("0", "1"),
        [1, 0],
    )
    assert space(["0", "1"], is_typed=False).encode(["1.0"], description="d").tolist() == [1]
    assert space(["250.0", "250.00"], is_typed=False).names == ("250.0", "250.00")
    with pytest.raises(InputError, match=r"'3\.1' as a number.*`task` classification"):
        space(["3.1", "3.10"], is_typed=False)
    assert space(cells, VALUES).encode(cells, description="d").tolist() == [0.5, 2.0, 0.5]


@pytest.mark.parametrize(
    ("trained", "others"),
    [
        (["250.0", "250.00"], [["250.0", "250.00"]]),  # texts of JSON and the same cells
        (["0", "1"], [[0, 1], [0.0, 1.0], [False, True]]),
        ([0, 1], [["0", "1"], ["0.0", "1.0"], [0.0, 1.0], [False, True]]),
        ([0.0, 1.0], [["0", "1"], ["0.0", "1.0"]]),
        (["0.0", "1.0"], [[0.0, 1.0], [0, 1]]),
        ([False, True], [["false", "true"], ["False", "True"], ["0", "1"], [0, 1]]),
        (["False", "True"], [[False, True]]),
        ([0.5, 1.5], [["0.50", "1.5"]]),
    ],
)
def test_classes_of_files_of_different_formats_agree(
    trained: list[Any], others: list[list[Any]]
) -> None:
    found = space(trained, SINGLE)
    for labels in [trained, *others]:
        assert found.encode(labels, description="test.csv").tolist() == [0, 1], labels


def test_a_text_of_equal_value_is_another_class() -> None:
    for trained, other in ((["3.1", "3.2"], "3.10"), (["250.0", "250.00"], 250)):
        with pytest.raises(
            InputError, match=r"row 1 of dev.csv has the label .*'3.1', '3.2'|'250.0', '250.00'"
        ):
            space(trained, SINGLE).encode([other], description="dev.csv")
    with pytest.raises(InputError, match="differ by type alone"):
        space([True, 1, 0])


def test_names_are_given_to_numbers_however_a_file_writes_them() -> None:
    for labels in ([1, 0], [1.0, 0.0], ["1", "0"], ["1.0", "0.0"], [True, False]):
        found = space(labels, names=("no", "yes"))
        assert (found.names, found.encode(labels, description="d").tolist()) == (
            ("no", "yes"),
            [1, 0],
        )
    found = space(["1", "3", "2"], names=("1", "2", "3"))
    assert found.encode(["1", "3"], description="d").tolist() == [0, 2]


def test_several_labels_in_one_cell_are_divided() -> None:
    found = space(["x|y", "y", ""], MULTI)
    assert found.encode(["y|x", "", "x"], description="d").tolist() == [[1, 1], [0, 0], [1, 0]]


MULTI_HOT = [
    ([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], ("0", "1", "2")),
    ([[True, False], [True, True]], ("0", "1")),
    ([[1, 0], [0, 1]], ("0", "1")),
    ([np.array([0, 1, 0]), np.array([0, 0, 1])], ("0", "1", "2")),
]


@pytest.mark.parametrize(("labels", "names"), [*MULTI_HOT, ([[1], [0]], ("0",))])
def test_multi_hot_lists_have_a_place_for_each_class(labels: list[Any], names: Any) -> None:
    found = find_labels(labels, find_task("multi_hot"), description="d")
    assert (found.problem_type, found.names, found.is_multi_hot) == (MULTI, names, True)
    assert found.encode(labels, description="d").tolist() == [
        [float(value) for value in row] for row in labels
    ]
    other = [float(place == 1) for place in range(len(names))]
    assert found.encode([other], description="dev.jsonl").tolist() == [other]
    letters = tuple("abc"[: len(names)])
    assert space(labels, MULTI, letters, is_multi_hot=True).names == letters


@pytest.mark.parametrize(("labels", "_"), MULTI_HOT)
def test_lists_that_may_be_multi_hot_or_class_numbers_are_not_guessed(labels: Any, _: Any) -> None:
    with pytest.raises(InputError, match=r"`task` multi_hot .* `task` multi_label"):
        space(labels)


def test_lists_are_sets_of_classes_where_that_is_said_or_the_only_reading() -> None:
    for labels in ([[0], [1], [1, 0]], [[0, 2], [1, 0]], [["0", "1"], ["1", "0"]], [[0], [1]]):
        for problem_type in (None, MULTI):
            found = space(labels, problem_type)
            assert not found.is_multi_hot
            assert found.encode([labels[0]], description="d").sum() == len(labels[0])
    assert space([[0, 1], [1, 0]], MULTI).encode([[1]], description="d").tolist() == [[0, 1]]
    with pytest.raises(InputError, match="`task` multi_hot"):  # a set has no class twice
        space([[1, 0, 1], [0, 1, 0]], MULTI)
    declared = find_labels(
        [[0, 1], [1, 0]], Task(), names=("a", "b", "c"), description="d", are_class_numbers=True
    )
    assert declared.encode([[1]], description="d").tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("labels", "names", "other", "message"),
    [
        (
            [[1, 0, 1], [0, 0]],
            None,
            None,
            r"row 2 of train.csv has the label \[0, 0\], .* 3 places",
        ),
        ([[1, 0, 1], []], None, None, "row 2 of train.csv has the label .* 3 places"),
        ([[1, 0, 1], None], None, None, "row 2 of train.csv has no label"),
        ([[0, 0, 0], [0, 0, 0]], None, None, "none of the 2 rows"),
        ([[1, 0, 1]], ("a", "b"), None, "lists of 3 .*`label_names`"),
        ([[1, 0, 1]], ("a", "b", ""), None, "not all there"),
        (["a|b"], None, None, "'a|b', are not the lists"),
        ([[1, 0, 1]], None, [1, 0], "row 1 of dev.csv has the label .* 3 places"),
        ([[1, 0, 1]], None, [1, 0, 2], "row 1 of dev.csv has the label .* 0 or 1"),
        ([[1, 0, 1]], None, "0|2", "row 1 of dev.csv has the label '0|2'"),
        ([[1, 0, 1]], None, None, "row 1 of dev.csv has no label"),
    ],
)
def test_multi_hot_lists_that_do_not_fit_are_refused(
    labels: Any, names: Any, other: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        space(labels, MULTI, names, is_multi_hot=True).encode([other], description="dev.csv")


def test_names_of_class_numbers_are_kept() -> None:
    found = space([1, 0], names=("no", "yes", "maybe"))
    assert found.names == ("no", "yes", "maybe") and found.encode(
        [1], description="d"
    ).tolist() == [1]
    assert space(["yes", "no"], names=("yes", "no")).encode(["no"], description="d").tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a", None], {}, "row 2 of train.csv has no label"),
        ([1, math.nan], {}, "row 2 of train.csv has no label"),
        (["a", "a"], {}, "two classes"),
        ([0.5, math.nan], {"problem_type": VALUES}, "row 2"),
        ([["a"], ["b"]], {"problem_type": SINGLE}, "multi_label"),
        ([0, 2], {"names": ("no", "yes")}, "`label_names`"),
        (["x"] * 2, {"names": ("no", "yes")}, "'x'"),
        ([1, "a", "1"], {"names": ("no", "no")}, "not all different"),
        (["a", "b", "-100"], {"problem_type": VALUES}, "regression needs numbers"),
        ([0.5, -100], {"problem_type": VALUES}, "-100"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(
    labels: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        space(labels, **options).encode(labels, description="train.csv")


def test_a_label_that_was_not_trained_on_is_named() -> None:
    with pytest.raises(InputError, match=r"row 2 of dev.csv has the label 'c'.*'a', 'b'"):
        space(["a", "b"]).encode(["a", "c"], description="dev.csv")
