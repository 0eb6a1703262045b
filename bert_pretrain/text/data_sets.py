"""Text in a column of a data set that `datasets` saved in a folder, or loads.

Names enter; the cells of the column leave, and what identifies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_pretrain.data.content import hash_files
from bert_pretrain.data.names import is_saved_dataset
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.text.cells import cell_of, missing_column, outer_column, text_of


class TextColumn(NamedTuple):
    """Texts of a data set.

    Attributes:
        identity: of data on disk the hashes of their files, else names.
        read: starts a new pass over the cells.
    """

    identity: list[Any]
    read: Callable[[], Iterator[Any]]


def open_text_column(
    name: str, config_name: str | None, split: str, column: str, *, streaming: bool
) -> TextColumn:
    """Open a column of a data set.

    Raises:
        InputError: the data set cannot be loaded, or lacks the split or the column.
    """
    dataset = _load_split(name, config_name, split, streaming=streaming)
    columns = dataset.column_names  # None of some streams
    if columns is not None:
        outer = outer_column(column, columns)
        if outer is None:
            raise missing_column(f"the data set {name!r}", column, columns)
        dataset = dataset.select_columns([outer])
    rows = dataset.with_format(None)

    def read() -> Iterator[Any]:
        for row in rows:
            try:
                yield text_of(cell_of(row, column))
            except KeyError as error:
                raise missing_column(f"the data set {name!r}", column, row) from error

    # The fingerprints that `datasets` keeps tell how its files were made, not what they hold.
    files = [Path(file["filename"]) for file in getattr(dataset, "cache_files", ())]
    if files:
        return TextColumn([file.hash for file in hash_files(files)], read)
    return TextColumn([name, config_name, str(dataset.info.version)], read)


def _load_split(name: str, config_name: str | None, split: str, *, streaming: bool) -> Any:
    from datasets import DatasetDict, IterableDatasetDict, load_dataset, load_from_disk

    try:
        if is_saved_dataset(Path(name)):
            dataset = load_from_disk(name, keep_in_memory=False)
        else:
            dataset = load_dataset(name, config_name, streaming=streaming)
    except Exception as error:  # datasets raises whatever its builders and the network raise
        raise InputError(
            f"the data set {name!r} cannot be loaded ({first_line(error)})",
            advice="`dataset_name` takes 'docs', a folder or a Hub id",
        ) from error
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        if split not in dataset:
            raise InputError(
                f"the data set {name!r} has no split {split!r}",
                advice=f"it has {', '.join(map(str, dataset))}; change `dataset_split`",
            )
        return dataset[split]
    return dataset
