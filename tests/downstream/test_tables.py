"""Rows of labelled files: all formats give the same cells; what does not fit is named."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from bert_pretrain.downstream.tables import read_table, table_of
from bert_pretrain.errors import InputError


def test_all_file_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'a "quoted", line\nof two', "label": "NA"}, {"text": "null", "label": "007"}]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))  # an array
    for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl", "a.json"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            table = read_table(str(path), parameter="train_file", tsv_quotes="minimal")
            assert table.columns == {key: [row[key] for row in rows] for key in ("text", "label")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label,text\npos,good\npos\n", "a.csv, line 3, has 1 cells but its header has 2"),
        ("label,text\npos,good, very\n", "a.csv, line 2, has 3 cells but its header has 2"),
        ('label,text\npos,"he\nneg,she\npos,it" was\n', "a.csv has cells that are not quoted"),
        ('label,text\npos,"he\nneg,she\n', "a.csv has cells that are not quoted as a CSV file's"),
        ("label,text\npos,a\0b\n", "a.csv is a binary file"),
    ],
)
def test_a_csv_file_that_would_lose_or_join_rows_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_table(str(tmp_path / "a.csv"), parameter="train_file")


def test_cells_of_a_csv_file_keep_their_ends_of_lines_and_may_be_long(tmp_path: Path) -> None:
    texts = ["one\r\ntwo\rthree\nfour", "a" * 200_000, "", 'say "no"', " "]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "a.csv", index=False)
    with (tmp_path / "a.csv").open("a", newline="") as file:
        file.write("\r\n")  # an empty line is no row
    assert read_table(str(tmp_path / "a.csv"), parameter="train_file").columns == {"text": texts}


def tsv(folder: Path, content: str, quotes: Any = "none") -> dict[str, list[str]]:
    (folder / "a.tsv").write_text(content)
    path = str(folder / "a.tsv")
    return read_table(path, parameter="train_file", tsv_quotes=quotes).columns


def test_quotes_of_a_tsv_file_are_letters(tmp_path: Path) -> None:
    for texts in (
        ['"It opens here', "and goes on", 'and closes"'],
        ['"All of it"', '"Both of them"'],
        ['a 5" disc', '"", he wrote', '"'],
        ['"She said ""no"""', "", 'say "yes"'],
    ):
        rows = "".join(f"{text}\t{number % 2}\n" for number, text in enumerate(texts))
        assert tsv(tmp_path, "text\tlabel\n" + rows)["text"] == texts
        rows = "".join(f"0\t{text}\r\n" for text in texts)
        assert tsv(tmp_path, "label\ttext\r\n\r\n" + rows)["text"] == texts
    assert list(tsv(tmp_path, "a\ta\tb\n1\t2\t3\n")) == ["a", "a.1", "b"]


def test_quotes_around_the_cells_of_a_tsv_file_are_read_where_that_is_said(tmp_path: Path) -> None:
    for texts in (
        ['He said "no"', "plain"],
        ["a\ttab", 'a "quote"'],
        ["two\n\nlines", '"'],
        ["plain", '5" disc'],
        ["", "NA"],
    ):
        frame = pd.DataFrame({"text": texts, "label": ["0"] * len(texts)})
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
            content = frame.to_csv(index=False, sep="\t", quoting=quoting)
            assert tsv(tmp_path, content, "minimal")["text"] == texts


@pytest.mark.parametrize(
    ("quotes", "content", "message"),
    [
        ("none", "text\tlabel\na\t0\nb\tc\t1\n", "line 3, has 3 cells but its header has 2; "),
        ("none", "text\tlabel\na\t0\nb\n", "line 3, has 1 cells but its header has 2; "),
        ("none", 'text\tlabel\n"two\nlines"\t1\n', "line 2, has 1 cells but its header has 2; "),
        ("minimal", "text\tlabel\na\t0\nb\tc\t1\n", "line 3, has 3 cells but its header has 2; "),
        ("minimal", "text\tlabel\na\t0\nb\n", "line 3, has 1 cells but its header has 2; "),
        # A stray quote would swallow all lines up to the next one.
        ("minimal", 'text\tlabel\n"a\t0\nb\t1\n"d\t1\n', "after line 1"),
        ("minimal", 'text\tlabel\na\t0\n"b\t1\n', "unexpected end of data, after line 2"),
    ],
)
def test_a_line_of_a_tsv_file_that_does_not_fit_its_header_is_named(
    tmp_path: Path, quotes: str, content: str, message: str
) -> None:
    with pytest.raises(InputError, match=f"a.tsv.*{message}.*`tsv_quotes`.*`train_file`"):
        tsv(tmp_path, content, quotes)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for content in ("", "\n", "text\tlabel\n"):
        with pytest.raises(InputError, match="has no rows"):
            tsv(tmp_path, content)


def test_class_names_of_a_parquet_file_are_found(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    assert read_table(str(tmp_path / "a.parquet"), parameter="f").class_names == {
        "label": ("no", "yes")
    }


def test_cells_without_a_header_are_refused_and_the_last_extension_tells_the_separator(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_text("text,label\nwell, yes,1\nwell, no,0\n")
    with pytest.raises(InputError, match="line 2, has 3 cells but its header has 2"):
        read_table(str(tmp_path / "a.csv"), parameter="train_file")
    (tmp_path / "a.tsv.csv").write_text("text,label\nyes,1\n")
    assert read_table(str(tmp_path / "a.tsv.csv"), parameter="train_file").columns == {
        "text": ["yes"],
        "label": ["1"],
    }
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbftext;label\r\n"well; yes, so";1\r\nno;0\r\n')
    assert read_table(str(tmp_path / "a.csv"), parameter="train_file").columns == {
        "text": ["well; yes, so", "no"],
        "label": ["1", "0"],
    }


def test_a_damaged_text_of_a_data_set_is_refused() -> None:
    damaged = pa.array([b"a", b"\x80"]).view(pa.string())
    dataset = datasets.Dataset(pa.table({"text": damaged}))
    with pytest.raises(InputError, match="the set cannot be read"):
        table_of(dataset, "the set")
