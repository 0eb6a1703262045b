"""Embedding texts against the loop that one writes with transformers, side by side in one run.

The loop: `AutoTokenizer` and `AutoModel` with their defaults, batches in the order of the texts,
each padded to its longest one, float32, mean over the attention mask. Ours is
`bert_pretrain.embedding`, with the same batch size and the same numbers: in float32 and, where the
machine computes in it natively, in bfloat16. Both begin with texts and end with a NumPy array.
Weights are random; texts are random words, log-normal in number as documents are, the longest ones
cut at `--max_seq_length`. Every round takes other texts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from results import write_results
from transformers import AutoModel, AutoTokenizer, BertModel

from bert_pretrain.embedding.loading import EmbeddingRule, load_embedder
from bert_pretrain.hardware import cpu_threads, default_device, native_precision
from bert_pretrain.models.text_encoder_config import BERT_SIZES, named_config
from bert_pretrain.text.tokenizers import load_tokenizer


def make_texts(count: int, words: list[str], *, mean: float, seed: int) -> list[str]:
    """Return texts whose numbers of words are log-normal with a deviation of 1 of the logarithm."""
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.normal(np.log(mean) - 0.5, 1.0, count)).astype(int) + 1
    return [" ".join(generator.choice(words, length)) for length in lengths]


def embed_plainly(
    folder: str, *, batch_size: int, max_length: int
) -> Callable[[list[str]], np.ndarray]:
    """Return a function that embeds texts as one does with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval().to(default_device())

    @torch.no_grad()
    def embed(texts: list[str]) -> np.ndarray:
        found = []
        for first in range(0, len(texts), batch_size):
            inputs = tokenizer(
                texts[first : first + batch_size],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            ).to(model.device)
            states = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            found.append(((states * mask).sum(1) / mask.sum(1)).cpu().numpy())
        return np.concatenate(found)

    return embed


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config_name", default="mini", choices=BERT_SIZES)
    parser.add_argument("--texts", type=int, default=1500, help="texts of a round")
    parser.add_argument("--words", type=float, default=60, help="mean words of a text")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_seq_length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(cpu_threads(0))
    tokenizer = load_tokenizer(None)
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 2]
    words.sort()
    torch.manual_seed(0)
    config = named_config(arguments.config_name, vocab_size=len(tokenizer), pad_token_id=0)
    batch_size, length = arguments.batch_size, arguments.max_seq_length
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ways = {"plain": embed_plainly(folder, batch_size=batch_size, max_length=length)}
        for name in ["no"] + ["bf16"] * (native_precision() == "bf16"):
            embedder = load_embedder(
                folder, EmbeddingRule(max_seq_length=length, mixed_precision=name)
            )
            ways["fp32" if name == "no" else name] = lambda texts, embedder=embedder: (
                embedder.embed(texts, batch_size=batch_size)
            )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    differences: dict[str, float] = dict.fromkeys(ways, 0.0)
    for number in range(arguments.rounds + 1):  # the first round warms up
        texts = make_texts(arguments.texts, words, mean=arguments.words, seed=number)
        found = {}
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way(texts)
            taken = time.perf_counter() - start
            if number:
                seconds[name].append(taken)
        for name, embeddings in found.items():
            largest = float(np.abs(embeddings - found["plain"]).max())
            differences[name] = max(differences[name], largest)
    report(arguments, seconds, differences)


def report(
    arguments: argparse.Namespace,
    seconds: dict[str, list[float]],
    differences: dict[str, float],
) -> None:
    """Print texts per second and ratios, and write them."""
    print(
        f"bert-{arguments.config_name} on {default_device()}, {arguments.texts:,} texts of "
        f"{arguments.words:g} words on average, at most {arguments.max_seq_length} tokens, "
        f"batches of {arguments.batch_size}"
    )
    figures = {}
    for name, values in seconds.items():
        figures[f"{name}_texts_per_second"] = arguments.texts / statistics.median(values)
        line = f"{name:5} {figures[f'{name}_texts_per_second']:9,.1f} texts/s"
        if name != "plain":
            ratios = sorted(a / b for a, b in zip(seconds["plain"], values, strict=True))
            figures[f"plain_to_{name}_time_ratio"] = statistics.median(ratios)
            figures[f"{name}_largest_difference_to_plain"] = differences[name]
            line += (
                f"; the loop takes {statistics.median(ratios):.2f} times as long "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}); largest difference of a number "
                f"{differences[name]:.1e}"
            )
        print(line)
    write_results(arguments.json, figures, runs=arguments.rounds)


if __name__ == "__main__":
    main()
