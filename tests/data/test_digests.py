"""Digests: of a record of itself, and of the files that it lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pretrain.data import content
from bert_pretrain.data.digests import damages, digests_of, is_sealed, seal, unseal, write_sealed

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text().filter(lambda name: name != "digest"), values))
def test_a_sealed_record_comes_back_from_json_in_any_order(record: dict) -> None:
    sealed = seal(record)
    assert is_sealed(sealed) and not is_sealed(record)
    back = json.loads(json.dumps(dict(reversed(sealed.items()))))
    assert unseal(back) == json.loads(json.dumps(record))
    assert seal(sealed) == sealed  # and is sealed once


def test_a_changed_record_is_told_apart(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", {"one": 1, "two": [2.5, "\udcff"]})
    whole = (tmp_path / "a.json").read_text()
    assert unseal(json.loads(whole)) == {"one": 1, "two": [2.5, "\udcff"]}
    for old, new in (("2.5", "2.4"), ("one", "own"), ('"digest"', '"digits"')):
        with pytest.raises(ValueError, match="digest is not the one"):
            unseal(json.loads(whole.replace(old, new)))


def test_files_that_are_damaged_or_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(content, "_SETTLED_NANOSECONDS", 0)
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for name in ("a", "b", "below/c"):
        (folder / name).write_text(name)
    digests = digests_of(folder, ["b", "a", "below/c"])
    assert list(digests) == ["a", "b", "below/c"] and damages(folder, digests) == {}
    (folder / "a").unlink()
    (folder / "below/c").write_text("C")
    [(_, found)] = digests_of(folder, ["below/c"]).items()
    assert damages(folder, digests) == {
        "a": ("is missing", ""),
        "below/c": ("is damaged: its digest is not the one written", found),
    }


def test_a_disk_that_gives_other_bytes_at_the_same_time_is_found_by_reading_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(content, "_SETTLED_NANOSECONDS", 0)
    (tmp_path / "a").write_text("some")
    digests = digests_of(tmp_path, ["a"])
    state = content._state_of(tmp_path / "a")
    (tmp_path / "a").write_text("none")
    monkeypatch.setattr(content, "_state_of", lambda path: state)
    assert damages(tmp_path, digests) == {}  # the stated limit of what opening sees
    assert list(damages(tmp_path, digests, anew=True)) == ["a"]
    assert list(damages(tmp_path, digests)) == ["a"]  # from then on it is known
