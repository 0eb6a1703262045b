"""Uploads beside a run to a Hub that fails: nothing is lost, nothing hangs, and all is said."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loopback_hub import TOKEN, Fault, LoopbackHub, Repository, running_hub
from safetensors import SafetensorError

from bert_pretrain.publishing import pusher as pusher_module
from bert_pretrain.publishing.pusher import HubPusher, link

NAME = "tester/model"
WEIGHTS = b"\0weights" * 1000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that upload processes started from here find."""
    monkeypatch.setattr(pusher_module, "_FIRST_WAIT", 0.05)
    with running_hub() as hub:
        for name, value in hub.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield hub


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text("{}")


class Run:
    """A pusher with an outbox of its own, and what it said."""

    def __init__(self, folder: Path, *, is_private: bool = False) -> None:
        self.outbox = folder / "hub"
        self.said: list[str] = []
        self.pusher = HubPusher(
            self.outbox,
            NAME,
            is_private=is_private,
            finish_command="PUSH LATER",
            say=self.said.append,
        )

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def waiting(self) -> list[str]:
        return sorted(path.name for path in self.outbox.glob("*/*"))


def assert_kept(run: Run) -> None:
    """Nothing was pushed, the files are all there, and the user knows how to go on."""
    assert run.waiting() == ["config.json", "model.safetensors"]
    assert (next(run.outbox.iterdir()) / "model.safetensors").read_bytes() == WEIGHTS
    assert "NOT pushed: main" in run.text and "PUSH LATER" in run.text


def finish_later(run: Run, folder: Path, hub: LoopbackHub) -> None:
    again = Run(folder)
    assert again.pusher.finish(60), again.text
    assert hub.model("model").files()["model.safetensors"] == WEIGHTS
    assert not again.outbox.exists()


def commits(repository: Repository) -> int:
    return len(repository.commits)


@pytest.mark.slow
def test_errors_that_pass_are_tried_again_and_unchanged_files_are_not_sent_again(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.faults = [
        Fault(r"POST .*/commit/main", 500, times=2),
        Fault(r"POST /api/repos/create", 503),
    ]
    run = Run(tmp_path)
    run.pusher.submit(fill, "main")
    assert run.pusher.finish(60), run.text
    assert hub.model("model").files() == {"model.safetensors": WEIGHTS, "config.json": b"{}"}
    assert "500" in run.text and "pushed to" in run.text and NAME in run.text
    sent, before = list(hub.received), commits(hub.model("model"))
    assert len(sent) == 1
    again = Run(tmp_path)
    again.pusher.submit(fill, "main")
    assert again.pusher.finish(60)
    assert hub.received == sent and commits(hub.model("model")) == before


def test_a_line_cut_in_the_middle_of_a_file_loses_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults = [Fault(r"PUT /lfs/", "cut")]
    run = Run(tmp_path)
    run.pusher.submit(fill, "step-000010", "main")
    assert run.pusher.finish(60), run.text
    assert hub.model("model").files("step-000010")["model.safetensors"] == WEIGHTS
    assert hub.model("model").files("main")["model.safetensors"] == WEIGHTS
    assert len(hub.received) == 1, "the second branch has the same file"


def test_a_refused_token_is_said_at_once_and_a_good_one_finishes_later(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_refusedtoken")
    run = Run(tmp_path)
    deadline = time.monotonic() + 30
    while not run.said and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "401" in run.text, "before there is anything to push"
    run.pusher.submit(fill, "main")
    assert not run.pusher.finish(60)
    assert_kept(run)
    assert "refusedtoken" not in run.text
    assert len(hub.requests) <= 4, "a refused token is not tried over and over"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    finish_later(run, tmp_path, hub)


def test_a_silent_hub_is_left_in_time(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults = [Fault(r"POST .*/preupload/", "stall", times=100)]
    run = Run(tmp_path)
    started = time.monotonic()
    run.pusher.submit(fill, "main")
    assert time.monotonic() - started < 1, "submitting waits for nobody"
    assert not run.pusher.finish(2)
    assert time.monotonic() - started < 12
    assert_kept(run)
    hub.faults = []
    finish_later(run, tmp_path, hub)


@pytest.mark.parametrize(
    ("request_", "status"), [(r"POST .*/commit/main", 413), (r"POST .*/info/lfs", 507)]
)
def test_a_full_hub_is_not_pressed(
    hub: LoopbackHub, tmp_path: Path, request_: str, status: int
) -> None:
    hub.faults = [Fault(request_, status, times=100)]
    run = Run(tmp_path)
    run.pusher.submit(fill, "main")
    assert not run.pusher.finish(60)
    assert str(status) in run.text
    assert_kept(run)
    # Once when it was submitted, and perhaps once more because the end of the run is a last chance.
    assert 98 <= hub.faults[0].times <= 99


@pytest.mark.slow
def test_a_hub_that_is_down_ends_with_the_files_kept(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pusher_module, "MAX_TRIES", 1)
    hub.server.server_close()
    run = Run(tmp_path)
    run.pusher.submit(fill, "main")
    assert not run.pusher.finish(60)
    assert_kept(run)


@pytest.mark.slow
def test_what_was_to_be_private_never_goes_to_a_public_repository(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    public = Repository(is_private=False)
    public.commit("main", {"README.md": b"mine"})
    hub.repositories["model", NAME] = public
    run = Run(tmp_path, is_private=True)
    run.pusher.submit(fill, "main")
    assert not run.pusher.finish(60)
    assert "public" in run.text
    assert public.files() == {"README.md": b"mine"}
    del hub.repositories["model", NAME]
    again = Run(tmp_path, is_private=True)
    assert again.pusher.finish(60)
    assert hub.model("model").is_private and "model.safetensors" in hub.model("model").files()


def test_a_repository_that_exists_keeps_its_other_files_but_no_stale_state(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.repositories["model", NAME] = existing = Repository(is_private=False)
    existing.commit("main", {"LICENSE": b"mine", "training_state/optimizer.bin": b"\0old"})
    run = Run(tmp_path)
    run.pusher.submit(fill, "main")
    assert run.pusher.finish(60), run.text
    assert sorted(existing.files()) == ["LICENSE", "config.json", "model.safetensors"]


def test_a_newer_state_of_a_branch_takes_the_place_of_one_that_waits(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.faults = [
        Fault(r"POST /api/repos/create", "stall")
    ]  # the first process hangs while three states come in
    run = Run(tmp_path)
    for number in range(3):
        run.pusher.submit(
            lambda folder, number=number: (folder / "state.txt").write_text(str(number)), "main"
        )
    hub.is_closing.set()
    assert run.pusher.finish(60), run.text
    assert hub.model("model").files() == {"state.txt": b"2"}
    assert commits(hub.model("model")) == 2, "an empty first commit, and one"


def test_a_full_disk_does_not_end_the_run(hub: LoopbackHub, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    run = Run(tmp_path)
    run.pusher.submit(fail, "main")
    assert "No space left" in run.text
    assert not run.pusher.finish(60)
    assert "NOT pushed: main (it could not be put into" in run.text and "PUSH LATER" in run.text
    assert not run.outbox.exists()


def test_a_run_that_fails_does_not_wait_for_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults = [Fault(r".", "stall", times=100)]
    run = Run(tmp_path)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="diverged"), run.pusher:
        run.pusher.submit(fill, "main")
        raise RuntimeError("diverged")
    assert time.monotonic() - started < 5
    assert_kept(run)


@pytest.mark.slow
def test_a_full_disk_as_safetensors_reports_it_does_not_end_the_run_either(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    # No OSError: it is what a `save_pretrained` raises.
    def fail(_: Path) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    run = Run(tmp_path)
    assert not run.pusher.submit(fail, "main")
    assert "No space left" in run.text
    assert run.pusher.submit(fill, "main"), "there is space again"
    assert run.pusher.finish(60)


@pytest.mark.slow
def test_only_what_did_not_get_into_the_outbox_is_called_lost(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def replace_once(source: Path, target: Path) -> None:
        if target.name.endswith("-main"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    run = Run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_once)
        assert not run.pusher.submit(fill, "step-000004", "main")
    assert not run.pusher.finish(60)
    assert "NOT pushed: main" in run.text and "NOT pushed: step-000004" not in run.text
    assert hub.model("model").files("step-000004")["model.safetensors"] == WEIGHTS


def test_what_a_killed_process_left_half_written_is_removed_and_never_pushed(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    for name in ("filling.tmp/step-000004", "removed-000001-main.tmp", "000002-step-000008"):
        (tmp_path / "hub" / name).mkdir(parents=True)
        (tmp_path / "hub" / name / "config.json").write_text("{}")
    run = Run(tmp_path)
    assert run.pusher.finish(60)
    assert set(hub.model("model").branches) == {"main", "step-000008"}
    assert hub.model("model").files("main") == {}
    assert not run.outbox.exists()


def test_an_upload_does_not_outlive_the_run_that_was_killed(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.faults = [Fault(r".", "stall", times=100)]
    script = (
        "import sys, time, pathlib, test_pusher\n"
        "test_pusher.Run(pathlib.Path(sys.argv[1]))\n"
        "time.sleep(60)"
    )
    folders = [str(Path(__file__).parents[i]) for i in range(3)]
    run = psutil.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    )
    deadline = time.monotonic() + 60
    while not hub.requests and time.monotonic() < deadline:
        time.sleep(0.1)
    (upload,) = run.children()
    run.kill()
    run.wait()
    upload.wait(timeout=30)


@pytest.mark.slow
def test_uploads_start_from_any_folder_also_where_the_package_is_not_installed(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stranger of the package's name is found unless the root of this one comes first.
    stranger = tmp_path / "elsewhere" / "bert_pretrain"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(stranger.parent))
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path)
    run.pusher.submit(fill, "main")
    assert run.pusher.finish(60), run.text


def test_a_process_that_cannot_be_started_is_said_and_the_files_are_kept(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(pusher_module.subprocess, "Popen", no_memory)
    run = Run(tmp_path)
    run.pusher.submit(fill, "main")
    assert not run.pusher.finish(2)
    assert_kept(run)
    assert "Cannot allocate memory" in run.text


def test_what_is_being_removed_is_not_pushed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = tmp_path / "000001-main"
    pushed.mkdir()
    fill(pushed)
    # As after a kill: nothing is deleted any more.
    monkeypatch.setattr(pusher_module.shutil, "rmtree", lambda *_, **__: None)
    pusher_module._remove(pushed)
    assert not list(tmp_path.glob("[0-9]*-*"))


def test_of_a_symbolic_link_the_file_is_put_into_the_outbox(tmp_path: Path) -> None:
    """So the cache of the Hub keeps files, by names that lead up."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/1f").write_bytes(b"content")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/corpus.arrow").symlink_to("../blobs/1f")
    (tmp_path / "deep/er").mkdir(parents=True)
    link(tmp_path / "snapshot/corpus.arrow", tmp_path / "deep/er/corpus.arrow")
    assert not (tmp_path / "deep/er/corpus.arrow").is_symlink()
    assert (tmp_path / "deep/er/corpus.arrow").read_bytes() == b"content"
