"""What is exported loads with stock transformers, where this package cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import environment, run, small_flags

from bert_pretrain.models.bert import BertForPreTraining

LOADER = """
import sys
sys.modules["bert_pretrain"] = None  # any import of it fails
import torch
from transformers import (AutoModel, AutoModelForMaskedLM, AutoModelForNextSentencePrediction,
                          AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer, pipeline)
path, result = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(path)
model, info = AutoModelForPreTraining.from_pretrained(path, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
encoded = tokenizer("The model [MASK] data.", "A tree is a list.", return_tensors="pt")
assert encoded["token_type_ids"].sum() > 0
with torch.no_grad():
    output = model.eval()(**encoded)
    masked = AutoModelForMaskedLM.from_pretrained(path).eval()(**encoded).logits
    pair = AutoModelForNextSentencePrediction.from_pretrained(path).eval()(**encoded).logits
assert torch.equal(masked, output.prediction_logits) and torch.equal(pair, output.seq_relationship_logits)
for kind in (AutoModel, AutoModelForSequenceClassification):
    missing = kind.from_pretrained(path, output_loading_info=True)[1]["missing_keys"]
    assert all(key.startswith("classifier") for key in missing), missing
assert len(pipeline("fill-mask", model=path)("The model returns [MASK].")) == 5
torch.save({"encoded": dict(encoded), "scores": masked, "pair": pair, "type": type(model).__module__}, result)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    run(
        folder,
        [*small_flags(folder), "--max_steps", "4", "--dropout", "0.3", "--output_dir", "out"],
    )
    return folder


@pytest.mark.parametrize("exported", ["final", "checkpoints/step-000004"])
def test_stock_transformers_gives_our_logits_without_our_package(
    folder: Path, exported: str
) -> None:
    result = folder / "result.pt"
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(folder / "out" / exported), str(result)],
        env={k: v for k, v in environment(folder).items() if k != "PYTHONPATH"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    theirs = torch.load(result)
    assert theirs["type"].startswith("transformers.")
    ours = BertForPreTraining.from_pretrained(folder / "out/final").eval()
    with torch.no_grad():
        output = ours(**theirs["encoded"])
    assert torch.equal(output.prediction_logits, theirs["scores"])
    assert torch.equal(output.seq_relationship_logits, theirs["pair"])


def test_the_export_keeps_the_configs_dropout_for_fine_tuning(folder: Path) -> None:
    assert (
        BertForPreTraining.from_pretrained(folder / "out/final").config.hidden_dropout_prob == 0.1
    )
