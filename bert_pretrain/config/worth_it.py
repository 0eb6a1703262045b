"""The flags of `worth-it`: labelled rows, unlabelled texts, the encoder at hand."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import ClassVar, Literal

from bert_pretrain.config.flags import (
    SEEDS,
    TOKENS,
    Range,
    check_json_target,
    check_seeds,
    flag,
    flags,
)
from bert_pretrain.errors import InputError


@dataclass
class WorthItArguments:
    """Whether pretraining pays on your labels, by cross-validation."""

    _argument_group_name: ClassVar[str] = "worth it"

    model: str = flag(MISSING, "Folder or Hub id of the text encoder at hand.")
    train_file: str = flag(
        MISSING, "All the labelled rows there are: .csv, .tsv, .jsonl, .json or .parquet."
    )
    unlabelled_files: list[str] | None = flags(
        "Texts without labels that the encoder may learn from, as pretraining reads them. Default: "
        "the labelled rows' own texts."
    )
    minutes: float = flag(
        4.0,
        "Minutes of masked-LM learning on them that are tried, in two halves; 0 = none.",
        Range(0, 10_000),
    )
    output_dir: str = flag("runs/worth-it", "New folder: worth_it.json and the encoders tried.")
    seed: int = flag(42, "Of folds, heads, order and masks.", SEEDS)
    json: str | None = flag(None, "File that gets figures, details, versions and hardware.")
    debug: bool = flag(False, "Show the traceback of an input error.")

    def check(self) -> None:
        """Raise `InputError` unless the flags go together."""
        check_seeds([self.seed])
        check_json_target(self.json)
        if self.unlabelled_files and not self.minutes:
            raise InputError(
                "`unlabelled_files` means nothing with `minutes` 0",
                advice="pass `minutes`, such as 4, or leave the files out",
            )


@dataclass
class WorthItData:
    """How the labelled rows are read."""

    _argument_group_name: ClassVar[str] = "data"

    text_column: str | None = flag(None, "Column of the text. Default: text.")
    text_pair_column: str | None = flag(
        None, "Column of the second text. Default: text_pair if there."
    )
    label_column: str = flag("label", "Column of the labels, a class each.")
    tsv_quotes: Literal["none", "minimal"] = flag(
        "none", "Quotes in .tsv files: none = they are letters; minimal = they surround cells."
    )
    max_seq_length: int = flag(
        0,
        "Tokens of a row; longer texts are cut. 0 = 128, or the tokenizer's model_max_length if "
        "that is less.",
        Range(0, TOKENS.high),
    )
