"""What every suite is given: the flags, and what several suites need, computed when the first one asks for it.

The command line enters as dataclasses of flags; a suite takes what it needs from an `Evaluation`
and returns a `SuiteResult`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from bert_pretrain.config.flags import flag, flags
from bert_pretrain.data.run_records import read_run_json
from bert_pretrain.training.checkpoint import list_checkpoints


@dataclass
class EvaluateArguments:
    """What is judged, and by what."""

    _argument_group_name: ClassVar[str] = "evaluate"

    model: str = field(
        metadata={
            "help": "Folder or Hub id of a transformers model, or a run directory: its final model."
        }
    )
    suite: list[str] = field(
        metadata={
            "help": "One or more of: fill_mask, minimal_pairs, nsp (text), knn, linear_probe "
            "(images)."
        }
    )
    json: str | None = flag(
        None,
        "File that gets figures, details, versions and hardware; if a suite fails, those of the "
        "suites before it.",
    )
    seed: int | None = flag(
        None,
        "Seed of the division into bank and evaluation images, of the probe's choice of C, of the "
        "random encoder and "
        "of held-out pairs. Default: that of the run that wrote --model, else 42.",
    )
    per_device_eval_batch_size: int = flag(256, "Rows of one forward pass, at least 1.")
    debug: bool = flag(False, "Show the traceback of an input error.")


@dataclass
class EvaluationData:
    """Images with labels for knn and linear_probe, text for nsp; each default is what the run of --model had."""

    _argument_group_name: ClassVar[str] = "data"

    dataset_name: str | None = flag(
        None,
        "'digits', a folder of images, 'docs', a prepared corpus, a data set saved by datasets, or "
        "a Hub id.",
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub data set.")
    dataset_split: str | None = flag(None, "Split of the data set to read.")
    data_files: list[str] | None = flags(
        "Own images (.parquet) or text (.txt, .jsonl, .csv, .parquet); globs allowed."
    )
    validation_share: float | None = flag(
        None,
        "Share of images or documents to evaluate on, in (0, 1). Without a run: 0.2 of images, "
        "0.05 of documents.",
    )


@dataclass
class EvaluationImages:
    """How images are read, for knn and linear_probe."""

    _argument_group_name: ClassVar[str] = "images"

    test_files: list[str] | None = flags(
        "Evaluation images: .parquet. The bank is then all of the other images."
    )
    image_column: str | None = flag(None, "Column that holds the images.")
    label_column: str | None = flag(None, "Column that holds the labels.")
    image_size: int | None = flag(
        None, "Height and width in pixels. Without a run: that of --model's processor."
    )
    on_bad_image: Literal["error", "skip"] = flag(
        "error", "What to do with an image that cannot be decoded."
    )
    k: int = flag(20, "Neighbours that vote, at least 1.")
    temperature: float = flag(0.07, "T of their weights exp(cosine / T), > 0.")


@dataclass
class EvaluationText:
    """Sentences and text, for fill_mask, minimal_pairs and nsp."""

    _argument_group_name: ClassVar[str] = "text"

    sentences: list[str] | None = flags(
        "fill_mask: sentences with [MASK]; default: three of our own."
    )
    num_candidates: int = flag(
        5, "fill_mask: most probable words shown for each [MASK], at least 1."
    )
    pairs_file: list[str] | None = flags(
        "minimal_pairs: .jsonl, also .gz, of {good, bad, group} or BLiMP's {sentence_good, "
        "sentence_bad, UID}; globs "
        "allowed. Default: six small groups written for this package, not BLiMP."
    )
    mixed_precision: Literal["auto", "no", "bf16"] = flag(
        "auto",
        "minimal_pairs: auto = bf16 where processor or GPU computes in it natively; pairs that it "
        "cannot decide are "
        "scored in float32 all the same.",
    )
    text_column: str | None = flag(
        None, "nsp: column of .jsonl, .csv, .parquet or a data set that holds the text."
    )
    document_boundary: Literal["blank_line", "file"] | None = flag(
        None, "nsp: what ends a document in .txt: a blank line or the end of the file."
    )
    max_pairs: int = flag(2000, "nsp: most held-out pairs judged, easy and hard each, at least 2.")
    max_seq_length: int | None = flag(
        None,
        "nsp: tokens of a pair with its three special ones, at least 8. Default: the run's, else "
        "128, or the "
        "tokenizer's model_max_length if that is less.",
    )


class SuiteResult(NamedTuple):
    """What a suite found: text to print, figures by name, and further detail as JSON takes it."""

    text: str
    figures: dict[str, float]
    details: Any


@dataclass(
    eq=False
)  # one evaluation equals itself alone, so that what suites share can be cached by it
class Evaluation:
    """The flags of one evaluation, and the run that wrote its model."""

    options: EvaluateArguments
    data: EvaluationData
    images: EvaluationImages
    text: EvaluationText

    @cached_property
    def run(self) -> dict[str, Any]:
        """The flags of the run that wrote the model; none if no run did."""
        return run_flags(self.options.model)

    @property
    def seed(self) -> int:
        """The seed of everything drawn here."""
        return int(self.options.seed if self.options.seed is not None else self.run.get("seed", 42))

    @cached_property
    def model(self) -> str:
        """What to load: the model as named, or of a run directory its finished one, else its newest checkpoint."""
        return newest_model(self.options.model)


FLAG_GROUPS = (EvaluateArguments, EvaluationData, EvaluationImages, EvaluationText)
SOURCE_FLAGS = ("dataset_name", "dataset_config_name", "dataset_split", "data_files")


def source_flags(evaluation: Evaluation) -> dict[str, Any]:
    """Return the flags that name the data: those given, completed by the run's unless they name other data."""
    given = {name: getattr(evaluation.data, name) for name in SOURCE_FLAGS}
    names_data = given["dataset_name"] or given["data_files"]
    inherited = {} if names_data else {name: evaluation.run.get(name) for name in SOURCE_FLAGS}
    return {
        name: value for name, value in (*inherited.items(), *given.items()) if value is not None
    }


def run_folder(model: str) -> Path | None:
    """Return the run directory that a model folder is, or is the `final` or a checkpoint of; None if there is none."""
    folder = Path(model).absolute()
    owner = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    # An exported model has a run.json too, but the public one, without the paths of this machine.
    is_model = (folder / "config.json").is_file()
    for candidate in (owner, folder) if is_model else (folder, owner):
        if (candidate / "run.json").is_file():
            return candidate
    return None


def run_flags(model: str) -> dict[str, Any]:
    """Return the flags of the run that a model folder is or belongs to; {} if to none.

    Raises:
        InputError: its run.json is damaged, so that what was held out is unknown.
    """
    folder = run_folder(model)
    config: dict[str, Any] = read_run_json(folder)["config"] if folder else {}
    return config


def newest_model(model: str) -> str:
    """Return `model`, or if that is a run directory its `final`, or before there is one its newest checkpoint."""
    folder = Path(model)
    if (folder / "config.json").is_file() or not folder.is_dir():
        return model
    if (folder / "final/config.json").is_file():
        return str(folder / "final")
    checkpoints = list_checkpoints(folder / "checkpoints")
    return str(checkpoints[-1]) if checkpoints else model
