"""What planning by blocks costs in quality: the plans of real text, and what is learnt from them.

The corpora (--data_files, documents as .jsonl.gz with "text") are far smaller than a block of
training is, so blocks are forced to be small: --rows_per_block. The global plan is that of one
block. Both are compared by their rows in two epochs:

    random next      share of random pairs, 0.5 if fair
    unpaired         windows without a partner
    fill             real tokens of a row, of --max_seq_length: matching cuts some
    length accuracy  of a decision tree that sees both lengths and the kind of end alone, taught on
                     the first epoch and tested on the second, 0.5 if they tell nothing
    length gap       difference of the mean length of B between the labels, tokens

and by a model trained on either, with every seed of --seeds, for --max_steps updates: its loss and
next-sentence accuracy on the same held-out rows. --max_steps 0 trains none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from results import write_results
from sklearn.tree import DecisionTreeClassifier

from bert_pretrain.commands.pretrain import main as pretrain
from bert_pretrain.publishing.hub import download_corpus
from bert_pretrain.text import blocks
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.opening import open_corpus
from bert_pretrain.text.pairs import IS_RANDOM, EpochPlan
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.tokenizers import load_tokenizer
from bert_pretrain.text.windows import sentence_ends


def epoch_rows(corpus: PreparedCorpus, way: argparse.Namespace, epoch: int) -> list[EpochPlan]:
    """Return the plans of an epoch."""
    made = blocks.TextBlocks(
        corpus.store,
        corpus.train_documents,
        way.max_seq_length,
        short_seq_prob=0.1,
        pair_mode="exact",
        seed=1,
        rows_per_block=way.rows,
    )
    return [made.planner(epoch, block)() for block in range(made.num_blocks)]


def compare_plans(corpus: PreparedCorpus, way: argparse.Namespace) -> dict[str, float]:
    """Return what the rows of two epochs look like."""
    features, labels = [], []
    for epoch in (0, 1):
        plans = epoch_rows(corpus, way, epoch)
        a, b, start, label = (
            np.concatenate([getattr(plan, name) for plan in plans])
            for name in ("a_length", "b_length", "b_start", "next_sentence_label")
        )
        ends = sentence_ends(corpus.store, start + b)
        features.append(np.column_stack([a, b, a + b, ends]))
        labels.append(label == IS_RANDOM)
    tree = DecisionTreeClassifier(min_samples_leaf=20, random_state=0)
    tree.fit(features[0], labels[0])
    num_unpaired = sum(plan.num_unpaired for plan in plans)
    return {
        "num_blocks": len(plans),
        "rows": len(label),
        "block_rows_spread": float(
            np.std([len(p) for p in plans]) / np.mean([len(p) for p in plans])
        ),
        "random_share": float(labels[1].mean()),
        "unpaired_share": num_unpaired / (len(label) + num_unpaired),
        "fill_share": float((a + b + 3).mean() / way.max_seq_length),
        "length_accuracy": float((tree.predict(features[1]) == labels[1]).mean()),
        "length_gap": float(b[labels[1]].mean() - b[~labels[1]].mean()),
    }


def train(corpus: Path, way: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train a model in a process of its own and return its last held-out row."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--dataset_name", str(corpus), "--output_dir", f"{folder}/run"]
        flags += ["--config_name", way.config_name, "--max_steps", str(way.max_steps)]
        flags += ["--max_seq_length", str(way.max_seq_length), "--max_hours", "0"]
        flags += ["--learning_rate", str(way.learning_rate), "--seed", str(seed)]
        flags += ["--global_batch_size", "64", "--per_device_train_batch_size", "64"]
        flags += ["--eval_steps", "0", "--max_eval_rows", "0"]
        command = [sys.executable, __file__, "--train", str(way.rows), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, lines) if row["split"] == "validation"][-1]
    return {name: last[name] for name in ("mlm_loss", "nsp_loss", "nsp_accuracy", "epoch")}


def main() -> None:
    """Print both tables."""
    if sys.argv[1:2] == ["--train"]:
        blocks.ROWS_PER_BLOCK["exact"] = int(sys.argv[2])
        raise SystemExit(pretrain(sys.argv[3:]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_files", nargs="+", required=True)
    parser.add_argument("--rows_per_block", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--config_name", default="tiny")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    corpus = open_corpus(
        TextSource(data_files=arguments.data_files),
        load_tokenizer(None),
        seed=42,
        download=download_corpus,
    )
    figures: dict[str, float] = {}
    runs = []
    for rows in (sys.maxsize, *arguments.rows_per_block):
        way = argparse.Namespace(**vars(arguments), rows=rows)
        name = "global" if rows == sys.maxsize else f"blocks_{rows}"
        found = compare_plans(corpus, way)
        print(name, {key: round(value, 4) for key, value in found.items()}, flush=True)
        figures |= {f"{name}_{key}": value for key, value in found.items()}
        for seed in arguments.seeds if arguments.max_steps else ():
            learnt = train(corpus.folder, way, seed)
            print(name, seed, {key: round(value, 4) for key, value in learnt.items()}, flush=True)
            runs.append({"plan": name, "seed": seed} | learnt)
        for key in ("mlm_loss", "nsp_loss", "nsp_accuracy"):
            values = [run[key] for run in runs if run["plan"] == name]
            if values:
                figures[f"{name}_{key}"] = float(np.mean(values))
    write_results(arguments.json, figures, runs=runs)


if __name__ == "__main__":
    main()
