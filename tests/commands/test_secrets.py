"""What is nobody else's business: tokens stay out of all that is printed and written."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from downstream_models import make_text_model, sentences, write_rows
from runs import ROOT, run_here, small_flags, write_corpus

from bert_pretrain.__main__ import main
from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.errors import hide_secrets
from bert_pretrain.hardware import describe_run
from bert_pretrain.text.prepared import PreparedCorpus

TOKEN = "hf_" + "aBcDeFgHiJkLmNoP" * 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("bert_pretrain.text.preparation.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return tmp_path


def test_a_run_that_publishes_keeps_the_token_to_itself_and_leaves_no_temporary_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shared = folder / "shared-temporary"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    flags = [*small_flags(folder), "--max_steps", "2", "--output_dir", "out", "--push_to_hub"]
    printed = run_here(folder, [*flags, "--hub_model_id", "me/tiny", "--hub_max_wait", "20"])
    printed += "".join(capfd.readouterr())
    assert "NOT pushed: main" in printed and TOKEN not in printed
    assert len([path for path in (folder / "out").rglob("*") if path.is_file()]) > 15
    assert files_with_token(folder / "out") == []
    assert list(shared.rglob("*")) == []


def test_a_token_in_what_was_typed_is_taken_out_of_messages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for flags in (
        ["pretrain", "--data_files", f"https://me:{TOKEN}@example.org/a.txt"],
        ["prepare", "--output_dir", "out", "--dataset_name", f"/nowhere/{TOKEN}"],
        ["evaluate", "--model", f"./{TOKEN}", "--suite", "fill_mask"],
        ["verify", TOKEN],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(flags)
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert "error: " in message and TOKEN not in message and "[removed]" in message


def test_a_token_in_what_was_typed_is_not_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_pretraining.py", f"--text_column={TOKEN}"])
    assert describe_run()["command"] == ["run_pretraining.py", "--text_column=[removed]"]
    corpus = folder / f"{TOKEN}.jsonl"
    (folder / "corpus.jsonl").touch()
    flags = small_flags(folder)
    corpus.write_text("".join(f'{{"text": "One is {n}. Two is {n}."}}\n' for n in range(60)))
    flags = [word.replace(str(folder / "corpus.jsonl"), str(corpus)) for word in flags]
    run_here(folder, [*flags, "--max_steps", "1", "--output_dir", "out"])
    record = json.loads((folder / "out/run.json").read_text())
    assert record["config"]["data_files"] == [str(folder / "[removed].jsonl")]
    assert files_with_token(folder / "out") == files_with_token(folder / "hf") == []
    resumed = ["--max_steps", "2", "--output_dir", "out", "--resume_from_checkpoint", "latest"]
    run_here(folder, [*flags, *resumed])


def files_with_token(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_a_token_in_a_path_is_in_no_file_of_a_preparation_or_a_fine_tuning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    write_corpus(folder / f"{TOKEN}.jsonl")
    assert main(["prepare", "--output_dir", "corpus", "--data_files", f"{TOKEN}.jsonl"]) == 0
    assert files_with_token(folder / "corpus") == []
    assert "[removed]" in PreparedCorpus.load(folder / "corpus").manifest["source"]["description"]

    write_rows(folder / f"{TOKEN}.jsonl", sentences(16))
    make_text_model(folder / "model")
    flags = f"--model model --train_file {TOKEN}.jsonl --max_steps 1 --output_dir out"
    assert main(["finetune", *flags.split()]) == 0
    assert files_with_token(folder / "out") == []


def test_a_token_is_taken_out_of_the_traceback_of_a_thread(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def fail() -> None:
        raise KeyError(f"refused for {TOKEN}")

    with reporting_input_errors(debug=False):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    printed = capsys.readouterr().err
    assert "KeyError: 'refused for [removed]'" in printed and TOKEN not in printed


@pytest.mark.parametrize("flags", ["debug=False", "debug=True"])
def test_a_token_is_taken_out_of_tracebacks(flags: str) -> None:
    """Of a bug as well as of --debug, where the interpreter prints them."""
    code = (
        "import os\n"
        "from bert_pretrain.commands.running import reporting_input_errors\n"
        f"with reporting_input_errors({flags}):\n"
        "    raise KeyError('refused for ' + os.environ['HF_TOKEN'])\n"
    )
    environment = os.environ | {"HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "KeyError: 'refused for [removed]'" in done.stderr and TOKEN not in done.stderr


def test_secrets_are_known_by_the_names_of_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "my_secret"):
        monkeypatch.setenv(name, "correct-horse")
        assert hide_secrets("a correct-horse!") == "a [removed]!"
        monkeypatch.setenv(name, "short")  # too often a word
        assert hide_secrets("a short text") == "a short text"
        monkeypatch.delenv(name)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "not-a-secret")
    assert hide_secrets("not-a-secret") == "not-a-secret"


def test_no_file_is_made_in_the_folder_that_all_users_share() -> None:
    used, imported = set(), set()
    for path in (ROOT / "bert_pretrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("tempfile."):
                used.add(ast.unparse(node))
            if isinstance(node, ast.Import | ast.ImportFrom) and "tempfile" in ast.unparse(node):
                imported.add(ast.unparse(node))
    assert used == {"tempfile.TemporaryFile(dir=folder)"}
    assert imported == {"import tempfile"}  # by its own name, so that no call goes by another


def test_the_program_opens_no_server() -> None:
    """The processes of a run meet where their launcher says; nothing of ours listens."""
    served = set()
    for path in (ROOT / "bert_pretrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                words = set(ast.unparse(node).replace(",", " ").replace(".", " ").split())
                if words & {"socketserver", "server", "asyncio", "flask", "uvicorn", "wsgiref"}:
                    served.add(ast.unparse(node))
            called = node.func if isinstance(node, ast.Call) else None
            serving = ("bind", "listen", "create_server", "start_server")
            if isinstance(called, ast.Attribute) and called.attr in serving:
                served.add(ast.unparse(node))
    assert served == set()
