"""What changes in the course of a run follows its updates alone: on any layout, and resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from runs import metrics
from safetensors.torch import load_file
from stores import store_of
from trainers import VOCAB, bert_objective, trainer_of

from bert_pretrain.data.course import Course
from bert_pretrain.objectives.text import text_rows
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.tokenizers import load_tokenizer
from bert_pretrain.training.checkpoint import read_state
from bert_pretrain.training.layout import BatchLayout
from bert_pretrain.training.metrics import CourseWatch
from bert_pretrain.training.trainer import Trainer

STEPS = 8
PHASE_END = 5  # updates of rows of 24 tokens; then 3 of 40
WAYS = ("ramp", "masks", "phases", "sop")


def trainer_in(
    ways: set[str],
    folder: Path,
    *,
    num_micro_batches: int = 2,
    num_workers: int = 0,
    is_compiled: bool = False,
) -> Trainer:
    """Return a trainer of 8 rows an update, and of what `ways` change."""
    AcceleratorState._reset_state(reset_partial_state=True)
    generator = np.random.default_rng(0)
    documents = [
        [generator.integers(5, VOCAB, generator.integers(3, 15)).tolist() for _ in range(12)]
        for _ in range(30)
    ]
    store = store_of(documents)
    corpus: Any = SimpleNamespace(
        store=store,
        train_documents=np.arange(6, 30),
        validation_documents=np.arange(6),
        manifest={"key": "key"},
    )
    training, held_out = text_rows(
        corpus,
        load_tokenizer(None),
        MaskingRule(
            mlm_probability=0.4,
            last_mlm_probability=0.1 if "masks" in ways else 0.6 if "more masks" in ways else None,
            mask_token_id=4,
            ordinary_ids=np.arange(5, VOCAB),
        ),
        pair_mode="sop" if "sop" in ways else "exact",
        max_seq_length=24,
        later_lengths=[40] if "phases" in ways else [],
        short_seq_prob=0.1,
        seed=0,
        max_eval_rows=8,
    )
    objective = bert_objective(num_layers=1)
    objective.training, objective.held_out = training, held_out
    folder.mkdir(exist_ok=True)
    trainer = trainer_of(
        Accelerator(cpu=True),
        objective,
        folder,
        optimizer="adamw",
        max_steps=STEPS,
        save_steps=1,
        num_micro_batches=num_micro_batches,
        is_compiled=is_compiled,
        course=Course(
            8,
            STEPS,
            ramp_start=2 if "ramp" in ways else 0,
            ramp_share=0.75,
            phase_shares=(PHASE_END / STEPS, 1 - PHASE_END / STEPS) if "phases" in ways else (1.0,),
        ),
    )
    trainer.intervals = replace(trainer.intervals, evaluation=2)
    trainer.layout = replace(trainer.layout, num_workers=num_workers)
    return trainer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step-{STEPS:06}/model.safetensors")


@pytest.fixture(scope="module", params=combinations(WAYS, 2), ids=" and ".join)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[set[str], Path]:
    """Two ways in which updates change, and a run of them that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    trainer_in(set(request.param), folder).train()
    return set(request.param), folder


def check_resumed(ways: set[str], folder: Path, again: Path, step: int) -> None:
    """End the run in `folder` after some updates, in a copy, and let it go on there."""
    shutil.copytree(folder, again)
    for late in range(step + 1, STEPS + 1):
        shutil.rmtree(again / f"checkpoints/step-{late:06}")
    checkpoint = again / f"checkpoints/step-{step:06}"
    resumed = trainer_in(ways, again)
    resumed.load_checkpoint(checkpoint, read_state(checkpoint))
    resumed.train()
    assert metrics(again) == metrics(folder)
    found, expected = weights(again), weights(folder)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("step", [3, PHASE_END])  # within the ramp; at the edge of the phases
def test_it_goes_on_to_the_last_bit(
    whole: tuple[set[str], Path], tmp_path: Path, step: int
) -> None:
    check_resumed(*whole, tmp_path / "again", step)


@pytest.mark.slow
def test_with_all_of_it_a_run_goes_on_from_every_update(tmp_path: Path) -> None:
    trainer_in(set(WAYS), tmp_path / "whole").train()
    for step in range(1, STEPS):
        check_resumed(set(WAYS), tmp_path / "whole", tmp_path / str(step), step)


def test_workers_change_nothing_and_micro_batches_no_curve(
    whole: tuple[set[str], Path], tmp_path: Path
) -> None:
    ways, folder = whole
    trainer_in(ways, tmp_path / "workers", num_workers=2).train()
    assert metrics(tmp_path / "workers") == metrics(folder)
    trainer_in(ways, tmp_path / "cut", num_micro_batches=4).train()
    for row, plain in zip(metrics(tmp_path / "cut"), metrics(folder), strict=True):
        assert row.keys() == plain.keys() and row.pop("split") == plain.pop("split")
        row.pop("message", None), plain.pop("message", None)  # of a warning, with rounded numbers
        for key, value in plain.items():
            # An accuracy may move by one token where two scores tie to within rounding (float32).
            allowed = 0.02 if key.endswith("accuracy") else 1e-5
            assert row[key] == pytest.approx(value, rel=1e-5, abs=allowed), key


@pytest.mark.slow
def test_compiled_it_has_the_curve_of_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    trainer_in(set(WAYS), tmp_path / "plain").train()
    compiled = trainer_in(set(WAYS), tmp_path / "compiled", is_compiled=True)
    compiled.check_compiled("on")
    compiled.train()
    assert compiled.is_compiled
    torch.compiler.set_stance("default")
    for row, plain in zip(metrics(tmp_path / "compiled"), metrics(tmp_path / "plain"), strict=True):
        if plain["split"] != "warning":
            assert row["loss"] == pytest.approx(plain["loss"], rel=1e-5)  # float32


def test_each_update_has_the_rows_the_masks_and_the_length_of_its_course(tmp_path: Path) -> None:
    trainer = trainer_in({"ramp", "masks", "phases", "sop"}, tmp_path)
    seen: list[tuple[int, int, list[int], list[int]]] = []
    windows = trainer._windows()
    for _ in range(STEPS):
        window = next(windows)
        batches = window.micro_batches
        is_pair = torch.cat([batch["next_sentence_label"] != -100 for batch in batches])
        real = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
        ordinary = (real - 2 - is_pair.long()).tolist()  # without [CLS] and one or two [SEP]
        masked = torch.cat([(batch["labels"] != -100).sum(1) for batch in batches]).tolist()
        widths = {batch["input_ids"].shape[1] for batch in batches}
        slots = {batch["masked_positions"].shape[1] for batch in batches}
        assert all(len(batch["input_ids"]) <= 4 for batch in batches)
        (width,) = widths
        assert slots == {round(0.4 * width)}  # by the highest rate, whatever the update's
        seen.append((len(ordinary), width, ordinary, masked))
    # 2 + 6 * step / 6 rows, in multiples of 2, over the first 0.75 * 8 updates.
    assert [number for number, *_ in seen] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert [width for _, width, *_ in seen] == [24] * 5 + [40] * 3
    for step, (_, _, ordinary, masked) in enumerate(seen):
        rate = 0.4 + (0.1 - 0.4) * step / STEPS
        for length, count in zip(ordinary, masked, strict=True):
            assert count == max(1, int(np.rint(length * rate))), step


def test_evaluation_has_the_length_of_the_next_update_and_the_last_rate(tmp_path: Path) -> None:
    trainer_in({"masks", "phases"}, tmp_path).train()
    found = [row for row in metrics(tmp_path) if row["split"] == "validation"]
    expected = {0: 24, 2: 24, 4: 24, 6: 40, 8: 40}
    assert {row["step"]: row["max_seq_length"] for row in found} == expected
    assert all(0.5 <= row["majority_nsp_accuracy"] < 1 for row in found)
    trainer = trainer_in({"masks", "phases"}, tmp_path)
    for phase, width in enumerate((24, 40)):
        held_out = trainer.objective.held_out.of_phase(phase)
        chosen = held_out.rows[:4]
        batch = held_out.collator.collate([(0, chosen, held_out.plan.take(chosen))])
        ordinary = batch["attention_mask"].sum(1).numpy() - 3
        count = (batch["labels"] != -100).sum(1).tolist()
        assert batch["input_ids"].shape[1] == width
        assert count == np.maximum(1, np.rint(0.1 * ordinary)).astype(int).tolist()


@pytest.mark.parametrize(("ways", "rate"), [({"masks"}, 0.4), ({"more masks"}, 0.6)])
def test_a_pass_on_trial_has_the_longest_rows_and_the_most_masks(
    tmp_path: Path, ways: set[str], rate: float
) -> None:
    trainer = trainer_in({"phases"} | ways, tmp_path)
    seen = []
    collate = trainer.objective.training.collator.collate
    trainer.objective.training.collator.collate = lambda *parts: (
        seen.append(collate(*parts)) or seen[-1]
    )  # type: ignore[method-assign,func-returns-value]
    trainer.try_pass()
    assert seen[0]["input_ids"].shape == (4, 40)
    ordinary = seen[0]["attention_mask"].sum(1).numpy() - 3
    num_masked = (seen[0]["labels"] != -100).sum(1).tolist()
    assert num_masked == np.maximum(1, np.rint(rate * ordinary)).astype(int).tolist()


def test_a_loss_of_longer_rows_is_not_compared_with_one_of_shorter_ones() -> None:
    watch = CourseWatch()
    assert not watch.warnings({"mlm_loss": 1.0})
    assert not watch.warnings({"mlm_loss": 2.0}, phase=1)
    again = CourseWatch()
    again.load_state_dict(watch.state_dict())
    assert again.warnings({"mlm_loss": 2.1}, phase=1)
    assert again.warnings({"mlm_loss": 1.1})
    assert "was 2.000" in again.warnings({"mlm_loss": 2.1}, phase=1)[0]


def test_an_encoder_that_ends_with_worse_neighbours_than_it_began_with_is_warned_of() -> None:
    watch = CourseWatch()
    assert not watch.warnings({"knn_accuracy": 0.7})
    assert not watch.warnings({"knn_accuracy": 0.6})  # many fall before they rise
    again = CourseWatch()
    again.load_state_dict(watch.state_dict())
    assert not again.warnings({"knn_accuracy": 0.69}, is_last=True)  # two images of two hundred
    (message,) = again.warnings({"knn_accuracy": 0.65}, is_last=True)
    assert "0.650 at the end and 0.700 at the beginning" in message


def test_a_layout_of_less_than_a_row_a_forward_pass_is_not_made() -> None:
    layout = BatchLayout(global_batch_size=8, num_micro_batches=4, eval_batch_size=4)
    course = Course(layout.global_batch_size, 10, ramp_start=2, ramp_share=0.5)
    assert course.micro_batches(0, num_processes=2, num_micro_batches=4) == 1
