"""The flags of `evaluate`, grouped as `--help` shows them, and what they may be."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field
from typing import ClassVar, Literal

from bert_pretrain.config.flags import (
    PIXELS,
    ROWS,
    SEEDS,
    TOKENS,
    LevelRange,
    Range,
    at_least,
    check_json_target,
    check_seeds,
    check_source,
    flag,
    flags,
)
from bert_pretrain.config.sizes import ImageSize
from bert_pretrain.errors import InputError

# What frozen features of images are compared with.
FLOORS = ("random_encoder", "pixels", "pca")


@dataclass
class EvaluateArguments:
    """What is judged, and by what."""

    _argument_group_name: ClassVar[str] = "evaluate"

    model: str = flag(
        MISSING, "Folder or Hub id of a transformers model, or a run directory: its final model."
    )
    suite: list[str] = flag(
        MISSING,
        "One or more of: fill_mask, minimal_pairs, nsp, perplexity (text), knn, linear_probe "
        "(images).",
    )
    json: str | None = flag(
        None,
        "File that gets figures, details, versions and hardware; if a suite fails, those of the "
        "suites before it.",
    )
    seed: int | None = flag(
        None,
        "Seed of the division into bank and evaluation images, of the probe's choice of C, of the "
        "random encoder and of held-out pairs. Default: that of the run that wrote --model, else "
        "42.",
        SEEDS,
    )
    per_device_eval_batch_size: int = flag(256, "Rows of one forward pass.", ROWS)
    debug: bool = flag(False, "Show the traceback of an input error.")


@dataclass
class EvaluationData:
    """Images for knn and linear_probe, text for nsp and perplexity; by default the run's own."""

    _argument_group_name: ClassVar[str] = "data"

    dataset_name: str | None = flag(
        None,
        "'digits', a folder of images, 'docs', a prepared corpus, a data set saved by datasets, or "
        "a Hub id.",
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub data set.")
    dataset_split: str | None = flag(None, "Split of the data set to read.")
    data_files: list[str] | None = flags(
        "Own images (image files, .parquet or .tar) or text (.txt, .jsonl, .json, .csv, .tsv, "
        ".parquet, also .gz, .bz2, .xz or .zst of each); globs and, of text, folders allowed."
    )
    validation_share: float | None = flag(
        None,
        "Share of the images or of the text's tokens to evaluate on. Without a run: 0.2 "
        "of the images, all of a text.",
        Range(0, 1, low_included=False, high_included=False),
    )


@dataclass
class EvaluationImages:
    """How images are read, for knn and linear_probe."""

    _argument_group_name: ClassVar[str] = "images"

    test_files: list[str] | None = flags(
        "Evaluation images: .parquet or .tar. The bank is then all of the other images."
    )
    test_split: str | None = flag(
        None,
        "Split of the data set or folder to evaluate on. The bank is then all of --dataset_split.",
    )
    image_column: str | None = flag(None, "Column that holds the images.")
    label_column: str | None = flag(None, "Column that holds the labels.")
    image_size: ImageSize | None = flag(
        None,
        "Side of a square in pixels, or HEIGHTxWIDTH. Without a run: that of --model's processor.",
        PIXELS,
    )
    on_bad_image: Literal["error", "skip"] = flag(
        "error", "What to do with an image that cannot be decoded."
    )
    pixel_range: LevelRange = flag(
        LevelRange("auto"),
        "Of images of more than 8 bits: LOW:HIGH, the grey levels that become black and white; "
        "auto = those that the model was trained on, or found out from the images.",
    )
    k: int = flag(20, "Neighbours that vote.", at_least(1))
    temperature: float = flag(0.07, "T of their weights exp(cosine / T).", Range(1e-3, 1e3))
    floors: list[str] = field(
        default_factory=lambda: list(FLOORS),
        metadata={
            "help": f"What stands beside the encoder: of {', '.join(FLOORS)}; or none, which is "
            "faster (the floors are the same for all checkpoints)."
        },
    )


@dataclass
class EvaluationText:
    """Sentences and text, for fill_mask, minimal_pairs, nsp and perplexity."""

    _argument_group_name: ClassVar[str] = "text"

    sentences: list[str] | None = flags(
        "fill_mask: sentences with [MASK]; default: three of our own."
    )
    num_candidates: int = flag(
        5, "fill_mask: most probable words shown for each [MASK].", at_least(1)
    )
    pairs_file: list[str] | None = flags(
        "minimal_pairs: .jsonl, also compressed, of {good, bad, group} or BLiMP's {sentence_good, "
        "sentence_bad, UID}; globs allowed. Rows that are no pair are left out and named. Default: "
        "six small groups written for this package, not BLiMP."
    )
    mixed_precision: Literal["auto", "no", "bf16"] = flag(
        "auto",
        "minimal_pairs: auto = bf16 where processor or GPU computes in it natively; pairs that it "
        "cannot decide are scored in float32 all the same.",
    )
    text_column: str | None = flag(
        None, "nsp, perplexity: column with the text, of files other than .txt and of data sets."
    )
    document_boundary: Literal["blank_line", "line", "file"] | None = flag(
        None,
        "nsp, perplexity: what ends a document in .txt: a blank line, the line, or the file.",
    )
    newline: Literal["auto", "space", "sentence", "paragraph"] | None = flag(
        None,
        "nsp, perplexity: what a newline in a document is, as in pretraining. Default: the run's, "
        "or auto.",
    )
    tsv_quotes: Literal["none", "minimal"] | None = flag(None, "nsp, perplexity: quotes of a .tsv.")
    max_pairs: int = flag(2000, "nsp: most held-out pairs judged, easy and hard each.", at_least(2))
    max_eval_rows: int = flag(
        2000, "perplexity: most rows judged, drawn once; 0 = all.", at_least(0)
    )
    max_seq_length: int | None = flag(
        None,
        "nsp, perplexity: tokens of a row with its special ones. Default: the run's, else 128, or "
        "the tokenizer's model_max_length if that is less.",
        TOKENS,
    )


@dataclass
class LabelEfficiencyArguments:
    """The curve. Its test rows: --test_file, else --validation_file, else rows held out."""

    _argument_group_name: ClassVar[str] = "label efficiency"

    model: str = flag(MISSING, "Folder or Hub id of a pretrained text or image encoder.")
    output_dir: str = flag(MISSING, "Folder of rows.jsonl, label_efficiency.json and .png.")
    num_labels: list[str] | None = flags(
        "Labels per class, such as 1 4 16 64 all. Default: powers of 4 as long as every class has "
        "more, then all."
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        metadata={
            "help": "Each draws its own labelled rows, head and order; the interval is over them."
        },
    )
    arms: list[str] = field(
        default_factory=lambda: ["fine_tuned", "frozen_probe", "from_scratch"],
        metadata={
            "help": "Of fine_tuned, adapted (needs --adapt_minutes), frozen_probe, from_scratch, "
            "floor."
        },
    )
    max_test_rows: int = flag(2000, "Test rows, a fixed random subset; 0 = all.", at_least(0))
    title: str | None = flag(None, "Above the curve. Default: the name of the training rows.")
    json: str | None = flag(None, "File that gets figures, details, versions and hardware.")
    debug: bool = flag(False, "Show the traceback of an input error.")

    @property
    def counts(self) -> list[int] | None:
        """`num_labels` as numbers, 0 for all; None = the default."""
        if self.num_labels is None:
            return None
        return [0 if word == "all" else int(word) for word in self.num_labels]


def check_evaluation(
    options: EvaluateArguments,
    data: EvaluationData,
    images: EvaluationImages,
    *,
    suites: Collection[str],
) -> None:
    """Check what can be told without opening a file, beside the ranges of numbers.

    Raises:
        InputError: a suite is none of `suites`, a floor is unknown, the data have two names, or
            `json` cannot be written.
    """
    for name in options.suite:
        if name not in suites:
            raise InputError.out_of_range(
                "suite", name, f"one or more of {', '.join(suites)}, or label_efficiency"
            )
    if images.floors != ["none"] and not set(images.floors) <= set(FLOORS):
        raise InputError.out_of_range(
            "floors", " ".join(images.floors), f"of {', '.join(FLOORS)}, or none"
        )
    check_source(data)
    check_json_target(options.json)


def check_label_efficiency(
    curve: LabelEfficiencyArguments, *, arms: Collection[str], adapt_minutes: float
) -> None:
    """Check what can be told without opening a file, beside the ranges of numbers.

    Args:
        curve: the flags.
        arms: there are.
        adapt_minutes: of learning from texts without labels.

    Raises:
        InputError: a number of labels, a seed, or an arm that is none of `arms`, is not allowed, or
            `json` cannot be written.
    """
    words = curve.num_labels or []
    if not all(word == "all" or re.fullmatch("0*[1-9][0-9]{0,8}", word) for word in words):
        raise InputError.out_of_range(
            "num_labels", " ".join(words), "numbers from 1 to 999999999, or all"
        )
    check_seeds(curve.seeds)
    if not curve.arms or not set(curve.arms) <= set(arms):
        raise InputError.out_of_range("arms", curve.arms, f"of {', '.join(arms)}")
    if ("adapted" in curve.arms) != (adapt_minutes > 0):
        raise InputError(
            f"`adapt_minutes` {adapt_minutes:g} does not go with `arms` {' '.join(curve.arms)}",
            advice="pass both the arm adapted and the minutes, such as 3, or neither",
        )
    check_json_target(curve.json)
