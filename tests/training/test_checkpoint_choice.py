"""Which checkpoint a run goes on from, and which ones are kept."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_task import line_trainer

from bert_pretrain.data.run_folder import list_checkpoints
from bert_pretrain.errors import InputError, TrainingError
from bert_pretrain.training import checkpoint_state
from bert_pretrain.training.checkpoint import find_checkpoint, read_state
from bert_pretrain.training.checkpoint_state import STATE_FILE, read_state_file, write_state
from bert_pretrain.training.run_directory import (
    claim_run_dir,
    leave_newer_aside,
    refuse_other_places,
    write_run_json,
)


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


def test_newer_checkpoints_are_no_longer_part_of_a_run_that_goes_on_from_an_older_one(
    run_dir: Path,
) -> None:
    """Rotation counted them as the newest, and removed what the run had just written."""
    folder = run_dir / "checkpoints"
    damage(folder / "step-000006")
    before = {path.name: path.read_bytes() for path in (folder / "step-000006").iterdir()}
    said: list[str] = []
    trainer = line_trainer(
        Accelerator(cpu=True), run_dir, max_steps=5, save_steps=1, save_total_limit=1
    )
    trainer.load_checkpoint(folder / "step-000002", read_state(folder / "step-000002"))
    leave_newer_aside(folder / "step-000002", run_dir, said.append)
    assert names(run_dir) == ["step-000002"]
    first, second = said
    assert "step-000004.aside-1" in first and "an older one was asked for" in first
    assert "step-000006.aside-1" in second and "model.safetensors is missing or damaged" in second
    aside = folder / "step-000006.aside-1"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    trainer.train()
    assert "step-000005" in names(run_dir) and "step-000004" not in names(run_dir)
    leave_newer_aside(folder / "step-000005", run_dir, said.append)
    assert len(said) == 2
    (folder / "step-000006").mkdir()
    (folder / "step-000006/junk").touch()
    leave_newer_aside(folder / "step-000005", run_dir, said.append)
    assert "step-000006.aside-2" in said[2] and aside.is_dir()


def test_a_checkpoint_of_another_folder_leaves_a_runs_own_alone(run_dir: Path) -> None:
    elsewhere = run_dir.parent / "elsewhere/checkpoints/step-000002"
    shutil.copytree(run_dir / "checkpoints/step-000002", elsewhere)
    said: list[str] = []
    leave_newer_aside(elsewhere, run_dir, said.append)
    assert said == [] and len(names(run_dir)) == 3


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


@settings(max_examples=60)
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
    with pytest.raises(InputError, match="is of version 0 but must be of 1 or 2"):
        read_state(path.parent)


def test_a_newer_version_says_so_whatever_else_it_holds(run_dir: Path) -> None:
    path = run_dir / "checkpoints/step-000006" / STATE_FILE
    path.write_text(json.dumps({"format_version": 3, "everything": "else"}))
    with pytest.raises(InputError, match=r"is of version 3 but must be of 1.*its run.json names"):
        read_state(path.parent)


def test_latest_does_not_pass_over_a_checkpoint_of_another_version(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_dir / "checkpoints"
    path = folder / "step-000006" / STATE_FILE
    state, files = read_state_file(path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_state, "FORMAT_VERSION", 3)
        write_state(path, state, files)
    for asked in ("latest", "auto"):
        with pytest.raises(InputError, match="is of version 3 but must be of 1"):
            claim_run_dir(run_dir, asked)
    path.write_text(path.read_text().replace('"step": 6', '"step": 7'))  # that one is damaged
    assert find_checkpoint("latest", folder) == folder / "step-000004"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["../x", "/etc/passwd", "\0", "digest", "files"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["sums", "counts", "weights", "losses", "step", "phase", "defining"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(data=st.data())
def test_a_state_of_any_form_is_refused_or_continued(run_dir: Path, data: st.DataObject) -> None:
    """Its digests are right: whoever writes a file can write them."""
    whole = run_dir / "checkpoints/step-000006"
    forged = run_dir / "checkpoints/step-000099"
    shutil.rmtree(forged, ignore_errors=True)
    shutil.copytree(whole, forged)
    state, files = read_state_file(whole / STATE_FILE)
    key = data.draw(st.sampled_from([*state, "files"]))
    value = data.draw(VALUES)
    content = {**state, "files": files} | {key: value}
    if data.draw(st.booleans()):
        del content[key]
    files = content.pop("files", files)
    write_state(forged / STATE_FILE, content, files)  # type: ignore[arg-type]  # that is the point
    trainer = line_trainer(Accelerator(cpu=True), run_dir, max_steps=6)
    try:
        trainer.load_checkpoint(forged, read_state(forged))
    except InputError:
        return
    # What was taken is of the right form everywhere.
    assert isinstance(trainer.step, int) and trainer.step >= 0
    assert isinstance(trainer.journal.num_units, int)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("step", "6", "step is '6'"),
        ("step", -1, "step is '-1'"),
        ("step", True, "step is 'True'"),
        ("elapsed", None, "elapsed is 'None'"),
        ("place", [0, 0, "x", 0, 0], "an entry of place is 'x'"),
        ("place", [0, -0.5, 0], "place in the data is"),
        ("place", [0, 0, float("nan")], "place in the data is"),
        ("watch", [], "watch is no object"),
        ("watch", {"line_loss": {}}, "line_loss of watch is '{}'"),
        ("sums", {"sums": {}}, "sums has no counts"),
        ("fingerprint", {"defining": 3}, "defining of fingerprint is no object"),
        ("held_out_loss", "low", "held_out_loss is 'low'"),
        ("rewinds", {"step": 0}, "rewinds has no number"),
    ],
)
def test_a_state_of_another_form_is_refused_with_what_is_wrong(
    run_dir: Path, key: str, value: object, problem: str
) -> None:
    checkpoint = run_dir / "checkpoints/step-000006"
    state, files = read_state_file(checkpoint / STATE_FILE)
    write_state(checkpoint / STATE_FILE, state | {key: value}, files)  # type: ignore[misc]
    trainer = line_trainer(Accelerator(cpu=True), run_dir, max_steps=6)
    with pytest.raises(InputError, match=re.escape(problem)):
        trainer.load_checkpoint(checkpoint, read_state(checkpoint))


def test_a_state_names_no_file_outside_its_checkpoint(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints/step-000006"
    state, files = read_state_file(checkpoint / STATE_FILE)
    for name in ("../step-000004/model.safetensors", "/etc/passwd"):
        write_state(checkpoint / STATE_FILE, state, files | {name: "0"})
        with pytest.raises(InputError, match="names one outside the checkpoint"):
            read_state(checkpoint)


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


def test_processes_that_see_different_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = line_trainer(Accelerator(cpu=True), tmp_path)
    refuse_other_places(trainer)
    monkeypatch.setattr(
        "bert_pretrain.training.run_directory.gather_on_hosts", lambda step: [step, 1200]
    )
    with pytest.raises(InputError, match=r"0 in process 0, 1,200 in process 1\).*`output_dir`"):
        refuse_other_places(trainer)


@pytest.mark.parametrize("place", ["other/checkpoints/step-000004", "me/bert@step-000004"])
def test_a_run_that_began_elsewhere_goes_on_from_there_until_it_has_saved(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, place: str
) -> None:
    """Whatever ends it, the same command goes on, and so does `latest`."""
    begun = tmp_path_factory.mktemp("begun")
    remote = {"me/bert@step-000004": run_dir / "checkpoints/step-000004"}
    asked = place if place in remote else str(run_dir / "checkpoints/step-000004")

    def claimed(resume_from: str) -> Path | None:
        return claim_run_dir(begun, resume_from, fetch=remote.get)

    first = claimed(asked)
    assert first == run_dir / "checkpoints/step-000004"
    trainer = line_trainer(Accelerator(cpu=True), begun)
    for again in (asked, "latest", "auto", asked):
        write_run_json({"resume_from_checkpoint": again}, begun, trainer, {}, checkpoint=first)
        assert claimed(asked) == claimed("latest") == claimed("auto") == first
    own = begun / "checkpoints/step-000006"
    shutil.copytree(run_dir / "checkpoints/step-000006", own)
    assert claimed(asked) == claimed("latest") == claimed("auto") == own
    with pytest.raises(InputError, match="is no checkpoint of"):
        claimed(str(run_dir / "checkpoints/step-000002"))
