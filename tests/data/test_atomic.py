"""What is written appears whole, and what was there before stays until then."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bert_pretrain.data.atomic import (
    atomic_file,
    atomic_folder,
    check_creatable,
    replace_folder,
    write_json,
    write_text,
)
from bert_pretrain.errors import InputError


def test_the_current_folder_is_not_replaced_and_one_below_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "..", str(tmp_path)):
        with (
            pytest.raises(InputError, match="cannot be replaced"),
            atomic_folder(Path(name)),
        ):
            pass
    with atomic_folder(Path("new/../corpus")) as aside:
        (aside / "text").touch()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["corpus"]


def test_a_file_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a file.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as aside:
        aside.write_text("ha")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_json(path, {"word": "caf\u00e9"})
    assert json.loads(path.read_bytes()) == {"word": "caf\u00e9"} and list(tmp_path.iterdir()) == [
        path
    ]


def test_what_is_no_number_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_there_whole_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, aside = tmp_path / "final", tmp_path / "final.tmp"
    for folder, text in ((target, "old"), (aside, "new")):
        folder.mkdir()
        for name in ("weights", "config"):
            (folder / name).write_text(text)
    seen: list[list[str]] = []

    def watched(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(sorted(path.read_text() for path in target.glob("*")))
            return function(*arguments, **options)

        return call

    for module, name in ((os, "replace"), (os, "unlink"), (os, "rmdir"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    replace_folder(aside, target)
    assert (
        all(texts in ([], ["old", "old"], ["new", "new"]) for texts in seen)
        and ["old", "old"] in seen
    )
    assert sorted(path.read_text() for path in target.iterdir()) == ["new", "new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "below" / "final"
    for name in ("old", "new"):
        left = target.parent / "final.bert-pretrain.tmp"  # by a process that was killed
        left.mkdir(parents=True, exist_ok=True)
        (left / "half").touch()
        with atomic_folder(target) as aside:
            assert not list(aside.iterdir())
            (aside / name).touch()
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as aside:
        (aside / "newer").touch()
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["new"] and list(
        target.parent.iterdir()
    ) == [target]


def test_folders_of_others_beside_it_stay(tmp_path: Path) -> None:
    for name in ("corpus", "corpus.old", "corpus.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    with atomic_folder(tmp_path / "corpus") as aside:
        (aside / "new").touch()
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*/*"))
    assert found == ["corpus.old/mine", "corpus.tmp/mine", "corpus/new"]


def test_of_a_link_the_folder_is_replaced_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    link = tmp_path / "corpus"
    link.symlink_to("large_disk/corpus")
    for name in ("old", "new"):
        with atomic_folder(link) as aside:
            assert aside.parent == tmp_path / "large_disk"
            (aside / name).touch()
    assert link.is_symlink() and [path.name for path in link.iterdir()] == ["new"]
    assert len(list((tmp_path / "large_disk").iterdir())) == 1


def test_a_folder_that_was_not_filled_leaves_none_above_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "mine/new/below/final"):
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_a_folder_that_cannot_be_made_names_its_flag(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_creatable(tmp_path / "new" / "folder", parameter="output_dir")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="`output_dir`"):
            check_creatable(path, parameter="output_dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
