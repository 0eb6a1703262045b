"""Labels, data sets, metrics and the loss of downstream tasks."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from downstream_models import make_image_model, make_text_model, recipe_of, sentences, source_of
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    ResNetConfig,
    ResNetModel,
    TrainingArguments,
)

from bert_pretrain.downstream.data import (
    ImageDataset,
    LengthSampler,
    TextDataset,
    augmentation_of,
    tokenize,
)
from bert_pretrain.downstream.labels import LabelSpace
from bert_pretrain.downstream.metrics import (
    compute_metrics,
    is_better,
    load_metrics,
    offline_metric,
)
from bert_pretrain.downstream.models import (
    ClassifierSource,
    default_learning_rate,
    longest_row,
    read_model_config,
)
from bert_pretrain.downstream.sources import open_splits
from bert_pretrain.downstream.tables import Texts, read_table
from bert_pretrain.downstream.tasks import Task, find_labels, find_task
from bert_pretrain.downstream.training import (
    ClassifierTrainer,
    Validation,
    as_is,
    predict_logits,
    train,
    training_arguments,
    window_loss,
)
from bert_pretrain.errors import InputError, TrainingError

SINGLE, MULTI, VALUES = "single_label_classification", "multi_label_classification", "regression"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_text_model(tmp_path_factory.mktemp("model"))


def of(name: str, predictions: list[Any], references: list[Any], **options: Any) -> float:
    metric = offline_metric(name, **options)
    assert isinstance(metric, evaluate.Metric)
    return float(metric.compute(predictions=predictions, references=references)[name])


def test_metrics_of_classes_equal_hand_computations() -> None:
    references, predictions = (
        [1, 1, 1, 0, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 1, 0, 1],
    )  # TP 3, FN 1, FP 1, TN 3
    assert of("accuracy", predictions, references) == 6 / 8
    assert of("f1", predictions, references) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert of("matthews_correlation", predictions, references) == pytest.approx(
        (3 * 3 - 1 * 1) / math.sqrt(4**4)
    )
    # Classes 0, 1, 2 have the F1 2/3, 4/5 and 0.
    assert of("f1_macro", [0, 1, 1, 0], [0, 1, 1, 2]) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert of("f1_micro", [0, 1, 1, 0], [0, 1, 1, 2]) == 3 / 4
    assert of("matthews_correlation", [1, 1], [0, 1]) == 0


def test_metrics_of_several_labels_equal_hand_computations() -> None:
    references, predictions = [[1, 0, 1], [0, 1, 0]], [[1, 0, 0], [0, 1, 1]]
    assert of("accuracy", predictions, references, is_multi_label=True) == 0
    assert of("f1_micro", predictions, references, is_multi_label=True) == pytest.approx(
        2 * 2 / (2 * 2 + 1 + 1)
    )
    assert of("f1_macro", predictions, references, is_multi_label=True) == pytest.approx(
        (1 + 1 + 0) / 3
    )


@pytest.mark.parametrize("name", ["f1_micro", "f1_macro"])
def test_the_f1_of_a_single_label_that_may_be_on_or_off_is_that_of_on(name: str) -> None:
    references, predictions = (
        [[1], [1], [1], [0], [0]],
        [[1], [0], [0], [1], [0]],
    )  # TP 1, FN 2, FP 1
    assert of(name, predictions, references, is_multi_label=True) == pytest.approx(
        2 * 1 / (2 * 1 + 1 + 2)
    )
    # With a second label that is always right the mean is as if scikit-learn had seen the first
    # alone.
    both = [[[*row, 1] for row in rows] for rows in (predictions, references)]
    assert of("f1_macro", *both, is_multi_label=True) == pytest.approx((2 / 5 + 1) / 2)
    assert of(name, [[0], [0]], [[0], [0]], is_multi_label=True) == 0
    assert of("accuracy", predictions, references, is_multi_label=True) == 2 / 5


def test_correlations_equal_hand_computations() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 20.0]
    dx, dy = np.array(x) - 2.5, np.array(y) - 8.5
    assert of("pearson", x, y) == pytest.approx((dx @ dy) / math.sqrt((dx @ dx) * (dy @ dy)))
    assert of("spearman", x, y) == pytest.approx(1.0)
    assert of("spearman", x, [4.0, 1.0, 2.0, 3.0]) == pytest.approx(
        1 - 6 * (9 + 1 + 1 + 1) / (4 * 15)
    )
    assert of("mse", x, y) == pytest.approx((0 + 4 + 36 + 256) / 4)
    assert of("pearson", [1.0, 1.0], [1.0, 2.0]) == 0


def test_our_metrics_combine_and_accumulate_like_those_of_evaluate() -> None:
    both = evaluate.combine([offline_metric("accuracy"), offline_metric("f1_macro")])
    both.add_batch(predictions=[0, 1], references=[0, 0])
    both.add_batch(predictions=[1], references=[1])
    assert both.compute()["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "problem_type", "num_classes"),
    [
        ("pearson", SINGLE, 2),
        ("accuracy", VALUES, 0),
        ("f1", SINGLE, 3),
        ("matthews_correlation", MULTI, 3),
    ],
)
def test_a_metric_that_is_not_defined_for_the_labels_is_refused(
    name: str, problem_type: Any, num_classes: int
) -> None:
    with pytest.raises(InputError, match="not defined"):
        load_metrics([name], problem_type, num_classes=num_classes)


def test_a_metric_by_another_name_is_looked_for_and_may_be_a_script(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`metrics`"):
        load_metrics(["bleurt"], SINGLE, num_classes=2)
    script = tmp_path / "twice.py"
    script.write_text(
        "import datasets\nimport evaluate\n"
        "class Twice(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        value = datasets.Value('int64')\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='',\n"
        "            features=datasets.Features({'predictions': value, 'references': value}))\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'hits': 2 * sum(p == r for p, r in zip(predictions, references))}\n"
    )
    metrics = load_metrics([str(script)], SINGLE, num_classes=2)
    assert list(compute_metrics(metrics, np.array([0, 1]), np.array([0, 0])).values()) == [2]


def test_no_number_beats_nothing_and_an_error_is_better_when_smaller() -> None:
    assert is_better(0.2, 0.1, "accuracy") and not is_better(0.2, 0.1, "mse")
    assert is_better(0.2, math.nan, "accuracy") and not is_better(math.nan, 0.1, "accuracy")


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


def test_all_file_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'a "quoted", line\nof two', "label": "NA"}, {"text": "null", "label": "007"}]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            table = read_table(str(path), parameter="train_file", tsv_quotes="minimal")
            assert table.columns == {key: [row[key] for row in rows] for key in ("text", "label")}


def tsv(folder: Path, content: str, quotes: Any = "none") -> dict[str, list[str]]:
    (folder / "a.tsv").write_text(content)
    path = str(folder / "a.tsv")
    return read_table(path, parameter="train_file", tsv_quotes=quotes).columns


def test_quotes_of_a_tsv_file_are_letters(tmp_path: Path) -> None:
    for texts in (
        ['"It opens here', "and goes on", 'and closes"'],
        ['"All of it"', '"Both of them"'],
        ['a 5" disc', '"", he wrote', '"'],
        ['"She said ""no"""', "", 'say "yes"'],
    ):
        rows = "".join(f"{text}\t{number % 2}\n" for number, text in enumerate(texts))
        assert tsv(tmp_path, "text\tlabel\n" + rows)["text"] == texts
        rows = "".join(f"0\t{text}\r\n" for text in texts)
        assert tsv(tmp_path, "label\ttext\r\n\r\n" + rows)["text"] == texts
    assert list(tsv(tmp_path, "a\ta\tb\n1\t2\t3\n")) == ["a", "a.1", "b"]


def test_quotes_around_the_cells_of_a_tsv_file_are_read_where_that_is_said(tmp_path: Path) -> None:
    for texts in (
        ['He said "no"', "plain"],
        ["a\ttab", 'a "quote"'],
        ["two\n\nlines", '"'],
        ["plain", '5" disc'],
        ["", "NA"],
    ):
        frame = pd.DataFrame({"text": texts, "label": ["0"] * len(texts)})
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
            content = frame.to_csv(index=False, sep="\t", quoting=quoting)
            assert tsv(tmp_path, content, "minimal")["text"] == texts


@pytest.mark.parametrize(
    ("quotes", "content", "message"),
    [
        ("none", "text\tlabel\na\t0\nb\tc\t1\n", "line 3, has 3 cells but its header has 2; "),
        ("none", "text\tlabel\na\t0\nb\n", "line 3, has 1 cells but its header has 2; "),
        ("none", 'text\tlabel\n"two\nlines"\t1\n', "line 2, has 1 cells but its header has 2; "),
        ("minimal", "text\tlabel\na\t0\nb\tc\t1\n", "line 3, has 3 cells but its header has 2; "),
        ("minimal", "text\tlabel\na\t0\nb\n", "line 3, has 1 cells but its header has 2; "),
        # A stray quote would swallow all lines up to the next one.
        ("minimal", 'text\tlabel\n"a\t0\nb\t1\n"d\t1\n', "after line 1"),
        ("minimal", 'text\tlabel\na\t0\n"b\t1\n', "unexpected end of data, after line 2"),
    ],
)
def test_a_line_of_a_tsv_file_that_does_not_fit_its_header_is_named(
    tmp_path: Path, quotes: str, content: str, message: str
) -> None:
    with pytest.raises(InputError, match=f"a.tsv.*{message}.*`tsv_quotes`.*`train_file`"):
        tsv(tmp_path, content, quotes)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for content in ("", "\n", "text\tlabel\n"):
        with pytest.raises(InputError, match="has no rows"):
            tsv(tmp_path, content)


def test_class_names_of_a_parquet_file_are_found(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    assert read_table(str(tmp_path / "a.parquet"), parameter="f").class_names == {
        "label": ("no", "yes")
    }


def test_cells_without_a_header_are_refused_and_the_last_extension_tells_the_separator(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_text(
        "text,label\nwell, yes,1\nwell, no,0\n"
    )  # pandas would take "well" for row names
    with pytest.raises(InputError, match="more cells in row 1"):
        read_table(str(tmp_path / "a.csv"), parameter="train_file")
    (tmp_path / "a.tsv.csv").write_text("text,label\nyes,1\n")
    assert read_table(str(tmp_path / "a.tsv.csv"), parameter="train_file").columns == {
        "text": ["yes"],
        "label": ["1"],
    }
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbftext;label\r\n"well; yes, so";1\r\nno;0\r\n')
    assert read_table(str(tmp_path / "a.csv"), parameter="train_file").columns == {
        "text": ["well; yes, so", "no"],
        "label": ["1", "0"],
    }


def test_batches_equal_those_of_the_tokenizer_also_of_a_subset(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    first, second = ["a value", "the list of names", "file"], ["index", "a", "the function returns"]
    rows = tokenize(Texts(first, second), np.array([0, 1, 2]), tokenizer, max_seq_length=64)
    expected = tokenizer(
        ["file", "a value"], ["the function returns", "index"], padding=True, return_tensors="pt"
    )
    for batch in (rows.__getitems__([2, 0]), rows.subset(np.array([1, 2, 0])).__getitems__([1, 2])):
        assert batch.pop("labels").tolist() == [2, 0]
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            assert torch.equal(values, expected[name])


def test_images_are_normalised() -> None:
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    rows = ImageDataset(pixels, np.array([1, 0]), mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    values = rows.__getitems__([1])["pixel_values"]
    expected = (pixels[1, 2, 3, 3] / 255 - 0.3) / 0.4
    assert values.shape == (1, 3, 4, 4) and float(values[0, 2, 3, 3]) == pytest.approx(
        expected, abs=1e-6
    )


def test_an_epoch_draws_every_row_once_in_batches_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=330)
    sampler = LengthSampler(lengths, batch_size=16, seed=3)
    epochs = [list(sampler) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] == list(LengthSampler(lengths, batch_size=16, seed=3))
    for order in epochs:
        assert sorted(order) == list(range(330))
        batches = [lengths[order[start : start + 16]] for start in range(0, 320, 16)]
        padded = sum(batch.max() * len(batch) for batch in batches)
        assert padded < 1.15 * sum(batch.sum() for batch in batches)  # unsorted it is 1.7 times
        means = [batch.mean() for batch in batches]
        assert means != sorted(means) and means != sorted(means, reverse=True)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, VALUES])
def test_the_loss_of_one_batch_is_that_of_the_stock_head(model: str, problem_type: str) -> None:
    torch.manual_seed(0)
    width = 1 if problem_type == VALUES else 3
    classifier = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=width, problem_type=problem_type
    ).eval()
    labels = {
        SINGLE: torch.tensor([0, 2]),
        MULTI: torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
        VALUES: torch.tensor([0.5, 2]),
    }
    outputs = classifier(
        input_ids=torch.tensor([[2, 7, 9, 3], [2, 8, 5, 3]]), labels=labels[problem_type]
    )
    torch.testing.assert_close(window_loss(outputs, labels[problem_type]), outputs.loss)


def updated(model: str, rows: TextDataset, folder: Path, **sizes: int) -> torch.nn.Module:
    labels = find_labels(["a", "b"], Task(), description="d")
    classifier = ClassifierSource(model, labels).build(0)
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    recipe = recipe_of(
        learning_rate=0.5, mixed_precision="no", warmup_ratio=0.0, max_grad_norm=0.0, **sizes
    )
    arguments = training_arguments(recipe, classifier, folder, num_updates=3, seed=1)
    arguments.optim = "sgd"  # AdamW would hide a wrong scale
    trainer = ClassifierTrainer(
        classifier,
        arguments,
        train_dataset=rows,
        data_collator=as_is,
        compute_loss_func=window_loss,
    )
    trainer.train()
    return classifier


def test_an_update_does_not_depend_on_how_its_rows_are_cut(model: str, tmp_path: Path) -> None:
    texts = sentences(
        14
    )  # an update of 8 rows and one of 6: the latter is cut into 2, 2, 2 or into 3 and 3 or 4 and 2
    tokenizer = AutoTokenizer.from_pretrained(model)
    labels = np.array([row["label"] == "good" for row in texts], dtype=np.int64)
    rows = tokenize(
        Texts([row["text"] for row in texts], None), labels, tokenizer, max_seq_length=32
    )
    whole = updated(model, rows, tmp_path, per_device_train_batch_size=8)
    for size, steps in ((2, 4), (4, 2)):
        cut = updated(
            model,
            rows,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        for (name, ours), theirs in zip(cut.named_parameters(), whole.parameters(), strict=True):
            # float32: other sums, and other padding
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=name)


def test_a_head_is_new_for_each_seed_and_the_encoder_is_the_pretrained_one(model: str) -> None:
    labels = find_labels(["a", "b"], Task(), description="d")
    first, again, other = (ClassifierSource(model, labels).build(seed) for seed in (1, 1, 2))
    plain = AutoModelForSequenceClassification.from_pretrained(model)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    for name, values in plain.bert.state_dict().items():
        assert torch.equal(values, first.bert.state_dict()[name])
    scratch = ClassifierSource(model, labels, from_scratch=True).build(1)
    assert not torch.equal(scratch.bert.pooler.dense.weight, first.bert.pooler.dense.weight)
    assert scratch.config.to_dict() == first.config.to_dict()


def test_a_frozen_encoder_stays_and_what_it_lacks_is_trained(model: str, tmp_path: Path) -> None:
    BertForMaskedLM.from_pretrained(model).save_pretrained(tmp_path / "mlm")  # has no pooler
    labels = find_labels(["a", "b"], Task(), description="d")
    frozen = ClassifierSource(str(tmp_path / "mlm"), labels, freeze_encoder=True).build(0)
    trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trained == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


def test_what_a_frozen_encoder_lacks_learns_its_statistics_and_dropout_acts(
    model: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    encoder = ResNetModel(
        ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1])
    )
    encoder.save_pretrained(tmp_path / "resnet")
    state = load_file(tmp_path / "resnet/model.safetensors")
    lacking = "embedder.embedder.normalization"
    kept = {name: values for name, values in state.items() if not name.startswith(lacking)}
    save_file(kept, tmp_path / "resnet/model.safetensors", metadata={"format": "pt"})
    labels = find_labels([0, 1], Task(), description="d")
    frozen = ClassifierSource(str(tmp_path / "resnet"), labels, freeze_encoder=True).build(0)
    before = {name: values.clone() for name, values in frozen.state_dict().items()}
    frozen.train()
    frozen(pixel_values=torch.randn(4, 1, 32, 32))
    changed = {
        name
        for name, values in frozen.state_dict().items()
        if not torch.equal(values, before[name])
    }
    assert changed == {
        f"resnet.{lacking}.{name}"
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    texts = ClassifierSource(model, labels, freeze_encoder=True).build(0).train()
    first, second = (texts.bert(torch.tensor([[2, 7, 9, 3]])).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "distilbert"]
)
def test_the_longest_row_is_the_longest_that_the_model_computes(model: str, kind: str) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = AutoConfig.for_model(
        kind, vocab_size=50, max_position_embeddings=20, pad_token_id=1, **sizes
    )
    longest = longest_row(config, AutoTokenizer.from_pretrained(model))
    encoder = AutoModel.from_config(config).eval()
    with torch.no_grad():
        assert encoder(torch.full((1, longest), 5)).last_hidden_state.shape[1] == longest
        with pytest.raises((IndexError, RuntimeError)):
            encoder(torch.full((1, longest + 1), 5))


@pytest.mark.parametrize("kind", ["xlnet", "t5"])
def test_where_no_table_of_positions_limits_a_row_the_tokenizer_does(model: str, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model, model_max_length=77)
    assert longest_row(AutoConfig.for_model(kind, num_layers=1, n_layer=1), tokenizer) == 77


def test_the_rate_falls_with_the_width(model: str) -> None:
    config = read_model_config(model)
    for width, rate in ((768, 5e-5), (128, 5e-4), (256, 4.5e-4), (1024, 2.8125e-5)):
        config.hidden_size = width
        assert default_learning_rate(config) == pytest.approx(rate)


def test_training_has_a_least_and_a_largest_length() -> None:
    assert recipe_of(num_train_epochs=3, min_steps=10).num_updates(100) == 3 * 7
    assert recipe_of(num_train_epochs=3, min_steps=100).num_updates(100) == 100
    assert recipe_of(num_train_epochs=3, max_steps=5, min_steps=0).num_updates(100) == 5
    assert (
        recipe_of(num_train_epochs=3, min_steps=0, gradient_accumulation_steps=7).num_updates(100)
        == 3
    )


@pytest.mark.parametrize(
    ("updates", "asked", "expected"),
    [
        (7, 4, [2, 4, 6, 7]),
        (11, 3, [4, 8, 11]),
        (8, 4, [2, 4, 6, 8]),
        (9, 4, [3, 6, 9]),
        (3, 5, [1, 2, 3]),
        (5, 1, [5]),
    ],
)
def test_there_are_at_most_as_many_evaluations_as_asked_for_and_one_at_the_end(
    model: str, tmp_path: Path, updates: int, asked: int, expected: list[int]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = tokenize(
        Texts(["a value", "the list"], None), np.array([0, 1]), tokenizer, max_seq_length=32
    )
    source = ClassifierSource(model, find_labels(["a", "b"], Task(), description="d"))
    recipe = recipe_of(max_steps=updates, num_evaluations=asked, mixed_precision="no")
    validation = Validation(
        rows, lambda logits, references: {"accuracy": 0.5}, "accuracy", greater_is_better=True
    )
    trainer = train(
        source.build(0),
        rows,
        recipe,
        seed=0,
        scratch_folder=tmp_path / "scratch",
        validation=validation,
    )
    assert [row["step"] for row in trainer.state.log_history if "eval_accuracy" in row] == expected


def test_several_gpus_without_a_launcher_do_not_share_a_batch(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = ClassifierSource(model, find_labels(["a", "b"], Task(), description="d")).build(0)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 4))
    arguments = training_arguments(recipe_of(), classifier, tmp_path, num_updates=1, seed=0)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 16)


def test_a_tiny_task_is_learnt_and_nothing_is_left_on_disk(model: str, tmp_path: Path) -> None:
    texts = sentences(40)
    tokenizer = AutoTokenizer.from_pretrained(model)
    labels = np.array([row["label"] == "good" for row in texts], dtype=np.int64)
    rows = tokenize(
        Texts([row["text"] for row in texts], None), labels, tokenizer, max_seq_length=32
    )
    source = ClassifierSource(model, find_labels(["a", "b"], Task(), description="d"))
    recipe = recipe_of(learning_rate=5e-3, min_steps=60, mixed_precision="no")
    trainer = train(source.build(0), rows, recipe, seed=0, scratch_folder=tmp_path / "scratch")
    assert trainer.evaluate(rows)["eval_loss"] < 0.1
    assert not (tmp_path / "scratch").exists()


def test_classes_of_image_folders_are_matched_by_name(tmp_path: Path) -> None:
    model = make_image_model(tmp_path / "vit")
    for split, classes in (("train", ("ant", "bee", "cat")), ("test", ("bee", "cat"))):
        for name in classes:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(4):
                path = tmp_path / "images" / split / name / f"{number}.png"
                Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(path)
    data = source_of(
        dataset_name=str(tmp_path / "images"), test_split="test", validation_share=0.25
    )
    splits = open_splits(model, data, find_task("auto"), seed=0)
    assert splits.labels.names == ("ant", "bee", "cat")
    found = splits.rows["test"].labels
    assert found is not None and found.tolist() == [1] * 4 + [2] * 4
    (tmp_path / "images/test/bee").rename(tmp_path / "images/test/dog")
    with pytest.raises(InputError, match="'dog'"):
        open_splits(model, data, find_task("auto"), seed=0)


def test_images_are_augmented_by_the_epoch_whatever_was_trained_before(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (10, 1, 8, 8), dtype=np.uint8)
    augmentation = augmentation_of("crop", (1, 8, 8), seed=0)
    assert augmentation is not None
    rows = ImageDataset(pixels, np.arange(10) % 2, mean=[0.3], std=[0.4], augmentation=augmentation)
    drawn: list[tuple[int, int]] = []
    draw = augmentation.draw

    def recorded(epoch: Any, places: Any, view: int) -> Any:
        drawn.extend((int(epoch), int(place)) for place in places)
        return draw(epoch, places, view)

    augmentation.draw = recorded  # type: ignore[method-assign]
    source = ClassifierSource(
        make_image_model(tmp_path / "vit"),
        find_labels([0, 1], Task(), description="d"),
    )
    recipe = recipe_of(
        num_train_epochs=3, min_steps=0, per_device_train_batch_size=4, mixed_precision="no"
    )
    for seed in (0, 1):
        drawn.clear()
        train(source.build(seed), rows, recipe, seed=seed, scratch_folder=tmp_path / "scratch")
        assert sorted(drawn) == [(epoch, place) for epoch in range(3) for place in range(10)]


def test_a_model_that_diverged_has_no_predictions(model: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = tokenize(
        Texts(["a value", "the list"], None), np.array([0, 1]), tokenizer, max_seq_length=32
    )
    source = ClassifierSource(model, find_labels(["a", "b"], Task(), description="d"))
    broken = source.build(0)
    torch.nn.init.constant_(broken.classifier.weight, math.nan)
    recipe = recipe_of(min_steps=1, num_train_epochs=1, mixed_precision="no")
    trainer = train(broken, rows, recipe, seed=0, scratch_folder=tmp_path / "scratch")
    with pytest.raises(TrainingError, match="`learning_rate`"):
        predict_logits(trainer, rows)
