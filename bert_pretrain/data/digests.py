"""Whether files are as they were written: their digests in a record, which has one of its own.

A folder enters and the digests of its files leave, or what is no longer as it was. The digest is
the SHA-256. It guards against disks, copies and slips of the hand, not against somebody who writes
the record anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bert_pretrain.data.atomic import write_text
from bert_pretrain.data.content import hash_files
from bert_pretrain.errors import without_secrets

_SEAL = "digest"  # the key of a record's own


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON-able record with its digest, in place of an older one."""
    content = {name: value for name, value in record.items() if name != _SEAL}
    return content | {_SEAL: record_digest(content)}


def unseal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its digest.

    Raises:
        ValueError: it has none, or is not as it was written.
    """
    content = dict(record)
    if content.pop(_SEAL, None) != record_digest(content):
        raise ValueError("its digest is not the one written")
    return content


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Return whether a record has a digest, right or wrong."""
    return _SEAL in record


def record_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON-able record, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file without secrets and with its digest; it appears whole or not at all."""
    # In ASCII: names of files need not be Unicode.
    write_text(path, json.dumps(seal(without_secrets(record)), indent=1) + "\n")


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the digests of some files of a folder by name, sorted.

    Raises:
        InputError: a file cannot be read.
    """
    paths = [folder / name for name in sorted(names)]
    return {str(file.path.relative_to(folder)): file.hash for file in hash_files(paths)}


def damages(
    folder: Path, digests: Mapping[str, str], *, anew: bool = False
) -> dict[str, tuple[str, str]]:
    """Return what is wrong with files of a folder, and the digest found, by their names.

    A file is read where its size or times are not those it had when this machine read it last;
    with `anew` in any case.

    Args:
        folder: of the files.
        digests: as they were when written, by name.
        anew: whether to trust nothing that was read before.

    Raises:
        InputError: a file cannot be read.
    """
    present = [name for name in digests if (folder / name).is_file()]
    hashed = hash_files([folder / name for name in present], anew=anew)
    found = {name: file.hash for name, file in zip(present, hashed, strict=True)}
    wrong = {name: ("is missing", "") for name in digests if name not in found}
    return wrong | {
        name: ("is damaged: its digest is not the one written", digest)
        for name, digest in found.items()
        if digest != digests[name]
    }
