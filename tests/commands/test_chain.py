"""The chain of the README: pretrain, publish, load elsewhere, fine-tune, publish, use."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest
from downstream_models import sentences, write_rows
from loopback_hub import running_hub
from runs import ROOT, environment, python_command, write_corpus

README = (ROOT / "README.md").read_text()
CHAIN = README[README.index("\n## Publish\n") : README.index("\n## Evaluate\n")]
# What makes every step of the chain small enough for a test; all else is the README's.
SHRUNK = {
    "run_pretraining.py": "--max_steps 2 --save_steps 1 --config_name tiny --max_seq_length 48 "
    "--mixed_precision no",
    "bert-pretrain finetune": "--max_steps 2 --mixed_precision no",
}
WITHOUT_THIS_PACKAGE = 'import sys\nsys.modules["bert_pretrain"] = None  # any import of it fails\n'


def steps() -> list[list[str]]:
    """Return Python's arguments for each command and block of code of the README, in order."""
    found = []
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", CHAIN, flags=re.DOTALL):
        if language == "python":
            code = re.sub(r"step-\d{6}", "step-000001", block)
            found.append(["-c", WITHOUT_THIS_PACKAGE + code])
            continue
        for line in block.replace("\\\n", " ").strip().splitlines():
            (extra,) = [flags for part, flags in SHRUNK.items() if part in line]
            words = python_command(f"{line} {extra}".replace("accelerate launch ", "python "))
            found.append(
                [str(ROOT / word) if word == "run_pretraining.py" else word for word in words[1:]]
            )
    return found


def test_the_chain_is_whole() -> None:
    commands = [" ".join(step) for step in steps()]
    assert len(commands) == 4
    assert "run_pretraining.py" in commands[0] and "bert_pretrain finetune" in commands[2]
    (published,) = re.findall(r"--hub_model_id (\S+)", commands[0])
    (classifier,) = re.findall(r"--hub_model_id (\S+)", commands[2])
    assert f'model="{published}"' in commands[1] and f"--model {published} " in commands[2]
    assert f'pipeline("text-classification", model="{classifier}")' in commands[3]


@pytest.mark.slow
def test_the_chain_from_own_text_to_a_published_classifier_runs(tmp_path: Path) -> None:
    (tmp_path / "my_text").mkdir()
    plain = write_corpus(tmp_path / "plain.jsonl")
    (tmp_path / "my_text/part.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    write_rows(tmp_path / "train.jsonl", sentences(48))
    write_rows(tmp_path / "dev.jsonl", sentences(16, seed=1))
    printed = []
    with running_hub() as hub:
        for step in steps():
            variables = environment(tmp_path) | hub.environment(tmp_path)
            if step[0] == "-c":
                del variables["PYTHONPATH"]
            done = subprocess.run(
                [sys.executable, *step],
                env=variables,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=1200,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            printed.append(done.stdout)
        (model, classifier) = (
            hub.repositories["model", f"me/{name}"] for name in ("my-bert", "my-classifier")
        )
    assert set(model.branches) == {"main", "step-000001", "step-000002"}
    assert {
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "training_state/optimizer.bin",
    } <= set(model.files())
    assert "token_str" in printed[1]
    assert {"model.safetensors", "tokenizer.json", "README.md", "config.json"} <= set(
        classifier.files()
    )
    assert "'label': 'good'" in printed[3] or "'label': 'bad'" in printed[3], printed[3]
