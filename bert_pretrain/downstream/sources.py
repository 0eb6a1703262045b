"""From the data flags of `finetune` and of the label-efficiency curve to encoded splits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import AutoImageProcessor, PreTrainedConfig

from bert_pretrain.config.finetuning import (
    TaskDataArguments,
    check_data_flags,
    refuse_flags_without_effect,
)
from bert_pretrain.data.names import refuse_missing_folder
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.data import ImageDataset, LabelledDataset, Texts, read_texts, tokenize
from bert_pretrain.downstream.image_data import LabelledPixels, augmentation_of, read_images
from bert_pretrain.downstream.label_values import LABEL_SEPARATOR, as_number, is_missing, tidy
from bert_pretrain.downstream.labels import LabelSpace, find_labels
from bert_pretrain.downstream.models import (
    is_image_config,
    load_text_tokenizer,
    longest_row,
    read_model_config,
)
from bert_pretrain.downstream.tables import Table, open_dataset, read_file, table_of
from bert_pretrain.downstream.tasks import Task
from bert_pretrain.errors import InputError
from bert_pretrain.models.image_processor import read_processor

SPLITS = ("train", "validation", "test")
_DEFAULT_LENGTH = 128  # tokens


@dataclass(frozen=True)
class Splits:
    """Everything that is trained and evaluated on, encoded for one model.

    Attributes:
        rows: by name of the split; each may lack labels but train and validation.
        texts: of the text splits, before tokenisation.
        labels: what the model tells apart.
        config: the model's.
        processor: its tokenizer or image processor.
        max_seq_length: longest row in tokens; 0 for images.
        notes: a line for people on each thing about the labels that could have been read in another
            way.
    """

    rows: dict[str, LabelledDataset]
    texts: dict[str, Texts]
    labels: LabelSpace
    config: PreTrainedConfig
    processor: Any
    max_seq_length: int
    notes: tuple[str, ...] = ()


class _Raw(NamedTuple):
    description: str
    content: Any  # Texts or pixels uint8 (N, C, H, W)
    labels: list[Any] | None
    class_names: tuple[str, ...] | None
    is_typed: bool = True


def open_splits(
    model: str, data: TaskDataArguments, task: Task, *, seed: int, needs_validation: bool = True
) -> Splits:
    """Read and encode what the flags name.

    Args:
        model: folder or Hub id; decides whether it is texts or images, and how they are prepared.
        data: the flags.
        task: of `data.task`.
        seed: of the rows held out for validation where there are none, and of the augmentation.
        needs_validation: hold rows out also where there are test rows.

    Raises:
        InputError: something cannot be read, a column or a label is missing, or a label was not
            trained on.
    """
    check_data_flags(data, task)
    config = read_model_config(model)
    refuse_flags_without_effect(data, is_image=is_image_config(config))
    if is_image_config(config):
        return _open_images(model, config, data, task, seed, needs_validation=needs_validation)
    tokenizer = load_text_tokenizer(model, config)
    raw = {name: _raw_texts(name, table, data, task) for name, table in _tables(data, task).items()}
    _check_pairs(raw)
    max_seq_length = _max_seq_length(
        data, config, tokenizer, is_pair=raw["train"].content.second is not None
    )
    labels, encoded = _encode_labels(raw, data, task)
    texts = {name: part.content for name, part in raw.items()}
    rows: dict[str, LabelledDataset] = {
        name: tokenize(texts[name], encoded[name], tokenizer, max_seq_length=max_seq_length)
        for name in raw
    }
    if "validation" not in rows and (needs_validation or "test" not in rows):
        kept, held_out = _hold_out(labels, encoded["train"], data.validation_share, seed)
        whole, text = rows["train"], texts["train"]
        rows |= {"train": whole.subset(kept), "validation": whole.subset(held_out)}
        texts |= {"train": text.subset(kept), "validation": text.subset(held_out)}
    return Splits(
        rows, texts, labels, config, tokenizer, max_seq_length, _notes(raw["train"], labels, task)
    )


def _max_seq_length(
    data: TaskDataArguments, config: PreTrainedConfig, tokenizer: Any, *, is_pair: bool
) -> int:
    """Return the tokens of a row: of each text at least one beside the special ones, at most what the model takes.

    Not asked for, it is no more than the tokenizer's `model_max_length`, from which on positions
    may be untrained.
    """
    shortest = tokenizer.num_special_tokens_to_add(pair=is_pair) + (2 if is_pair else 1)
    longest = longest_row(config, tokenizer)
    max_seq_length = data.max_seq_length or min(
        _DEFAULT_LENGTH, longest, tokenizer.model_max_length
    )
    if not shortest <= max_seq_length <= longest:
        raise InputError(
            f"max_seq_length is {data.max_seq_length} but must lie in {shortest}..{longest} for "
            f"this model and {'pairs of texts' if is_pair else 'single texts'}",
            advice="change `max_seq_length`",
        )
    return max_seq_length


def _tables(data: TaskDataArguments, task: Task) -> dict[str, Table]:
    if data.train_file:
        paths = {name: getattr(data, f"{name}_file") for name in SPLITS}
        return {
            name: read_file(path, parameter=f"{name}_file") for name, path in paths.items() if path
        }
    name, config_name = (
        (data.dataset_name, data.dataset_config_name)
        if data.dataset_name
        else task.dataset or ("", "")
    )
    splits = open_dataset(str(name), config_name)
    wanted = _wanted_splits(data, task, list(splits), str(name))
    return {role: table_of(splits[split], f"{name} ({split})") for role, split in wanted.items()}


def _wanted_splits(
    data: TaskDataArguments, task: Task, found: list[str], name: str
) -> dict[str, str]:
    """Return which split of a data set is trained, validated and tested on; those asked for must be there."""
    asked = {"train": "train", "validation": data.validation_split, "test": data.test_split}
    for split in asked.values():
        if split and split not in found:
            raise InputError(
                f"the data set {name!r} has no split {split!r}",
                advice=f"it has {', '.join(map(str, found))}; change `validation_split`, "
                "`test_split` or `dataset_name`",
            )
    usual = dict(zip(("validation", "test"), task.evaluation_splits, strict=True))
    wanted = {role: split or usual[role] for role, split in asked.items()}
    return {role: split for role, split in wanted.items() if split in found}


def _raw_texts(role: str, table: Table, data: TaskDataArguments, task: Task) -> _Raw:
    if data.label_column in (data.text_column, data.text_pair_column):
        raise InputError(
            f"the column {data.label_column!r} cannot be both text and label",
            advice="change `text_column` or `label_column`",
        )
    if role != "test":
        table.column(data.label_column, parameter="label_column")
    texts = read_texts(
        table, task, text_column=data.text_column, text_pair_column=data.text_pair_column
    )
    names = table.class_names.get(data.label_column)
    return _Raw(
        table.description, texts, table.columns.get(data.label_column), names, table.is_typed
    )


def _check_pairs(raw: dict[str, _Raw]) -> None:
    """Raise `InputError` unless all splits have pairs of texts, or none has."""
    pairs = [part for part in raw.values() if part.content.second is not None]
    single = [part for part in raw.values() if part.content.second is None]
    if pairs and single:
        raise InputError(
            f"{pairs[0].description} has pairs of texts but {single[0].description} has single "
            "ones",
            advice="give all the same columns, or name what both have as `text_column` and "
            "`text_pair_column`",
        )


def _encode_labels(
    raw: dict[str, _Raw], data: TaskDataArguments, task: Task
) -> tuple[LabelSpace, dict[str, NDArray[Any] | None]]:
    for name, part in raw.items():
        if part.labels is None and name != "test":
            raise InputError(
                f"{part.description} has no column {data.label_column!r}",
                advice="pass the one of labels as `label_column`",
            )
        if name != "test" and all(map(is_missing, part.labels or [None])):
            raise InputError(
                f"{part.description} has no labels",
                advice="change `label_column`, or divide a folder of images into a subfolder for "
                "each of its classes, two at least",
            )
    train = raw["train"]
    assert train.labels is not None
    labels = find_labels(
        train.labels,
        problem_type=task.problem_type,
        names=data.label_names or train.class_names or task.label_names,
        description=train.description,
        is_typed=train.is_typed,
        are_class_numbers=train.class_names is not None,
    )
    if labels.problem_type == "regression" and data.label_names:
        raise InputError(
            "regression has no classes to be named",
            advice="leave out `label_names` or change `task`",
        )
    encoded: dict[str, NDArray[Any] | None] = {}
    for name, part in raw.items():
        has_none = part.labels is None or (name == "test" and _are_hidden(part.labels, labels))
        encoded[name] = (
            None
            if has_none
            else labels.encode(_renumbered(part, train), description=part.description)
        )
    return labels, encoded


_ABOUT_NUMBERS = (
    "labels: those of {} are texts that look like numbers and are read as names of classes; if "
    "they are values, pass "
    "--task regression"
)


def _notes(train: _Raw, labels: LabelSpace, task: Task) -> tuple[str, ...]:
    if labels.is_multi_hot:
        return (
            f"labels: lists of {len(labels.names)} zeros and ones, one for each class (multi-hot), "
            "no class numbers",
        )
    if task.problem_type or labels.problem_type != "single_label_classification":
        return ()
    cells = train.labels or []
    if train.is_typed:
        are_numbers = all(
            isinstance(cell, str) and as_number(tidy(cell)) is not None for cell in cells
        )
        has_fraction = any(isinstance(as_number(tidy(cell)), float) for cell in cells)
        return (_ABOUT_NUMBERS.format(train.description),) if are_numbers and has_fraction else ()
    num_divided = sum(LABEL_SEPARATOR in str(cell) for cell in cells)
    if not num_divided:
        return ()
    return (
        f"labels: {num_divided:,} of the {len(cells):,} labels of {train.description} contain "
        f"{LABEL_SEPARATOR!r} and "
        "are read as names of classes; if it divides several labels of a row, pass --task "
        "multi_label",
    )


def _are_hidden(test_labels: list[Any], labels: LabelSpace) -> bool:
    """Return whether no test row has a label: all are empty, or -1 as in the test splits of GLUE."""
    values = [tidy(label) for label in test_labels]
    has_such_class = -1 in labels.numbers or "-1" in labels.numbers
    return all(map(is_missing, values)) or (
        all(as_number(value) == -1 for value in values) and not has_such_class
    )


def _renumbered(part: _Raw, train: _Raw) -> list[Any]:
    """Return labels by the class numbers of the training rows: a folder of images numbers the classes that it has."""
    theirs, ours = part.class_names, train.class_names
    if theirs is None or ours is None or theirs == ours:
        return part.labels or []
    numbers = {name: number for number, name in enumerate(ours)}

    def renumber(label: Any) -> Any:
        if isinstance(label, list):
            return [renumber(member) for member in label]
        if not isinstance(label, int) or not 0 <= label < len(theirs):
            return label
        return numbers.get(
            theirs[label], theirs[label]
        )  # a name that training lacks is refused by the encoding

    return [renumber(label) for label in part.labels or []]


def _hold_out(
    labels: LabelSpace, encoded: NDArray[Any] | None, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted places of rows to keep and to hold out: of classes a share of each, at least one in all."""
    assert encoded is not None
    is_held_out = np.zeros(len(encoded), dtype=np.bool_)
    is_classes = labels.problem_type == "single_label_classification"
    groups = (
        [np.flatnonzero(encoded == value) for value in np.unique(encoded)]
        if is_classes
        else [np.arange(len(encoded))]
    )
    for number, members in enumerate(groups):
        count = min(round(share * len(members)), len(members) - 1)
        is_held_out[members[permutation(len(members), seed, Purpose.SPLIT, number)[:count]]] = True
    if not is_held_out.any():
        raise InputError(
            f"a share of {share:g} of {len(encoded)} training rows leaves none to validate on, "
            "where each class keeps a row to learn from",
            advice="pass `validation_file` or a larger `validation_share`",
        )
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _open_images(
    model: str,
    config: PreTrainedConfig,
    data: TaskDataArguments,
    task: Task,
    seed: int,
    *,
    needs_validation: bool,
) -> Splits:
    mean_std = read_processor(model)
    processor = AutoImageProcessor.from_pretrained(model)
    raw = {
        name: _Raw(*part)
        for name, part in _pixels(data, task, processor, config.num_channels).items()
    }
    labels, encoded = _encode_labels(raw, data, task)
    statistics: dict[str, Any] = {"mean": mean_std.mean, "std": mean_std.std}
    rows: dict[str, Any] = {
        name: ImageDataset(part.content, encoded[name], **statistics) for name, part in raw.items()
    }
    kept = np.arange(len(rows["train"]))
    if "validation" not in rows and (needs_validation or "test" not in rows):
        kept, held_out = _hold_out(labels, encoded["train"], data.validation_share, seed)
        rows["validation"] = rows["train"].subset(held_out)
    augmentation = augmentation_of(data.augmentation, rows["train"].pixels.shape[1:], seed=seed)
    rows["train"] = rows["train"].subset(kept, augmentation=augmentation)
    return Splits(rows, {}, labels, config, processor, 0, _notes(raw["train"], labels, task))


def _pixels(
    data: TaskDataArguments, task: Task, processor: Any, num_channels: int
) -> dict[str, LabelledPixels]:
    def read(role: str, **where: Any) -> LabelledPixels:
        flags = {
            "dataset_name": None,
            "dataset_config_name": None,
            "dataset_split": "train",
            "data_files": None,
        }
        columns = {"image_column": data.image_column, "label_column": data.label_column}
        with _naming(role, data.dataset_name):
            return read_images(processor, num_channels=num_channels, **(flags | where | columns))

    if data.train_file:
        paths = {name: getattr(data, f"{name}_file") for name in SPLITS}
        return {name: read(name, data_files=[path]) for name, path in paths.items() if path}
    source = {"dataset_name": data.dataset_name, "dataset_config_name": data.dataset_config_name}
    found = {"train": read("train", **source)}
    for role, asked in (("validation", data.validation_split), ("test", data.test_split)):
        if asked:
            found[role] = read(role, dataset_split=asked, **source)
    return found


@contextlib.contextmanager
def _naming(role: str, dataset_name: str | None) -> Iterator[None]:
    """Let the readers of pretraining name this command's flag."""
    try:
        yield
    except InputError as error:
        if dataset_name:
            refuse_missing_folder(
                dataset_name, what="a data set of images", parameter="dataset_name"
            )
        message = str(error).replace("`data_files`", f"`{role}_file`")
        raise InputError(message.replace("`dataset_split`", f"`{role}_split`")) from error
