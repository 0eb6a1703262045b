"""The benchmarks of quality: what they compare is comparable, and what they derive is right."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from runs import ROOT, small_flags

sys.path.insert(0, str(ROOT / "benchmarks"))
import ablation
import judging
import recipes
import time_to_quality
import time_to_quality_picture
import without_savings
from stock_training import STOCK, train_stock

from bert_pretrain.data.stream import Batch, Place
from bert_pretrain.text import collator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def first_batch(folder: Path) -> tuple[Any, Batch]:
    objective = judging.open_task([*small_flags(folder), "--max_seq_length", "64"]).objective
    parts, _ = objective.training.take(Place(), 6)
    return objective, objective.training.collator.collate(parts)


@pytest.mark.parametrize("name", without_savings.SAVINGS)
def test_a_saving_switched_off_changes_neither_loss_nor_gradient(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learnt(objective: Any, batch: Batch, model: Any) -> tuple[list[Any], torch.Tensor]:
        model.zero_grad()
        terms = objective.loss_terms(model, batch)
        sum(term.sum for term in terms.values()).backward()
        numbers = [term.sum.detach() for term in terms.values()]
        numbers += [term.metrics["accuracy"] for term in terms.values()]
        weight = model.bert.encoder.layer[0].attention.self.key.weight
        return [*numbers, *objective.target_counts(batch).values()], weight.grad.clone()

    objective, batch = first_batch(folder)
    assert "token_index" in batch  # there is padding
    model = objective.build_model()
    expected, gradient = learnt(objective, batch, model)
    monkeypatch.setattr(collator, "computed_tokens", without_savings.SAVINGS[name])
    _, other = first_batch(folder)
    if name == "both":
        assert not other.keys() & {"token_index", "read_index"}
    if name == "unpadding":
        assert len(other["token_index"]) == batch["input_ids"].numel()
    if name == "sparse_head":
        assert len(other["read_index"]) >= int(batch["attention_mask"].sum())
    numbers, other_gradient = learnt(objective, other, model)
    # float32 sums of some hundred terms in another order
    assert torch.allclose(torch.tensor(numbers), torch.tensor(expected), rtol=1e-5)
    assert torch.allclose(other_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_the_judge_gives_what_single_rows_give_without_padding(folder: Path) -> None:
    torch.manual_seed(0)
    flags = small_flags(folder)
    judge = judging.Judge(flags, objective="mlm_nsp", eval_rows=5)
    ours = judging.open_task(flags).objective.build_model().config
    model = transformers.BertForPreTraining(transformers.BertConfig(**ours.to_dict())).train()
    expected: dict[str, list[float]] = {"mlm_loss": [], "nsp_loss": []}
    with torch.no_grad():
        for batch in judge.batches:
            for row in range(len(batch["input_ids"])):
                length = int(batch["attention_mask"][row].sum())
                output = model.eval()(
                    batch["input_ids"][row : row + 1, :length],
                    token_type_ids=batch["token_type_ids"][row : row + 1, :length],
                )
                scores = output.prediction_logits[0].log_softmax(-1)
                for place, label in enumerate(batch["labels"][row, :length].tolist()):
                    if label != -100:
                        expected["mlm_loss"].append(-scores[place, label].item())
                score = output.seq_relationship_logits[0].log_softmax(-1)
                label = batch["next_sentence_label"][row]
                if label != -100:
                    expected["nsp_loss"].append(-score[label].item())
    model.train()
    found = judge.judge(model)
    for name, values in expected.items():
        assert found[name] == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert model.training and 0 < len(expected["nsp_loss"]) <= 5


def test_the_rows_of_the_judge_depend_neither_on_a_seed_nor_on_a_share_of_masked_tokens(
    folder: Path,
) -> None:
    fixed, other = (
        judging.Judge([*small_flags(folder), *flags.split()], objective="mlm_nsp", eval_rows=5)
        for flags in ("", "--seed 7 --mlm_probability 0.4")
    )
    for mine, its in zip(fixed.batches, other.batches, strict=True):
        assert all(torch.equal(mine[name], its[name]) for name in judging.PLAIN)


def test_the_rate_of_stock_rises_over_the_warm_up_and_falls_to_nothing() -> None:
    plain, warm = STOCK["stock_fp32"], STOCK["stock_bf16"]
    assert [plain.rate(x) for x in (0, 0.5, 1)] == pytest.approx([5e-5, 2.5e-5, 0])
    assert [warm.rate(x) for x in (0, 0.025, 0.05, 0.525, 1)] == pytest.approx(
        [0, 5e-5, 1e-4, 5e-5, 0]
    )


@pytest.mark.parametrize("name", ["stock_fp32", "stock_bf16"])
def test_stock_learns_on_batches_cut_to_their_longest_row(folder: Path, name: str) -> None:
    flags = [*small_flags(folder), "--max_seq_length", "64"]
    judge = judging.Judge(flags, objective="mlm_nsp", eval_rows=5)
    settings = dataclasses.replace(STOCK[name], learning_rate=1e-2, warmup_share=0.0, num_rows=4)
    found = train_stock(settings, flags, judge, seconds=1.0, seed=1, num_rows=32, num_evaluations=2)
    assert 2 <= len(found["curve"]) <= 3 and found["curve"][0]["step"] == 0
    assert found["curve"][-1]["step"] == found["updates"] >= 1
    assert found["curve"][-1]["mlm_loss"] < found["curve"][0]["mlm_loss"]
    assert found["tokens"] <= found["updates"] * 4 * 64  # its own rows, not 32


def record(arm: str, minutes: float, losses: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm,
            "config_name": "mini",
            "minutes": minutes,
            "seed": seed,
            "start_mlm_loss": 6.9,
            "tokens_per_second": 1000.0,
            "updates": 10,
            "setting": {"objective": "mlm_nsp"},
            "processor": "A processor",
            "flags": [],
            "curve": [
                {"minutes": share * minutes, "mlm_loss": loss + 1 - share, "nsp_accuracy": 0.6}
                for share in (0.5, 1)
            ],
        }
        for seed, loss in enumerate(losses)
    ]


RUNS = [
    *record("stock_fp32", 20, [7.2, 7.0, 7.1]),
    *record("stock_bf16", 20, [6.0, 6.3, 6.1]),
    *record("stock_bf16", 10, [6.5]),
    *record("ours", 1, [6.2, 6.1, 6.3]),
    *record("ours", 2, [5.9, 6.1, 6.6]),
    *record("ours", 5, [5.0, 5.1, 5.2]),
]


def test_the_ratio_is_of_the_smallest_budget_that_reaches_the_loss() -> None:
    figures = time_to_quality.summarise(RUNS, 20)
    assert figures["mini_stock_bf16_20min_mlm_loss"] == 6.1  # ours at 1 minute 6.2, at 2 6.1
    assert figures["mini_ours_minutes_to_stock_bf16_loss"] == 2
    assert figures["mini_stock_bf16_over_ours_minutes_ratio"] == 10
    assert figures["mini_best_stock_over_ours_minutes_ratio"] == 10
    # What stock reaches is above where ours begins: a ratio would say nothing.
    assert "mini_stock_fp32_over_ours_minutes_ratio" not in figures
    assert figures["mini_stock_fp32_is_below_ours_start"] == 0
    assert figures["mini_stock_bf16_is_below_ours_start"] == 1
    behind = [run for run in RUNS if run["arm"] != "ours" or run["minutes"] == 1]
    assert "mini_stock_bf16_over_ours_minutes_ratio" not in time_to_quality.summarise(behind, 20)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    time_to_quality_picture.draw(RUNS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_several_calls_are_kept_in_one_file_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def run_arm(arm: str, minutes: float, seed: int, *_: Any) -> dict[str, Any]:
        made.append((arm, minutes, seed))
        return record(arm, minutes, [6.0])[0] | {"seed": seed}

    monkeypatch.setattr(time_to_quality, "run_arm", run_arm)
    monkeypatch.setattr(time_to_quality, "prepare", lambda _: [])
    path = tmp_path / "quality.json"
    for arms, minutes in (("ours", "1 2"), ("stock_bf16 ours", "2"), ("", "1")):
        words = f"time_to_quality.py --arms {arms} --minutes {minutes} --json {path}"
        monkeypatch.setattr(sys, "argv", words.split())
        time_to_quality.main()
    assert made == [("ours", 1, 42), ("ours", 2, 42), ("stock_bf16", 2, 42)]
    found = json.loads(path.read_text())
    assert [run["arm"] for run in found["runs"]] == ["ours", "ours", "stock_bf16"]
    assert found["figures"]["mini_ours_2min_mlm_loss"] == 6.0 and found["versions"]["torch"]


def test_runs_that_were_judged_on_other_rows_are_not_mixed() -> None:
    others = (
        {"setting": {"objective": "mlm_nsp", "eval_rows": 7}},
        {"processor": "Another"},
        {"flags": ["--dropout", "0.1"]},
    )
    for other in others:
        with pytest.raises(SystemExit, match="other rows"):
            time_to_quality.refuse_other_settings([*RUNS, RUNS[0] | other])
    time_to_quality.refuse_other_settings(RUNS)


def test_a_gain_is_paired_by_seed() -> None:
    base = {1: {"mlm_loss": 4.0}, 2: {"mlm_loss": 5.0}}
    arm = {2: {"mlm_loss": 5.5}, 1: {"mlm_loss": 3.75}, 3: {"mlm_loss": 9.0}}
    assert sorted(ablation.gains(arm, base)) == [-0.25, 0.5]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (time_to_quality, "--arms ours stock_bf16 --minutes 0.2 --num_evaluations 2"),
        (time_to_quality, "--arms ours_mlm --minutes 0.2 --num_evaluations 1"),
        (ablation, "--arms base no_unpadding --max_steps 6 --seeds 1"),
    ],
)
def test_the_scripts_run(
    folder: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, script: Any, words: str
) -> None:
    small_flags(folder)
    config = folder / "config"
    command = [script.__name__, *words.split()]
    if script is time_to_quality:
        command += f"--config_name {config} --rows 8 --plot picture.png".split()
    command += f"--data_files {folder / 'corpus.jsonl'} --validation_share 0.2".split()
    command += ["--max_seq_length", "48", "--eval_rows", "20", "--json", "figures.json"]
    command += f"-- --warmup_steps 2 --mixed_precision no --config_name {config}".split()
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    found = json.loads((elsewhere / "figures.json").read_text())
    assert found["figures"] and found["hardware"]["processor"]
    assert len(found["runs"]) == (1 if "ours_mlm" in words else 2)
    assert script is ablation or (elsewhere / "picture.png").is_file()


@pytest.mark.slow
def test_a_recipe_is_run_and_drawn(
    folder: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*small_flags(folder), "--max_steps", "6"]
    words = ["run", "minutes", "--seeds", "1", "--json", "recipe.json", "--", *flags]
    monkeypatch.setattr(sys, "argv", ["recipes.py", *words])
    recipes.main()
    found = json.loads((elsewhere / "recipe.json").read_text())
    assert [run["updates"] for run in found["runs"]] == [6]
    assert [row["step"] for row in found["runs"][0]["curve"]] == [0, 6]
    assert (elsewhere / "recipe.png").read_bytes().startswith(b"\x89PNG")
