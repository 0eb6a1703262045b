"""The label-efficiency curve: subsets, intervals, arms, and a measurement that is continued."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downstream_models import make_image_model, make_text_model, sentences, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from bert_pretrain.commands.evaluate import main as evaluate
from bert_pretrain.commands.suites import label_efficiency as suite
from bert_pretrain.data import run_folder
from bert_pretrain.data.run_folder import held, is_held
from bert_pretrain.evaluation import label_efficiency
from bert_pretrain.evaluation.label_efficiency import (
    Arm,
    Measurement,
    MeasurementLog,
    default_counts,
    measure_curve,
    nested_subset,
    summarize,
)
from bert_pretrain.evaluation.label_efficiency_arms import ARMS, CurveTask, probe_arm
from bert_pretrain.evaluation.probes import PROBE_GRID
from bert_pretrain.evaluation.statistics import t_interval, two_way_interval


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(0, 99),
)
@settings(max_examples=100)
def test_subsets_are_stratified_and_nested(
    labels: list[int], small: int, more: int, seed: int
) -> None:
    array = np.array(labels)
    subset, larger = (nested_subset(array, count, seed=seed) for count in (small, small + more))
    assert (
        set(subset)
        <= set(larger)
        <= set(nested_subset(array, 0, seed=seed))
        == set(range(len(labels)))
    )
    for label in set(labels):
        assert (array[subset] == label).sum() == min(small, labels.count(label))
    assert len(set(subset)) == len(subset)


def test_seeds_draw_different_rows() -> None:
    labels = np.repeat([0, 1], 500)
    overlap = set(nested_subset(labels, 50, seed=0)) & set(nested_subset(labels, 50, seed=1))
    assert len(overlap) < 30  # 10 in expectation, standard deviation about 3


def test_counts_stop_where_a_class_has_no_more() -> None:
    assert default_counts(np.repeat([0, 1], [70, 65])) == [1, 4, 16, 64, 0]
    assert default_counts(np.repeat([0, 1], [70, 64])) == [1, 4, 16, 0]


def test_intervals_are_those_of_students_t() -> None:
    values = [0.5, 0.6, 0.7, 0.8, 0.9]
    mean, interval = t_interval(values)
    half = 2.7764451051977987 * math.sqrt(0.025) / math.sqrt(5)  # t of 4 degrees, variance 0.1 / 4
    assert mean == pytest.approx(0.7) and interval == pytest.approx((0.7 - half, 0.7 + half))
    assert t_interval([0.5]) == (0.5, None)


def test_an_interval_over_pretraining_seeds_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    for of_models, of_draws, of_both in ((1.0, 1.0, 0.1), (0.3, 1.0, 0.5), (0.0, 1.0, 1.0)):
        num_covered = 0
        for _ in range(300):
            values = of_models * generator.normal(size=(3, 1))
            values = values + of_draws * generator.normal(size=(1, 5))
            _, interval = two_way_interval(values + of_both * generator.normal(size=(3, 5)))
            assert interval is not None
            num_covered += interval[0] <= 0 <= interval[1]
        assert num_covered >= 0.92 * 300  # 95 %, less two standard errors


def test_the_interval_of_one_pretraining_seed_is_students_t() -> None:
    values = np.array([[0.5, 0.7, 0.6]])
    assert two_way_interval(values) == t_interval([0.5, 0.7, 0.6])
    assert two_way_interval(values[:, :1]) == (0.5, None)


def test_equal_models_leave_the_interval_of_the_draws_alone() -> None:
    draws = np.array([0.5, 0.7, 0.6, 0.4])
    _, expected = t_interval(draws.tolist())
    mean, interval = two_way_interval(np.stack([draws, draws]))
    assert mean == pytest.approx(draws.mean())
    # The variance between draws, of which there are four and not eight.
    assert interval == pytest.approx(expected)


def test_differences_are_paired_by_seed() -> None:
    rows = [
        Measurement(arm, 4, 8, seed, accuracy, 0.0)
        for arm, values in {"fine_tuned": [0.5, 0.9, 0.7], "from_scratch": [0.4, 0.8, 0.6]}.items()
        for seed, accuracy in enumerate(values)
    ]
    ours, theirs = summarize(rows, reference="from_scratch")
    assert (ours.difference, theirs.difference) == (pytest.approx(0.1), None)
    # The seeds differ by far more than the arms, which differ by the same in every seed.
    assert ours.difference_interval == pytest.approx((0.1, 0.1))
    assert ours.interval is not None and ours.interval[1] - ours.interval[0] > 0.5


def test_every_arm_gets_the_same_rows_and_what_is_finished_is_not_done_again() -> None:
    labels, test_labels = np.repeat([0, 1], 20), np.array([0, 1, 1, 0])
    seen: dict[str, list[tuple[int, ...]]] = {"a": [], "b": []}

    def arm(name: str) -> Any:
        def learn(places: Any, seed: int) -> Any:
            seen[name].append((*places, seed))
            return np.array([0, 1, 0, 0])

        return learn

    arms = {name: arm(name) for name in seen}
    rows = measure_curve(arms, labels, test_labels, counts=[0, 4, 1], seeds=[3, 5])
    assert seen["a"] == seen["b"] and [len(row) - 1 for row in seen["a"]] == [2, 2, 8, 8, 40, 40]
    assert {row.accuracy for row in rows} == {0.75}
    fresh: list[Measurement] = []
    again = measure_curve(
        arms,
        labels,
        test_labels,
        counts=[1, 0],
        seeds=[3, 7],
        finished=rows,
        on_measurement=fresh.append,
    )
    assert {(row.seed, row.num_per_class) for row in fresh} == {(7, 1), (7, 0)}
    assert len(again) == 8


def test_the_probe_is_logistic_regression_with_c_chosen_among_the_labelled_rows() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 6)) * [1, 5, 1, 1, 1, 20]
    labels = (features[:, 0] + features[:, 2] > 0).astype(int) + (features[:, 3] > 1)
    test_features = generator.normal(size=(30, 6)) * [1, 5, 1, 1, 1, 20]
    places = nested_subset(labels, 8, seed=2)
    predicted = probe_arm(features, labels, test_features)(places, 2)

    def fitted(rows: Any, targets: Any, strength: float) -> tuple[Any, Any]:
        scaler = StandardScaler().fit(rows)
        return scaler, LogisticRegression(C=strength, max_iter=500).fit(
            scaler.transform(rows), targets
        )

    rows, targets = features[places], labels[places]
    folds = list(StratifiedKFold(5, shuffle=True, random_state=2).split(rows, targets))
    scores = []
    for strength in PROBE_GRID:
        hits = []
        for learnt, held_out in folds:
            scaler, classifier = fitted(rows[learnt], targets[learnt], strength)
            hits.append(
                (classifier.predict(scaler.transform(rows[held_out])) == targets[held_out]).mean()
            )
        scores.append(np.mean(hits))
    scaler, classifier = fitted(rows, targets, PROBE_GRID[int(np.argmax(scores))])
    assert predicted.tolist() == classifier.predict(scaler.transform(test_features)).tolist()
    one_each = nested_subset(labels, 1, seed=0)
    scaler, classifier = fitted(features[one_each], labels[one_each], 1.0)
    single = probe_arm(features, labels, test_features)(one_each, 0)
    assert single.tolist() == classifier.predict(scaler.transform(test_features)).tolist()


WHICH = ("arm", "num_per_class", "seed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", sentences(60))
    write_rows(tmp_path / "test.jsonl", sentences(30, seed=1))
    return tmp_path


def measure(*flags: str) -> dict[str, Any]:
    common = "--suite label_efficiency --output_dir out --min_steps 12 --mixed_precision no"
    assert evaluate([*common.split(), *flags]) == 0
    results: dict[str, Any] = json.loads(Path("out/label_efficiency.json").read_text())
    return results


@pytest.mark.slow
def test_texts_are_measured_and_a_measurement_is_continued(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_text_model(folder / "model")
    command = f"--model {model} --train_file train.jsonl --test_file test.jsonl --num_labels 1 8"
    files = command.split()
    arms = ["--arms", *ARMS, "--adapt_minutes", "0.05"]
    results = measure(*files, *arms, "--seeds", "0")
    rows = (folder / "out/rows.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) == 2 * 5
    learnt_from = [json.loads(line)["text"] for line in (folder / "out/unlabelled.jsonl").open()]
    assert learnt_from == [row["text"] for row in sentences(60)]  # and from no test row
    assert (folder / "out/adapted/final/model.safetensors").is_file()
    assert (folder / "out/label_efficiency.png").read_bytes().startswith(b"\x89PNG")
    # As if the process had been ended while it wrote the last line.
    (folder / "out/rows.jsonl").write_text("".join(rows)[:-9])
    capsys.readouterr()
    again = measure(*files, *arms, "--seeds", "0", "1")
    continued = (folder / "out/rows.jsonl").read_text().splitlines(keepends=True)
    assert continued[:9] == rows[:9] and len(continued) == 20
    cut_off = json.loads(rows[9])
    (redone,) = [
        row for row in map(json.loads, continued) if all(row[key] == cut_off[key] for key in WHICH)
    ]
    assert redone["accuracy"] == cut_off["accuracy"]
    for point, earlier in zip(again["points"], results["points"], strict=True):
        values = [json.loads(row) for row in continued]
        own = [
            v["accuracy"]
            for v in values
            if (v["arm"], v["num_per_class"]) == (point["arm"], point["num_per_class"])
        ]
        assert point["mean"] == pytest.approx(np.mean(own)) and earlier["mean"] == own[0]
    assert "from_scratch, paired by seed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        measure(*files, *arms, "--learning_rate", "1e-3")
    assert "another recipe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        measure(*files, *arms[:-1], "0.1")
    assert "another set of texts without labels, or other minutes" in capsys.readouterr().err
    assert (folder / "out/rows.jsonl").read_text() == "".join(continued)


def test_the_adapted_arm_learns_with_the_adapted_encoder_and_the_others_do_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_text_model(folder / "model")
    models: dict[str, str] = {}

    def made(name: str, task: CurveTask) -> Arm:
        models[name] = task.model
        return lambda places, seed: np.zeros(30, np.int64)

    def adapted(*_: Any, **__: Any) -> tuple[str, dict[str, Any]]:
        return "out/adapted/final", {}

    monkeypatch.setattr(suite, "make_arm", made)
    monkeypatch.setattr(suite, "adapt", adapted)
    flags = f"--model {model} --train_file train.jsonl --test_file test.jsonl --num_labels 1"
    measure(
        *flags.split(), *["--arms", "fine_tuned", "adapted", "--adapt_minutes", "1", "--seeds", "0"]
    )
    assert models == {"fine_tuned": model, "adapted": "out/adapted/final"}


@pytest.mark.parametrize("flags", [["--adapt_minutes", "1"], ["--arms", "adapted", "floor"]])
def test_an_adapted_encoder_is_an_arm_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    files = ["--model", "nowhere/model", "--train_file", "train.jsonl", "--test_file", "test.jsonl"]
    with pytest.raises(SystemExit):
        measure(*files, *flags)
    assert "pass both the arm adapted and the minutes" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_word_that_tells_the_classes_apart_is_found_by_the_floor(folder: Path) -> None:
    model = make_text_model(folder / "model")
    flags = f"--model {model} --train_file train.jsonl --test_file test.jsonl --num_labels all"
    results = measure(*flags.split(), "--arms", "floor", "--seeds", "0")
    assert (
        results["figures"]["floor_all_accuracy"] == 1.0 and results["points"][0]["num_rows"] == 60
    )


def test_images_are_measured(folder: Path) -> None:
    flags = f"--model {make_image_model(folder / 'vit')} --dataset_name digits --num_labels 4"
    arms = [arm for arm in ARMS if arm != "adapted"]
    results = measure(*flags.split(), "--arms", *arms, *["--seeds", "0", "--max_test_rows", "100"])
    assert results["test_rows"] == 100
    assert {point["arm"] for point in results["points"]} == set(arms)
    assert results["figures"]["floor_4_accuracy"] > 0.5


def floor_of(folder: Path) -> list[str]:
    """Return the flags of a measurement of two rows that needs no training."""
    model = make_text_model(folder / "model")
    flags = f"--model {model} --train_file train.jsonl --num_labels 1 --arms floor --seeds 0 1"
    return flags.split()


def test_a_measurement_under_way_is_left_to_the_process_that_makes_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = floor_of(folder)
    measure(*flags)
    before = (folder / "out/rows.jsonl").read_text()
    capsys.readouterr()
    monkeypatch.setattr(run_folder, "TIMEOUT_SECONDS", 0)
    with held(folder / "out"), pytest.raises(SystemExit) as stopped:
        measure(*flags, "--seeds", "0", "1", "2")
    assert (
        stopped.value.code == 2 and "another process is at work in out" in capsys.readouterr().err
    )
    assert (folder / "out/rows.jsonl").read_text() == before
    during = []
    monkeypatch.setattr(MeasurementLog, "add", lambda log, row: during.append(is_held(log.folder)))
    measure(*flags, "--seeds", "2")
    assert during == [True] and not is_held(folder / "out")


@pytest.mark.parametrize("is_the_same", [True, False])
def test_what_another_process_measured_while_this_one_got_ready_is_neither_lost_nor_done_again(
    is_the_same: bool,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = floor_of(folder)
    measure(*flags, *([] if is_the_same else ["--max_test_rows", "9"]))
    (folder / "out").rename("theirs")
    theirs = Path("theirs/rows.jsonl").read_text()

    @contextlib.contextmanager
    def held_after_another(out: Path) -> Iterator[None]:
        shutil.copytree("theirs", out, dirs_exist_ok=True)
        yield

    monkeypatch.setattr(label_efficiency, "held", held_after_another)
    if is_the_same:
        measure(*flags, "--seeds", "0", "1", "2")
        rows = Path("out/rows.jsonl").read_text()
        assert rows.startswith(theirs) and [
            json.loads(row)["seed"] for row in rows.splitlines()
        ] == [0, 1, 2]
    else:
        with pytest.raises(SystemExit):
            measure(*flags)
        assert "another max_test_rows" in capsys.readouterr().err
        assert Path("out/rows.jsonl").read_text() == theirs


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("settings.json", "{", "damaged"),
        ("rows.jsonl", "none\n", "line 1"),
        ("rows.jsonl", '{"a": 1}\n', "line 1"),
    ],
)
def test_a_damaged_measurement_is_refused_and_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    flags = floor_of(folder)
    measure(*flags)
    (folder / "out" / name).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        measure(*flags)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and message in printed and "--output_dir" in printed
    assert (folder / "out" / name).read_text() == content
