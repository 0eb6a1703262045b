"""Names in any script are drawn by a font that has their characters, or as numbers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font

from bert_pretrain.evaluation import fonts
from bert_pretrain.evaluation.embedding_maps import embedding_map
from bert_pretrain.evaluation.fonts import drawn_names


@pytest.fixture(autouse=True)
def forget() -> None:
    drawn_names.cache_clear()


def rare_character() -> str:
    """Return a character that comes with Matplotlib, in another font than its usual one."""
    folder = Path(get_data_path()) / "fonts/ttf"
    usual, other = (
        FT2Font(str(folder / name)).get_charmap() for name in ("DejaVuSans.ttf", "STIXGeneral.ttf")
    )
    return chr(min(set(other) - set(usual)))


def draw(names: list[str], path: Path) -> list[str]:
    """Draw a map with these classes and return what Matplotlib warned of."""
    points = np.random.default_rng(0).normal(size=(12, 4))
    labels = np.arange(12) % len(names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embedding_map(points, path, method="pca", labels=labels, label_names=names)
    return [str(warning.message) for warning in caught]


def test_usual_names_need_no_other_font() -> None:
    found = drawn_names(("cat", "größer als 3", "Кошка"))
    assert found.names == ("cat", "größer als 3", "Кошка")
    assert len(found.families) == 1 and not found.note


def test_another_font_draws_what_the_usual_one_lacks(tmp_path: Path) -> None:
    name = f"cat {rare_character()}"
    found = drawn_names((name, "dog"))
    assert found.names == (name, "dog") and len(found.families) == 2 and not found.note
    assert draw([name, "dog"], tmp_path / "map.png") == []


def test_characters_that_no_font_has_are_numbered_and_told_in_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fonts, "_best_font", lambda wanted: ("", frozenset()))
    found = drawn_names(("dog", "猫", "犬"))
    assert found.names == ("dog", "1", "2")
    assert found.note.endswith("which pictures number: 1 = 猫, 2 = 犬")


def test_chinese_is_drawn_or_numbered_but_never_boxes(tmp_path: Path) -> None:
    assert not [text for text in draw(["猫", "犬"], tmp_path / "map.png") if "Glyph" in text]


def test_names_are_no_formulas(tmp_path: Path) -> None:
    assert draw(["5$ \\frac$", "a$b$c"], tmp_path / "map.png") == []
