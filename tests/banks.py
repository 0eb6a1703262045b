"""Files of embeddings."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from bert_pretrain.embedding.embedder import Window
from bert_pretrain.embedding.files import open_writer, table_beside, table_of, with_record
from bert_pretrain.embedding.rows import Row
from bert_pretrain.embedding.search import Bank, open_bank

RECORD = {"kind": "text", "model": "m", "identity": {}}


def write_bank(
    path: Path, embeddings: np.ndarray, *, sizes: list[int], dtype: str = "float32"
) -> Bank:
    """Write embeddings in blocks of some sizes, as `embed` does."""
    bounds = np.cumsum([0, *sizes])
    assert bounds[-1] == len(embeddings)
    tables = [
        table_of(
            Window(
                [Row("f", int(n), f"text {n}", None) for n in range(first, last)],
                embeddings[first:last],
                last - first,
            ),
            kind="text",
            dtype=dtype,
        )
        for first, last in pairwise(bounds)
    ]
    target = path
    if path.suffix == ".npy":
        np.save(path, embeddings.astype(dtype))
        tables, target = [table.drop_columns("embedding") for table in tables], table_beside(path)
    schema = with_record(tables[0].schema, RECORD)
    with open_writer(target, schema) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata))
    return open_bank(path)
