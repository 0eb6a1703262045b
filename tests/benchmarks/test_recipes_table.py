"""The tables of the README say what the files of results say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT

from bert_pretrain.config.pretraining import parse_config
from bert_pretrain.config.recipes import RECIPES, TEXT_PURPOSES
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.flops import TextFlops
from bert_pretrain.models.text_encoder_config import named_config

sys.path.insert(0, str(ROOT / "benchmarks"))
import recipes


@pytest.mark.parametrize("name", ["README.md", "docs/recipes.md"])
def test_documents_hold_the_tables_of_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text()
    assert recipes.written(text, recipes.page()) == text, (
        "run python benchmarks/recipes.py table --write README.md docs/recipes.md"
    )


def test_every_recipe_of_text_has_a_purpose() -> None:
    assert list(TEXT_PURPOSES) == list(RECIPES["mlm_nsp"]) == list(RECIPES["mlm"])


def test_the_arithmetic_of_the_recipes_is_of_their_settings() -> None:
    text = (ROOT / "docs/recipes.md").read_text()
    for name in ("minutes", "half-hour", "two-hours", "hours"):
        config = parse_config(["--recipe", name])
        steps, rows = config.optimization.max_steps, config.optimization.global_batch_size
        tokens = f"{steps * rows * 118 / 1e6:.2g} M"
        line = f"| `{name}` | {config.model.config_name} | {steps:,} x {rows} | {tokens} |"
        assert line in text, line
    day, eight = (parse_config(["--recipe", name]) for name in ("base-24h-1gpu", "base-8gpu"))
    assert day.optimization.max_hours == 24 and eight.optimization.max_hours == 0
    for config in (day, eight):
        rows, steps = config.optimization.global_batch_size, config.optimization.max_steps
        assert f"{rows * config.text.max_seq_length:,}" in text and f"{steps:,}" in text
        assert f"{steps * rows * config.text.max_seq_length * 0.95 / 1e9:.1f} G" in text
        with torch.device("meta"):
            bert = BertForPreTraining(named_config("base", vocab_size=30522, pad_token_id=0))
        rows = torch.full((10,), 128)
        flops = TextFlops.of(bert).count(rows, num_predicted=384)  # 30 %
        assert f"{flops / 1280 / 1e9:.3f} GF" in text
        assert f"{round(989e12 * 0.4 / 0.567e9, -3):,.0f}" in text


def write_file(path: Path, runs: list[dict[str, Any]]) -> None:
    hardware = {"processor": "A processor", "cores": 2}
    versions = {"torch": "2.13", "transformers": "5.24"}
    path.write_text(json.dumps({"hardware": hardware, "versions": versions, "runs": runs}))


def test_a_recipe_is_shown_with_median_and_spread_and_marked_if_it_was_not_run(
    tmp_path: Path,
) -> None:
    record = {"tokens_per_second": 12345.6, "nats_below_unigram": 1.5, "mlm_accuracy": 0.25}
    runs = [
        record | {"seed": seed, "minutes": minutes, "mlm_loss": loss, "nsp_accuracy": 0.8}
        for seed, minutes, loss in ((1, 29.0, 4.1), (2, 31.5, 4.3), (3, 30.0, 4.0))
    ]
    write_file(tmp_path / "recipe_half-hour.json", runs)
    lines = {line.split("|")[1].strip(): line for line in recipes.page(tmp_path).splitlines()[:9]}
    shown = lines["`half-hour`"]
    assert "30.0 (29.0 to 31.5)" in shown and "4.10 (4.00 to 4.30)" in shown
    assert "12,346" in shown and ".800 (.800 to .800)" in shown and "A processor, 2 cores" in shown
    assert recipes.NOT_RUN in lines["`minutes`"] and recipes.NOT_RUN not in shown


def test_the_ablation_shows_differences_by_seed_and_keeps_what_is_worse(tmp_path: Path) -> None:
    losses = {"base": (4.0, 5.0, 6.0), "dropout_10": (4.5, 5.1, 6.2), "mask_30": (3.9, 4.7, 5.8)}
    runs = [
        {
            "arm": arm,
            "seed": seed,
            "length": "5 minutes",
            "mlm_loss": loss,
            "nsp_accuracy": 0.7,
            "tokens_per_second": 1000.0,
            "setting": {"num_cpu_threads": 1},
        }
        for arm, by_seed in losses.items()
        for seed, loss in enumerate(by_seed)
    ]
    write_file(tmp_path / "ablation.json", runs)
    text = recipes.ablation_table(tmp_path)
    assert "5 minutes a run" in text and "A processor, 1 of 2 cores" in text
    assert "| dropout 10 | 5.10 (4.50 to 6.20) | +0.20 (+0.10 to +0.50) |" in text
    assert "| mask 30 | 4.70 (3.90 to 5.80) | -0.20 (-0.30 to -0.10) |" in text


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    text = f"before\n{recipes.BEGIN}old\n{recipes.END}\nafter\n"
    assert recipes.written(text, "new\n") == f"before\n{recipes.BEGIN}new\n{recipes.END}\nafter\n"
    with pytest.raises(ValueError, match="no <!-- recipes -->"):
        recipes.written("before\nafter\n", "new\n")
