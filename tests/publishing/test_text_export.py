"""What is exported loads with stock transformers, where this package cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import environment, run_here, small_flags

from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.publishing.publication import write_publication

LOADER = """
import sys
sys.modules["bert_pretrain"] = None  # any import of it fails
import torch
from transformers import (
    AutoModel, AutoModelForMaskedLM, AutoModelForNextSentencePrediction, AutoModelForPreTraining,
    AutoModelForSequenceClassification, AutoTokenizer, pipeline,
)
torch.set_grad_enabled(False)
for path in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model, info = AutoModelForPreTraining.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers."), type(model)
    encoded = tokenizer("The model [MASK] data.", "A tree is a list.", return_tensors="pt")
    assert encoded["token_type_ids"].sum() > 0
    output = model.eval()(**encoded)
    masked = AutoModelForMaskedLM.from_pretrained(path).eval()(**encoded).logits
    pair = AutoModelForNextSentencePrediction.from_pretrained(path).eval()(**encoded).logits
    assert torch.equal(masked, output.prediction_logits)
    assert torch.equal(pair, output.seq_relationship_logits)
    for kind in (AutoModel, AutoModelForSequenceClassification):
        missing = kind.from_pretrained(path, output_loading_info=True)[1]["missing_keys"]
        assert all(key.startswith("classifier") for key in missing), missing
    assert len(pipeline("fill-mask", model=path)("The model returns [MASK].")) == 5
    torch.save({"encoded": dict(encoded), "scores": masked, "pair": pair}, path + "/result.pt")
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    flags = "--max_steps 4 --per_device_train_batch_size 8 --dropout 0.3 --output_dir out"
    run_here(folder, [*small_flags(folder), *flags.split()])
    return folder / "out"


def test_stock_transformers_gives_our_logits_without_our_package(run_dir: Path) -> None:
    exports = [run_dir / "final", run_dir / "checkpoints/step-000004"]
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *map(str, exports)],
        env={k: v for k, v in environment(run_dir).items() if k != "PYTHONPATH"},
        cwd=run_dir,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours = BertForPreTraining.from_pretrained(exports[0]).eval()
    for export in exports:
        theirs = torch.load(export / "result.pt")
        with torch.no_grad():
            output = ours(**theirs["encoded"])
        assert torch.equal(output.prediction_logits, theirs["scores"])
        assert torch.equal(output.seq_relationship_logits, theirs["pair"])


def test_the_export_keeps_the_configs_dropout_for_fine_tuning(run_dir: Path) -> None:
    assert BertForPreTraining.from_pretrained(run_dir / "final").config.hidden_dropout_prob == 0.1


class Interrupted:
    """An exporter that is ended when half of an export is there."""

    data_card = ""

    def export(self, model: Any, directory: Path) -> None:
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"other weights")

    def card_fields(self, model: Any) -> dict[str, Any]:
        raise KeyboardInterrupt


def test_an_export_that_is_interrupted_leaves_the_one_before_it_whole(run_dir: Path) -> None:
    final = run_dir / "final"
    before = {path: path.read_bytes() for path in final.rglob("*") if path.is_file()}
    model: Any = None
    with pytest.raises(KeyboardInterrupt):
        write_publication(model, Interrupted(), run_dir, final, step=9, seconds=1.0)
    assert {path: path.read_bytes() for path in final.rglob("*") if path.is_file()} == before
