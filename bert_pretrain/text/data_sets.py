"""Text in a column of a data set that `datasets` saved in a folder, or loads.

Names enter; the cells of the column leave, and what identifies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_pretrain.data.content import HashedFile, hash_files
from bert_pretrain.data.names import is_saved_dataset
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.text.cells import LabelColumn, missing_column, outer_column, text_in


class TextColumn(NamedTuple):
    """Texts of a data set.

    Attributes:
        identity: of data on disk the hashes of their files, else names.
        read_labelled: starts a new pass over the cells, each with its label, None without one.
        files: those on disk.
        label_names: of class numbers, where the data set declares them.
    """

    identity: list[Any]
    read_labelled: Callable[[], Iterator[tuple[Any, Any]]]
    files: list[HashedFile]
    label_names: tuple[str, ...] | None = None

    def read(self) -> Iterator[Any]:
        """Start a new pass over the cells."""
        return (text for text, _ in self.read_labelled())


def open_text_column(
    name: str,
    config_name: str | None,
    split: str,
    column: str,
    *,
    streaming: bool,
    label: LabelColumn | None = None,
) -> TextColumn:
    """Open a column of a data set, perhaps with one of labels.

    Raises:
        InputError: the data set cannot be loaded, or lacks the split or the column.
    """
    from datasets import ClassLabel

    dataset = _load_split(name, config_name, split, streaming=streaming)
    columns, where = dataset.column_names, f"the data set {name!r}"  # no columns of some streams
    if columns is not None:
        outer = outer_column(column, columns)
        if outer is None:
            raise missing_column(where, column, columns)
        others = [label and label.among(columns, where)]
        dataset = dataset.select_columns(list(dict.fromkeys([outer, *filter(None, others)])))
    rows = dataset.with_format(None)
    feature = (dataset.features or {}).get(label and label.name)
    label_names = tuple(feature.names) if isinstance(feature, ClassLabel) else None

    def read_labelled() -> Iterator[tuple[Any, Any]]:
        for row in _naming_errors(rows, where):
            try:
                text = text_in(row, column)
            except KeyError as error:
                raise missing_column(where, column, row) from error
            yield text, label and label.in_row(row, where)

    # The fingerprints that `datasets` keeps tell how its files were made, not what they hold.
    files = [Path(file["filename"]) for file in getattr(dataset, "cache_files", ())]
    hashed = hash_files(files)
    identity: list[Any] = [file.hash for file in hashed]
    identity = identity or [name, config_name, str(dataset.info.version)]
    return TextColumn(identity, read_labelled, hashed, label_names)


def _naming_errors(rows: Any, where: str) -> Iterator[Any]:
    """Yield rows; whatever the network or a file does to them names the data set."""
    reading = iter(rows)
    while True:
        try:
            row = next(reading)
        except StopIteration:
            return
        except Exception as error:  # of the network, of Arrow, of whatever reads the files
            raise InputError(
                f"{where} cannot be read to its end ({first_line(error)})",
                advice="try again, or leave out `streaming` so that it is downloaded first",
            ) from error
        yield row


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
