"""From the name of a model to what embeds texts or images with it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from bert_pretrain.data.run_folder import model_in
from bert_pretrain.downstream.models import (
    is_image_config,
    load_text_tokenizer,
    longest_row,
    read_model_config,
)
from bert_pretrain.embedding.embedder import Embedder
from bert_pretrain.embedding.images import ImageEmbedder
from bert_pretrain.embedding.texts import TextEmbedder
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import default_device, native_precision
from bert_pretrain.models.embedding import Pooling, weights_digest
from bert_pretrain.models.fast_layers import use_fast_layers
from bert_pretrain.models.fast_paths import choose_attention
from bert_pretrain.models.image_encoder import load_image_encoder
from bert_pretrain.models.image_processor import PIXEL_RANGE, load_processor
from bert_pretrain.models.loaded_models import load_encoder
from bert_pretrain.models.loading import describe_excess
from bert_pretrain.text.tokenizers import tokenizer_hash

_LONGEST = 512  # tokens, where neither model nor tokenizer sets a limit


@dataclass(frozen=True)
class EmbeddingRule:
    """How a model makes vectors.

    Attributes:
        pooling: of texts, see `models.embedding.pool`; an image encoder has its own.
        max_seq_length: tokens of a text, special ones included; 0 = as many as the model takes and
            was trained on.
        mixed_precision: `no` = float32; `bf16` = products in bfloat16; `auto` = where it is native.
        pixel_range: of images of more than 8 bits, the grey levels that become black and white;
            None = those that the model was trained on.
    """

    pooling: Pooling = "mean"
    max_seq_length: int = 0
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    pixel_range: Sequence[float] | None = None


def load_embedder(
    model: str, rule: EmbeddingRule | None = None, *, device: torch.device | None = None
) -> Embedder:
    """Load what embeds texts or images with a model.

    Args:
        model: folder or Hub id of any text or image encoder of transformers, or the directory of a
            run: its `final/`, else its newest checkpoint.
        rule: default: the mean of real tokens, in float32.
        device: that computes; default: the accelerator if there is one.

    Raises:
        InputError: there is no such model, it lacks weights, tokenizer or image processor, its
            weights hold NaN, or the rule does not suit it.
    """
    rule = rule or EmbeddingRule()
    name = model_in(model)
    config = read_model_config(name)
    precision = rule.mixed_precision
    is_bf16 = (native_precision() if precision == "auto" else precision) == "bf16"
    load = _image_embedder if is_image_config(config) else _text_embedder
    embedder = load(name, config, rule, is_bf16)
    embedder.identity["mixed_precision"] = "bf16" if is_bf16 else "no"
    embedder.model.eval().to(device or default_device())
    return embedder


def _text_embedder(
    name: str, config: PreTrainedConfig, rule: EmbeddingRule, is_bf16: bool
) -> Embedder:
    if config.is_encoder_decoder:
        raise InputError(
            f"{name!r} is a model of type {config.model_type!r} with encoder and decoder, which "
            "has no states of a text alone",
            advice="pass an encoder as `model`",
        )
    tokenizer = load_text_tokenizer(name, config)
    length, notes = _row_length(rule.max_seq_length, config, tokenizer)
    encoder, missing = load_encoder(name, config)
    digest = weights_digest(encoder, without=missing)
    if "attention_mask" not in inspect.signature(encoder.forward).parameters:
        raise InputError(
            f"{name!r} is a model of type {config.model_type!r}, which cannot be told what padding "
            "is",
            advice="pass another `model`",
        )
    choose_attention(encoder, length)
    pieces = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    embedder = TextEmbedder(
        name=name,
        model=encoder,
        bf16=is_bf16,
        identity={
            "model": digest,
            "tokenizer": tokenizer_hash(tokenizer)
            if tokenizer.is_fast
            else hashlib.sha256(pieces).hexdigest(),
            "pooling": rule.pooling,
            "max_seq_length": length,
        },
        notes=notes,
        tokenizer=tokenizer,
        pooling=rule.pooling,
        max_seq_length=length,
    )
    if rule.pooling == "cls":
        _check_first_token(embedder)
    return embedder


def _row_length(
    asked: int, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, tuple[str, ...]]:
    """Return the tokens of a row, and a note where positions may be untrained."""
    longest, trained = longest_row(config, tokenizer), tokenizer.model_max_length
    is_limited = min(longest, trained) < 10**6  # transformers writes 1e30 for no limit
    length = asked or (min(longest, trained) if is_limited else _LONGEST)
    shortest = tokenizer.num_special_tokens_to_add(pair=False) + 1
    if not shortest <= length <= longest:
        allowed = f"in {shortest}..{longest} for this model, or 0"
        raise InputError.out_of_range("max_seq_length", asked, allowed)
    excess = describe_excess(length, tokenizer)
    return length, (excess,) if excess else ()


def _check_first_token(embedder: TextEmbedder) -> None:
    """Raise `InputError` unless the tokenizer's rows begin with its [CLS]."""
    tokenizer = embedder.tokenizer
    row = tokenizer("a")["input_ids"]
    if tokenizer.cls_token_id is None or row[0] != tokenizer.cls_token_id:
        raise InputError(
            f"`pooling` is cls but rows of the tokenizer of {embedder.name!r} do not begin with "
            "such a token",
            advice="pass `pooling` mean",
        )


def _image_embedder(
    name: str, config: PreTrainedConfig, rule: EmbeddingRule, is_bf16: bool
) -> Embedder:
    for parameter in ("pooling", "max_seq_length"):
        if getattr(rule, parameter) != getattr(EmbeddingRule(), parameter):
            raise InputError(
                f"`{parameter}` means nothing to {name!r}, an image encoder",
                advice="leave it out, or change `model`",
            )
    processor = load_processor(name)
    encoder = load_image_encoder(name, parameter="model")
    use_fast_layers(encoder)
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str).encode()
    given = {}
    if rule.pixel_range is not None:
        given = {PIXEL_RANGE: list(rule.pixel_range)}
        setattr(processor, PIXEL_RANGE, given[PIXEL_RANGE])
    return ImageEmbedder(
        name=name,
        model=encoder,
        bf16=is_bf16,
        identity={
            "model": weights_digest(encoder),
            "image_processor": hashlib.sha256(settings).hexdigest(),
            **given,
        },
        notes=(),
        processor=processor,
        num_channels=config.num_channels,
    )


def full_name(embedder: Embedder) -> str:
    """Return the name under which an embedder's model is found from any current folder."""
    path = Path(embedder.name)
    return str(path.resolve()) if path.is_dir() else embedder.name
