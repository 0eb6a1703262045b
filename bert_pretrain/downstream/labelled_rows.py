"""Labelled rows as they are read: texts or pixels of each split, with the labels of the data.

A `LabelledSource` enters; `LabelledRows` of train, and of validation and test if there, leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bert_pretrain.data.row_files import Quotes
from bert_pretrain.downstream.tables import Table, open_dataset, read_table, read_texts, table_of
from bert_pretrain.downstream.tasks import Task
from bert_pretrain.errors import InputError
from bert_pretrain.images.decoding import OnBadImage

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class LabelledSource:
    """Where labelled rows come from, and how they are read.

    Files (`train_file`; also `validation_file`, `test_file`), a data set (`dataset_name`, a folder,
    a Hub id, or of images `digits`) with its splits, or the data set of the task.

    Attributes:
        text_column: None = that of the task, or `text`.
        text_pair_column: None = that of the task, or `text_pair` if there is one.
        label_names: names of the class numbers 0, 1, ...; None = those of the data.
        validation_share: of the training rows, held out where nothing else is validated on, (0, 1).
        max_seq_length: tokens of a row; 0 = 128, or what the tokenizer allows if that is less.
        augmentation: `none` or one of `AUGMENTATIONS`.
        on_bad_image: whether to stop at an image that cannot be decoded, or to skip and count it.
        pixel_range: grey levels of images of more than 8 bits that become black and white; None =
            those that the model's image processor was saved with, or found out.
    """

    train_file: str | None
    validation_file: str | None
    test_file: str | None
    tsv_quotes: Quotes
    dataset_name: str | None
    dataset_config_name: str | None
    validation_split: str | None
    test_split: str | None
    text_column: str | None
    text_pair_column: str | None
    image_column: str
    on_bad_image: OnBadImage
    pixel_range: tuple[float, float] | None
    label_column: str
    label_names: list[str] | None
    validation_share: float
    max_seq_length: int
    augmentation: str

    @property
    def files(self) -> dict[str, str]:
        """Return the paths that are given, by split."""
        paths = {name: getattr(self, f"{name}_file") for name in SPLITS}
        return {name: path for name, path in paths.items() if path}

    @property
    def splits(self) -> dict[str, str | None]:
        """Return the names that the splits have in the data set; None = not given."""
        names = (self.validation_split, self.test_split)
        return dict(zip(SPLITS, ("train", *names), strict=True))


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a split.

    Attributes:
        description: names the file or split in messages.
        content: `Texts`, or pixels uint8 (N, C, H, W).
        class_names: names of the class numbers, where the data declare them.
        is_typed: the data tell texts from numbers.
        notes: lines for people on how the rows were read.
    """

    description: str
    content: Any
    labels: list[Any] | None
    class_names: tuple[str, ...] | None
    is_typed: bool = True
    notes: tuple[str, ...] = ()


def read_text_splits(source: LabelledSource, task: Task) -> dict[str, LabelledRows]:
    """Read texts or pairs of texts.

    Raises:
        InputError: something cannot be read, a column is missing or of another type, or one split
            has pairs and another has not.
    """
    found = {}
    for name, table in _open_tables(source, task).items():
        if name != "test":
            table.column(source.label_column, parameter="label_column")
        texts = read_texts(
            table, task, text_column=source.text_column, text_pair_column=source.text_pair_column
        )
        found[name] = LabelledRows(
            table.description,
            texts,
            table.columns.get(source.label_column),
            table.class_names.get(source.label_column),
            table.is_typed,
        )
    pairs = [rows for rows in found.values() if rows.content.second is not None]
    single = [rows for rows in found.values() if rows.content.second is None]
    if pairs and single:
        raise InputError(
            f"{pairs[0].description} has pairs of texts but {single[0].description} has single "
            "ones",
            advice="give all the same columns, or name what both have as `text_column` and "
            "`text_pair_column`",
        )
    return found


def _open_tables(source: LabelledSource, task: Task) -> dict[str, Table]:
    if source.train_file:
        return {
            name: read_table(path, parameter=f"{name}_file", tsv_quotes=source.tsv_quotes)
            for name, path in source.files.items()
        }
    name, config_name = source.dataset_name, source.dataset_config_name
    if not name:
        name, config_name = task.dataset or ("", "")
    splits = open_dataset(name, config_name)
    usual = dict(zip(("validation", "test"), task.evaluation_splits, strict=True))
    tables = {}
    for role, asked in source.splits.items():
        split = asked or usual[role]
        if split in splits:
            tables[role] = table_of(splits[split], f"{name} ({split})")
        elif asked:
            change = "" if role == "train" else f"`{role}_split` or "
            raise InputError(
                f"the data set {name!r} has no split {split!r}",
                advice=f"it has {', '.join(map(str, splits))}; change {change}`dataset_name`",
            )
    return tables
