"""One judge for models however they were trained: fixed held-out rows, stock classes, float32.

A corpus is prepared once; its held-out documents, their pairs and their masks (15 %) are then the
same for every run, whatever its seed, its share of masked tokens or its precision. What is judged
is a folder that transformers loads without this package, or a model of its classes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import results  # noqa: F401  # puts the checkout on the path
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedModel

from bert_pretrain.commands.machine import build_accelerator
from bert_pretrain.commands.tasks import build_task
from bert_pretrain.config.pretraining import parse_config
from bert_pretrain.data.loader import evaluation_batches
from bert_pretrain.data.stream import Batch
from bert_pretrain.objectives.interface import Task
from bert_pretrain.text.prepared import PreparedCorpus

ROOT = Path(__file__).parents[1]
SEED, MASKED_SHARE = 42, 0.15
# What a user of transformers passes; our collator's other columns are for our model.
PLAIN = ("input_ids", "token_type_ids", "attention_mask", "labels", "next_sentence_label")


def add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what all arms learn and are judged on."""
    parser.add_argument("--data_files", nargs="+", help="default: the embedded documentation")
    parser.add_argument("--tokenizer_name", help="default: the shipped one")
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--validation_share", type=float, default=0.05)
    parser.add_argument("--eval_rows", type=int, default=1000, help="held-out rows of the judge")
    parser.add_argument("--num_cpu_threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/benchmarks"))


def environment() -> dict[str, str]:
    """Return the environment of a program of this checkout, whatever else is installed."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def prepare(arguments: argparse.Namespace) -> list[str]:
    """Prepare the corpus, at once where that is done, and return the flags that name it."""
    folder = arguments.work_dir / "corpus"
    flags = ["--data_files", *arguments.data_files] if arguments.data_files else []
    tokenizer = ["--tokenizer_name", arguments.tokenizer_name] if arguments.tokenizer_name else []
    share = ["--validation_share", str(arguments.validation_share)]
    command = [sys.executable, "-m", "bert_pretrain", "prepare", *flags, *tokenizer, *share]
    command += ["--output_dir", str(folder), "--seed", str(SEED)]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    length = ["--max_seq_length", str(arguments.max_seq_length)]
    threads = ["--num_cpu_threads", str(arguments.num_cpu_threads)]
    return ["--dataset_name", str(folder), *tokenizer, *length, *threads]


def describe_setting(arguments: argparse.Namespace, objective: str) -> dict[str, object]:
    """Return what runs must have in common to be compared."""
    return {
        "corpus": PreparedCorpus.load(arguments.work_dir / "corpus").manifest["key"],
        "max_seq_length": arguments.max_seq_length,
        "eval_rows": arguments.eval_rows,
        "num_cpu_threads": arguments.num_cpu_threads,
        "objective": objective,
    }


def open_task(flags: list[str]) -> Task:
    """Return the rows that a run with these flags has, and the model that it begins with."""
    config = parse_config([*flags, "--mixed_precision", "no"])
    return build_task(config, build_accelerator(config))


def plain_batch(batch: Batch) -> Batch:
    """Return the columns for a stock model, padded to the longest row."""
    longest = int(batch["attention_mask"].sum(dim=1).max())
    plain = {name: batch[name] for name in PLAIN if name in batch}
    return {
        name: rows[:, :longest].contiguous() if rows.ndim == 2 else rows
        for name, rows in plain.items()
    }


class Judge:
    """Measures models on the fixed held-out rows of a corpus."""

    def __init__(self, flags: list[str], *, objective: str, eval_rows: int) -> None:
        """Keep the flags of the corpus, see `prepare`; the rows are made when first needed."""
        fixed = f"--objective {objective} --seed {SEED} --mlm_probability {MASKED_SHARE}"
        self._flags = [*flags, *fixed.split(), "--max_eval_rows", str(eval_rows)]
        self._model_class = AutoModelForMaskedLM if objective == "mlm" else AutoModelForPreTraining

    @cached_property
    def batches(self) -> list[Batch]:
        """The rows, for stock models."""
        held_out = open_task(self._flags).objective.held_out
        return [plain_batch(batch) for batch in evaluation_batches(held_out, batch_size=32)]

    def unigram_loss(self, token_counts: NDArray[np.int64]) -> float:
        """Return the loss of a model that knows how frequent each token is, and nothing else."""
        counts = token_counts + 0.1  # as the program begins
        losses = torch.from_numpy(-np.log(counts / counts.sum()))
        masked = torch.cat([batch["labels"][batch["labels"] != -100] for batch in self.batches])
        return float(losses[masked].mean())

    def judge_folder(self, folder: Path) -> dict[str, float]:
        """Judge an export or a checkpoint, loaded as anybody loads it."""
        return self.judge(self._model_class.from_pretrained(str(folder), dtype=torch.float32))

    @torch.no_grad()
    def judge(self, model: PreTrainedModel) -> dict[str, float]:
        """Return means over masked tokens and over pairs; a model without pairs has no `nsp_`."""
        is_training = model.training
        model.eval()
        sums: dict[str, float] = {}
        for batch in self.batches:
            inputs = {name: batch[name] for name in PLAIN[:3]}
            if "next_sentence_label" not in batch:
                del inputs["token_type_ids"]  # all zero, and not every encoder takes them
            output = model(**inputs)
            is_masked = batch["labels"] != -100
            scores = {"mlm": (output["logits" if "logits" in output else "prediction_logits"])}
            scores["mlm"] = scores["mlm"][is_masked]
            targets = {"mlm": batch["labels"][is_masked]}
            if "next_sentence_label" in batch:
                is_pair = batch["next_sentence_label"] != -100
                scores["nsp"] = output["seq_relationship_logits"][is_pair]
                targets["nsp"] = batch["next_sentence_label"][is_pair]
            for name, target in targets.items():
                loss = cross_entropy(scores[name].float(), target, reduction="sum")
                correct = (scores[name].argmax(-1) == target).sum()
                found = {"loss": loss.item(), "accuracy": correct.item(), "count": len(target)}
                for key, value in found.items():
                    sums[f"{name}_{key}"] = sums.get(f"{name}_{key}", 0.0) + value
        model.train(is_training)
        return {
            key: value / sums[f"{key[:3]}_count"]
            for key, value in sums.items()
            if not key.endswith("count")
        }
