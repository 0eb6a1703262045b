"""What a folder holds before a corpus is prepared into it: the same one, undamaged, or another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from bert_pretrain.data.json_files import parse_json
from bert_pretrain.data.run_folder import LOCK_FILE
from bert_pretrain.errors import InputError
from bert_pretrain.text.prepared import (
    ARROW_FILE,
    FILES,
    MANIFEST,
    PreparedCorpus,
    stated_language,
    write_manifest,
)


def restated(
    corpus: PreparedCorpus,
    languages: dict[str, Any],
    notes: list[str],
    files: list[dict[str, str]],
) -> PreparedCorpus:
    """Let a corpus that is asked for again say what is said of its text now."""
    manifest = corpus.manifest
    of_now = {"notes": notes, "source": manifest["source"] | {"files": files}}
    if stated_language(manifest) != languages["language"] or manifest | of_now != manifest:
        write_manifest(corpus.folder, manifest | languages | of_now)
        return PreparedCorpus.load(corpus.folder)
    return corpus


def found_corpus(folder: Path, keys: set[str], *, is_ours: bool) -> PreparedCorpus | None:
    """Return the corpus in a folder if it has one of some keys, None if one is to be prepared.

    Args:
        folder: where it may lie.
        keys: of the corpus that is asked for.
        is_ours: whether nobody but this package writes there.

    Raises:
        InputError: the folder holds something that must not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    is_corpus = isinstance(manifest, dict) and {"format_version", "key"} <= manifest.keys()
    # Many programs write a manifest.json; only ours may be replaced.
    if not (is_corpus or is_ours or _holds_parts_of_a_corpus(folder)):
        raise InputError(
            f"{folder} is neither empty nor a prepared corpus", advice="pass another `output_dir`"
        )
    if is_corpus and str(manifest["key"]) not in keys:
        return None
    try:
        return PreparedCorpus.load(folder)
    except InputError as error:
        tqdm.write(f"NOTE: {error.problem}; it is prepared again", file=sys.stderr)
        return None


def _holds_parts_of_a_corpus(folder: Path) -> bool:
    """Return whether a folder holds a corpus and nothing else, whatever became of its manifest."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return ARROW_FILE in names and names <= {*FILES, MANIFEST, LOCK_FILE}
