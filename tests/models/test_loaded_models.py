"""Sizes of a stranger's configuration that cannot be built are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bert_pretrain.errors import InputError
from bert_pretrain.models.image_encoder_config import read_encoder_config
from bert_pretrain.models.loading import check_text_model

TEXT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 65}, "65"),  # 4 heads do not divide it
    ({"hidden_size": -64}, "hidden_size"),
    ({"hidden_size": 10**9}, "hidden_size"),
    ({"hidden_size": "wide"}, "hidden_size"),
    ({"hidden_size": 64.5}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"intermediate_size": -1}, "intermediate_size"),
    ({"hidden_act": "no such function"}, "no such function"),
    ({"max_position_embeddings": -5}, ""),
    ({"type_vocab_size": -1}, ""),
]


@pytest.mark.parametrize(("fields", "expected"), UNUSABLE, ids=lambda value: str(value)[:40])
def test_a_text_encoder_that_cannot_be_built_is_refused(
    tmp_path: Path, fields: dict[str, Any], expected: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TEXT | fields))
    with pytest.raises(InputError) as refused:
        check_text_model(str(tmp_path), None, 32, with_pairs=True)
    assert expected in str(refused.value)


@pytest.mark.parametrize("fields", [{"hidden_size": -64}, {"num_hidden_layers": 0}], ids=str)
def test_an_image_encoder_that_cannot_be_built_is_refused(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TEXT | {"model_type": "vit"} | fields))
    with pytest.raises(InputError, match=next(iter(fields))):
        read_encoder_config(str(tmp_path), image_size=8, num_channels=1)
