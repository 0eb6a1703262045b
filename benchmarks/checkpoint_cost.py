"""What a checkpoint costs the training that goes on meanwhile, in units of an update's time.

The program's own loop trains BERT of each size on made-up text, with its default optimisers. After
--warmup updates it makes --rounds rounds of --updates updates each: without a checkpoint, with one
that is written beside them, and with one that is waited for, in turn. Three figures each:

    wait      how long the loop stands still for it
    slowing   how much longer the other updates of the round take together: a processor that writes
              and computes digests does not train, here where both share it
    whole     seconds until it is whole

A round is as long as --updates; take it long enough for the checkpoint to become whole in it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from gpu_check import Rows, Silent, muon
from results import write_results

from bert_pretrain.hardware import cpu_threads, native_precision
from bert_pretrain.models.attention_kernels import ROWS_WRITTEN_OUT
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.fast_paths import prefers_written_out_attention
from bert_pretrain.models.text_encoder_config import BERT_SIZES, named_config
from bert_pretrain.objectives.interface import Task
from bert_pretrain.objectives.text import TextObjective
from bert_pretrain.training.layout import BatchLayout
from bert_pretrain.training.schedule import Intervals, Schedule
from bert_pretrain.training.trainer import Trainer

KINDS = ("none", "beside", "waited_for")


def make_trainer(size: str, folder: Path, arguments: argparse.Namespace) -> Trainer:
    """Return the program's loop on made-up text."""
    rows = Rows(arguments.vocab_size, arguments.max_seq_length, num_documents=2000)

    def make_model() -> BertForPreTraining:
        model = BertForPreTraining(
            named_config(
                size,
                vocab_size=arguments.vocab_size,
                pad_token_id=0,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        if prefers_written_out_attention(arguments.max_seq_length):
            model.attention = ROWS_WRITTEN_OUT
        return model

    objective = TextObjective(rows.training, rows.held_out, make_model, token_counts=None)
    is_bf16 = native_precision() == "bf16"
    model = objective.build_model()
    return Trainer(
        Accelerator(mixed_precision="bf16" if is_bf16 else "no"),
        Task(objective, Silent(), Silent()),
        model,
        muon(model, torch.bfloat16 if is_bf16 else torch.float32),
        Schedule(10**6, 0.0, 1e-4, 10, "stable_decay", 0.5),
        Intervals(10**6, 0, 0, 1),
        BatchLayout(arguments.batch_size, 1, 64),
        run_dir=folder,
        seed=0,
        max_grad_norm=1.0,
        fingerprint={},
    )


def measure_round(trainer: Trainer, windows: Any, kind: str, num_updates: int) -> dict[str, float]:
    """Return the seconds of a round, of its wait for a checkpoint, and until that is whole."""

    def update() -> None:
        trainer._update(next(windows), 1e-4)
        trainer.journal.write_rows(wait=trainer.accelerator.device.type == "cpu")
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    found = {"wait": 0.0, "whole": 0.0}
    written: list[float] = []
    trainer.saver.on_written = lambda _: written.append(time.perf_counter())
    start = time.perf_counter()
    update()
    begin = time.perf_counter()
    if kind != "none":
        trainer.save()
        if kind == "waited_for":
            trainer.saver.settle()
        found["wait"] = time.perf_counter() - begin
    for _ in range(num_updates - 1):
        update()
        trainer.saver.report()
    found["seconds"] = time.perf_counter() - start
    trainer.saver.settle()  # of a round that was too short; it is no part of it
    if written:
        found["whole"] = written[0] - begin
    return found


def measure(size: str, arguments: argparse.Namespace) -> tuple[dict[str, float], list[Any]]:
    """Return the figures of a size, and what each round gave."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        trainer = make_trainer(size, Path(folder), arguments)
        windows = trainer._windows()
        for _ in range(arguments.warmup):
            trainer._update(next(windows), 1e-4)
        rounds = [
            {kind: measure_round(trainer, windows, kind, arguments.updates) for kind in KINDS}
            for _ in range(arguments.rounds)
        ]
        checkpoint = next(Path(folder).glob("checkpoints/step-*"))
        num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    step = statistics.median(found["none"]["seconds"] for found in rounds) / arguments.updates
    figures = {f"{size}_step_seconds": step, f"{size}_checkpoint_mib": num_bytes / 2**20}
    for kind in KINDS[1:]:
        waits = [found[kind]["wait"] / step for found in rounds]
        extra = [
            (found[kind]["seconds"] - found["none"]["seconds"]) / step - wait
            for found, wait in zip(rounds, waits, strict=True)
        ]
        whole = [found[kind]["whole"] for found in rounds]
        figures[f"{size}_{kind}_wait_ratio"] = statistics.median(waits)
        figures[f"{size}_{kind}_longest_wait_ratio"] = max(waits)
        figures[f"{size}_{kind}_slowing_ratio"] = statistics.median(extra)
        figures[f"{size}_{kind}_whole_seconds"] = statistics.median(whole)
    return figures, rounds


def main() -> None:
    """Print a line a size and kind; write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["mini", "small"], choices=list(BERT_SIZES))
    parser.add_argument("--vocab_size", type=int, default=30522)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--updates", type=int, default=6, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where checkpoints go; default: temporary")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(cpu_threads(0))
    torch.manual_seed(0)
    figures: dict[str, float] = {}
    runs = {}
    for size in arguments.sizes:
        found, runs[size] = measure(size, arguments)
        figures |= found
        print(
            f"{size}: an update takes {found[f'{size}_step_seconds']:.3f} s, a checkpoint has "
            f"{found[f'{size}_checkpoint_mib']:.0f} MiB"
        )
        for kind in KINDS[1:]:
            of_kind = {
                name: found[f"{size}_{kind}_{name}"]
                for name in (
                    "wait_ratio",
                    "longest_wait_ratio",
                    "slowing_ratio",
                    "whole_seconds",
                )
            }
            print(
                f"  {kind:10} wait {of_kind['wait_ratio']:.2f} (at most "
                f"{of_kind['longest_wait_ratio']:.2f}) of an update, slowing "
                f"{of_kind['slowing_ratio']:+.2f}, whole after {of_kind['whole_seconds']:.2f} s"
            )
        write_results(arguments.json, figures, runs=runs)


if __name__ == "__main__":
    main()
