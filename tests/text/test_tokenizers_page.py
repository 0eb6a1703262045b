"""docs/tokenizers.md, and what docs/languages.md repeats of it, say what training does."""

from __future__ import annotations

import json
import re

import pytest
from languages import SAMPLES, Sample
from recombined import recombine
from runs import ROOT

from bert_pretrain.text.tokenizer_training import train_wordpiece

COLUMNS = ("language", "script", "tokenizer default")


def read_table(name: str, unknown: str) -> list[tuple[str, ...]]:
    """Return the language, script, default and share of [UNK] of each row of a page's table."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    table = page[page.index("| language |") :].split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    places = [header.index(column) for column in (*COLUMNS, unknown)]
    return [tuple(row[place] for place in places) for row in rows]


ROWS = read_table("tokenizers.md", "[UNK] tokens")


def test_the_pages_have_the_same_row_for_each_language() -> None:
    assert [row[:2] for row in ROWS] == [(s.language, s.script) for s in SAMPLES]
    assert read_table("languages.md", "[UNK]") == ROWS


@pytest.mark.parametrize(
    ("row", "sample"), zip(ROWS, SAMPLES, strict=True), ids=[row[0] for row in ROWS]
)
def test_a_row_says_what_training_does(row: tuple[str, ...], sample: Sample) -> None:
    tokenizer = train_wordpiece(recombine(sample, 100), vocab_size=30522, show_progress=False)
    normalizer = json.loads(tokenizer.backend_tokenizer.normalizer.__getstate__())
    marks = "stripped" if normalizer["strip_accents"] else "kept"
    assert normalizer["lowercase"] and row[2] == f"uncased, marks {marks}"
    ids = tokenizer("".join(recombine(sample, 20, seed=1)), add_special_tokens=False)["input_ids"]
    assert row[3] == f"{100 * ids.count(tokenizer.unk_token_id) / len(ids):.2f} %"


def test_the_line_shown_is_the_line_printed() -> None:
    page = (ROOT / "docs/tokenizers.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^    (text: .*\n    .*)\n", page, flags=re.MULTILINE)
    lines: list[str] = []
    (hindi,) = (sample for sample in SAMPLES if sample.language == "hi")
    training = [p for number, p in enumerate(recombine(hindi, 2000)) if number % 50]
    train_wordpiece(training, vocab_size=30522, show_progress=False, report=lines.append)
    assert " ".join(shown.split()) == lines[0]
