"""Every flag of pretraining, grouped as `--help` shows them, their validation, and the named recipes.

Enters: the command line. Leaves: one `PretrainingConfig` of flat dataclasses; functions further down take the values
they need, never the configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from transformers import HfArgumentParser

from bert_pretrain.command_line import parse_flags
from bert_pretrain.errors import InputError
from bert_pretrain.models.bert import SIZES

# A recipe replaces defaults; flags on the command line win over it. Times are for two CPU cores without bfloat16
# (an AVX2 machine); scores are on held-out documents, see README, "What to expect".
RECIPES: dict[str, dict[str, Any]] = {
    "minutes": {},  # the defaults below: the embedded corpus in under six minutes
    "hours": {
        "per_device_train_batch_size": 32,
        "config_name": "mini",
        "max_steps": 20_000,
        "warmup_steps": 400,
        "learning_rate": 1e-3,
        "max_hours": 0.0,
        "eval_steps": 1000,
        "save_steps": 1000,
    },
    # Devlin et al. 2019, appendix A.2, at sequence length 128 (90 % of its steps).
    "devlin2019": {
        "config_name": "base",
        "pair_mode": "google",
        "short_seq_prob": 0.1,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "adam_beta2": 0.999,
        "weight_decay": 0.01,
        "schedule": "linear",
        "warmup_steps": 10_000,
        "max_steps": 900_000,
        "max_hours": 0.0,
        "global_batch_size": 256,
        "per_device_train_batch_size": 32,
        "dropout": 0.1,
        "eval_steps": 10_000,
        "save_steps": 10_000,
    },
}


def flag(default: Any, help_text: str) -> Any:
    """Declare a flag as a dataclass field with its default and help."""
    return field(default=default, metadata={"help": help_text})


def flags(help_text: str) -> Any:
    """Declare a flag that takes a list; not given it is None."""
    return field(default=None, metadata={"help": help_text, "nargs": "+"})


@dataclass
class RunArguments:
    """Where a run goes and how it continues."""

    _argument_group_name: ClassVar[str] = "run"

    objective: Literal["mlm_nsp", "mlm"] = flag(
        "mlm_nsp", "What is learnt: masked words and next sentences, or masked words only."
    )
    recipe: str = flag("minutes", f"Named defaults, one of: {', '.join(RECIPES)}.")
    output_dir: str = flag("runs/bert", "Run directory: run.json, metrics.jsonl, checkpoints/, final/.")
    seed: int = flag(42, "Seed of initialisation, order, pairs, masks and dropout; 0 or more.")
    resume_from_checkpoint: str | None = flag(None, "'latest' of --output_dir, or a checkpoint folder.")
    logging_steps: int = flag(10, "Updates between training rows of metrics.jsonl.")
    eval_steps: int = flag(300, "Updates between evaluations; 0 = only at start and end.")
    save_steps: int = flag(300, "Updates between checkpoints; 0 = only at the end.")
    save_total_limit: int = flag(2, "Checkpoints kept, the newest; 0 = all.")
    report_to: str = flag("none", "Tracker: none, tensorboard, trackio, wandb or all.")
    debug: bool = flag(False, "Show the traceback of an input error.")


@dataclass
class DataArguments:
    """The text and how it becomes training rows."""

    _argument_group_name: ClassVar[str] = "data"

    dataset_name: str | None = flag(
        None,
        "'docs' (the documentation inside your own Python; the default without --data_files), a folder that "
        "bert_pretrain.prepare wrote, a data set saved by datasets, or a name on the Hub.",
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub data set.")
    dataset_split: str = flag("train", "Split of the Hub data set to read.")
    data_files: list[str] | None = flags("Own text: .txt, .jsonl, .csv, .parquet, also .gz of each; globs allowed.")
    text_column: str = flag("text", "Column of .jsonl, .csv, .parquet or a data set that holds the text.")
    document_boundary: Literal["blank_line", "file"] = flag(
        "blank_line", "What ends a document in .txt: a blank line or the end of the file."
    )
    streaming: bool = flag(False, "Read a Hub data set without downloading it first.")
    language: str = flag("en", "Language code for splitting sentences.")
    validation_share: float = flag(0.05, "Share of documents held out for evaluation, in (0, 0.5).")
    tokenizer_name: str | None = flag(
        None, "Fast tokenizer with mask, cls, sep and pad: folder or Hub id. Default: the shipped one."
    )
    max_seq_length: int = flag(128, "Tokens per row with [CLS] and [SEP]; 8 to the position table's size.")
    short_seq_prob: float = flag(0.1, "Share of rows cut to a random shorter length, in [0, 1).")
    pair_mode: Literal["exact", "google"] = flag(
        "exact", "How sentence pairs are drawn: unbiased, or as google-research/bert does."
    )
    mlm_probability: float = flag(0.15, "Share of tokens to predict, in (0, 1).")
    mask_replace_prob: float = flag(0.8, "Share of those that become [MASK], in [0, 1].")
    random_replace_prob: float = flag(0.1, "Share of those that become a random token, in [0, 1].")
    masking: Literal["token", "whole_word", "span"] = flag("token", "Unit that is masked together.")
    max_eval_rows: int = flag(2000, "Held-out rows evaluated, a fixed random subset; 0 = all.")
    dataloader_num_workers: int = flag(0, "Worker processes per process that make batches; 0 = none.")


@dataclass
class ModelArguments:
    """The encoder."""

    _argument_group_name: ClassVar[str] = "model"

    config_name: str = flag("tiny", f"Size ({', '.join(SIZES)}), or a folder or Hub id with a BERT config.json.")
    model_name_or_path: str | None = flag(None, "Checkpoint to continue from, in place of --config_name.")
    dropout: float = flag(
        0.0, "Dropout of hidden states and attention while pretraining, in [0, 1); the export keeps the config's."
    )


@dataclass
class OptimizationArguments:
    """The update and its schedule."""

    _argument_group_name: ClassVar[str] = "optimization"

    max_steps: int = flag(900, "Updates of the run; 0 = given by --num_train_epochs or --max_hours.")
    num_train_epochs: float = flag(0.0, "Length in passes over the text, in place of --max_steps.")
    max_hours: float = flag(
        0.08,
        "Wall-clock budget in hours in which the schedule ends exactly; 0 = none. The one flag that gives up "
        "reproducibility. With --max_steps, whichever ends first.",
    )
    global_batch_size: int = flag(
        0, "Rows per update over all processes; 0 = per-device size x accumulation x processes."
    )
    per_device_train_batch_size: int = flag(64, "Most rows of one forward pass.")
    per_device_eval_batch_size: int = flag(64, "Rows of one forward pass in evaluation.")
    gradient_accumulation_steps: int = flag(0, "Micro-batches per update; 0 = 1, or what --global_batch_size needs.")
    optimizer: Literal["adamw", "muon"] = flag("muon", "adamw, or muon for hidden matrices with AdamW for the rest.")
    learning_rate: float = flag(6e-3, "Peak rate, > 0.")
    weight_decay: float = flag(0.01, "Decoupled decay of matrices (never of biases or normalisation).")
    adam_beta1: float = flag(0.9, "AdamW's first decay rate, in [0, 1).")
    adam_beta2: float = flag(0.98, "AdamW's second decay rate, in [0, 1).")
    adam_epsilon: float = flag(1e-6, "AdamW's epsilon, > 0.")
    max_grad_norm: float = flag(1.0, "Gradients are scaled to at most this norm; 0 = never.")
    schedule: Literal["linear", "stable_decay"] = flag(
        "stable_decay", "After warm-up: fall to 0 at once, or stay and fall over the last --decay_share."
    )
    warmup_steps: int = flag(30, "Updates over which the rate rises.")
    decay_share: float = flag(0.5, "Share of the run over which stable_decay falls, in (0, 1].")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag(
        "auto", "auto = bf16 where processor or GPU computes in it natively."
    )
    gradient_checkpointing: bool = flag(False, "Recompute activations in the backward pass to save memory.")
    num_cpu_threads: int = flag(0, "Threads per process on CPU; 0 = cores divided by local processes.")


@dataclass(frozen=True)
class PretrainingConfig:
    """All flags of one run."""

    run: RunArguments
    data: DataArguments
    model: ModelArguments
    optimization: OptimizationArguments

    def to_dict(self) -> dict[str, Any]:
        """Return every flag by name; names are unique over the groups."""
        groups = (self.run, self.data, self.model, self.optimization)
        return {key: value for group in groups for key, value in dataclasses.asdict(group).items()}


def parse_config(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> PretrainingConfig:
    """Parse and check the command line.

    Args:
        arguments: without the program's name; default `sys.argv[1:]`.
        prog: the name that `--help` shows.

    Raises:
        InputError: a value is out of range. (argparse itself exits with status 2 for an unknown flag.)
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser(
        (RunArguments, DataArguments, ModelArguments, OptimizationArguments),
        prog=prog,
        description="Pretrain BERT on text; with no flag, on the documentation inside your own Python.",
        allow_abbrev=False,
    )
    recipe = _recipe_in(arguments)
    # Asking for a length replaces the recipe's, so that nobody gets both by accident.
    lengths = {"--max_steps", "--num_train_epochs", "--max_hours"}
    if lengths & {argument.split("=")[0] for argument in arguments}:
        recipe = {"max_steps": 0, "max_hours": 0.0} | {
            key: value for key, value in recipe.items() if f"--{key}" not in lengths
        }
    parser.set_defaults(**recipe)
    groups = parse_flags(parser, arguments)
    config = PretrainingConfig(*groups)
    check_config(config)
    return config


def _recipe_in(arguments: Sequence[str]) -> dict[str, Any]:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", default="minutes")
    name = finder.parse_known_args(arguments)[0].recipe
    if name not in RECIPES:
        raise InputError(f"--recipe is {name!r} but must be one of {', '.join(RECIPES)}")
    return RECIPES[name]


def check_config(config: PretrainingConfig) -> None:
    """Check every value that can be checked without opening a file.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    check_data(config.data)
    values = config.to_dict()
    for name in ("dropout", "adam_beta1", "adam_beta2"):
        _check(values, name, 0 <= values[name] < 1, "in [0, 1)")
    _check(values, "decay_share", 0 < values["decay_share"] <= 1, "in (0, 1]")
    for name in ("learning_rate", "adam_epsilon"):
        _check(values, name, values[name] > 0, "greater than 0")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "logging_steps"):
        _check(values, name, values[name] >= 1, "at least 1")
    non_negative = """
        seed eval_steps save_steps save_total_limit max_steps num_train_epochs max_hours global_batch_size
        gradient_accumulation_steps weight_decay max_grad_norm warmup_steps num_cpu_threads
    """
    for name in non_negative.split():
        _check(values, name, values[name] >= 0, "at least 0")
    if not (values["max_steps"] or values["num_train_epochs"] or values["max_hours"]):
        raise InputError("the run has no length; pass --max_steps, --num_train_epochs or --max_hours")
    if values["max_steps"] and values["num_train_epochs"]:
        raise InputError(
            f"--max_steps {values['max_steps']} and --num_train_epochs {values['num_train_epochs']} "
            "both give the length; pass one of them"
        )
    trackers = ("none", "tensorboard", "trackio", "wandb", "all")
    _check(values, "report_to", values["report_to"] in trackers, "one of " + ", ".join(trackers))


def check_data(data: DataArguments) -> None:
    """Check the data flags.

    Raises:
        InputError: names the flag, the value met and what is allowed.
    """
    values = dataclasses.asdict(data)
    _check_share(values, "mlm_probability", upper=1.0)
    _check_share(values, "validation_share", upper=0.5)
    _check(values, "short_seq_prob", 0 <= values["short_seq_prob"] < 1, "in [0, 1)")
    for name in ("mask_replace_prob", "random_replace_prob"):
        _check(values, name, 0 <= values[name] <= 1, "in [0, 1]")
    total = values["mask_replace_prob"] + values["random_replace_prob"]
    if total > 1 + 1e-9:
        raise InputError(
            f"mask_replace_prob + random_replace_prob is {total:g} but must be at most 1; "
            "lower --mask_replace_prob or --random_replace_prob"
        )
    for name in ("max_eval_rows", "dataloader_num_workers"):
        _check(values, name, values[name] >= 0, "at least 0")
    _check(values, "max_seq_length", values["max_seq_length"] >= 8, "at least 8")
    if values["data_files"] and values["dataset_name"]:
        raise InputError(f"--data_files and --dataset_name {values['dataset_name']!r} both name the text; pass one")


def _check(values: dict[str, Any], name: str, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise InputError(f"{name} is {values[name]!r} but must be {allowed}; change --{name}")


def _check_share(values: dict[str, Any], name: str, *, upper: float) -> None:
    value = values[name]
    if 0 < value < upper:
        return
    hint = f"; for {value:g} % pass --{name} {value / 100:g}" if 1 < value < 100 else f"; change --{name}"
    raise InputError(f"{name} is {value:g} but must lie in (0, {upper:g}){hint}")
