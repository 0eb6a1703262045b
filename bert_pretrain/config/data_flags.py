"""The flags that name labelled rows, of `finetune` and of the label-efficiency curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bert_pretrain.config.flags import flag, flags
from bert_pretrain.downstream.tasks import Task
from bert_pretrain.errors import InputError


@dataclass
class TaskDataArguments:
    """Labelled texts or images."""

    _argument_group_name: ClassVar[str] = "data"

    train_file: str | None = flag(
        None,
        "Rows to learn from: .csv, .tsv, .jsonl or .parquet, also with .gz. Quotes in a .tsv are "
        "letters, as in GLUE, "
        "unless its lines tell that they are around cells.",
    )
    validation_file: str | None = flag(
        None, "Rows that choose the checkpoint. Default: a share of the training rows."
    )
    test_file: str | None = flag(None, "Rows that are only predicted and scored; may lack labels.")
    dataset_name: str | None = flag(
        None,
        "In place of files: a data set saved by datasets, a Hub id; of images also 'digits' or a "
        "folder.",
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub data set.")
    validation_split: str | None = flag(
        None, "Its split to validate on. Default: of texts validation, if it is there."
    )
    test_split: str | None = flag(
        None, "Its split to test on. Default: of texts test, if it is there."
    )
    task: str = flag(
        "auto",
        "auto (what the labels look like), classification, multi_label, regression, or of GLUE: "
        "cola, sst2, mrpc, "
        "stsb, qqp, mnli, qnli, rte, wnli.",
    )
    text_column: str | None = flag(None, "Column of the text. Default: that of --task, else text.")
    text_pair_column: str | None = flag(
        None, "Column of the second text. Default: of --task, else text_pair if there."
    )
    image_column: str = flag("image", "Column of the images.")
    label_column: str = flag(
        "label",
        "Column of the labels. Fractions are values (regression), lists are several classes, all "
        "else is one class. "
        "Lists of equal length > 1 of zeros and ones alone are multi-hot: a 1 in place i is class "
        "i, named by "
        "--label_names; any other list names its classes. Texts are names whatever they look like, "
        "but in CSV and TSV "
        "all is text: there fractions are names with --task classification only, and '|' divides "
        "the classes in a cell "
        "with --task multi_label only.",
    )
    label_names: list[str] | None = flags(
        "Names of the class numbers 0, 1, ...; default: as found."
    )
    validation_share: float = flag(
        0.1, "Share of training rows held out where nothing else is validated on, (0, 1)."
    )
    max_seq_length: int = flag(
        0,
        "Tokens of a row; longer texts are cut. 0 = 128, or the tokenizer's model_max_length if "
        "that is less.",
    )
    augmentation: Literal["none", "crop", "crop_flip"] = flag(
        "none", "What is done to training images at random."
    )


def check_data_flags(data: TaskDataArguments, task: Task) -> None:
    """Raise `InputError` unless the flags name one source of training rows and their values are in range."""
    if data.train_file and data.dataset_name:
        raise InputError(
            f"`train_file` and `dataset_name` {data.dataset_name!r} both name the training rows",
            advice="pass one",
        )
    if not (data.train_file or data.dataset_name or task.dataset):
        raise InputError(
            "there is nothing to train on",
            advice="pass `train_file`, `dataset_name` or a `task` of GLUE",
        )
    for name in ("validation_file", "test_file"):
        if getattr(data, name) and not data.train_file:
            raise InputError(
                f"`{name}` goes with `train_file`",
                advice=f"of a data set choose a split with `{name[:-4]}split`",
            )
    if not 0 < data.validation_share < 1:
        raise InputError(
            f"validation_share is {data.validation_share} but must lie in (0, 1)",
            advice="change `validation_share`",
        )


def refuse_flags_without_effect(data: TaskDataArguments, *, is_image: bool) -> None:
    """Raise `InputError` for a flag that this kind of model or source of rows would ignore."""
    kind = "an image" if is_image else "a text"
    of_others = (
        ("text_column", "text_pair_column", "max_seq_length")
        if is_image
        else ("image_column", "augmentation")
    )
    default = TaskDataArguments()
    for name in of_others:
        if getattr(data, name) != getattr(default, name):
            raise InputError(
                f"`{name}` means nothing for {kind} encoder",
                advice="leave it out or change `model`",
            )
    if not is_image and data.dataset_name == "digits":
        raise InputError(
            "'digits' are images but `model` is a text encoder",
            advice="change `dataset_name` or `model`",
        )
    for name in ("dataset_config_name", "validation_split", "test_split"):
        if data.train_file and getattr(data, name):
            raise InputError(
                f"`{name}` goes with `dataset_name`",
                advice="leave it out, or pass the data set instead of files",
            )
