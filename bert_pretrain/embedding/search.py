"""The nearest of many embeddings, found exactly: by products of blocks of the file with queries.

A file that `embed` wrote enters; rows and their cosines leave. Memory holds one block of the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bert_pretrain.embedding.files import (
    EMBEDDING,
    check_suffix,
    matrix_of,
    read_record,
    table_beside,
)
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.evaluation.probes import most_similar, unit_rows

_ROWS_AT_ONCE = 8192  # of a matrix; a table has row groups


class Neighbours(NamedTuple):
    """Of each query the rows of the bank that are most similar, the nearest first.

    Attributes:
        rows: int64 (Q, k), counted from 0.
        cosines: float32 (Q, k).
    """

    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]


@dataclass(frozen=True)
class Bank:
    """Embeddings in a file, read block by block.

    Attributes:
        path: .parquet, or .npy with its table beside it.
        record: what made them, see `files`: `kind`, `model`, `identity`.
        num_rows: N.
        width: D.
    """

    path: Path
    record: dict[str, Any]
    num_rows: int
    width: int

    @cached_property
    def _table(self) -> pq.ParquetFile:
        is_matrix = self.path.suffix == ".npy"
        return pq.ParquetFile(table_beside(self.path) if is_matrix else self.path)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield all embeddings in order, float32 (n, D) each.

        Raises:
            InputError: some are not finite.
        """
        for block in self._stored_blocks():
            embeddings = np.asarray(block, dtype=np.float32)
            if not np.isfinite(embeddings).all():
                raise InputError(
                    f"{self.path} holds embeddings that are not finite",
                    advice="write it again, or pass other `embeddings`",
                )
            yield embeddings

    def _stored_blocks(self) -> Iterator[NDArray[np.floating[Any]]]:
        with _reading(self.path):
            if self.path.suffix == ".npy":
                matrix = _mapped(self.path)
                for first in range(0, len(matrix), _ROWS_AT_ONCE):
                    yield matrix[first : first + _ROWS_AT_ONCE]
            else:
                for group in range(self._table.num_row_groups):
                    yield matrix_of(self._table.read_row_group(group, columns=[EMBEDDING]))

    def embeddings_of(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return the embeddings of some rows, float32 (Q, D).

        Raises:
            InputError: there is no such row.
        """
        self._check_rows(rows)
        found = np.empty((len(rows), self.width), dtype=np.float32)
        first = 0
        for block in self.blocks():
            for place, row in enumerate(rows):
                if first <= row < first + len(block):
                    found[place] = block[row - first]
            first += len(block)
        return found

    def facts_of(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return what is known of some rows: `file`, `file_row`, `text` or `path`, `label`."""
        with _reading(self.path):
            return self._facts_of(rows)

    def _facts_of(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        names = [name for name in self._table.schema_arrow.names if name != EMBEDDING]
        found: dict[int, dict[str, Any]] = {}
        first = 0
        for group in range(self._table.num_row_groups):
            size = self._table.metadata.row_group(group).num_rows
            wanted = sorted({row for row in rows if first <= row < first + size})
            if wanted:
                table = self._table.read_row_group(group, columns=names)
                places = pa.array([row - first for row in wanted])
                found |= dict(zip(wanted, table.take(places).to_pylist(), strict=True))
            first += size
        return [found[row] for row in rows]

    def _check_rows(self, rows: Sequence[int]) -> None:
        for row in rows:
            if not 0 <= row < self.num_rows:
                raise InputError.out_of_range("row", row, f"in 0..{self.num_rows - 1}")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file whose reader stumbles inside the block."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the readers of damaged files raise whatever they stumble over
        raise InputError(
            f"{path} cannot be read ({first_line(error)})", advice="pass other `embeddings`"
        ) from error


def _mapped(path: Path) -> NDArray[np.floating[Any]]:
    """Return the numbers of an .npy file, mapped."""
    matrix = np.load(path, mmap_mode="r")
    # An archive of arrays, whatever its name, is opened too.
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind != "f":
        raise ValueError("it holds no matrix of floating-point numbers")
    return matrix


def open_bank(path: Path) -> Bank:
    """Open a file of embeddings.

    Raises:
        InputError: there is no such file, or `embed` did not write it.
    """
    check_suffix(path, parameter="embeddings")
    is_matrix = path.suffix == ".npy"
    table = table_beside(path) if is_matrix else path
    for needed in dict.fromkeys((path, table)):
        if not needed.is_file():
            beside = f", which lies beside {path}" if needed != path else ""
            raise InputError(
                f"there is no file {str(needed)!r}{beside}",
                advice="pass `embeddings` a file that `bert-pretrain embed` wrote",
            )
    with _reading(path):
        metadata, schema = pq.read_metadata(table), pq.read_schema(table)
        shape = _mapped(path).shape if is_matrix else None
    record = read_record(schema, table)
    if shape is None and "identity" in record and EMBEDDING in schema.names:
        shape = (metadata.num_rows, schema.field(EMBEDDING).type.list_size)
    if shape is None or "identity" not in record or len(shape) != 2:
        raise InputError(f"{path} holds no embeddings", advice="pass other `embeddings`")
    if shape[0] != metadata.num_rows:
        raise InputError(
            f"{path} has {shape[0]:,} rows but {table} has {metadata.num_rows:,}",
            advice="write them again",
        )
    return Bank(path, record, *shape)


def nearest(
    bank: Bank, queries: NDArray[np.floating[Any]], *, k: int, own_rows: Sequence[int] = ()
) -> Neighbours:
    """Return the k rows of a bank whose cosine with each query is largest.

    Of equal cosines the first row counts as nearer. A vector of zeros has the cosine 0.

    Args:
        bank: the file.
        queries: float (Q, D).
        k: at least 1; more than there are means all.
        own_rows: of the bank, for each query one that is not its neighbour: the query itself.

    Raises:
        InputError: the queries have another number of dimensions.
    """
    if queries.shape[1] != bank.width:
        raise InputError(
            f"the queries have {queries.shape[1]} dimensions but {bank.path} has {bank.width}",
            advice="pass the `model` that made it, or other `embeddings`",
        )
    units = unit_rows(queries)
    rows = np.empty((len(units), 0), dtype=np.int64)
    cosines = np.empty((len(units), 0), dtype=np.float32)
    first = 0
    for block in bank.blocks():
        similarities = units @ unit_rows(block).T  # (Q, n)
        for place, own in enumerate(own_rows):
            if first <= own < first + len(block):
                similarities[place, own - first] = -np.inf
        places = most_similar(similarities, min(k, len(block)))
        # Found so far first: of equal ones the lower row wins, since sorting is stable.
        rows = np.concatenate([rows, places + first], axis=1)
        cosines = np.concatenate(
            [cosines, np.take_along_axis(similarities, places, axis=1)], axis=1
        )
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        rows = np.take_along_axis(rows, order, axis=1)
        cosines = np.take_along_axis(cosines, order, axis=1)
        first += len(block)
    if own_rows:  # where k is all of the bank, a query's own row comes last
        rows, cosines = rows[:, : bank.num_rows - 1], cosines[:, : bank.num_rows - 1]
    return Neighbours(rows, cosines)
