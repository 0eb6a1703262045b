"""What planning by blocks costs in quality: the plans of real text, and what is learnt from them.

The corpora (--data_files, documents as .jsonl.gz with "text") are far smaller than a block of
training is, so blocks are forced to be small: --blocks gives their rows, and of how many places of
the corpus each is a sample. Neighbouring documents speak of the same things, so few places are
worse; a block of training has 256 of some thousand rows. The global plan is that of one block. All
are compared by their rows in two epochs:

    random next      share of random pairs, 0.5 if fair
    unpaired         windows without a partner
    fill             real tokens of a row, of --max_seq_length: matching cuts some
    length accuracy  of a decision tree that sees both lengths and the kind of end alone, taught on
                     the first epoch and tested on the second, 0.5 if they tell nothing
    length gap       difference of the mean length of B between the labels, tokens

and by a model that learns next-sentence prediction from either plan, with every seed of --seeds,
from --num_train_epochs epochs: its loss and accuracy on the same held-out rows. It is a bag of
token embeddings, which in a minute on a processor learns what a BERT learns first: whether A and B
speak of the same things.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from results import write_results
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from bert_pretrain.publishing.hub import download_corpus
from bert_pretrain.text import blocks
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.opening import open_corpus
from bert_pretrain.text.pairs import EpochPlan
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.tokenizers import load_tokenizer
from bert_pretrain.text.windows import IS_RANDOM, NO_PAIR, sentence_ends

Segments: TypeAlias = tuple[torch.Tensor, ...]


def epoch_rows(
    corpus: PreparedCorpus,
    way: argparse.Namespace,
    epoch: int,
    seed: int,
    documents: NDArray[np.int64] | None = None,
) -> list[EpochPlan]:
    """Return the pairs of an epoch, by plans, of the training documents by default."""
    made = blocks.TextBlocks(
        corpus.store,
        corpus.train_documents if documents is None else documents,
        way.max_seq_length,
        short_seq_prob=0.1,
        pair_mode="exact",
        seed=seed,
        rows_per_block=way.rows,
    )
    plans = [made.planner(epoch, block)() for block in range(made.num_blocks)]
    return [plan.take(np.flatnonzero(plan.next_sentence_label != NO_PAIR)) for plan in plans]


def compare_plans(corpus: PreparedCorpus, way: argparse.Namespace) -> dict[str, float]:
    """Return what the rows of two epochs look like."""
    features, labels = [], []
    for epoch in (0, 1):
        plans = epoch_rows(corpus, way, epoch, 1)
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
    sizes = [len(plan) for plan in plans]
    return {
        "num_blocks": len(plans),
        "rows": len(label),
        "block_rows_spread": float(np.std(sizes) / np.mean(sizes)),
        "random_share": float(labels[1].mean()),
        "unpaired_share": num_unpaired / (len(label) + num_unpaired),
        "fill_share": float((a + b + 3).mean() / way.max_seq_length),
        "length_accuracy": float((tree.predict(features[1]) == labels[1]).mean()),
        "length_gap": float(b[labels[1]].mean() - b[~labels[1]].mean()),
    }


class BagModel(nn.Module):
    """Tells whether B follows A by the mean embeddings of their tokens."""

    def __init__(self, vocab_size: int, width: int = 64) -> None:
        """Begin with random embeddings."""
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocab_size, width, mode="mean")
        self.head = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, segments: Segments) -> torch.Tensor:
        """Return the logit, (B,), of B being random."""
        a, b = self.embedding(*segments[:2]), self.embedding(*segments[2:])
        return self.head(torch.cat([a * b, (a - b).abs(), a + b], dim=1)).squeeze(1)


def segments_of(corpus: PreparedCorpus, plan: EpochPlan) -> Segments:
    """Return tokens and offsets of A, then of B, as an `EmbeddingBag` takes them."""
    found: list[torch.Tensor] = []
    for starts, lengths in ((plan.a_start, plan.a_length), (plan.b_start, plan.b_length)):
        pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
        tokens = np.concatenate([corpus.store.read(*pair) for pair in pairs]).astype(np.int64)
        offsets = np.cumsum(lengths, dtype=np.int64) - lengths
        found += [torch.from_numpy(tokens), torch.from_numpy(offsets)]
    return tuple(found)


def train(corpus: PreparedCorpus, way: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train a model for some epochs and return what it reaches on held-out rows."""
    torch.manual_seed(seed)
    model = BagModel(corpus.manifest["tokenizer"]["vocab_size"])
    num_updates = 0
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(way.num_train_epochs):
        for plan in epoch_rows(corpus, way, epoch, seed):
            for first in range(0, len(plan), 256):
                rows = plan.take(np.arange(first, min(first + 256, len(plan))))
                loss = F.binary_cross_entropy_with_logits(
                    model(segments_of(corpus, rows)), labels_of(rows)
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                num_updates += 1
    held_out = argparse.Namespace(**(vars(way) | {"rows": sys.maxsize}))
    right: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for epoch in range(5):  # other pairs of the same documents
            (plan,) = epoch_rows(corpus, held_out, epoch, 0, corpus.validation_documents)
            logits, labels = model(segments_of(corpus, plan)), labels_of(plan)
            right.append((logits > 0) == (labels > 0))
            losses.append(F.binary_cross_entropy_with_logits(logits, labels, reduction="none"))
    return {
        "nsp_accuracy": float(torch.cat(right).float().mean()),
        "nsp_loss": float(torch.cat(losses).mean()),
        "updates": num_updates,
        "held_out_rows": len(torch.cat(right)),
    }


def labels_of(plan: EpochPlan) -> torch.Tensor:
    """Return 1 where B is random, else 0."""
    return torch.from_numpy((plan.next_sentence_label == IS_RANDOM).astype(np.float32))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_files", nargs="+", required=True)
    parser.add_argument(
        "--blocks",
        nargs="+",
        default=["4096x256", "16384x64", "4096x16"],
        metavar="ROWSxPLACES",
    )
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--num_train_epochs", type=int, default=4, help="0 = train no model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    corpus = open_corpus(
        TextSource(data_files=arguments.data_files, validation_share=0.1),
        load_tokenizer(None),
        seed=42,
        download=download_corpus,
        show_progress=False,
    )
    figures: dict[str, float] = {}
    runs = []
    for name in ("global", *arguments.blocks):
        rows, places = (sys.maxsize, 1) if name == "global" else map(int, name.split("x"))
        blocks.PIECES_PER_BLOCK = places
        way = argparse.Namespace(**vars(arguments), rows=rows)
        found = compare_plans(corpus, way)
        print(name, {key: round(value, 4) for key, value in found.items()}, flush=True)
        figures |= {f"{name}_{key}": value for key, value in found.items()}
        for seed in arguments.seeds if arguments.num_train_epochs else ():
            learnt = train(corpus, way, seed)
            print(name, seed, {key: round(value, 4) for key, value in learnt.items()}, flush=True)
            runs.append({"plan": name, "seed": seed} | learnt)
        for key in ("nsp_loss", "nsp_accuracy"):
            values = [run[key] for run in runs if run["plan"] == name]
            if values:
                figures[f"{name}_{key}"] = float(np.mean(values))
    write_results(arguments.json, figures, runs=runs)


if __name__ == "__main__":
    main()
