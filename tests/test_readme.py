"""The commands of the README exist, parse, and the chain for one's own text runs."""

from __future__ import annotations

import gzip
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, environment, write_corpus
from transformers import AutoModelForPreTraining, AutoTokenizer

from bert_pretrain.__main__ import COMMANDS
from bert_pretrain.config import parse_config
from bert_pretrain.evaluate import SUITES

README = (ROOT / "README.md").read_text()
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)]
LINES = [
    part.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&") if part
]
# Those in the text too: between backticks, perhaps over the end of a line.
COMMANDS_OF_README = [line for line in LINES if "bert_pretrain" in line or "train_tokenizer.py" in line]
COMMANDS_OF_README += [" ".join(found.split()) for found in re.findall(r"`(python -m bert_pretrain\.[^`]*)`", README)]


class ReachedError(Exception):
    """The flags were accepted."""


def reached(*_: Any, **__: Any) -> None:
    raise ReachedError


@pytest.mark.parametrize("line", [line for line in LINES if "run_pretraining.py" in line])
def test_the_flags_of_every_training_command_are_valid(line: str) -> None:
    words = shlex.split(line)
    assert words[0] in ("accelerate", "torchrun", "python")
    parse_config(words[words.index("run_pretraining.py") + 1 :])


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS_OF_README))
def test_the_flags_of_every_other_command_are_valid(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, *words = shlex.split(line)
    assert python == "python"
    name = words[1].removeprefix("bert_pretrain.") if words[0] == "-m" else Path(words[0]).stem
    module = import_module(f"bert_pretrain.{name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bert_pretrain.finetune.open_splits", reached)
    monkeypatch.setattr("bert_pretrain.evaluate.run_label_efficiency", reached)
    monkeypatch.setattr("bert_pretrain.report.write_report", reached)
    monkeypatch.setattr("bert_pretrain.hub.push", reached)
    monkeypatch.setattr("bert_pretrain.hub.push_dataset", reached)
    monkeypatch.setattr("bert_pretrain.prepare.load_tokenizer", reached)
    monkeypatch.setattr("bert_pretrain.train_tokenizer.train", reached)
    monkeypatch.setattr("bert_pretrain.evaluate._PRECONDITIONS", {})  # which look at the model
    for suite in SUITES:
        monkeypatch.setitem(SUITES, suite, reached)
    with pytest.raises(ReachedError):
        module.main(words[2:] if words[0] == "-m" else words[1:])


def test_every_command_of_the_package_is_shown() -> None:
    for module in set(COMMANDS.values()) - {"bert_pretrain.pretrain", "bert_pretrain.train_tokenizer"}:
        assert any(f"-m {module} " in line for line in COMMANDS_OF_README), module


def test_every_module_and_script_that_is_named_exists() -> None:
    for module in re.findall(r"python -m bert_pretrain\.(\w+)", README):
        assert f"bert_pretrain.{module}" in COMMANDS.values()
    for script in re.findall(r"(?:tokenizer|benchmarks|bert_pretrain)/\w+\.py", README):
        assert (ROOT / script).is_file(), script


@pytest.mark.slow
def test_the_chain_for_own_text_runs(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if "bert_pretrain.prepare" in block]
    (tmp_path / "my_text").mkdir()
    plain = write_corpus(tmp_path / "plain.jsonl")
    (tmp_path / "my_text/part.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    for line in block.strip().splitlines():
        line = line.replace("tokenizer/train_tokenizer.py", str(ROOT / "tokenizer/train_tokenizer.py"))
        line = line.replace("accelerate launch run_pretraining.py", f"python {ROOT / 'run_pretraining.py'}")
        if "run_pretraining" in line:
            line += " --max_steps 2 --config_name tiny"
        words = shlex.split(line)
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    AutoModelForPreTraining.from_pretrained(tmp_path / "runs/mine/final")
    AutoTokenizer.from_pretrained(tmp_path / "my_tokenizer")


@pytest.mark.slow
def test_a_built_wheel_brings_the_default_tokenizer(tmp_path: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "install",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(ROOT),
    ]
    subprocess.run(pip, check=True)
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    flags = ["--data_files", str(corpus), "--config_name", "tiny", "--max_seq_length", "48", "--max_steps", "1"]
    subprocess.run(
        [sys.executable, "-m", "bert_pretrain", "pretrain", *flags, "--output_dir", "out"],
        cwd=tmp_path,
        env=environment(tmp_path) | {"PYTHONPATH": str(tmp_path / "site")},
        check=True,
    )
    assert (tmp_path / "site/bert_pretrain/tokenizer").is_dir()
    assert (tmp_path / "out/final/model.safetensors").is_file()
