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
from runs import ROOT, environment, python_command, write_corpus
from transformers import AutoModelForPreTraining, AutoTokenizer, BertConfig

from bert_pretrain.__main__ import COMMANDS
from bert_pretrain.commands.evaluate import SUITES
from bert_pretrain.config.pretraining import parse_config

README = (ROOT / "README.md").read_text()
BLOCKS = [
    block.replace("\\\n", " ")
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
]
LINES = [
    part.split("#")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    for part in line.split("&&")
    if part
]
# Those in the text too: between backticks, perhaps over the end of a line.
COMMANDS_OF_README = [
    line for line in LINES if "bert-pretrain" in line or "train_tokenizer.py" in line
]
COMMANDS_OF_README += [
    " ".join(found.split()) for found in re.findall(r"`(bert-pretrain [a-z][^`]*)`", README)
]


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
def test_the_flags_of_every_other_command_are_valid(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, name, *flags = shlex.split(line)
    if program == "python":
        name = Path(name).stem
    module = import_module(f"bert_pretrain.commands.{name.replace('-', '_')}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "bert_pretrain.commands.finetuning.read_model_config", lambda _: BertConfig()
    )
    monkeypatch.setattr("bert_pretrain.commands.finetuning.open_splits", reached)
    Path("my_text.jsonl").write_text('{"text": "One. Two."}\n')  # is looked for at once
    monkeypatch.setattr("bert_pretrain.commands.evaluate.run_label_efficiency", reached)
    monkeypatch.setattr("bert_pretrain.commands.report.write_report", reached)
    monkeypatch.setattr("bert_pretrain.commands.embed.load_embedder", reached)
    monkeypatch.setattr("bert_pretrain.commands.neighbours.open_bank", reached)
    monkeypatch.setattr("bert_pretrain.commands.cache.list_copies", reached)
    monkeypatch.setattr("bert_pretrain.commands.verify.verify", reached)
    monkeypatch.setattr("bert_pretrain.commands.demo.read_embedded_task", reached)
    monkeypatch.setattr("bert_pretrain.commands.worth_it._open_rows", reached)
    monkeypatch.setattr("bert_pretrain.commands.hub.push", reached)
    monkeypatch.setattr("bert_pretrain.commands.hub.push_dataset", reached)
    monkeypatch.setattr("bert_pretrain.commands.prepare.load_tokenizer", reached)
    monkeypatch.setattr("bert_pretrain.commands.train_tokenizer.train", reached)
    monkeypatch.setattr(
        "bert_pretrain.commands.evaluate._PRECONDITIONS", {}
    )  # which look at the model
    for suite in SUITES:
        monkeypatch.setitem(SUITES, suite, reached)
    with pytest.raises(ReachedError):
        module.main(flags)


def test_every_command_of_the_package_is_shown() -> None:
    for name in set(COMMANDS) - {"pretrain", "train-tokenizer"}:
        assert any(line.startswith(f"bert-pretrain {name} ") for line in COMMANDS_OF_README), name


def test_every_command_and_script_that_is_named_exists() -> None:
    for name in re.findall(r"bert-pretrain ([a-z][\w-]*)", README):
        assert name in COMMANDS
    for text in (README, (ROOT / "tokenizer/README.md").read_text()):
        for script in re.findall(r"(?:\w+/)+\w+\.py", text):
            assert (ROOT / script).is_file() or (ROOT / "bert_pretrain" / script).is_file(), script


def test_the_picture_of_the_house_has_every_room() -> None:
    picture = README[README.index("    bert_pretrain/\n") :].split("\n\n")[0]
    shown = re.findall(r"^      (\w+)/ ", picture, flags=re.MULTILINE)
    rooms = [path.parent.name for path in (ROOT / "bert_pretrain").glob("*/__init__.py")]
    assert sorted(shown) == sorted(rooms)


@pytest.mark.slow
def test_the_chain_for_own_text_runs(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if "bert-pretrain prepare" in block]
    (tmp_path / "my_text").mkdir()
    plain = write_corpus(tmp_path / "plain.jsonl")
    (tmp_path / "my_text/part.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    for line in block.strip().splitlines():
        line = line.replace(
            "tokenizer/train_tokenizer.py", str(ROOT / "tokenizer/train_tokenizer.py")
        )
        line = line.replace(
            "accelerate launch run_pretraining.py", f"python {ROOT / 'run_pretraining.py'}"
        )
        if "run_pretraining" in line:
            line += " --max_steps 2 --config_name tiny"
        done = subprocess.run(
            python_command(line),
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
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
    flags = [
        "--data_files",
        str(corpus),
        "--config_name",
        "tiny",
        "--max_seq_length",
        "48",
        "--max_steps",
        "1",
    ]
    subprocess.run(
        [sys.executable, "-m", "bert_pretrain", "pretrain", *flags, "--output_dir", "out"],
        cwd=tmp_path,
        env=environment(tmp_path) | {"PYTHONPATH": str(tmp_path / "site")},
        check=True,
    )
    assert (tmp_path / "site/bert_pretrain/tokenizer").is_dir()
    assert (tmp_path / "out/final/model.safetensors").is_file()
