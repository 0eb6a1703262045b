"""What a checkpoint keeps of its run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import ViTConfig

from bert_pretrain.errors import InputError
from bert_pretrain.models.image_heads import ContrastiveConfig
from bert_pretrain.training.checkpoint import STATE_FILE, _write_state
from bert_pretrain.training.run_directory import (
    claim_run_dir,
    confirm_claim,
    fingerprint,
)


def test_a_run_that_another_process_began_or_continued_is_not_written_over(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    assert claim_run_dir(run_dir, None) is None
    run_dir.mkdir()
    confirm_claim(run_dir, None, None)  # nobody was there
    (run_dir / "run.json").write_text("{}")
    with pytest.raises(InputError, match="holds another run"):
        confirm_claim(run_dir, None, None)
    first, second = (run_dir / f"checkpoints/step-{step:06d}" for step in (2, 4))
    for checkpoint in (first, second):
        claimed = claim_run_dir(run_dir, "latest")
        confirm_claim(run_dir, "latest", claimed)
        checkpoint.mkdir(parents=True)
        _write_state(checkpoint / STATE_FILE, {"files": {}})
        with pytest.raises(InputError, match="continued the run"):
            confirm_claim(run_dir, "latest", claimed)
    confirm_claim(run_dir, str(first), first)  # asked for by name


def test_where_a_configuration_was_read_from_makes_no_other_model() -> None:
    prints = []
    for place in ("/somewhere/private", "/elsewhere"):
        encoder = ViTConfig(hidden_size=32, name_or_path=place)
        assert encoder.name_or_path == place
        prints.append(fingerprint({}, {}, ContrastiveConfig(encoder=encoder, name_or_path=place)))
    assert prints[0] == prints[1]
    assert "private" not in json.dumps(prints)
    other = ContrastiveConfig(encoder=ViTConfig(hidden_size=64))
    assert fingerprint({}, {}, other)["model"] != prints[0]["model"]
