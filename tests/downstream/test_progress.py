"""The seeds that a fine-tuning has finished are taken up by the same fine-tuning alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_pretrain.downstream.progress import SeedProgress
from bert_pretrain.errors import InputError


def test_finished_seeds_are_of_the_same_encoder_and_all_asked_for(tmp_path: Path) -> None:
    identity = {"weights of the model": "1f", "rows": [1]}
    outcomes = {1: {"metrics": {}}, 2: {"metrics": {}}}
    SeedProgress(tmp_path, identity, seeds=[1, 2]).write(outcomes)
    assert SeedProgress(tmp_path, identity, seeds=[3, 2, 1]).read() == outcomes
    with pytest.raises(InputError, match="has finished seed 2, which is not among `seeds`"):
        SeedProgress(tmp_path, identity, seeds=[1, 3]).read()
    other = identity | {"weights of the model": "2e"}
    with pytest.raises(InputError, match="begun with other `weights of the model`"):
        SeedProgress(tmp_path, other, seeds=[1, 2]).read()
