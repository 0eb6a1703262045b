"""The [MASK] table: which words a masked language model expects, and how sure it is.

Sentences with masked words enter; the most probable words and the entropy of their distribution
leave. During training the table shows what is learnt: the distribution sharpens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bert_pretrain.text.layout import read_layouts


@dataclass(frozen=True)
class Probe:
    """A sentence with hidden words.

    Attributes:
        input_ids: ids with special tokens, some replaced by [MASK].
        positions: of the [MASK]s, ascending.
        original_ids: the tokens that they hide.
        sentence: the ids without special tokens, but for [MASK].
    """

    input_ids: list[int]
    positions: list[int]
    original_ids: list[int]
    sentence: list[int]


def make_probe(
    tokenizer: PreTrainedTokenizerFast, token_ids: list[int], positions: list[int]
) -> Probe:
    """Hide the tokens of a sentence, given without special tokens, that stand at `positions`."""
    sentence = list(token_ids)
    for position in positions:
        sentence[position] = tokenizer.mask_token_id
    layout = read_layouts(tokenizer).single
    input_ids, _ = layout.lay_out(sentence)
    first = len(layout.special_ids[0])
    hidden = [token_ids[position] for position in positions]
    return Probe(input_ids, [first + position for position in positions], hidden, sentence)


def word_positions(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], words: list[str]
) -> list[int]:
    """Return the positions of those of `words` that are one token of the sentence."""
    tokens = tokenizer.convert_ids_to_tokens(token_ids)
    wanted = {word.lower() for word in words}
    return [i for i, token in enumerate(tokens) if token.lower().lstrip("\u0120\u2581") in wanted]


@torch.no_grad()
def fill_mask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: list[Probe],
    *,
    num_candidates: int = 5,
) -> list[dict[str, Any]]:
    """Return one row per hidden word of every probe.

    Args:
        model: returns vocabulary scores as `prediction_logits` or `logits` (B, L, V).
        tokenizer: the model's.
        probes: sentences with hidden words.
        num_candidates: most probable words to list, at most V.

    Returns:
        Rows with `sentence` (with [MASK]), `position`, `original`, `probability` (of the original
        word), `entropy` (nats, of the whole distribution) and `candidates`, a list of [word,
        probability], most probable first.
    """
    was_training = model.training
    model.eval()
    rows = []
    for probe in probes:
        scores = _scores(model, probe)
        for position, original_id in zip(probe.positions, probe.original_ids, strict=True):
            probabilities = scores[position].float().softmax(-1)
            top_values, top_ids = (found.tolist() for found in probabilities.topk(num_candidates))
            rows.append(
                {
                    "sentence": tokenizer.decode(probe.sentence),
                    "position": position,
                    "original": tokenizer.decode([original_id]),
                    "probability": round(float(probabilities[original_id]), 6),
                    "entropy": round(float(torch.special.entr(probabilities).sum()), 4),
                    "candidates": [
                        [tokenizer.decode([token_id]), round(probability, 6)]
                        for token_id, probability in zip(top_ids, top_values, strict=True)
                    ],
                }
            )
    model.train(was_training)
    return rows


@torch.no_grad()
def most_probable(model: PreTrainedModel, probe: Probe) -> list[int]:
    """Return the id of the most probable token at each position; the model must be in eval mode."""
    return _scores(model, probe)[probe.positions].argmax(-1).tolist()


def _scores(model: PreTrainedModel, probe: Probe) -> Tensor:
    """Return vocabulary scores (L, V)."""
    output = model(input_ids=torch.tensor([probe.input_ids], device=model.device))
    scores: Tensor = output.prediction_logits if "prediction_logits" in output else output.logits
    return scores[0]


def format_table(rows: list[dict[str, Any]]) -> str:
    """Lay rows of `fill_mask` out as text: a line per sentence, below it a line per hidden word."""
    lines = []
    for sentence, group in itertools.groupby(rows, key=lambda row: row["sentence"]):
        lines.append(f"  {sentence}")
        for row in group:
            original = f"{row['original']} {row['probability']:.3f}"
            lines.append(f"    {original:<20} entropy {row['entropy']:5.2f} |  {_words(row)}")
    return "\n".join(lines)


def format_over_time(rows: list[dict[str, Any]]) -> str:
    """Lay rows of several models out as text: a block per [MASK], in it a line per model.

    Args:
        rows: of `fill_mask`, each with the name of its `model`, in the order of the models;
            `original` is the word whose probability is followed.
    """
    width = max(len(row["model"]) for row in rows)
    blocks: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        sentence, position = row["sentence"], row["position"]
        lines = blocks.setdefault((sentence, position), [f"  {sentence}  (token {position})"])
        name, followed = (
            f"{row['model']:<{width}}",
            f"p({row['original']}) {row['probability']:.3f}",
        )
        lines.append(f"    {name}  entropy {row['entropy']:5.2f}  {followed} |  {_words(row)}")
    return "\n".join(line for lines in blocks.values() for line in lines)


def _words(row: dict[str, Any]) -> str:
    return "  ".join(f"{word} {probability:.3f}" for word, probability in row["candidates"])
