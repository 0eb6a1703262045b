"""Run the program as a user does, in a process of its own, on a small corpus."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from bert_pretrain.__main__ import main
from bert_pretrain.training.metrics import OF_THE_MACHINE

ROOT = Path(__file__).parents[1]
TIMEOUT = 1200  # seconds of a program: machines may be loaded
PROGRAM = str(ROOT / "run_pretraining.py")
WORDS = [
    "the",
    "a",
    "model",
    "data",
    "tree",
    "array",
    "value",
    "list",
    "of",
    "in",
    "to",
    "is",
    "and",
    "returns",
    "function",
    "file",
    "name",
    "index",
    "type",
    "with",
]


def parted(values: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """Return the parameters of a test: those of `slow` are slow, the others long."""
    mark = pytest.mark
    return [pytest.param(v, marks=mark.slow if v in slow else mark.long) for v in values]


def write_corpus(path: Path, *, num_documents: int = 60, seed: int = 0) -> Path:
    """Write documents of 4 to 12 sentences, each document with a few favourite words."""
    generator = random.Random(seed)
    with path.open("w") as file:
        for number in range(num_documents):
            favourites = generator.sample(WORDS, 5)
            sentences = []
            for _ in range(generator.randint(4, 12)):
                words = generator.choices(favourites + WORDS, k=generator.randint(5, 14))
                sentences.append(" ".join([*words, str(number)]).capitalize() + ".")
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


def write_model_config(folder: Path, **overrides: Any) -> Path:
    """Write the config.json of a very small BERT."""
    folder.mkdir(exist_ok=True)
    fields = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(fields | overrides))
    return folder


def small_flags(folder: Path) -> list[str]:
    """Return flags of a run that takes seconds."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(corpus)
    config = write_model_config(folder / "config")
    flags = (
        f"--data_files {corpus} --config_name {config} --max_seq_length 48 --validation_share 0.2"
    )
    return [*flags.split(), "--mixed_precision", "no", "--eval_steps", "8", "--logging_steps", "1"]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment without network whose caches lie in `folder`."""
    ours = {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    return os.environ | ours


def command(flags: list[str], *, num_processes: int = 1) -> list[str]:
    """Return the command line of a run on a number of processes."""
    if num_processes == 1:
        return [sys.executable, PROGRAM, *flags]
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(num_processes),
    ]
    return [sys.executable, *launcher, PROGRAM, *flags]


def run(folder: Path, flags: list[str], *, num_processes: int) -> str:
    """Run to the end and return what was printed; on one process it is this one."""
    if num_processes == 1:
        return run_here(folder, flags)
    return finished(command(flags, num_processes=num_processes), folder)


def finished(words: list[str], folder: Path) -> str:
    """Return what a command printed that ran to its end in `folder`."""
    done = subprocess.run(
        words,
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_here(folder: Path, flags: list[str]) -> str:
    """Pretrain in this process, which saves the seconds of an import; returns what was printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [PROGRAM, *flags])  # goes into run.json
        assert main(["pretrain", *flags]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    return printed.getvalue()


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without the numbers that the machine decides."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if not key.endswith(OF_THE_MACHINE)}
        for row in rows
    ]


def python_command(line: str) -> list[str]:
    """Return how this interpreter runs `python ...` or `bert-pretrain ...` of the README."""
    program, *words = shlex.split(line)
    assert program in ("python", "bert-pretrain"), line
    return [
        sys.executable,
        *(["-m", "bert_pretrain"] if program == "bert-pretrain" else []),
        *words,
    ]
