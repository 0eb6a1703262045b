"""Scoring minimal pairs against a loop that masks one position at a time, side by side in one run.

The loop is what one writes with stock transformers: one forward of one masked sentence each, all of
the vocabulary at all positions, in float32. Ours is
`bert_pretrain.evaluation.minimal_pairs.score_pairs`, which gives the same sums, in float32 and,
where the machine computes in it natively, in bfloat16 with the pairs too close for it in float32
again; it scores both variants, token by token and within words, the loop the first alone. Weights
are random, of bert-mini (4 layers, width 256) with a vocabulary of 30,522 by default; pairs are the
package's templates, with further words so that there are many.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from results import write_results
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from bert_pretrain.evaluation.minimal_pairs import (
    MinimalPair,
    PairScores,
    score_pairs,
    template_pairs,
)
from bert_pretrain.evaluation.pseudo_likelihood import encode_sentences
from bert_pretrain.hardware import cpu_threads, native_precision
from bert_pretrain.models.text_encoder_config import BERT_SIZES, named_config
from bert_pretrain.text.tokenizers import load_tokenizer

# In front of a template: as many different pairs of sentences as BLiMP has, of its lengths.
OPENINGS = (
    "",
    "today ",
    "we know that ",
    "in this case ",
    "it is clear that ",
    "as you can see ",
    "i think that ",
)


def make_pairs(num_pairs: int) -> list[MinimalPair]:
    """Return different pairs, spread evenly over groups and lengths."""
    pairs = [
        pair._replace(good=opening + pair.good, bad=opening + pair.bad)
        for opening in OPENINGS
        for pair in template_pairs()
    ]
    return [pairs[number * len(pairs) // num_pairs] for number in range(num_pairs)]


@torch.inference_mode()
def loop(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, sentences: list[str]
) -> list[float]:
    """Return the sums of sentences, one forward per position."""
    sums = []
    for sentence in sentences:
        input_ids = tokenizer(sentence, return_tensors="pt")["input_ids"].to(model.device)
        total = 0.0
        for position in range(1, input_ids.shape[1] - 1):
            hidden = input_ids.clone()
            hidden[0, position] = tokenizer.mask_token_id
            scores = model(input_ids=hidden).logits[0, position]
            total += float(scores.log_softmax(-1)[input_ids[0, position]])
        sums.append(total)
    return sums


def timed_ours(
    model: BertForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: list[MinimalPair],
    *,
    bf16: bool,
) -> tuple[float, PairScores]:
    """Return seconds and scores."""
    start = time.perf_counter()
    scores = score_pairs(model, tokenizer, pairs, bf16=bf16)
    return time.perf_counter() - start, scores


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config_name", default="mini", choices=BERT_SIZES)
    parser.add_argument("--vocab_size", type=int, default=30522)
    parser.add_argument("--pairs", type=int, default=500, help="pairs that ours scores in a round")
    parser.add_argument(
        "--loop_pairs", type=int, default=10, help="pairs that the loop scores in a round"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(cpu_threads(0))
    torch.manual_seed(0)
    # Wider than a new model's weights, so that scores differ from position to position as a trained
    # one's do.
    config = named_config(
        arguments.config_name,
        vocab_size=arguments.vocab_size,
        pad_token_id=0,
        initializer_range=0.08,
    )
    model = BertForMaskedLM(config).eval()
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    tokenizer, pairs = load_tokenizer(None), make_pairs(arguments.pairs)
    ways = ["fp32"] + ["bf16"] * (native_precision() == "bf16")
    seconds: dict[str, list[float]] = {"loop": []} | {way: [] for way in ways}  # per pair
    scores: dict[str, PairScores] = {}
    sums: dict[int, float] = {}
    for number in range(arguments.rounds + 1):  # the first round warms up
        # Another part in every round, so that all lengths take part.
        rows = np.linspace(number, len(pairs) - 1, arguments.loop_pairs).astype(int).tolist()
        start = time.perf_counter()
        sentences = [pairs[row].good for row in rows] + [pairs[row].bad for row in rows]
        found = loop(model, tokenizer, sentences)
        taken = {"loop": (time.perf_counter() - start) / len(rows)}
        sums |= dict(zip(rows, found, strict=False))
        num_positions = [
            sum(_num_positions([pairs[row] for row in rows])) / len(rows),
            _mean_positions(pairs),
        ]
        taken["loop"] *= num_positions[1] / num_positions[0]
        for way in ways:
            elapsed, scores[way] = timed_ours(model, tokenizer, pairs, bf16=way == "bf16")
            taken[way] = elapsed / len(pairs)
        if number:
            for way, value in taken.items():
                seconds[way].append(value)
    report(arguments, pairs, seconds, scores, sums)


def _num_positions(pairs: list[MinimalPair]) -> list[int]:
    sentences = encode_sentences(
        load_tokenizer(None), [sentence for pair in pairs for sentence in pair[:2]]
    )
    return [int((sentence.words >= 0).sum()) for sentence in sentences]


def _mean_positions(pairs: list[MinimalPair]) -> float:
    return sum(_num_positions(pairs)) / len(pairs)


def report(
    arguments: argparse.Namespace,
    pairs: list[MinimalPair],
    seconds: dict[str, list[float]],
    scores: dict[str, PairScores],
    sums: dict[int, float],
) -> None:
    """Print what was found and write it as JSON."""
    figures: dict[str, float] = {}
    print(
        f"{arguments.config_name}, vocabulary {arguments.vocab_size:,}, {len(pairs):,} pairs, "
        f"{_mean_positions(pairs) / 2:.1f} positions a sentence"
    )
    for way, values in seconds.items():
        ratios = sorted(a / b for a, b in zip(seconds["loop"], values, strict=True))
        figures[f"{way}_pairs_per_second"] = 1 / statistics.median(values)
        line = f"{way:5} {figures[f'{way}_pairs_per_second']:9,.2f} pairs/s"
        if way != "loop":
            figures[f"loop_to_{way}_time_ratio"] = statistics.median(ratios)
            line += f"; the loop takes {statistics.median(ratios):.1f} times as long "
            line += f"({ratios[0]:.1f} to {ratios[-1]:.1f})"
        print(line)
    figures["fp32_largest_difference_to_loop"] = max(
        abs(scores["fp32"].good[0, row] - value) for row, value in sums.items()
    )
    print(
        "largest difference of a sum to the loop's, float32: "
        f"{figures['fp32_largest_difference_to_loop']:.1e} nats"
    )
    if "bf16" in scores:
        coarse, exact = scores["bf16"], scores["fp32"]
        differing = (coarse.good > coarse.bad) != (exact.good > exact.bad)
        figures["bf16_error_nats"] = coarse.error
        figures["bf16_rescored_share"] = float(coarse.is_rescored.mean())
        figures["bf16_judgements_changed_share"] = float(differing.mean())
        print(
            f"bf16: good - bad off by {coarse.error:.3f} nats (standard deviation), "
            f"{100 * figures['bf16_rescored_share']:.1f} % of pairs in float32 again, "
            f"{int(differing.sum())} of {differing.size} judgements changed"
        )
    write_results(arguments.json, figures, runs=arguments.rounds)


if __name__ == "__main__":
    main()
