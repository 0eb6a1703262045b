"""Claims about the rows of a text run: how the documents of both splits become blocks."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stores import store_of

from bert_pretrain.data.stream import HeldOutRows, TrainingStream
from bert_pretrain.objectives.text import TextMonitor, text_rows
from bert_pretrain.text.blocks import ROWS_PER_BLOCK
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.pairs import EpochPlan, plan_epoch
from bert_pretrain.text.tokenizers import load_tokenizer

STORE = store_of([[[7] * (3 + (d + s) % 6) for s in range(8)] for d in range(200)])
HELD_OUT = np.arange(0, 200, 2)


def rows(max_eval_rows: int) -> tuple[TrainingStream[EpochPlan], HeldOutRows[EpochPlan]]:
    corpus: Any = SimpleNamespace(
        store=STORE,
        train_documents=np.arange(1, 200, 2),
        validation_documents=HELD_OUT,
        manifest={"key": "key"},
    )
    rule = MaskingRule(mlm_probability=0.15, mask_token_id=4, ordinary_ids=np.arange(10, 99))
    return text_rows(
        corpus,
        load_tokenizer(None),
        rule,
        pair_mode="exact",
        max_seq_length=32,
        short_seq_prob=0.1,
        seed=1,
        max_eval_rows=max_eval_rows,
    )


def global_plan() -> EpochPlan:
    return plan_epoch(
        STORE,
        HELD_OUT,
        max_seq_length=32,
        short_seq_prob=0.0,
        pair_mode="exact",
        seed=1,
        epoch=0,
    )


def test_held_out_rows_are_those_of_one_plan() -> None:
    training, held_out = rows(max_eval_rows=10)
    assert training.blocks.num_blocks == 1
    assert np.array_equal(held_out.plan.a_start, global_plan().a_start)
    assert len(held_out.rows) == 10


def test_of_very_many_held_out_documents_only_a_sample_is_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ROWS_PER_BLOCK, "exact", 100)
    training, held_out = rows(max_eval_rows=10)
    assert training.blocks.num_blocks > 1
    assert training.identity["rows planned at once"] == 100
    assert 10 < len(held_out.plan) < 0.7 * len(global_plan())
    # Where many or all are to be evaluated, all are planned.
    for wanted in (0, 50):
        _, held_out = rows(max_eval_rows=wanted)
        assert np.array_equal(held_out.plan.a_start, global_plan().a_start)
        assert len(held_out.rows) == (wanted or len(global_plan()))


def test_a_loss_beyond_all_numbers_has_an_infinite_perplexity() -> None:
    monitor = TextMonitor.__new__(TextMonitor)
    monitor._baselines = {}
    for loss, expected in ((1.0, math.e), (700.0, math.exp(700)), (1e4, math.inf)):
        assert monitor.measures(None, {"mlm_loss": loss}) == {"pseudo_perplexity": expected}
