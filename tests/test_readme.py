"""The commands of the README exist, parse, and the chain for one's own text runs."""

from __future__ import annotations

import gzip
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, environment, write_corpus
from transformers import AutoModelForPreTraining, AutoTokenizer

from bert_pretrain.__main__ import COMMANDS
from bert_pretrain.config import parse_config

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
LINES = [
    part.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&") if part
]


@pytest.mark.parametrize("line", [line for line in LINES if "run_pretraining.py" in line])
def test_the_flags_of_every_training_command_are_valid(line: str) -> None:
    words = shlex.split(line)
    assert words[0] in ("accelerate", "torchrun", "python")
    parse_config(words[words.index("run_pretraining.py") + 1 :])


def test_every_module_and_script_that_is_named_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for module in re.findall(r"python -m bert_pretrain\.(\w+)", text):
        assert f"bert_pretrain.{module}" in COMMANDS.values()
    for script in re.findall(r"(?:tokenizer|benchmarks|bert_pretrain)/\w+\.py", text):
        assert (ROOT / script).is_file(), script


@pytest.mark.slow
def test_the_chain_for_own_text_runs(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if "my_corpus" in block]
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
