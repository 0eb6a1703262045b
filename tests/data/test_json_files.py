"""JSON lines and JSON arrays: read as the json module reads them, a bit at a time."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pretrain.data import json_files
from bert_pretrain.data.json_files import parse_object, read_json
from bert_pretrain.errors import InputError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(st.text(max_size=6), values, max_size=4), max_size=5)


def read(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return list(read_json(path, parameter="data_files"))


@settings(max_examples=100)
@given(rows, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 9))
def test_an_array_is_read_as_a_whole_whatever_fits_into_memory_at_once(
    tmp_path: Path, expected: list[dict[str, Any]], indent: int | None, ascii: bool, block: int
) -> None:
    text = json.dumps(expected, indent=indent, ensure_ascii=ascii)
    (tmp_path / "a.json").write_text(
        f"\ufeff \n{text}\n\n", encoding="utf-8", errors="surrogatepass"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_LETTERS_AT_ONCE", block)
        assert [row for _, row in read(tmp_path / "a.json")] == expected


def test_the_line_of_each_member_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\n[{"a": 1}, {"a":\n2},\n\n{"a": 3}]')
    assert [(number, row["a"]) for number, row in read(tmp_path / "a.json")] == [
        (2, 1),
        (2, 2),
        (5, 3),
    ]


def test_an_array_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_LETTERS_AT_ONCE", 100)
    good = ",\n".join(['{"text": "a"}'] * 50)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(f"[{good}, broken".encode()))
    members = read_json(tmp_path / "a.json.gz", parameter="data_files")
    assert [next(members)[1] for _ in range(50)] == [{"text": "a"}] * 50
    with pytest.raises(InputError, match="line 50, is not an array"):
        next(members)


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text('\n{"a": 1}\n\n{"a": 2}\n')
        assert read(tmp_path / name) == [(2, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1},\n {"a": }]', "line 2, .*Expecting value"),
        ('[{"a": 1}\n', "line 2, .*it ends too early"),
        ('[{"a": 1}\n {"a": 1}]', "line 2, .*'{' in place of ']'"),
        ('[{"a": 1},\n]', "line 2, .*each member must be an object"),
        ("[\n1]", "line 2, .*each member must be an object"),
        ('[{"a": 1}]\nmore', "line 2, .*something follows"),
        ('[{"a": "never closed', "line 1, .*Unterminated string"),
        ('[{"a":\n' + "1" * 5000 + "}]", "line 1, .*digits"),
        ("[" + '{"a":' * 100_000, "line 1, .*recursion"),
        ('{\n"a": 1}', "line 1, is not JSON .*or the file one array"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=f"a.json, {problem}") as refused:
        read(tmp_path / "a.json")
    assert "`data_files`" in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"a"', "null", "[" * 100_000])
def test_a_line_without_an_object_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not JSON|is a .*, not an object"):
        parse_object(text)
