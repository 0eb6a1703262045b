"""`bert-pretrain worth-it`: folds, intervals and verdicts, and the command itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from downstream_models import make_image_model, make_text_model, sentences, write_rows

from bert_pretrain.__main__ import main
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.statistics import fold_interval
from bert_pretrain.evaluation.worth_it import divide, half_of, verdict

LABELS = np.array([0] * 14 + [1] * 7 + [2] * 5)
NAMES = ("a", "b", "c")
ROWS = [str(place).encode() for place in range(len(LABELS))]


def test_every_row_is_predicted_once_by_folds_that_did_not_see_it() -> None:
    folds = divide(LABELS, ROWS, NAMES, seed=3)
    assert len(folds) == 5
    for train, test in folds:
        assert not set(train) & set(test) and len(train) + len(test) == len(LABELS)
        assert set(LABELS[train]) == set(LABELS[test]) == {0, 1, 2}
    predicted = np.concatenate([test for _, test in folds])
    assert sorted(predicted) == list(range(len(LABELS)))


def test_equal_rows_are_predicted_together() -> None:
    rows = [ROWS[place // 2] for place in range(len(LABELS))]
    folds = divide(LABELS, rows, NAMES, seed=3)
    for train, test in folds:
        assert not {rows[place] for place in train} & {rows[place] for place in test}
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(LABELS)))
    with pytest.raises(InputError, match="'c' has a single row"):
        divide(LABELS, ROWS[:-5] + [b"the same"] * 5, NAMES, seed=3)


def test_half_of_the_labels_is_half_of_each_class() -> None:
    places = np.arange(1, len(LABELS))
    half = half_of(places, LABELS, seed=1)
    assert set(half) < set(places)
    assert np.bincount(LABELS[half]).tolist() == [7, 4, 3]
    assert not np.array_equal(half, half_of(places, LABELS, seed=2))


def test_a_class_of_one_row_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'b' has a single row"):
        divide(np.array([0, 0, 1]), ROWS[:3], NAMES, seed=0)


def test_the_interval_of_folds_is_wider_than_that_of_new_rows_by_their_overlap() -> None:
    values = [0.6, 0.7, 0.8, 0.65, 0.75]
    mean, interval = fold_interval(values)
    # 1/5 + (n/5) / (4n/5) = 0.45 times the variance 0.00625; t of 4 degrees of freedom.
    assert mean == pytest.approx(0.7) and interval is not None
    assert interval[1] - mean == pytest.approx(2.776445 * (0.45 * 0.00625) ** 0.5, rel=1e-6)
    assert fold_interval([0.5]) == (0.5, None)


@pytest.mark.parametrize(
    ("difference", "interval", "said"),
    [
        (0.05, (0.01, 0.09), r"yes: \+0.050 \[\+0.010, \+0.090\]"),
        (-0.02, (-0.05, 0.005), r"no: -0.020 \[-0.050, \+0.005\]"),
        # Twice as wide as the gain is large: four times the rows.
        (0.05, (-0.05, 0.15), "cannot be told from 100 labels: .* with some 400"),
        (0.001, (-0.05, 0.052), r"cannot be told from 100 labels: \+0.001 \[-0.050, \+0.052\]"),
    ],
)
def test_the_verdict_is_that_of_the_interval(
    difference: float, interval: tuple[float, float], said: str
) -> None:
    assert re.fullmatch(said, verdict(difference, interval, num_rows=100))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_text_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", sentences(30))
    return tmp_path


def worth_it(*flags: str, model: str = "model") -> int:
    command = ["worth-it", "--model", model, "--train_file", "rows.jsonl", "--output_dir", "out"]
    short = ["--max_steps", "2", "--mixed_precision", "no"]
    try:
        return main([*command, *short, *flags])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.slow
def test_the_table_has_every_way_and_the_answers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worth_it("--minutes", "0", "--json", "found.json") == 0
    printed = capsys.readouterr().out
    for words in ("always the largest class", "TF-IDF", "from scratch", "this encoder, frozen"):
        assert words in printed
    content = json.loads(Path("out/worth_it.json").read_text())
    titles = [score["contestant"]["title"] for score in content["accuracies"]]
    assert titles[-1] == "this encoder, fine-tuned" and len(titles) == 4
    assert all(
        len(values) == content["folds"] == 5
        for score in content["accuracies"]
        for values in score["by_share"].values()
    )
    assert len(content["answers"]) == 3  # nothing is said of more pretraining: none was tried
    figures = json.loads(Path("found.json").read_text())["figures"]
    mean = np.mean(content["accuracies"][0]["by_share"]["all"])
    assert figures["TF-IDF + logistic regression, all"] == pytest.approx(mean)
    assert worth_it("--minutes", "0") == 2  # the folder is taken
    assert "out is not an empty folder" in capsys.readouterr().err


@pytest.mark.slow
def test_two_halves_of_the_minutes_are_tried(folder: Path) -> None:
    assert worth_it("--minutes", "0.06") == 0
    content = json.loads(Path("out/worth_it.json").read_text())
    titles = [score["contestant"]["title"] for score in content["accuracies"]]
    assert titles[-2:] == [
        "after 0.03 minutes of your texts, fine-tuned",
        "after 0.06 minutes of your texts, fine-tuned",
    ]
    assert "Would more pretraining help?" in content["answers"]


def test_what_cannot_be_measured_is_refused_and_nothing_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worth_it("--minutes", "0", "--unlabelled_files", "rows.jsonl") == 2
    assert "--unlabelled_files means nothing with --minutes 0" in capsys.readouterr().err
    make_image_model(folder / "images")
    assert worth_it(model="images") == 2
    assert "encodes images" in capsys.readouterr().err
    write_rows(folder / "rows.jsonl", [*sentences(4), {"text": "alone", "label": "other"}])
    assert worth_it() == 2
    assert "single row" in capsys.readouterr().err
    assert worth_it("--unlabelled_files", "absent.txt", "--minutes", "1") == 2
    assert "--unlabelled_files takes paths" in capsys.readouterr().err
    assert not Path("out").exists()


def test_texts_that_cannot_be_learnt_from_leave_no_folder_of_a_half(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("texts.jsonl").write_text('{"text": "one document"}\n')
    assert worth_it("--unlabelled_files", "texts.jsonl", "--minutes", "1") == 2
    assert "change --unlabelled_files" in capfd.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == [".lock"]


def test_a_file_for_figures_that_cannot_be_made_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["worth-it", "--model", "m", "--train_file", "t.jsonl", "--json", "nowhere/x.json"])
    assert stopped.value.code == 2 and "--json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
