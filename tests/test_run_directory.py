"""What a checkpoint keeps of its run."""

from __future__ import annotations

import json

from transformers import ViTConfig

from bert_pretrain.models.contrastive import ContrastiveConfig
from bert_pretrain.run_directory import _STEERING_FLAGS, fingerprint


def test_where_a_configuration_was_read_from_makes_no_other_model() -> None:
    flags = dict.fromkeys(_STEERING_FLAGS, 0)
    prints = []
    for place in ("/somewhere/private", "/elsewhere"):
        encoder = ViTConfig(hidden_size=32, name_or_path=place)
        assert encoder.name_or_path == place
        prints.append(fingerprint(flags, {}, ContrastiveConfig(encoder=encoder, name_or_path=place)))
    assert prints[0] == prints[1]
    assert "private" not in json.dumps(prints)
    other = ContrastiveConfig(encoder=ViTConfig(hidden_size=64))
    assert fingerprint(flags, {}, other)["model"] != prints[0]["model"]
