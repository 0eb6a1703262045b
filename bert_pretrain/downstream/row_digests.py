"""Which rows of different splits are the same, and a digest that tells when rows have changed.

`Splits` enter: texts before they are cut into tokens, images as the model's processor resized them.
Equal rows have equal digests; counts of rows that are trained and evaluated on alike leave.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TypedDict

from bert_pretrain.downstream.data import ImageDataset
from bert_pretrain.downstream.sources import Splits

# Bytes; among a billion different rows two have the same digest with a probability of 1e-21.
_DIGEST_SIZE = 16


class Overlap(TypedDict):
    """Rows of a split, and how many of them are training rows too."""

    rows: int
    also_training_rows: int


def overlap_with_training(splits: Splits) -> dict[str, Overlap]:
    """Return for every other split how many of its rows are training rows too.

    Texts are the same if they are equal letter for letter, pairs if both texts are, images if all
    pixels are; labels do not count.
    """
    trained = set(_row_digests(splits, "train"))
    return {
        name: Overlap(
            rows=len(rows),
            also_training_rows=sum(row in trained for row in _row_digests(splits, name)),
        )
        for name, rows in splits.rows.items()
        if name != "train"
    }


def describe_overlap(splits: Splits, overlap: dict[str, Overlap]) -> str | None:
    """Return a warning that scores on some rows are partly memory; None without overlap."""
    pairs = any(texts.second is not None for texts in splits.texts.values())
    kind = ("text pairs" if pairs else "texts") if splits.texts else "images"
    found = [
        f"{part['also_training_rows']:,} of the {part['rows']:,} {name} {kind}"
        for name, part in overlap.items()
        if part["also_training_rows"]
    ]
    if not found:
        return None
    return (
        f"{' and '.join(found)} are training rows too, exactly the same: scores on them are partly "
        "memory; leave them out of one of the two for a score on unseen rows."
    )


def labelled_rows_sha256(splits: Splits, name: str) -> str:
    """Return a digest of the rows of a split in their order, their labels and the class names."""
    labels = splits.rows[name].labels
    sha256 = hashlib.sha256(json.dumps(splits.labels.names).encode())
    sha256.update(b"" if labels is None else labels.tobytes())
    for row in _row_digests(splits, name):
        sha256.update(row)
    return sha256.hexdigest()


def _row_digests(splits: Splits, name: str) -> Iterator[bytes]:
    rows = splits.rows[name]
    if isinstance(rows, ImageDataset):
        # Without their shape, which all images of a model share.
        contents = (image.tobytes() for image in rows.pixels)
    else:
        texts = splits.texts[name]
        # As JSON, so that ("a b", "c") and ("a", "b c") differ.
        contents = (
            json.dumps(row).encode()
            for row in zip(texts.first, texts.second or texts.first, strict=True)
        )
    for content in contents:
        yield hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
