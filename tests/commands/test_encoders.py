"""Runs of encoders other than BERT: one curve on any layout, after any interruption, plain exports.

What their losses are compared with is in `tests/models/test_any_encoder.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import environment, metrics, parted, run, run_here, small_flags, write_model_config

from bert_pretrain.__main__ import main

ENCODERS: dict[str, dict[str, Any]] = {
    "roberta": {"type_vocab_size": 1, "max_position_embeddings": 66},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "distilbert": {"hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p"]},
    "albert": {"embedding_size": 16},
    "convbert": {"embedding_size": 16, "conv_kernel_size": 3},
    "ernie": {},
    "megatron-bert": {},
}
WITH_PAIRS = ("albert", "ernie", "megatron-bert")
# These cover a table of positions and relative ones; the others take as long and differ in little.
QUICK = ("roberta", "modernbert")
SLOW = ("distilbert", "deberta-v2", "albert")
each_encoder = pytest.mark.parametrize(
    "model_type", [*QUICK, *parted([n for n in ENCODERS if n not in QUICK], slow=SLOW)]
)
LOADER = """
import sys
sys.modules["bert_pretrain"] = None  # any import of it fails
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
path = sys.argv[1]
kinds = [AutoModelForMaskedLM] + [AutoModelForPreTraining] * (sys.argv[2] == "mlm_nsp")
for kind in kinds:
    model, info = kind.from_pretrained(path, output_loading_info=True)
    assert type(model).__module__.startswith("transformers."), type(model)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
assert not info["unexpected_keys"], info
for kind in (AutoModel, AutoModelForSequenceClassification):
    missing = kind.from_pretrained(path, output_loading_info=True)[1]["missing_keys"]
    heads = ("classifier", "pre_classifier", "head", "pooler", "albert.pooler", "pooler.dense")
    assert all(key.startswith(heads) for key in missing), missing
masked = AutoModelForMaskedLM.from_pretrained(path).eval()
inputs = AutoTokenizer.from_pretrained(path)("The model [MASK] data.", return_tensors="pt")
print(masked(**inputs).logits.sum().item())
assert len(pipeline("fill-mask", model=path)("The model returns [MASK].")) == 5
"""


def flags_of(model_type: str, folder: Path) -> list[str]:
    flags = small_flags(folder)
    config = write_model_config(folder / model_type, model_type=model_type, **ENCODERS[model_type])
    flags[flags.index("--config_name") + 1] = str(config)
    objective = "mlm_nsp" if model_type in WITH_PAIRS else "mlm"
    flags += ["--objective", objective, "--max_steps", "8", "--global_batch_size", "16"]
    return [*flags, "--optimizer", "adamw", "--learning_rate", "1e-3", "--output_dir"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@each_encoder
def test_a_resumed_run_is_bit_identical_and_stock_transformers_loads_its_export(
    model_type: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(model_type, folder)
    out = folder / f"{model_type}-run"
    run_here(folder, [*flags, str(out), "--save_steps", "3"])
    expected = metrics(out)
    losses = [row["loss"] for row in expected if row["split"] == "validation"]
    assert losses[-1] < losses[0]
    final = (out / "final/model.safetensors").read_bytes()
    shutil.rmtree(out / "checkpoints/step-000008")
    run_here(folder, [*flags, str(out), "--save_steps", "3", "--resume_from_checkpoint", "latest"])
    assert metrics(out) == expected
    assert (out / "final/model.safetensors").read_bytes() == final
    objective = flags[flags.index("--objective") + 1]
    load_with_stock_transformers(out / "final", objective)
    if objective == "mlm_nsp":  # whose class for pairs alone transformers does not know
        assert main(["evaluate", "--model", str(out), "--suite", "nsp"]) == 0
        assert "easy" in capsys.readouterr().out
    card = (out / "final/README.md").read_text()
    assert "AutoModelForPreTraining" in card and f"- {model_type}\n" in card


def load_with_stock_transformers(model: Path, objective: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(model), objective],
        env={k: v for k, v in environment(model).items() if k != "PYTHONPATH"},
        cwd=model,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_encoder_that_cannot_be_divided_says_so_and_is_trained_all_the_same(
    folder: Path,
) -> None:
    landmarks = {"num_landmarks": 48, "segment_means_seq_len": 48}  # exact attention
    config = write_model_config(folder / "whole", model_type="nystromformer", **landmarks)
    flags = small_flags(folder)
    flags[flags.index("--config_name") + 1] = str(config)
    flags += ["--objective", "mlm", "--max_steps", "8", "--output_dir", "whole-run"]
    printed = run_here(folder, flags)
    assert "NystromformerForMaskedLM cannot be divided into encoder and head" in printed
    start, end = (
        row["loss"] for row in metrics(folder / "whole-run") if row["split"] == "validation"
    )
    assert end < start
    load_with_stock_transformers(folder / "whole-run/final", "mlm")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["roberta", "albert"])
def test_a_sharded_run_has_the_curve_of_one_process(
    model_type: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*flags_of(model_type, folder)]
    run_here(folder, [*flags, f"{model_type}-alone"])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    layout = [f"{model_type}-sharded", "--per_device_train_batch_size", "4"]
    run(folder, [*flags, *layout], num_processes=2)
    record = json.loads((folder / f"{model_type}-sharded/run.json").read_text())["config"]
    assert (record["num_processes"], record["is_sharded"]) == (2, True)
    check_close(metrics(folder / f"{model_type}-alone"), metrics(folder / f"{model_type}-sharded"))


@pytest.mark.parametrize("model_type", parted(ENCODERS, slow=("modernbert", "electra", "albert")))
def test_two_processes_have_the_curve_of_one(model_type: str, folder: Path) -> None:
    flags = [*flags_of(model_type, folder)]
    curves = []
    for num_processes, per_device in ((1, 16), (2, 4)):
        out = folder / f"{model_type}-{num_processes}"
        layout = [str(out), "--per_device_train_batch_size", str(per_device)]
        run(folder, [*flags, *layout], num_processes=num_processes)
        record = json.loads((out / "run.json").read_text())["config"]
        assert record["num_processes"] == num_processes
        curves.append(metrics(out))
    check_close(*curves)


def check_close(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    for row, other in zip(expected, found, strict=True):
        for key, value in row.items():
            # An accuracy may move by one token where two scores tie to within rounding.
            allowed = 0.02 if key.endswith("accuracy") else 1e-5
            if isinstance(value, float):
                assert other[key] == pytest.approx(value, rel=1e-5, abs=allowed), key
