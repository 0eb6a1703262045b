"""The program end to end: what it writes, what others can load, how it ends."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import metrics, run_here, small_flags, write_corpus, write_model_config
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from bert_pretrain.__main__ import main
from bert_pretrain.config.pretraining import parse_config
from bert_pretrain.config.recipes import RECIPES
from bert_pretrain.data.run_folder import is_held
from bert_pretrain.training.journal import Journal

TOKENIZER_SIZE = 8192


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bert_pretrain.text.preparation.HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def pretrain(folder: Path, *flags: str) -> None:
    assert main(["pretrain", *small_flags(folder), *flags]) == 0


def validation(run_dir: Path) -> list[dict[str, float]]:
    return [row for row in metrics(run_dir) if row["split"] == "validation"]


def test_training_starts_at_the_unigram_distribution(folder: Path) -> None:
    pretrain(folder, "--max_steps", "1", "--output_dir", "out")
    start = validation(folder / "out")[0]
    # Held-out tokens have nearly the frequencies of the training tokens: one generator made both.
    assert start["mlm_loss"] == pytest.approx(start["unigram_entropy"], abs=0.4)
    assert start["mlm_loss"] < math.log(TOKENIZER_SIZE) / 2
    assert start["pseudo_perplexity"] == pytest.approx(math.exp(start["mlm_loss"]))


def test_a_new_bert_begins_with_neighbour_heads_unless_that_is_unwanted(folder: Path) -> None:
    standing = ["--max_steps", "1", "--learning_rate", "1e-9", "--optimizer", "adamw"]

    def positions(*flags: str) -> torch.Tensor:
        pretrain(folder, *standing, *flags)
        weights = load_file(folder / flags[-1] / "final/model.safetensors")
        return weights["bert.embeddings.position_embeddings.weight"]

    ours = positions("--output_dir", "ours")
    squares = ours[:, 0::2] ** 2 + ours[:, 1::2] ** 2  # of a sine and its cosine
    torch.testing.assert_close(squares, torch.full_like(squares, 2 * 0.02**2), rtol=1e-3, atol=0)
    stock = positions("--no_neighbour_heads", "--output_dir", "stock")
    assert (stock[:, 0::2] ** 2 + stock[:, 1::2] ** 2).std() > 1e-4
    flags = small_flags(folder)
    place = flags.index("--config_name")
    flags[place : place + 2] = ["--model_name_or_path", str(folder / "stock/final")]
    run_here(folder, [*flags, *standing, "--output_dir", "again"])
    weights = load_file(folder / "again/final/model.safetensors")
    again = weights["bert.embeddings.position_embeddings.weight"]
    torch.testing.assert_close(again, stock, rtol=0, atol=1e-6)


def test_a_run_given_hours_ends_with_all_rows_logged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 0.3 * next(ticks))  # whatever the machine does
    monkeypatch.setattr("bert_pretrain.training.metrics.time", clock)
    flags = "--max_hours 0.0015 --warmup_steps 1 --logging_steps 1000 --eval_steps 0"  # 5.4 seconds
    flags += " --max_steps 5000"
    pretrain(folder, *flags.split(), "--output_dir", "out")
    *_, train, final = metrics(folder / "out")
    # The bar ended where the clock ended the run, not where its updates would have.
    assert f" {final['step']}/{final['step']} " in capsys.readouterr().err
    assert train["split"] == "train" and final["split"] == "validation"
    assert train["step"] == final["step"] > 5
    assert train["learning_rate"] < 0.25 * 1.5e-3  # the clock has run out, and with it the rate
    assert (folder / f"out/checkpoints/step-{final['step']:06d}").is_dir()


@pytest.mark.slow
def test_a_run_that_ends_before_its_masks_have_changed_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 0.3 * next(ticks))
    monkeypatch.setattr("bert_pretrain.training.metrics.time", clock)
    flags = "--max_hours 0.001 --max_steps 500 --eval_steps 0 --mlm_probability 0.3:0.15"
    out = [*small_flags(folder), *flags.split(), "--output_dir"]
    assert "of 500 updates, so that what --mlm_probability" in run_here(folder, [*out, "cut"])
    whole = run_here(folder, [*out, "not-cut", "--max_hours", "0", "--max_steps", "2"])
    assert "so that what" not in whole
    assert "NOTE: --warmup_steps 30 is as long as the run" in whole


def test_a_run_holds_its_folder_from_before_its_first_row_to_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = []

    def noted(journal: Journal, row: dict[str, Any]) -> None:
        during.append(is_held(folder / "out"))
        write(journal, row)

    write = Journal.write
    monkeypatch.setattr(Journal, "write", noted)
    pretrain(folder, "--max_steps", "2", "--output_dir", "out")
    assert during and all(during) and not is_held(folder / "out")


def test_resuming_a_finished_run_changes_nothing(folder: Path) -> None:
    flags = ["--max_steps", "3", "--eval_steps", "2", "--output_dir", "out"]
    pretrain(folder, *flags)
    before = (folder / "out/metrics.jsonl").read_text()
    pretrain(folder, *flags, "--resume_from_checkpoint", "latest")
    assert (folder / "out/metrics.jsonl").read_text() == before


@pytest.mark.parametrize("is_average", [False, True])
def test_the_average_is_exported_where_that_is_asked_for(folder: Path, is_average: bool) -> None:
    flags = ["--max_steps", "3", "--ema_decay", "0.9", "--eval_steps", "2", "--output_dir", "out"]
    pretrain(folder, *flags, *(["--export_ema"] if is_average else []))
    checkpoint = folder / "out/checkpoints/step-000003"
    final, trained, average = (
        load_file(path)
        for path in (
            folder / "out/final/model.safetensors",
            checkpoint / "model.safetensors",
            checkpoint / "ema.safetensors",
        )
    )
    assert not torch.equal(trained["bert.pooler.dense.weight"], average["bert.pooler.dense.weight"])
    expected = trained | average if is_average else trained
    assert final.keys() == expected.keys()
    assert all(torch.equal(final[name], expected[name]) for name in final)
    AutoModelForMaskedLM.from_pretrained(checkpoint)
    card = (folder / "out/final/README.md").read_text()
    last = validation(folder / "out")[-1]
    shown = last["ema_mlm_loss"] if is_average else last["mlm_loss"]
    assert f"| mlm loss | {shown:.4g} |" in card


@pytest.mark.slow
def test_a_run_that_stopped_at_its_loss_is_complete(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--max_steps", "8", "--eval_steps", "2", "--output_dir", "out"]
    pretrain(folder, *flags, "--stop_at_loss", "100")
    assert "--stop_at_loss 100 is reached" in capfd.readouterr().out
    rows = metrics(folder / "out")
    assert [row["step"] for row in rows if row["split"] == "validation"] == [0, 2]
    shutil.rmtree(folder / "out/final")  # as if it had been killed before its export
    pretrain(folder, *flags, "--stop_at_loss", "100", "--resume_from_checkpoint", "latest")
    assert metrics(folder / "out") == rows
    AutoModelForMaskedLM.from_pretrained(folder / "out/final")
    capfd.readouterr()
    pretrain(folder, *flags, "--resume_from_checkpoint", "latest")
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["--stop_at_loss", "100.0", "0.0", "yes"] in rows
    assert metrics(folder / "out")[-1]["step"] == 8


def test_a_finished_run_continued_in_a_new_folder_is_exported_there(folder: Path) -> None:
    flags = ["--max_steps", "2", "--eval_steps", "2"]
    pretrain(folder, *flags, "--output_dir", "one")
    checkpoint = folder / "one/checkpoints/step-000002"
    pretrain(folder, *flags, "--output_dir", "two", "--resume_from_checkpoint", str(checkpoint))
    weights = [(folder / name / "final/model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert "measured nothing of its own" in (folder / "two/final/README.md").read_text()


def test_the_tokenizer_cuts_where_training_did_unless_the_model_knew_more(folder: Path) -> None:
    def lengths(run: str) -> set[int]:
        exports = [folder / run / "final", *(folder / run / "checkpoints").iterdir()]
        return {AutoTokenizer.from_pretrained(export).model_max_length for export in exports}

    pretrain(
        folder,
        "--max_steps",
        "2",
        "--save_steps",
        "1",
        "--max_seq_length",
        "32",
        "--output_dir",
        "short",
    )
    assert lengths("short") == {32}
    card = (folder / "short/final/README.md").read_text()
    assert "rows of up to 32 tokens; its position table has 64 places, those from 32 on" in card
    for length, run, expected in (("40", "longer", 40), ("16", "no_longer", 32)):
        flags = [
            "--model_name_or_path",
            "short/final",
            "--max_seq_length",
            length,
            "--max_steps",
            "1",
        ]
        pretrain(folder, *flags, "--output_dir", run)
        assert lengths(run) == {expected}
        card = (folder / run / "final/README.md").read_text()
        assert (
            f"trained further on rows of up to {length} tokens" in card and "untrained" not in card
        )


def test_a_masked_lm_checkpoint_without_nsp_head_is_continued(folder: Path) -> None:
    config = BertConfig.from_pretrained(
        write_model_config(folder / "other", vocab_size=TOKENIZER_SIZE)
    )
    BertForMaskedLM(config).save_pretrained(folder / "other")
    tokenizer = str(Path(__file__).parents[2] / "tokenizer/docs-uncased-8192")
    flags = ["--model_name_or_path", "other", "--tokenizer_name", tokenizer, "--max_steps", "2"]
    pretrain(folder, *flags, "--output_dir", "out")
    # Its own output layer is kept: far from the unigram distribution that a fresh model begins
    # with.
    assert validation(folder / "out")[0]["mlm_loss"] == pytest.approx(
        math.log(TOKENIZER_SIZE), rel=0.02
    )
    pretrain(
        folder, "--model_name_or_path", "out/final", "--max_steps", "1", "--output_dir", "again"
    )
    again, last = validation(folder / "again")[0], validation(folder / "out")[-1]
    assert again["mlm_loss"] == pytest.approx(last["mlm_loss"], rel=1e-6)
    assert again["nsp_loss"] == pytest.approx(last["nsp_loss"], rel=1e-6)


def test_masked_lm_alone_learns_from_documents_of_one_sentence(folder: Path) -> None:
    lines = [
        json.dumps({"text": f"The model returns value number {i} of the list."}) for i in range(60)
    ]
    (folder / "short.jsonl").write_text("\n".join(lines))
    config = write_model_config(folder / "config")
    flags = [
        "--data_files",
        "short.jsonl",
        "--config_name",
        str(config),
        "--max_seq_length",
        "32",
        "--max_steps",
        "2",
    ]
    assert main(["pretrain", "--objective", "mlm", *flags, "--output_dir", "out"]) == 0
    assert "nsp_loss" not in validation(folder / "out")[-1]
    AutoModelForMaskedLM.from_pretrained(folder / "out/final")


def test_a_diverged_run_ends_with_advice_and_status_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--max_steps",
        "50",
        "--optimizer",
        "adamw",
        "--learning_rate",
        "1e9",
        "--warmup_steps",
        "0",
    ]
    with pytest.raises(SystemExit) as stopped:
        pretrain(folder, *flags, "--max_grad_norm", "0", "--output_dir", "out")
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "not finite" in message and "--learning_rate" in message and "Traceback" not in message


def test_a_run_that_diverges_to_a_finite_loss_goes_on_and_keeps_its_best_checkpoint(
    folder: Path,
) -> None:
    flags = shlex.split("--optimizer adamw --warmup_steps 0 --save_total_limit 1 --output_dir out")
    flags += shlex.split("--save_steps 4 --eval_steps 4 --resume_from_checkpoint auto")
    pretrain(folder, *flags, "--max_steps", "4", "--learning_rate", "1e-3")
    pretrain(folder, *flags, "--max_steps", "12", "--learning_rate", "30")
    losses = {row["step"]: row["loss"] for row in validation(folder / "out") if "loss" in row}
    assert losses[4] < 10 and 709.8 < losses[12] < math.inf  # math.exp goes no further
    assert sorted(path.name for path in (folder / "out/checkpoints").iterdir()) == [
        "step-000004",
        "step-000012",
    ]
    pretrain(folder, *flags, "--max_steps", "16", "--learning_rate", "1e-3")
    assert validation(folder / "out")[-1]["step"] == 16


def test_a_checkpoint_is_not_continued_inside_another_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(folder, "--max_steps", "2", "--output_dir", "one")
    pretrain(folder, "--max_steps", "2", "--seed", "7", "--output_dir", "other")
    before = (folder / "other/metrics.jsonl").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        pretrain(
            folder,
            "--max_steps",
            "4",
            "--output_dir",
            "other",
            "--resume_from_checkpoint",
            "one/checkpoints/step-000002",
        )
    assert "no checkpoint of" in capsys.readouterr().err
    assert (folder / "other/metrics.jsonl").read_text() == before


def test_a_changed_rate_is_allowed_on_resuming_and_said(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--max_steps", "4", "--save_steps", "2", "--output_dir", "out"]
    pretrain(folder, *flags)
    shutil.rmtree(folder / "out/checkpoints/step-000004")
    capfd.readouterr()
    pretrain(folder, *flags, "--learning_rate", "1e-4", "--resume_from_checkpoint", "latest")
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["--learning_rate", "0.0015", "0.0001", "yes"] in rows


def test_tensorboard_gets_both_curves(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(folder, "--max_steps", "2", "--report_to", "tensorboard", "--output_dir", "out")
    (events,) = (folder / "out").rglob("events.out*")
    log = EventAccumulator(str(events.parent)).Reload()
    assert {"train/loss", "validation/mlm_loss", "validation/nsp_accuracy"} <= set(
        log.Tags()["scalars"]
    )
    found = [event.value for event in log.Scalars("validation/mlm_loss")]
    assert found == pytest.approx([row["mlm_loss"] for row in validation(folder / "out")], rel=1e-6)


@pytest.mark.parametrize("num_saved", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_tensorboard_shows_no_step_of_a_killed_run_twice(folder: Path, num_saved: int) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = shlex.split("--max_steps 4 --save_steps 2 --report_to tensorboard --output_dir out")
    pretrain(folder, *flags)
    for name in ["final", "checkpoints/step-000004", *(["checkpoints"] if not num_saved else [])]:
        shutil.rmtree(folder / "out" / name)  # as after a kill
    pretrain(folder, *flags, "--resume_from_checkpoint", "auto")
    (place,) = {file.parent for file in (folder / "out").rglob("events.out*")}
    log = EventAccumulator(str(place)).Reload()
    for split, last_steps in (("train", [1, 2, 3, 4]), ("validation", [0, 4])):
        assert [event.step for event in log.Scalars(f"{split}/mlm_loss")] == last_steps


@pytest.mark.parametrize(
    ("objective", "recipe"), [(o, r) for o, recipes in RECIPES.items() for r in recipes]
)
def test_every_recipe_is_a_valid_configuration(objective: str, recipe: str) -> None:
    config = parse_config(["--objective", objective, "--recipe", recipe])
    for name, value in RECIPES[objective][recipe].items():
        assert config.to_dict()[name] == value


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--objective contrastive --mlm_probability 0.2", "--mlm_probability means nothing"),
        ("--margin 2", "--margin means nothing"),
        ("--objective autoencoder --loss nt_xent", "it is for contrastive"),
        ("--objective contrastive --recipe devlin2019", "minutes"),
        ("--objective contrastive --temperature 0", "--temperature"),
        ("--objective autoencoder --mask_ratio 1", "[0, 1)"),
        ("--objective segmentation", "contrastive"),
    ],
)
def test_flags_of_other_objectives_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: str, expected: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", *flags.split()])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_training_does_not_depend_on_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, config = write_corpus(folder / "c.jsonl"), write_model_config(folder / "config")
    flags = [
        "--data_files",
        str(corpus),
        "--config_name",
        str(config),
        "--max_seq_length",
        "48",
        "--max_steps",
        "2",
    ]
    for name in ("here", "there"):
        (folder / name).mkdir()
        monkeypatch.chdir(folder / name)
        assert main(["pretrain", *flags, "--output_dir", "out"]) == 0
    assert metrics(folder / "here/out") == metrics(folder / "there/out")
