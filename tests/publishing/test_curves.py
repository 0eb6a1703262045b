"""Claims about the curves of a run: one picture, whole or not at all, also of a run in progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bert_pretrain.errors import InputError
from bert_pretrain.publishing.model_card import draw_curves

ROWS: list[dict[str, Any]] = [
    {
        "split": "validation",
        "step": 0,
        "epoch": 0.0,
        "loss": 9.0,
        "mlm_loss": 8.3,
        "mlm_accuracy": 0.1,
    }
    | {"unigram_entropy": 6.5, "majority_nsp_accuracy": 0.5},
    {
        "split": "train",
        "step": 10,
        "epoch": 0.1,
        "loss": 8.0,
        "mlm_loss": 7.3,
        "learning_rate": 1e-3,
    }
    | {"grad_norm": 2.0, "tokens_per_second": 9000.0},
    {
        "split": "validation",
        "step": 10,
        "epoch": 0.1,
        "loss": 7.0,
        "mlm_loss": 6.3,
        "mlm_accuracy": 0.2,
    },
]


def test_a_run_in_progress_is_drawn(tmp_path: Path) -> None:
    draw_curves(ROWS, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 300
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_the_same_rows_give_the_same_picture_and_others_another(tmp_path: Path) -> None:
    pictures = []
    for number, rows in enumerate((ROWS, ROWS, ROWS[:2])):
        draw_curves(rows, tmp_path / f"{number}.png")
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_rows_without_a_loss_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no loss"):
        draw_curves([{"step": 1}], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
