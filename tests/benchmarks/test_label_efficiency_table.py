"""The table of few labels: what it derives from trainings, and that pages show the kept ones."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import label_efficiency

RESULTS = ROOT / "benchmarks/results/label_efficiency.json"
ADAPTED = ROOT / "benchmarks/results/label_efficiency_adapted.json"


def trainings(model: int) -> list[dict[str, Any]]:
    """Return the trainings of one of two models: a gain of .2 over scratch and .1 over others."""
    base = {"fine_tuned": 0.7, "frozen_probe": 0.6, "from_scratch": 0.5, "floor": 0.6}
    return [
        {
            "arm": arm,
            "num_per_class": count,
            "num_rows": 6 * count,
            "seed": seed,
            "accuracy": accuracy + 0.01 * seed,
        }
        for (arm, accuracy), count, seed in itertools.product(base.items(), (16, 64), (0, 1, 2))
        if model == 0 or arm not in label_efficiency.WITHOUT_WEIGHTS
    ]


def test_a_table_from_the_file_is_the_one_that_was_measured(tmp_path: Path) -> None:
    curve = label_efficiency.curve_of("trec", [trainings(0), trainings(1)], [0, 1, 2])
    assert curve.accuracies[16, "fine_tuned"].shape == (2, 3)
    assert curve.accuracies[16, "floor"].shape == (1, 3)
    table = label_efficiency.table([curve])
    line = "| trec | 16 | general | 0.510 | 0.710 | 0.009 | +0.200 [+0.200, +0.200] |"
    assert line in table
    label_efficiency.write([curve], tmp_path / "found.json")
    (kept,) = label_efficiency.kept_curves(tmp_path / "found.json")
    assert kept.num_rows == {16: 96, 64: 384}
    np.testing.assert_allclose(kept.gain(64, "fine_tuned", "floor"), np.full((2, 3), 0.1))
    assert label_efficiency.table([kept]) == table


@pytest.mark.parametrize(
    ("page", "results"), [("README.md", RESULTS), ("docs/few_labels.md", ADAPTED)]
)
def test_a_page_shows_the_kept_table(page: str, results: Path) -> None:
    table = label_efficiency.table(label_efficiency.kept_curves(results))
    assert table in (ROOT / page).read_text(encoding="utf-8")


def test_a_document_without_the_marks_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "page.md"
    document.write_text("nothing\n")
    command = ["label_efficiency.py", "--json", str(RESULTS), "--write", str(document)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ValueError, match="no marks"):
        label_efficiency.main()
    assert document.read_text() == "nothing\n"


@pytest.mark.parametrize("flags", [[], ["--json", "lost.json"], ["--models", "a", "b"]])
def test_without_results_or_tasks_no_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(before := "<!-- few labels -->\n| a table |\n<!-- /few labels -->\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["label_efficiency.py", *flags, "--write", str(page)])
    with pytest.raises(SystemExit) as stopped:
        label_efficiency.main()
    assert stopped.value.code == 2 and page.read_text() == before
