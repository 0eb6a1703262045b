"""Which checkpoint a run goes on from, and which ones are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_task import line_trainer

from bert_pretrain.data.run_folder import list_checkpoints
from bert_pretrain.errors import InputError, TrainingError
from bert_pretrain.training.checkpoint import STATE_FILE, find_checkpoint, read_state
from bert_pretrain.training.run_directory import claim_run_dir


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return the folder of a run with checkpoints of updates 2, 4 and 6."""
    line_trainer(Accelerator(cpu=True), tmp_path, max_steps=6, save_steps=2).train()
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


def damage(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def names(run_dir: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run_dir / "checkpoints")]


def test_latest_is_the_newest_that_is_whole(run_dir: Path) -> None:
    folder = run_dir / "checkpoints"
    damage(folder / "step-000006")
    assert find_checkpoint("latest", folder) == folder / "step-000004"
    (folder / "step-000004" / STATE_FILE).unlink()
    assert find_checkpoint("latest", folder) == folder / "step-000002"


def test_an_empty_folder_is_no_checkpoint(run_dir: Path) -> None:
    folder = run_dir / "checkpoints"
    (folder / "step-000008").mkdir()
    assert find_checkpoint("latest", folder) == folder / "step-000006"
    assert names(run_dir) == ["step-000002", "step-000004", "step-000006"]


@pytest.mark.parametrize("asked", ["latest", "auto"])
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(
    run_dir: Path, asked: str
) -> None:
    for checkpoint in list_checkpoints(run_dir / "checkpoints"):
        damage(checkpoint)
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        claim_run_dir(run_dir, asked)
    assert len(names(run_dir)) == 3


def test_a_damaged_checkpoint_that_is_named_is_refused(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints/step-000004"
    damage(checkpoint)
    with pytest.raises(InputError, match=r"model\.safetensors is missing or damaged"):
        read_state(checkpoint)


def test_auto_begins_a_run_and_continues_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "new"
    assert claim_run_dir(run_dir, "auto") is None
    run_dir.mkdir()
    (run_dir / ".lock").touch()
    (run_dir / "run.json.tmp").touch()  # killed before it had begun
    assert claim_run_dir(run_dir, "auto") is None
    (run_dir / "run.json").write_text("{}")
    assert claim_run_dir(run_dir, "auto") is None  # killed before its first checkpoint


def test_auto_leaves_a_folder_of_something_else_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not an empty folder"):
        claim_run_dir(tmp_path, "auto")


def test_whole_checkpoints_are_a_run_also_without_its_run_json(run_dir: Path) -> None:
    (run_dir / "run.json").unlink()
    for asked in ("auto", "latest"):
        assert claim_run_dir(run_dir, asked) == run_dir / "checkpoints/step-000006"
    with pytest.raises(InputError, match="holds another run"):
        claim_run_dir(run_dir, None)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_flipped_bit_of_a_state_passes(run_dir: Path, data: st.DataObject) -> None:
    checkpoint = run_dir / "checkpoints/step-000006"
    path = checkpoint / STATE_FILE
    whole = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
        if bytes(flipped).split() != whole.split():  # white space between values means nothing
            with pytest.raises(InputError):
                read_state(checkpoint)
    finally:
        path.write_bytes(whole)


def test_a_state_of_another_version_says_so(run_dir: Path) -> None:
    path = run_dir / "checkpoints/step-000006" / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 0}))
    with pytest.raises(InputError, match="is of version 0 but must be of 1"):
        read_state(path.parent)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    trainer = line_trainer(
        Accelerator(cpu=True), tmp_path, max_steps=8, save_steps=2, save_total_limit=1
    )
    evaluate = trainer.evaluate
    losses = iter([9.0, 3.0, 1.0, 2.0, 2.0])  # before the first update, after 2, 4, 6 and 8

    def evaluated(*, is_last: bool) -> bool:
        is_over = evaluate(is_last=is_last)
        trainer.held_out_loss = next(losses)
        return is_over

    trainer.evaluate = evaluated  # type: ignore[method-assign]
    trainer.train()
    assert names(tmp_path) == ["step-000004", "step-000008"]


def test_a_run_with_weights_or_a_loss_that_is_not_finite_saves_nothing(tmp_path: Path) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path, max_steps=6, save_steps=2)
    trainer.train()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("inf"))
    shutil.rmtree(tmp_path / "checkpoints/step-000006")
    with pytest.raises(TrainingError, match="after update 6 weights are not finite"):
        trainer.save()
    with pytest.raises(TrainingError, match="after update 6"):
        trainer.evaluate(is_last=False)
    assert names(tmp_path) == ["step-000002", "step-000004"]
