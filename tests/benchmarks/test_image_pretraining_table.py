"""The tables of image pretraining: what they say of encoders and of few labels."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import image_pretraining


def encoder(arm: str, seed: int) -> dict[str, Any]:
    of_kinds = {"": 0.5 + seed / 100}
    if seed == 1:  # the others have no floors of their own
        of_kinds |= {"random_encoder_": 0.3, "pca_": 0.4, "pixels_": 0.35}
    figures = {
        f"{kind}{suite}_accuracy": accuracy
        for kind, accuracy in of_kinds.items()
        for suite in image_pretraining.SUITES
    }
    return {"arm": arm, "seed": seed, "minutes": 4.0 + seed, "step": 136} | figures


def few_labels(arm: str) -> list[dict[str, Any]]:
    found = {
        "from_scratch": [[0.2, 0.3]],
        "floor": [[0.25, 0.35]],
        "frozen_probe": [[0.3, 0.4]] * 2,
    }
    found["fine_tuned"] = [[0.4, 0.5], [0.42, 0.52]]
    return [
        {"arm": arm, "labels": count, "rows": 10 * count, "of": name, "accuracies": values}
        for count, (name, values) in itertools.product((10, 100), found.items())
    ]


def test_each_encoder_has_a_line_and_each_number_of_labels_a_line_for_each() -> None:
    arms = ["NT-Xent", "autoencoder"]
    runs = [encoder(arm, seed) for seed, arm in itertools.product((1, 2, 3), arms)]
    text = image_pretraining.tables([*runs, *few_labels(arms[0]), *few_labels(arms[1])])
    frozen, learnt = text.split("\n\n")
    accuracies = " | ".join(["0.520 (0.510 to 0.530) | 0.300"] * 2)
    assert f"| NT-Xent | 3 | 136 | 6.0 (5.0 to 7.0) | {accuracies} |" in frozen
    assert "| raw pixels |  |  |  | 0.350 |  | 0.350 |  |" in frozen
    assert [line.split(" | ")[:2] for line in learnt.splitlines()[2:]] == [
        ["| 10", "NT-Xent"],
        ["| 10", "autoencoder"],
        ["| 100", "NT-Xent"],
        ["| 100", "autoencoder"],
    ]
    assert "| 10 | NT-Xent | 0.300 | 0.250 | 0.350 | 0.460 | +0.210 [" in learnt


def test_without_images_or_results_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags in ([], ["--train_file", "a.parquet"], ["--json", str(tmp_path / "lost.json")]):
        monkeypatch.setattr(sys, "argv", ["image_pretraining.py", *flags])
        with pytest.raises(SystemExit) as stopped:
            image_pretraining.main()
        assert stopped.value.code == 2


def test_kept_results_are_shown_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [*(encoder("NT-Xent", seed) for seed in (1, 2, 3)), *few_labels("NT-Xent")]
    (tmp_path / "kept.json").write_text(json.dumps({"runs": runs}))
    flags = ["--json", str(tmp_path / "kept.json"), "--figure", str(tmp_path / "drawn.png")]
    monkeypatch.setattr(sys, "argv", ["image_pretraining.py", *flags])
    image_pretraining.main()
    assert capsys.readouterr().out == image_pretraining.tables(runs)
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_a_piece_keeps_the_arms_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
        return [row for arm in arguments.arms for row in (encoder(arm, 1), *few_labels(arm))]

    monkeypatch.setattr(image_pretraining, "measure", measured)
    target = tmp_path / "found.json"
    for arms in (["autoencoder"], ["NT-Xent"], ["autoencoder"]):
        flags = ["--train_file", "a", "--test_file", "b", "--json", str(target), "--arms", *arms]
        monkeypatch.setattr(sys, "argv", ["image_pretraining.py", *flags])
        image_pretraining.main()
    runs = json.loads(target.read_text())["runs"]
    assert runs == measured(argparse.Namespace(arms=["NT-Xent", "autoencoder"]))


def test_the_page_shows_the_results_that_are_kept() -> None:
    kept = image_pretraining.read_runs(ROOT / "benchmarks/results/image_pretraining.json")
    assert image_pretraining.tables(kept) in (ROOT / "docs/images.md").read_text()
