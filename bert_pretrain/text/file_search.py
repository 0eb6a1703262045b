"""Which files of text a path, a glob or a folder means, and what is left out of folders."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from bert_pretrain.data.names import is_saved_dataset, refuse_undecodable
from bert_pretrain.data.row_files import describe_kinds, file_kind
from bert_pretrain.errors import InputError
from bert_pretrain.text.prepared import is_prepared

EXTENSIONS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
# Names of files that are no text.
_ABOUT_DATA = re.compile(r"(readme|licen[cs]e|dataset_infos?)(\..*)?|manifest\.json", re.IGNORECASE)
_SPLITS = {
    "train": "train|training",
    "validation": "val|valid|validation|dev",
    "test": "test|testing|eval|evaluation",
}
_OTHER_KINDS = "of other kinds"
_NAMED_FILES = 5


@dataclass
class FoundFiles:
    """Files to read, in order, and what is left out of folders, by reason."""

    paths: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What is left out, for people."""
        return [
            f"left out: {len(paths):,} {reason} "
            f"({_kinds(paths) if reason == _OTHER_KINDS else _listed(paths)})"
            for reason, paths in self.left_out.items()
        ]

    def add(self, path: Path, reason: str) -> None:
        """Add a path that is left out for a reason, or one to read, without any."""
        paths = self.left_out.setdefault(reason, []) if reason else self.paths
        paths.append(path)


def find_files(patterns: Sequence[str], *, parameter: str = "data_files") -> FoundFiles:
    """Return the files that paths and globs mean, each once, those of a glob sorted by name.

    A folder means all files below it that can be read. `parameter` gave the patterns.

    Raises:
        InputError: a pattern means nothing, a file is empty or of an unknown kind, or nothing in a
            folder can be read.
    """
    found = FoundFiles()
    seen: set[Path] = set()
    for path in chain.from_iterable(_matches(pattern, parameter) for pattern in patterns):
        inside = list(_files_below(path)) if path.is_dir() else [(path, "")]
        if path.is_dir() and all(reason for _, reason in inside):
            raise InputError(
                f"the folder {path} holds no file of text",
                advice=f"`{parameter}` takes {describe_kinds(EXTENSIONS)}",
            )
        for file, reason in inside:
            if file not in seen:
                if not reason:
                    refuse_undecodable(file)
                found.add(file, reason)
                seen.add(file)
    return found


def _matches(pattern: str, parameter: str) -> list[Path]:
    names = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
    found = sorted(path for path in map(Path, names) if path.is_file() or path.is_dir())
    if not found:
        raise InputError(
            f"there is no file {pattern!r}",
            advice=f"`{parameter}` takes paths and globs of existing files and folders",
        )
    for path in found:
        if is_saved_dataset(path) or is_prepared(path):
            raise InputError(
                f"{path} is a data set that datasets saved, or a prepared corpus",
                advice="pass it as `dataset_name`",
            )
        if path.is_file() and file_kind(path) not in EXTENSIONS:
            raise InputError(
                f"{path} has an unknown extension",
                advice=f"`{parameter}` takes {describe_kinds(EXTENSIONS)}",
            )
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty", advice=f"remove it from `{parameter}`")
    return found


def find_split(folder: Path, split: str) -> FoundFiles | None:
    """Return the files of one split of a folder; None if it is for `datasets` to read.

    That is so where the folder's README.md says which files are what, or no file is of our kinds.
    Otherwise names tell the splits, such as train-0001.jsonl or test/a.txt, or all is `train`.

    Raises:
        InputError: there is no such split, or some files are named as splits and others are not.
    """
    found = FoundFiles()
    for path, reason in _files_below(folder):
        if not reason:
            refuse_undecodable(path)
        found.add(path, reason)
    if not found.paths or _is_described(folder):
        return None
    by_split: dict[str, list[Path]] = {}
    for path in found.paths:
        by_split.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    unnamed = by_split.pop("", [])
    if unnamed and by_split:
        named = list(chain.from_iterable(by_split.values()))
        raise InputError(
            f"in the folder {folder} some files are named as splits ({_listed(named)}) and others "
            f"are not ({_listed(unnamed)})",
            advice="pass those to read as `data_files`, or the folder there to read all",
        )
    by_split = by_split or {"train": unnamed}
    wanted = _split_of(Path(split)) or split
    if wanted not in by_split:
        raise InputError(
            f"the data set {str(folder)!r} has no split {split!r}",
            advice=f"it has {', '.join(by_split)}; change `dataset_split`",
        )
    found.paths = by_split.pop(wanted)
    found.left_out |= {f"of the split {name}": paths for name, paths in by_split.items()}
    return found


def _split_of(path: Path) -> str:
    """Return the split that a file's name or else a folder's above it tells; "" if none does."""
    for part in reversed(path.parts):
        for split, words in _SPLITS.items():
            if re.search(rf"(?<![a-z])({words})(?![a-z])", part, re.IGNORECASE):
                return split
    return ""


def _is_described(folder: Path) -> bool:
    """Return whether the head of a folder's README.md divides its files, as `datasets` reads it."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    head = text.split("\n---")[0]
    return head.startswith("---") and re.search("^configs:", head, re.MULTILINE) is not None


def _files_below(folder: Path) -> list[tuple[Path, str]]:
    """Return the files below a folder, sorted, each with why it is not to be read, or ""."""
    found = []
    seen = set()  # a link may lead up again
    for parent, subfolders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:
            subfolders.clear()
            continue
        seen.add(place)
        hidden = [name for name in subfolders if name.startswith((".", "__"))]
        subfolders[:] = sorted(set(subfolders) - set(hidden))
        found += [(Path(parent, name), "hidden") for name in hidden]
        found += [(path, _why_not(path)) for name in names if (path := Path(parent, name))]
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    raise InputError(
        f"the folder {error.filename} cannot be read ({error.strerror})",
        advice="change its permissions, or what is to be read",
    ) from error


def _why_not(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if _ABOUT_DATA.fullmatch(path.name):
        return "about the data"
    if file_kind(path) not in EXTENSIONS:
        return _OTHER_KINDS
    if not path.is_file():
        return "broken links"
    return "" if path.stat().st_size else "empty"


def _kinds(paths: list[Path]) -> str:
    counts = Counter(file_kind(path) or path.name for path in paths)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def _listed(paths: list[Path]) -> str:
    more = ["..."] * (len(paths) > _NAMED_FILES)
    return ", ".join([path.name for path in paths[:_NAMED_FILES]] + more)
