"""Very small models and labelled rows for the tests of fine-tuning."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from bert_pretrain.config.finetuning import RecipeArguments, TaskDataArguments
from bert_pretrain.config.flags import pick
from bert_pretrain.downstream.labelled_rows import LabelledSource
from bert_pretrain.downstream.training import FinetuningRecipe
from bert_pretrain.text.tokenizers import default_tokenizer_folder

GOOD, BAD = ["value", "list", "array"], ["error", "fault", "warning"]
FILLERS = ["the", "function", "returns", "a", "of", "name", "file", "with", "index"]


def make_text_model(folder: Path, **overrides: Any) -> str:
    """Save a random BERT of two layers with the tokenizer of the package."""
    tokenizer = AutoTokenizer.from_pretrained(default_tokenizer_folder())
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    BertForPreTraining(BertConfig(**(fields | overrides))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_image_model(folder: Path) -> str:
    """Save a random ViT for images of 8 x 8 grey pixels with its image processor."""
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    torch.manual_seed(0)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    processor = ViTImageProcessorPil(
        size={"height": 8, "width": 8}, image_mean=[0.3], image_std=[0.4], do_convert_rgb=False
    )
    processor.save_pretrained(folder)
    return str(folder)


def source_of(**flags: Any) -> LabelledSource:
    """Return the source that flags name, all others at their defaults."""
    data = TaskDataArguments(**flags)
    return pick(LabelledSource, data, pixel_range=data.pixel_range.ends)


def recipe_of(**flags: Any) -> FinetuningRecipe:
    """Return the recipe of flags, in float32 and all others at their defaults."""
    return pick(FinetuningRecipe, RecipeArguments(mixed_precision="no"), **flags)


def sentences(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return sentences in which one word gives the class away."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        words = generator.choices(FILLERS, k=generator.randint(2, 9))
        label = ("bad", "good")[number % 2]
        words.insert(
            generator.randint(0, len(words)), generator.choice(GOOD if label == "good" else BAD)
        )
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
