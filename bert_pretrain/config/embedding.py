"""The flags of `embed` and `neighbours`, grouped as `--help` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, Literal

from bert_pretrain.config.flags import LevelRange, at_least, check_source, flag, flags
from bert_pretrain.errors import InputError


@dataclass
class EmbedArguments:
    """What embeds, and where the vectors go."""

    _argument_group_name: ClassVar[str] = "embed"

    model: str = flag(
        MISSING,
        "Folder or Hub id of any text or image encoder of transformers, or a run directory: its "
        "final model.",
    )
    output: str = flag(
        MISSING,
        "File to write: .parquet, a table of file, file_row, text or path, label and embedding; or "
        ".npy, a matrix, with that table beside it as .rows.parquet. Until it is whole, its parts "
        "lie in OUTPUT.parts, and the same command goes on with them.",
    )
    overwrite: bool = flag(
        False, "Replace --output, and parts of it that were made with other flags, model or data."
    )
    dtype: Literal["float32", "float16"] = flag("float32", "Numbers in the file.")
    per_device_eval_batch_size: int = flag(64, "Rows of one forward pass.", at_least(1))
    mixed_precision: Literal["no", "bf16", "auto"] = flag(
        "no",
        "no = float32, which does not depend on the batch but for rounding; bf16 = products in "
        "bfloat16, faster and right to two or three digits; auto = bf16 where it is native.",
    )
    debug: bool = flag(False, "Show the traceback of an input error.")


@dataclass
class EmbedData:
    """The texts or images."""

    _argument_group_name: ClassVar[str] = "data"

    data_files: list[str] | None = flags(
        "Text (.txt, .jsonl, .json, .csv, .tsv, .parquet, also .gz, .bz2, .xz or .zst of each; "
        "globs, and folders, which are read whole) or images (image files, .parquet or .tar; "
        "globs)."
    )
    dataset_name: str | None = flag(
        None,
        "In place of files: a folder of images or of text files, a data set saved by datasets, a "
        "Hub id, 'docs' or 'digits'.",
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub data set.")
    dataset_split: str = flag("train", "Split of the data set or folder to read.")
    label_column: str | None = flag(
        None, "Column of labels to keep beside the vectors. Default: label, if there is one."
    )


@dataclass
class EmbedText:
    """Texts: how they are read and pooled."""

    _argument_group_name: ClassVar[str] = "text"

    text_column: str = flag(
        "text",
        "Column with the text, of files other than .txt and of data sets; a.b = column b within a.",
    )
    document_boundary: Literal["line", "blank_line", "file"] = flag(
        "line", "What ends a text in .txt: the line, a blank line, or the file."
    )
    tsv_quotes: Literal["none", "minimal"] = flag(
        "none",
        "Quotes of a .tsv: letters like others, or around cells that hold a tab, quote or newline.",
    )
    streaming: bool = flag(False, "Read a Hub data set without downloading it first.")
    pooling: Literal["mean", "cls"] = flag(
        "mean",
        "mean = of the last layer's states of all real tokens, special ones included; cls = the "
        "state of [CLS].",
    )
    max_seq_length: int = flag(
        0,
        "Tokens of a text with its special ones; longer texts are cut, and counted. 0 = what the "
        "model was trained on, as its tokenizer's model_max_length says, and has positions for.",
        at_least(0),
    )
    on_bad_text: Literal["error", "skip"] = flag(
        "error", "What becomes of a row that holds no text, such as null."
    )


@dataclass
class EmbedImages:
    """Images: how they are read. The model's image processor prepares them."""

    _argument_group_name: ClassVar[str] = "images"

    image_column: str = flag("image", "Column that holds the images.")
    on_bad_image: Literal["error", "skip"] = flag("error", "What becomes of an undecodable image.")
    pixel_range: LevelRange = flag(
        LevelRange("auto"),
        "Of images of more than 8 bits: LOW:HIGH, the grey levels that become black and white; "
        "auto = those that the model was trained on.",
    )


@dataclass
class NeighboursArguments:
    """Queries, and the embeddings among which their nearest are sought."""

    _argument_group_name: ClassVar[str] = "neighbours"

    embeddings: str = flag(MISSING, "File that `bert-pretrain embed` wrote: .parquet or .npy.")
    text: list[str] | None = flags("Texts to seek the nearest of.")
    image: list[str] | None = flags("Image files to seek the nearest of.")
    row: list[int] | None = field(
        default=None,
        metadata={
            "help": "Rows of --embeddings, from 0, to seek the nearest of among the others.",
            "nargs": "+",
        },
    )
    k: int = flag(10, "Neighbours of each.", at_least(1))
    model: str | None = flag(
        None,
        "Where the model lies that made --embeddings, if it is no longer where it was: texts and "
        "images are embedded with it.",
    )
    json: str | None = flag(None, "File that gets the neighbours too.")
    debug: bool = flag(False, "Show the traceback of an input error.")


def check_embedding(data: EmbedData) -> None:
    """Raise `InputError` unless the data have one name."""
    check_source(data)
    if not (data.data_files or data.dataset_name):
        raise InputError("there is nothing to embed", advice="pass `data_files` or `dataset_name`")


def refuse_given(group: Any, names: Sequence[str], kind: str) -> None:
    """Raise `InputError` if a flag is given that means nothing to a text or an image encoder."""
    for name in names:
        if getattr(group, name) != getattr(type(group), name):
            raise InputError(
                f"`{name}` means nothing to an encoder of {kind}s",
                advice="leave it out, or change `model`",
            )
