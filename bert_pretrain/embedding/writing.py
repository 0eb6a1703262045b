"""Embeddings to a file that appears whole; what was interrupted goes on where it stood.

Rows are embedded window by window. Each window becomes a part, a Parquet file in a folder beside
the output that appears whole or not at all; at the end the parts are put together. The folder keeps
what the parts depend on: model, settings and data. Whoever comes with other ones is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pretrain.data.atomic import (
    atomic_file,
    check_creatable,
    make_folder,
    naming_disk,
    write_json,
)
from bert_pretrain.data.run_folder import held
from bert_pretrain.embedding.embedder import Embedder, OnBadRow, Window
from bert_pretrain.embedding.files import (
    EMBEDDING,
    check_suffix,
    matrix_of,
    open_writer,
    read_record,
    table_beside,
    table_of,
    with_record,
    write_table,
)
from bert_pretrain.embedding.loading import full_name
from bert_pretrain.embedding.rows import RowSource
from bert_pretrain.errors import InputError, without_secrets

_FORMAT = 1  # of parts; raised whenever what is written changes
_PLAN = "plan.json"  # what the parts of a folder depend on
_NAMED_SKIPPED = 5


@dataclass
class Counts:
    """What became of rows.

    Attributes:
        num_read: all of them.
        num_embedded: those with an embedding.
        num_cut: texts that were cut.
        num_skipped: the others.
        skipped: the first of these, and why.
    """

    num_read: int = 0
    num_embedded: int = 0
    num_cut: int = 0
    num_skipped: int = 0
    skipped: list[str] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Add those of further rows."""
        self.num_read += other.num_read
        self.num_embedded += other.num_embedded
        self.num_cut += other.num_cut
        self.num_skipped += other.num_skipped
        self.skipped = (self.skipped + other.skipped)[:_NAMED_SKIPPED]


def counts_of(window: Window) -> Counts:
    """Return what became of the rows of a window."""
    return Counts(
        num_read=window.num_read,
        num_embedded=len(window.rows),
        num_cut=window.num_cut,
        num_skipped=len(window.skipped),
        skipped=window.skipped[:_NAMED_SKIPPED],
    )


@dataclass(frozen=True)
class Written:
    """What `embed_to_file` did.

    Attributes:
        counts: of all rows.
        num_resumed: rows that an earlier call had read.
        width: D.
    """

    counts: Counts
    num_resumed: int
    width: int


def check_output(path: Path, *, overwrite: bool) -> None:
    """Check that embeddings can go into a file.

    Raises:
        InputError: its name ends with neither .parquet nor .npy, it exists and is not to be
            replaced, or it cannot be made there.
    """
    check_suffix(path, parameter="output")
    if path.is_dir():
        raise InputError(f"{path} is a folder", advice="pass a file as `output`")
    # A command that was ended may have put one of the two in its place, and goes on.
    has_table = path.suffix == ".npy" and not _parts_folder(path).is_dir()
    for file in (path, table_beside(path)) if has_table else (path,):
        if file.exists() and not overwrite:
            raise InputError(f"{file} exists", advice="pass another `output`, or `overwrite`")
    check_creatable(path.parent, parameter="output")


def embed_to_file(
    embedder: Embedder,
    source: RowSource,
    path: Path,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
    on_bad: OnBadRow = "error",
    overwrite: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Written:
    """Embed all rows of a source into a file, in their order.

    Memory holds a few windows of rows. A call that was ended, in whatever way, is repeated: it goes
    on behind the last part that is whole, and the file is the same to the last bit as without the
    interruption (on the same machine, with the same `batch_size`).

    Args:
        embedder: of texts or of images, as the source.
        source: of the rows.
        path: .parquet, or .npy: then the table lies beside it, see `files`.
        dtype: of the embeddings in the file.
        batch_size: rows of a forward pass.
        on_bad: whether to stop at a row that holds no text or no image, or to skip and count it.
        overwrite: whether to replace the file and to throw away parts of another model, of other
            settings or other data.
        advance: is told of rows that are done.

    Raises:
        InputError: the file exists, the parts that are there are of something else, a row cannot be
            embedded, or there is none.
        MachineError: the disk is full.
    """
    check_output(path, overwrite=overwrite)
    parts = _Parts(path, embedder, source, dtype)
    make_folder(parts.folder, parameter="output")
    with held(parts.folder):
        check_output(path, overwrite=overwrite)  # another process may just have finished it
        parts.begin(overwrite=overwrite)
        parts.refuse_skipped(on_bad)
        num_resumed = parts.counts.num_read
        try:
            advance(num_resumed)
            # What was embedded is read once more, which takes little beside embedding it.
            rows = itertools.islice(source.read(), num_resumed, None)
            for window in embedder.windows(
                rows, batch_size=batch_size, on_bad=on_bad, advance=advance
            ):
                parts.add(window)
            parts.finish()
        finally:
            if not parts.files:  # nothing that is worth going on from
                shutil.rmtree(parts.folder, ignore_errors=True)
    return Written(parts.counts, num_resumed, parts.width)


class _Parts:
    """The parts of an output, in a folder beside it.

    Attributes:
        folder: of the parts.
        files: of the parts that are whole, in order.
        counts: of their rows.
        width: D; 0 as long as there is no embedding.
    """

    def __init__(self, path: Path, embedder: Embedder, source: RowSource, dtype: str) -> None:
        self.folder = _parts_folder(path)
        self.files: list[Path] = []
        self.counts = Counts()
        self.width = 0
        self._path, self._kind, self._dtype = path, embedder.kind, dtype
        self._source = source
        # Compared with what JSON gives back, in which tuples are lists.
        self._plan: dict[str, Any] = without_secrets(
            {"format": _FORMAT, **embedder.identity, "dtype": dtype, "data": source.identity}
        )
        self._record = {
            "kind": embedder.kind,
            "model": full_name(embedder),
            "identity": embedder.identity,
            "data": source.description,
        }

    def begin(self, *, overwrite: bool) -> None:
        """Find the parts that are there, or begin a folder for them."""
        plan = self._folder_plan()
        if plan is not None and plan != self._plan:
            if not overwrite:
                raise self._refusal(plan)
            plan = None
        if plan is None:
            for path in self.folder.glob("part-*"):
                path.unlink()
            write_json(self.folder / _PLAN, self._plan)
        for number in itertools.count():
            path = self._part(number)
            try:
                schema = pq.read_schema(path)
                counts = Counts(**read_record(schema, path)["counts"])
            # None there, or one that a power failure left unfinished: it is made anew.
            except (OSError, ValueError, KeyError, TypeError):
                return
            self._count(path, counts, schema)

    def _folder_plan(self) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] = json.loads((self.folder / _PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return plan

    def _refusal(self, plan: dict[str, Any]) -> InputError:
        names = [name for name in self._plan | plan if self._plan.get(name) != plan.get(name)]
        flags = {"pooling", "max_seq_length", "mixed_precision", "dtype", "pixel_range"}
        words = {name: f"another {name.replace('_', ' ')}" for name in names}
        words |= {name: f"`{name}` {plan.get(name)}" for name in flags & words.keys()}
        described = [words[name] if name != "data" else "other data" for name in names]
        return InputError(
            f"{self.folder} holds the beginning of {self._path.name} with {', '.join(described)}",
            advice="repeat that command to go on with it, or pass `overwrite` to begin anew",
        )

    def refuse_skipped(self, on_bad: OnBadRow) -> None:
        """Raise `InputError` if parts lack rows and none may be skipped."""
        if on_bad == "error" and self.counts.num_skipped:
            raise InputError(
                f"{self.folder} was begun without {self.counts.num_skipped:,} rows that could not "
                f"be embedded, such as {self.counts.skipped[0]}",
                advice="repeat that command to go on with it, or remove the folder",
            )

    def add(self, window: Window) -> None:
        """Write a part."""
        counts = counts_of(window)
        table = pa.table({})
        if window.rows:
            table = table_of(window, kind=self._kind, dtype=self._dtype)
        path = self._part(len(self.files))
        with naming_disk(self.folder), atomic_file(path) as aside:
            write_table(table, aside, {"counts": vars(counts)})
        self._count(path, counts, table.schema)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def _count(self, path: Path, counts: Counts, schema: pa.Schema) -> None:
        self.files.append(path)
        self.counts.add(counts)
        if EMBEDDING in schema.names:
            self.width = schema.field(EMBEDDING).type.list_size

    def finish(self) -> None:
        """Put the parts together and remove them."""
        if not self.width:
            skipped = "; ".join(self.counts.skipped)
            self.files.clear()  # so that they are removed
            raise InputError(
                f"{self._source.description} holds nothing to embed"
                + (
                    f" (skipped: {self.counts.num_skipped:,}, such as {skipped})" if skipped else ""
                ),
                advice="pass other `data_files` or another `dataset_name`",
            )
        with naming_disk(self._path.parent):
            if self._path.suffix == ".npy":
                with atomic_file(self._path) as aside:
                    self._write_matrix(aside)
                    # The matrix comes last, so that none is without its table.
                    self._write_table(table_beside(self._path), without=EMBEDDING)
            else:
                self._write_table(self._path)
        self.files.clear()  # what is left to do is to remove them

    def _tables(self) -> Iterator[pa.Table]:
        for path in self.files:
            table = pq.read_table(path)
            if table.num_columns:  # of a window whose rows were all skipped there is none
                yield table

    def _write_table(self, path: Path, *, without: str = "") -> None:
        with atomic_file(path) as aside, contextlib.ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for table in self._tables():
                kept = table.select([name for name in table.column_names if name != without])
                if writer is None:
                    schema = with_record(kept.schema, self._record)
                    writer = stack.enter_context(open_writer(aside, schema))
                writer.write_table(kept.replace_schema_metadata(schema.metadata))

    def _write_matrix(self, path: Path) -> None:
        description = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(self._dtype)),
            "fortran_order": False,
            "shape": (self.counts.num_embedded, self.width),
        }
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, description)
            for table in self._tables():
                file.write(np.ascontiguousarray(matrix_of(table)).tobytes())


def _parts_folder(path: Path) -> Path:
    return path.with_name(path.name + ".parts")
