"""The flags of fine-tuning: what is trained, on which labelled rows, and how.

The label-efficiency curve shares the groups `TaskDataArguments` and `RecipeArguments`. Ranges of
numbers are checked by `config.flags`, what goes together by the methods here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from bert_pretrain.config.flags import (
    ROWS,
    TOKENS,
    LevelRange,
    Range,
    above,
    at_least,
    check_repo_id,
    check_seeds,
    flag,
    flags,
)
from bert_pretrain.errors import InputError


@dataclass
class FinetuneArguments:
    """What is trained and where it goes."""

    _argument_group_name: ClassVar[str] = "fine-tune"

    model: str = field(
        metadata={"help": "Folder or Hub id of any text or image encoder of transformers."}
    )
    output_dir: str = field(
        metadata={"help": "New folder: results.json, final/, and a folder for each seed."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [42],
        metadata={"help": "Seeds of head, dropout and order of rows; one training for each."},
    )
    from_scratch: bool = flag(
        False, "Leave the weights of --model unread: the baseline of the same architecture."
    )
    freeze_encoder: bool = flag(
        False,
        "Train the head alone; the encoder stays as it is, running means of normalisation "
        "included. Dropout stays on.",
    )
    metrics: list[str] | None = flags(
        "accuracy, f1 (of class 1), f1_macro, f1_micro, matthews_correlation, pearson, spearman, "
        "mse, or any other name on the Hub. The first one chooses checkpoint and seed, on "
        "validation rows. Default: by the task."
    )
    push_to_hub: bool = flag(
        False,
        "Upload final/ when done. If the Hub refuses, the folder stays complete, the reason is "
        "printed and the exit status is 0; `bert-pretrain hub push OUTPUT_DIR` uploads it later "
        "(0 or 1).",
    )
    hub_model_id: str | None = flag(None, "Repository to upload to, user/name.")
    hub_private_repo: bool = flag(
        False, "Make the repository private; one that is public is then refused."
    )
    resume: bool = flag(
        False,
        "Go on in an --output_dir whose command was ended: keep the seeds that are finished, and "
        "train the one that was training from its start; begin where there is none.",
    )
    debug: bool = flag(False, "Show the traceback of an input error.")

    def check(self) -> None:
        """Raise `InputError` unless the flags go together."""
        check_seeds(self.seeds)
        if self.push_to_hub and not self.hub_model_id:
            raise InputError(
                "`push_to_hub` needs a repository", advice="pass `hub_model_id` user/name"
            )
        if self.push_to_hub:
            check_repo_id(str(self.hub_model_id), parameter="hub_model_id")
        elif self.hub_model_id or self.hub_private_repo:
            name = "hub_model_id" if self.hub_model_id else "hub_private_repo"
            raise InputError(
                f"`{name}` means nothing without `push_to_hub`",
                advice=f"add that flag, or leave `{name}` out",
            )
        if self.from_scratch and self.freeze_encoder:
            raise InputError(
                "`from_scratch` with `freeze_encoder` would train a head on random features",
                advice="pass one of them",
            )


@dataclass
class TaskDataArguments:
    """Labelled texts or images."""

    _argument_group_name: ClassVar[str] = "data"

    train_file: str | None = flag(
        None,
        "Rows to learn from: .csv, .tsv, .jsonl, .json or .parquet, also .gz, .bz2, .xz or .zst; "
        "of images .parquet or .tar.",
    )
    validation_file: str | None = flag(
        None, "Rows that choose the checkpoint. Default: a share of the training rows."
    )
    test_file: str | None = flag(None, "Rows that are only predicted and scored; may lack labels.")
    tsv_quotes: Literal["none", "minimal"] = flag(
        "none",
        "Quotes in .tsv files: none = they are letters, as in GLUE's files; minimal = they "
        "surround cells with a tab, a quote or a line end, as pandas and csv write them.",
    )
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
        "auto (what the labels look like), classification, multi_label, multi_hot, regression, or "
        "of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli.",
    )
    text_column: str | None = flag(None, "Column of the text. Default: that of --task, else text.")
    text_pair_column: str | None = flag(
        None, "Column of the second text. Default: of --task, else text_pair if there."
    )
    image_column: str = flag("image", "Column of the images.")
    on_bad_image: Literal["error", "skip"] = flag(
        "error", "What becomes of an image that cannot be decoded."
    )
    pixel_range: LevelRange = flag(
        LevelRange("auto"),
        "Of images of more than 8 bits: LOW:HIGH, the grey levels that become black and white; "
        "auto = those that the model was trained on, or found out from the training images.",
    )
    label_column: str = flag(
        "label",
        "Column of the labels. With --task auto, fractions are values (regression), lists are the "
        "classes of a row (multi_label), all else is one class. --task multi_hot: lists of one 0 "
        "or 1 for each class; a 1 in place i is class i, named by --label_names (auto refuses "
        "lists of equal length that hold zeros and ones alone). Texts are names whatever they look "
        "like, but in CSV and TSV all is text: there fractions are names with --task "
        "classification only, and '|' divides the classes in a cell with --task multi_label only.",
    )
    label_names: list[str] | None = flags(
        "Names of the class numbers 0, 1, ...; default: as found."
    )
    validation_share: float = flag(
        0.1,
        "Share of training rows held out where nothing else is validated on.",
        Range(0, 1, low_included=False, high_included=False),
    )
    max_seq_length: int = flag(
        0,
        "Tokens of a row; longer texts are cut. 0 = 128, or the tokenizer's model_max_length if "
        "that is less.",
        Range(0, TOKENS.high),
    )
    augmentation: Literal["none", "crop", "crop_flip"] = flag(
        "none", "What is done to training images at random."
    )

    def check(self, *, is_image: bool, has_dataset: bool) -> None:
        """Raise `InputError` unless the flags go together and have an effect.

        Args:
            is_image: whether `model` is an image encoder.
            has_dataset: whether `task` has a data set of its own.
        """
        if self.train_file and self.dataset_name:
            raise InputError(
                f"`train_file` and `dataset_name` {self.dataset_name!r} both name the training "
                "rows",
                advice="pass one",
            )
        if not (self.train_file or self.dataset_name or has_dataset):
            raise InputError(
                "there is nothing to train on",
                advice="pass `train_file`, `dataset_name` or a `task` of GLUE",
            )
        texts = [self.text_column, self.text_pair_column]
        if not (is_image or has_dataset):  # the columns that are read where none are named
            texts = [self.text_column or "text", self.text_pair_column or "text_pair"]
        if self.label_column in texts:
            raise InputError(
                f"the column {self.label_column!r} cannot be both text and label",
                advice="change `text_column` or `label_column`",
            )
        if not is_image and self.dataset_name == "digits":
            raise InputError(
                "'digits' are images but `model` is a text encoder",
                advice="change `dataset_name` or `model`",
            )
        of_texts = ("text_column", "text_pair_column", "max_seq_length", "tsv_quotes")
        of_images = ("image_column", "augmentation", "on_bad_image", "pixel_range")
        of_others = of_texts if is_image else of_images
        what = "an image" if is_image else "a text"
        self._refuse(
            of_others, f"means nothing for {what} encoder", "leave it out or change `model`"
        )
        if self.train_file:
            names = ("dataset_config_name", "validation_split", "test_split")
            advice = "leave it out, or pass the data set instead of files"
            self._refuse(names, "goes with `dataset_name`", advice)
            return
        for role in ("validation", "test"):
            advice = f"of a data set choose a split with `{role}_split`"
            self._refuse((f"{role}_file",), "goes with `train_file`", advice)
        self._refuse(("tsv_quotes",), "goes with `train_file`", "leave it out")

    def _refuse(self, names: Sequence[str], problem: str, advice: str) -> None:
        """Raise `InputError` if one of some flags, which would have no effect, is given."""
        for name in names:
            if getattr(self, name) != getattr(TaskDataArguments, name):
                raise InputError(f"`{name}` {problem}", advice=advice)


@dataclass
class AdaptationArguments:
    """Masked words before labels: the encoder first learns from texts without labels."""

    _argument_group_name: ClassVar[str] = "unlabelled texts"

    adapt_minutes: float = flag(
        0.0, "Minutes of masked-LM learning before the first label; 0 = none.", at_least(0)
    )
    unlabelled_files: list[str] | None = flags(
        "Texts to learn from, as pretraining reads them: .txt, .jsonl, .csv, .parquet, ... "
        "Default: the training rows' own texts."
    )

    def check(self, *, is_image: bool, from_scratch: bool = False, num_processes: int = 1) -> None:
        """Raise `InputError` unless the flags go together and have an effect.

        Args:
            is_image: whether the encoder is one of images.
            from_scratch: whether its weights are left unread.
            num_processes: of this command.
        """
        if not self.adapt_minutes:
            if self.unlabelled_files:
                raise InputError(
                    "`unlabelled_files` means nothing without `adapt_minutes`",
                    advice="pass `adapt_minutes`, such as 3, too",
                )
            return
        if is_image:
            raise InputError(
                "`adapt_minutes` means nothing for an image encoder",
                advice="leave it out or change `model`",
            )
        if from_scratch:
            raise InputError(
                "`from_scratch` leaves the encoder unread that `adapt_minutes` would train",
                advice="leave out one of them",
            )
        if num_processes > 1:
            raise InputError(
                f"`adapt_minutes` learns in one process, but there are {num_processes}",
                advice="run `bert-pretrain pretrain` with `objective` mlm first, and pass its "
                "final/ as `model`",
            )


@dataclass
class RecipeArguments:
    """How it is trained: AdamW, warm-up and linear decay; the same for all tasks and models."""

    _argument_group_name: ClassVar[str] = "training"

    learning_rate: float = flag(
        0.0,
        "Peak; 0 = by the encoder's width: 5e-5 at 768, growing with the inverse square of the "
        "width up to 5e-4.",
        at_least(0),
    )
    num_train_epochs: float = flag(4.0, "Passes over the training rows.", above(0))
    min_steps: int = flag(200, "Updates at least, however few rows there are.", at_least(0))
    max_steps: int = flag(0, "Updates at most; 0 = no limit.", at_least(0))
    per_device_train_batch_size: int = flag(16, "Rows of a forward pass.", ROWS)
    gradient_accumulation_steps: int = flag(
        1, "Forward passes of an update; its loss is the mean over the rows of all.", ROWS
    )
    per_device_eval_batch_size: int = flag(64, "Rows of a forward pass without gradient.", ROWS)
    weight_decay: float = flag(0.01, "Of matrices.", at_least(0))
    warmup_ratio: float = flag(
        0.1, "Share of the updates over which the rate rises.", Range(0, 1, high_included=False)
    )
    max_grad_norm: float = flag(1.0, "Largest norm of the gradients; 0 = any.", at_least(0))
    num_evaluations: int = flag(
        4,
        "Evaluations on validation rows at most, after every so many updates and after the last "
        "one; the best is kept.",
        at_least(1),
    )
    mixed_precision: Literal["auto", "bf16", "no"] = flag(
        "auto", "bf16, no, or auto = bf16 where it is native."
    )
