"""Time and memory of planning an epoch: as a whole, and by blocks.

The corpora are simulated: as many shards as wanted share a few outlines (lengths of sentences and
documents), and their tokens are one number in memory, since planning reads none. Every line is
measured in a process of its own. Memory is what that process took beyond the opened corpus, at its
peak. `first row` is from the opened corpus to the first plan, which is what the start of a run
waits for; `a block` is the time of one later in the epoch, which a process makes ahead. Both are
also given as seconds of a processor, since other programs may slow the clock's. What a global plan
of more rows than --max_global_rows would take is not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from results import write_results

from bert_pretrain.hardware import peak_resident_bytes
from bert_pretrain.text.blocks import TextBlocks
from bert_pretrain.text.prepared import Shard, TokenStore

TOKENS_PER_SHARD = 4_000_000  # as preparation writes them
NUM_OUTLINES = 8
SIZES = (1_000_000, 10_000_000, 100_000_000)


def simulated_store(num_rows: int, max_seq_length: int, seed: int = 0) -> TokenStore:
    """Return a corpus of about so many rows: sentences of 25 tokens, documents of 40 sentences."""
    generator = np.random.default_rng(seed)
    outlines = []
    for _ in range(NUM_OUTLINES):
        count = TOKENS_PER_SHARD // 1000
        sentences = np.ceil(generator.lognormal(3.2, 1.0, count)).astype(np.int64)
        lengths = np.ceil(generator.lognormal(3.0, 0.6, sentences.sum())).astype(np.uint32)
        lengths = np.minimum(lengths, 400)
        outlines.append((lengths, sentences, int(lengths.sum(dtype=np.int64))))
    shards: list[Shard] = []
    first_token = first_document = 0
    while first_token < num_rows * max_seq_length * 0.87:
        lengths, sentences, num_tokens = outlines[len(shards) % NUM_OUTLINES]
        tokens = np.broadcast_to(np.uint16(7), num_tokens)
        starts = np.broadcast_to(np.uint8(1), num_tokens)
        shards.append(Shard(first_token, first_document, tokens, starts, lengths, sentences))
        first_token += num_tokens
        first_document += len(sentences)
    return TokenStore(shards)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the seconds and bytes of one way of planning."""
    store = simulated_store(arguments.rows, arguments.max_seq_length)
    documents = np.arange(store.num_documents, dtype=np.int64)
    before = peak_resident_bytes() or 0
    begin, begin_cpu = time.perf_counter(), time.process_time()
    blocks = TextBlocks(
        store,
        documents,
        arguments.max_seq_length,
        short_seq_prob=0.1,
        pair_mode=arguments.pair_mode,
        seed=1,
        rows_per_block=sys.maxsize if arguments.way == "global" else arguments.rows_per_block,
    )
    plan = blocks.planner(0, 0)()
    first = time.perf_counter() - begin
    first_cpu = time.process_time() - begin_cpu
    found = {
        "rows": len(plan),
        "num_blocks": blocks.num_blocks,
        "first_row_seconds": first,
        "first_row_cpu_seconds": first_cpu,
        "block_seconds": first,
        "block_cpu_seconds": first_cpu,
    }
    if blocks.num_blocks > 1:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for block in (1, 2):
            plan = blocks.planner(0, block)()
        found["block_seconds"] = (time.perf_counter() - begin) / 2
        found["block_cpu_seconds"] = (time.process_time() - begin_cpu) / 2
    columns = ("a_start", "a_length", "b_start", "b_length", "next_sentence_label")
    found["plan_bytes"] = sum(getattr(plan, name).nbytes for name in columns)
    found["peak_bytes"] = (peak_resident_bytes() or 0) - before
    return found


def measured(rows: int, way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--rows", str(rows), "--way", way]
    for name in ("max_seq_length", "pair_mode", "rows_per_block"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="rows of an epoch")
    parser.add_argument("--max_global_rows", type=int, default=10_000_000)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--pair_mode", choices=("exact", "google", "none"), default="exact")
    parser.add_argument("--rows_per_block", type=int, default=0, help="0 = as in training")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=("global", "blocks"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments)))
        return
    figures: dict[str, float] = {}
    print("rows         way      blocks  first row (processor)  a block (processor)  peak MB  plan")
    for rows in arguments.sizes:
        for way in ("global", "blocks"):
            if way == "global" and rows > arguments.max_global_rows:
                continue
            found = measured(rows, way, arguments)
            seconds = "  ".join(
                f"{found[f'{what}_seconds']:>8.2f} s ({found[f'{what}_cpu_seconds']:>7.2f} s)"
                for what in ("first_row", "block")
            )
            print(
                f"{rows:<12,} {way:8} {found['num_blocks']:>6} {seconds} "
                f"{found['peak_bytes'] / 2**20:>8.0f} {found['plan_bytes'] / 2**20:>8.0f}",
                flush=True,
            )
            figures |= {f"{way}_{rows}_{name}": value for name, value in found.items()}
    write_results(arguments.json, figures, runs=1)


if __name__ == "__main__":
    main()
