"""What a file of embeddings looks like: a Parquet table, or a matrix with a table beside it.

The table has a row for each embedding, in order: `file` and `file_row` (where the row was found,
from 0), `text` or `path`, `label` and, unless a matrix has them, `embedding`, a list of D float32
or float16. What made it stands in the metadata of its schema, as JSON under `bert_pretrain`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bert_pretrain.embedding.embedder import Window
from bert_pretrain.errors import InputError, without_secrets

EMBEDDING = "embedding"
CONTENT = {"text": "text", "image": "path"}  # the column of each kind of rows
SUFFIXES = (".parquet", ".npy")
_METADATA = b"bert_pretrain"


def check_suffix(path: Path, *, parameter: str) -> None:
    """Raise `InputError` unless a path, which `parameter` gave, ends as a table or a matrix."""
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path} has an unknown extension", advice=f"pass `{parameter}` a .parquet or .npy"
        )


def table_beside(matrix: Path) -> Path:
    """Return the path of the table that tells what the rows of an .npy are."""
    return matrix.with_suffix(".rows.parquet")


def table_of(window: Window, *, kind: str, dtype: str) -> pa.Table:
    """Return the table of a window.

    Args:
        window: at least one row.
        kind: `text` or `image`.
        dtype: `float32` or `float16`, of the embeddings.

    Raises:
        InputError: a number is too large for float16.
    """
    embeddings = window.embeddings
    if dtype == "float16":
        with np.errstate(over="ignore"):
            embeddings = embeddings.astype(np.float16)
        if not np.isfinite(embeddings).all():
            raise InputError(
                f"embeddings hold {np.abs(window.embeddings).max():.3g}, too large for float16",
                advice="pass `dtype` float32",
            )
    columns = {
        "file": pa.array([row.file for row in window.rows], pa.string()),
        "file_row": pa.array([row.number for row in window.rows], pa.int64()),
        CONTENT[kind]: pa.array([row.content for row in window.rows], pa.string()),
        "label": pa.array([row.label for row in window.rows], pa.string()),
        EMBEDDING: pa.FixedSizeListArray.from_arrays(
            pa.array(embeddings.reshape(-1)), embeddings.shape[1]
        ),
    }
    return pa.table(columns)


def matrix_of(table: pa.Table) -> NDArray[np.floating[Any]]:
    """Return the embeddings of a table, float (N, D)."""
    column = table.column(EMBEDDING).combine_chunks()
    width = column.type.list_size
    numbers: NDArray[np.floating[Any]] = column.flatten().to_numpy(zero_copy_only=False)
    return numbers.reshape(len(column), width)


def with_record(schema: pa.Schema, record: dict[str, Any]) -> pa.Schema:
    """Return a schema whose metadata hold what made its table."""
    text = json.dumps(without_secrets(record), ensure_ascii=False)
    return schema.with_metadata({_METADATA: text})


def read_record(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """Return what made a table.

    Raises:
        InputError: no `embed` of this package did.
    """
    try:
        record: dict[str, Any] = json.loads((schema.metadata or {})[_METADATA])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} was not written by `bert-pretrain embed`", advice="pass a file that was"
        ) from error
    return record


def write_table(table: pa.Table, path: Path, record: dict[str, Any]) -> None:
    """Write a table with what made it."""
    with open_writer(path, with_record(table.schema, record)) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file to write tables of a schema to; each becomes a row group."""
    # Numbers repeat too seldom for a dictionary, which would be tried and given up.
    names = [name for name in schema.names if name in ("file", "label")]
    return pq.ParquetWriter(path, schema, use_dictionary=names)
