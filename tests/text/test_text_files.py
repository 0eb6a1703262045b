"""Files of text: which are found, and what is read of each kind."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from bert_pretrain.errors import InputError
from bert_pretrain.text.documents import DocumentSource, TextSource, open_documents

TEXTS = ["First, with a comma.", 'Second "one".', "Dritte: äöü €."]


def open_files(*paths: Path | str, **options: Any) -> DocumentSource:
    return open_documents(TextSource(data_files=[str(path) for path in paths], **options))


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "txt"])
def test_every_kind_is_read_plain_and_compressed(
    tmp_path: Path, kind: str, compression: str
) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3], "text": TEXTS})
    content = {
        "jsonl": lambda: frame.to_json(orient="records", lines=True).encode(),
        "json": lambda: frame.to_json(orient="records", indent=2).encode(),
        "csv": lambda: frame.to_csv(index=False).encode(),
        "tsv": lambda: "\n".join(["id\ttext", *(f"1\t{text}" for text in TEXTS)]).encode(),
        "parquet": lambda: frame.to_parquet(),
        "txt": lambda: "\n\n".join(TEXTS).encode(),
    }[kind]()
    path = tmp_path / f"a.{kind}{compression}"
    path.write_bytes(COMPRESS[compression](content))
    source = open_files(path)
    assert list(source) == list(source) == TEXTS


def test_extensions_may_be_written_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.TXT.GZ").write_bytes(gzip.compress(b"one\n\ntwo"))
    assert list(open_files(tmp_path / "A.TXT.GZ")) == list(open_files(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_a_torn_or_false_file_is_named(tmp_path: Path, compression: str) -> None:
    whole = COMPRESS[compression](bytes(range(32, 127)) * 999)
    for content in (whole[: len(whole) // 2], b"no such thing at all, but plain text"):
        path = tmp_path / f"a.txt{compression}"
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"a.txt{compression} .*`data_files`"):
            list(open_files(path))


def test_quotes_of_a_tsv_are_letters_or_surround_cells(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"so" he said\n2\t"open\n')
    assert list(open_files(tmp_path / "a.tsv")) == ['"so" he said', '"open']
    frame = pd.DataFrame({"id": [1], "text": ['a\ttab, a "quote"\nand a line']})
    frame.to_csv(tmp_path / "b.tsv", sep="\t", index=False)
    source = open_files(tmp_path / "b.tsv", tsv_quotes="minimal")
    assert list(source) == frame["text"].tolist()
    with pytest.raises(InputError, match=r"b.tsv, line 2, has 3 cells .*`tsv_quotes`"):
        list(open_files(tmp_path / "b.tsv"))
    with pytest.raises(InputError, match=r"no column 'body'; it has 'id', 'text'"):
        list(open_files(tmp_path / "a.tsv", text_column="body"))


NESTED = [
    {"text": "top", "a": {"b": "one", "c": {"d": "deep"}}, "parts": ["x", "y\nz"], "n": [1]},
    {"text": "top", "a": {"b": "two", "c": {"d": "down"}}, "parts": [], "n": [2]},
]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved"])
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("a.b", ["one", "two"]),
        ("a.c.d", ["deep", "down"]),
        ("parts", ["x\n\ny\nz"]),  # the other one is empty
    ],
)
def test_a_column_may_lie_within_another_and_hold_a_list(
    tmp_path: Path, kind: str, column: str, expected: list[str]
) -> None:
    if kind == "saved":
        Dataset.from_list(NESTED).save_to_disk(tmp_path / "saved")
        named: dict[str, Any] = {"dataset_name": str(tmp_path / "saved")}
    else:
        path = tmp_path / f"a.{kind}"
        named = {"data_files": [str(path)]}
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(NESTED), path)
        else:
            path.write_text(
                json.dumps(NESTED) if kind == "json" else "\n".join(map(json.dumps, NESTED))
            )
    source = open_documents(TextSource(text_column=column, newline="paragraph", **named))
    assert list(source) == expected
    for absent, problem in (
        ("a.q", "no column 'a.q'"),
        ("q", "no column 'q'"),
        ("text.b", "no col"),
    ):
        with pytest.raises(InputError, match=problem):
            list(open_documents(TextSource(text_column=absent, **named)))
    with pytest.raises(InputError, match=r"holds no text \(skipped: 2 not text\)"):
        list(open_documents(TextSource(text_column="n", **named)))


def test_texts_of_several_rows_within_a_row_are_its_paragraphs(tmp_path: Path) -> None:
    rows = [{"parts": [{"t": "one"}, {"t": None}, {"t": ["two", "three"]}]}, {"parts": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_files(tmp_path / "a.jsonl", text_column="parts.t")
    assert list(source) == ["one\n\ntwo\n\nthree"] and source.skipped == {"not text": 1}


def test_a_column_of_the_very_name_comes_first_and_names_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"a.b": "flat", "a": {"b": "nested"}}))
    assert list(open_files(tmp_path / "a.jsonl", text_column="a.b")) == ["flat"]
    with pytest.raises(InputError, match=r"a.jsonl, line 1, has .*it has 'a.b', 'a', 'a.b'; pass"):
        list(open_files(tmp_path / "a.jsonl"))


def test_a_row_may_be_a_document_of_lines_and_a_line_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n two\n\nthree\n")
    assert list(open_files(tmp_path / "a.txt", document_boundary="line")) == ["one", "two", "three"]


def fill(folder: Path) -> Path:
    """Make a folder of text of many kinds, and of what is none."""
    (folder / "b/deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git/config.txt").write_text("not this")
    (folder / "__pycache__").mkdir()
    (folder / "a.txt").write_text("one\n\ntwo")
    (folder / "b/c.jsonl").write_text('{"text": "three"}')
    (folder / "b/deep/d.json.gz").write_bytes(gzip.compress(b'[{"text": "four"}]'))
    pd.DataFrame({"text": ["five"]}).to_csv(folder / "c.csv", index=False)
    for name in ("README.md", "LICENSE.txt", "photo.JPG", "x.pdf", "b/y.pdf", ".hidden.txt"):
        (folder / name).write_text("not this")
    (folder / "nothing.txt").touch()
    return folder


FOUND = ["one", "two", "three", "four", "five"]
LEFT_OUT = (
    "left out: 3 hidden (.git, .hidden.txt, __pycache__)",
    "left out: 2 about the data (LICENSE.txt, README.md)",
    "left out: 3 of other kinds (2 .pdf, 1 .jpg)",
    "left out: 1 empty (nothing.txt)",
)


@pytest.mark.parametrize("flag", ["data_files", "dataset_name"])
def test_a_folder_of_mixed_kinds_is_read_whole_and_what_is_left_out_is_named(
    tmp_path: Path, flag: str
) -> None:
    folder = str(fill(tmp_path / "own"))
    source = open_documents(
        TextSource(data_files=[folder])
        if flag == "data_files"
        else TextSource(dataset_name=folder, streaming=True)
    )
    assert list(source) == FOUND
    assert sorted(source.notes) == sorted(LEFT_OUT)


def test_a_folder_that_a_glob_finds_is_read_and_nothing_twice(tmp_path: Path) -> None:
    folder = fill(tmp_path / "own")
    found = list(open_files(tmp_path / "o*", folder / "c.csv", folder))
    assert found == FOUND
    (folder / "b/again").symlink_to(folder)  # a circle
    assert list(open_files(folder)) == FOUND


def test_a_folder_without_text_or_for_another_flag_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_text("x")
    with pytest.raises(
        InputError, match=r"pictures holds no file of text; `data_files` takes \.txt"
    ):
        open_files(tmp_path / "pictures")
    Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match=r"saved is a data set .*pass it as `dataset_name`"):
        open_files(tmp_path / "saved")


def test_a_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "own")
    (folder / "b/z.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(InputError, match=r"own/b/z.jsonl, line 2, is not JSON"):
        list(open_files(folder))


def names(folder: Path, **texts: str) -> str:
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_jsonl", ".jsonl").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": text}) if path.suffix == ".jsonl" else text)
    return str(folder)


def test_splits_of_a_folder_are_told_by_names(tmp_path: Path) -> None:
    folder = names(
        tmp_path / "own", train_1_jsonl="a", train_2_txt="b", test__x_txt="c", dev_txt="d"
    )
    source = open_documents(TextSource(dataset_name=folder))
    assert list(source) == ["a", "b"]
    assert "left out: 1 of the split test (x.txt)" in source.notes
    for split, expected in (("test", "c"), ("validation", "d"), ("dev", "d")):
        text = TextSource(dataset_name=folder, dataset_split=split)
        assert list(open_documents(text)) == [expected]
    assert sorted(open_files(folder)) == ["a", "b", "c", "d"], "as files, all is read"


def test_a_folder_of_which_some_files_are_named_as_splits_is_refused(tmp_path: Path) -> None:
    folder = names(tmp_path / "own", train_jsonl="a", test_jsonl="b", trained_jsonl="c")
    with pytest.raises(
        InputError,
        match=r"\(test.jsonl, train.jsonl\) and others are not \(trained.jsonl\).*`data_files`",
    ):
        open_documents(TextSource(dataset_name=folder))


def test_a_folder_whose_readme_divides_it_is_for_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = names(tmp_path / "own", one_jsonl="a", two_jsonl="b")
    configs = (
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: two.jsonl\n"
    )
    (tmp_path / "own/README.md").write_text(f"---\n{configs}---\nAbout it.\n")
    assert list(open_documents(TextSource(dataset_name=folder))) == ["b"]


def test_what_newlines_mean_is_found_for_each_kind_of_file_alone(tmp_path: Path) -> None:
    lines = [f"word {number} of a line that was wrapped at its" for number in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    rows = [
        f"Sentence {number} is short.\nAnother one of some length ends here."
        for number in range(60)
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    source = open_files(tmp_path)
    documents = list(source)
    assert documents[0] == " ".join(lines)
    assert documents[1:] == rows
    assert [note.split(":")[:2] for note in source.notes] == [
        ["newlines in .jsonl", " sentence"],
        ["newlines in .txt", " space"],
    ]


def test_files_are_looked_at_evenly(tmp_path: Path) -> None:
    """A licence before the text must not tell what newlines are in the text."""
    licence = "\n".join(f"wrapped line {number:03} of a licence that is" for number in range(200))
    (tmp_path / "0.txt").write_text(licence)
    lines = [f"Sentence {number} is {'very ' * (number % 9)}short." for number in range(99)]
    for number in range(40):
        (tmp_path / f"text-{number}.txt").write_text("\n".join(lines))
    assert "sentence: a line is one" in open_files(tmp_path).notes[0]
    assert "space: lines are wrapped" in open_files(tmp_path / "0.txt").notes[0]


def test_a_file_that_cannot_be_one_document_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_pretrain.text.text_files.LONGEST_DOCUMENT", 100)
    (tmp_path / "a.txt").write_text("a tweet\n" * 20)
    with pytest.raises(InputError, match=r"a.txt has no blank line within 105 letters.* line$"):
        list(open_files(tmp_path / "a.txt"))
    with pytest.raises(InputError, match=r"a.txt has more than 105 letters.* line or blank_line$"):
        list(open_files(tmp_path / "a.txt", document_boundary="file"))
    assert len(list(open_files(tmp_path / "a.txt", document_boundary="line"))) == 20


def test_a_rule_that_is_given_holds_for_all_and_what_is_found_equals_what_is_given(
    tmp_path: Path,
) -> None:
    lines = [
        f"A sentence with the number {number} of {'so ' * (number % 7)}many."
        for number in range(60)
    ]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    found = open_files(tmp_path)
    assert list(found) == ["\n".join(lines)] and "sentence: a line is one" in found.notes[0]
    given = {
        rule: open_files(tmp_path, newline=rule) for rule in ("sentence", "space", "paragraph")
    }
    assert list(given["space"]) == [" ".join(lines)] and not given["space"].notes
    assert given["sentence"].fingerprint == found.fingerprint
    assert len({source.fingerprint for source in given.values()}) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="names are Unicode there")
def test_a_name_that_is_no_unicode_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("A text.")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("Another text.")
    for named in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(InputError, match=r"caf\\udce9\.txt is not valid UTF-8"):
            open_files(named)
