"""The comparison of ways to pretrain: judged on rows nobody learnt from, gains paired by seeds."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, write_corpus

sys.path.insert(0, str(ROOT / "benchmarks"))
import pretraining_variants as variants

from bert_pretrain.config.pretraining import parse_config


def write_task(path: Path, num_rows: int) -> Path:
    words = ("red round apple", "fast loud engine")
    rows = [{"text": f"the {words[i % 2]} number {i}", "label": i % 2} for i in range(num_rows)]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_rows_that_judge_are_not_learnt_from_and_stay_the_same(tmp_path: Path) -> None:
    file = write_task(tmp_path / "t.jsonl.gz", 1500)
    parts = variants.divide("t", file, tmp_path / "rows")
    learnt, judged = (path.read_text().splitlines() for path in parts)
    assert len(learnt) == 500 and len(judged) == 1000 and not {*learnt} & {*judged}
    assert {json.loads(line)["label"] for line in judged} == {0, 1}
    variants.divide("t", file, tmp_path / "again")
    assert (tmp_path / "again/t_held_out.jsonl").read_text().splitlines() == judged


@pytest.mark.parametrize("name", variants.ARMS)
def test_every_arm_is_a_run_that_the_program_accepts(name: str) -> None:
    arm = variants.ARMS[name]
    length = ["--max_steps", "100"] if arm.updates else []
    parse_config([*arm.flags.split(), "--max_hours", "0.1", *length])


def run(arm: str, seed: int, accuracies: dict[str, list[float]], grammar: float) -> dict[str, Any]:
    record = {"arm": arm, "seed": seed, "accuracies": accuracies, "grammar": grammar}
    return record | {"mlm_loss": 4.0, "tokens": 2e6}


def test_gains_are_paired_by_both_seeds_and_tasks() -> None:
    runs = [
        run("base", 1, {"a": [0.5, 0.6], "b": [0.7, 0.8]}, 0.60),
        run("base", 2, {"a": [0.6, 0.7], "b": [0.8, 0.9]}, 0.64),
        run("sop", 1, {"a": [0.6, 0.7], "b": [0.8, 0.9]}, 0.62),
        run("sop", 2, {"a": [0.7, 0.8], "b": [0.9, 1.0]}, 0.66),
        run("google", 2, {"a": [0.5, 0.6], "b": [0.7, 0.8]}, 0.60),
    ]
    base, google, sop = variants.table(runs).splitlines()[2:]
    assert base == "| base | 2 | 0.700 |  | 0.620 |  | 4.00 | 2.0 M |"
    assert "+0.100 [+0.100, +0.100]" in sop and "+0.020 [+0.020, +0.020]" in sop
    assert google.startswith("| google | 1 | 0.650 | -0.100 [-0.100, -0.100] |")


@pytest.mark.slow
def test_the_script_runs_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = write_task(tmp_path / "fruit.jsonl.gz", 1400)
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    words = "x --arms base sop --seeds 1 --finetuning_seeds 0 1 --minutes 0.05 --num_labels 8 "
    words += f"--task fruit {task} --data_files {corpus} --eval_rows 20 --max_seq_length 64 "
    words += f"--work_dir {tmp_path / 'work'} --json {tmp_path / 'found.json'} "
    words += "-- --config_name tiny --global_batch_size 8"
    monkeypatch.setattr(sys, "argv", words.split())
    variants.main()
    first = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert [record["arm"] for record in first] == ["base", "sop"]
    assert all(len(record["accuracies"]["fruit"]) == 2 for record in first)
    monkeypatch.setattr(variants, "run_arm", None)  # nothing is left to run
    variants.main()
    assert "| sop | 1 |" in capsys.readouterr().out
