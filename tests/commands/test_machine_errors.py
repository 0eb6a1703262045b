"""What the machine refuses ends in one message that names the place; what was there stays."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from runs import command, environment, metrics, run_here, small_flags
from safetensors import SafetensorError

from bert_pretrain.__main__ import main
from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.data.atomic import atomic_folder, naming_disk
from bert_pretrain.errors import MachineError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
        Exception("No space left on device (os error 28)"),  # of tokenizers
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_writing_names_folder_and_disk(tmp_path: Path, error: Exception) -> None:
    folder = tmp_path / "not/there/yet"
    with (
        pytest.raises(MachineError, match=r"No space left on device.*MiB of its disk are free"),
        naming_disk(folder),
    ):
        raise error
    with pytest.raises(RuntimeError, match="another one"), naming_disk(folder):
        raise RuntimeError("another one")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_is_a_message_and_what_is_a_bug_is_none(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    with pytest.raises(SystemExit) as stopped, reporting_input_errors(debug=False):
        raise OSError(number, "the reason", "some/file")
    assert stopped.value.code == 1
    assert "the reason: 'some/file'" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError), reporting_input_errors(debug=False):
        Path("no such file").read_text()


@pytest.mark.slow
def test_a_disk_that_gets_full_while_saving_costs_no_checkpoint(tmp_path: Path) -> None:
    flags = [*small_flags(tmp_path), "--save_steps", "2", "--output_dir", "out"]
    run_here(tmp_path, [*flags, "--max_steps", "4"])
    before = metrics(tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out/checkpoints").iterdir())
    more = [*flags, "--max_steps", "8", "--resume_from_checkpoint", "auto"]
    largest = 100_000  # bytes of a file: a limit that fails as a full disk does
    done = subprocess.run(
        command(more),
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"what belongs into {tmp_path / 'out'} cannot be written" in done.stderr
    found = sorted((tmp_path / "out/checkpoints").glob("step-??????"))
    assert [path.name for path in found] == kept
    run_here(tmp_path, more)
    assert metrics(tmp_path / "out")[: len(before) - 1] == before[:-1]
    assert (tmp_path / "out/checkpoints/step-000008").is_dir()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize("name", ["pretrain", "prepare"])
def test_a_place_where_nothing_can_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flags = small_flags(tmp_path)[: 2 if name == "prepare" else None]
    with pytest.raises(SystemExit) as stopped:
        main([name, *flags, "--output_dir", "/proc/out"])
    assert stopped.value.code == 2
    assert "/proc/out cannot be created in /proc" in capsys.readouterr().err


def test_all_files_of_a_folder_are_as_readable_as_new_ones(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as aside:
        (aside / "weights").touch(mode=0o600)
        (aside / "more").mkdir()
        shutil.copy(aside / "weights", aside / "more/weights")
        (aside / "more/weights").chmod(0o600)
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    files = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {path.stat().st_mode for path in files} == {usual}
