"""Build the text encoder to pretrain, new or continued; and how long its rows may be."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.models.any_encoder import stock_class, with_losses
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.fast_paths import choose_attention
from bert_pretrain.models.growing import PositionGrowth, grown
from bert_pretrain.models.image_encoder import set_dropout
from bert_pretrain.models.loaded_models import check_finite_weights, check_sizes, unread
from bert_pretrain.models.positions import num_positions
from bert_pretrain.models.text_encoder_config import (
    ARCHITECTURES,
    BERT_SIZES,
    fit_special_ids,
    is_named,
    named_config,
)


def build_text_model(
    *,
    config_name: str,
    model_name_or_path: str | None,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    dropout: float,
    with_pairs: bool,
    resize_vocab: bool = False,
    force_tokenizer: bool = False,
    grow_positions: PositionGrowth = "no",
) -> PreTrainedModel:
    """Return the model to pretrain.

    Args:
        config_name: see `is_named`, a folder or a Hub id; the vocabulary follows the tokenizer.
        model_name_or_path: a checkpoint to continue from, in place of `config_name`; heads that it
            lacks, such as the next-sentence head of a masked-LM checkpoint, are initialised.
        tokenizer: decides the vocabulary and the ids of special tokens.
        max_seq_length: rows must fit the model's positions.
        dropout: probability of all dropout while pretraining; the configuration, which fine-tuning
            will use, keeps its own.
        with_pairs: whether rows are pairs that are judged.
        resize_vocab: whether a checkpoint's tables may grow to the vocabulary, see `growing`.
        force_tokenizer: whether a checkpoint takes the tokenizer's ids of special tokens for its
            own, see `check_tokenizer`.
        grow_positions: how a checkpoint's positions may grow to the rows.

    Raises:
        InputError: no encoder that predicts masked words, one without a head for pairs where there
            are pairs, a vocabulary larger than the model's, or rows longer than its positions.
    """
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    if model_name_or_path is not None:
        config = _read_config(model_name_or_path, "model_name_or_path")
        check_tokenizer(
            config, tokenizer, resize_vocab=resize_vocab, force_tokenizer=force_tokenizer
        )
        if force_tokenizer:
            fit_special_ids(config, tokenizer)
    else:
        config = _new_config(config_name, tokenizer.pad_token_id)
        config.vocab_size = vocab_size
        fit_special_ids(config, tokenizer)
    model_class = _class_of(config, with_pairs=with_pairs)
    outline = _outline(config, model_class)
    larger = _positions_for(max_seq_length, outline, model_name_or_path, grow_positions)
    if vocab_size > config.vocab_size:
        larger["vocab_size"] = vocab_size
    # Some architectures keep probabilities as numbers, which could not be found in the model.
    own_dropouts = {
        name: value
        for name, value in config.to_dict().items()
        if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool)
    }
    for name in own_dropouts:
        setattr(config, name, dropout)
    if model_name_or_path is None:
        model = model_class(config)
    else:
        model = _with_weights(model_class, config, model_name_or_path)
    if larger:
        model = grown(model, larger, positions=grow_positions)
    for name, value in own_dropouts.items():
        setattr(model.config, name, value)
    set_dropout(model, dropout)
    if not isinstance(model, BertForPreTraining):  # which chooses between more ways
        choose_attention(model, max_seq_length)
    return model


def _with_weights(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, name: str
) -> PreTrainedModel:
    try:
        model: PreTrainedModel = model_class.from_pretrained(
            name, config=config, dtype="float32", use_safetensors=True
        )
    except Exception as error:  # the readers of files raise whatever they stumble over
        raise unread(name, error, parameter="model_name_or_path") from error
    check_finite_weights(model, name, parameter="model_name_or_path")
    return model


def check_text_model(
    config_name: str,
    model_name_or_path: str | None,
    max_seq_length: int,
    *,
    with_pairs: bool,
    grow_positions: PositionGrowth = "no",
) -> PreTrainedModel:
    """Check what can be told of a model before its tokenizer and text are there.

    Returns:
        The model as it is now, without weights: on the device `meta`.

    Raises:
        InputError: as `build_text_model`.
    """
    if model_name_or_path is not None:
        config = _read_config(model_name_or_path, "model_name_or_path")
    else:
        config = _new_config(config_name)
    outline = _outline(config, _class_of(config, with_pairs=with_pairs))
    _positions_for(max_seq_length, outline, model_name_or_path, grow_positions)
    return outline


def check_tokenizer(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    resize_vocab: bool,
    force_tokenizer: bool,
) -> None:
    """Check that a checkpoint's configuration allows a tokenizer.

    Raises:
        InputError: the tokenizer has ids that the model does not embed, unless `resize_vocab`; or
            it pads with another id than the model, unless `force_tokenizer`.
    """
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    if vocab_size > config.vocab_size and not resize_vocab:
        raise InputError(
            f"the ids of the tokenizer need a table of {vocab_size:,} rows but that of the model "
            f"to continue has {config.vocab_size:,}",
            advice="pass the model's own tokenizer as `tokenizer_name`, or `resize_vocab`, which "
            "adds the rows that are missing",
        )
    own = config.pad_token_id
    if own not in (None, tokenizer.pad_token_id) and not force_tokenizer:
        raise InputError(
            f"the tokenizer pads with the id {tokenizer.pad_token_id} but the model to continue "
            f"with {own} (pad_token_id in its config.json)",
            advice="pass the model's own tokenizer as `tokenizer_name`, correct that file, or pass "
            "`force_tokenizer`, with which the model takes the tokenizer's id",
        )


def _new_config(name: str, pad_token_id: int = 0) -> PreTrainedConfig:
    """Return the configuration of a name, for a vocabulary that is not known yet."""
    if is_named(name):
        # Large enough for the ids of special tokens that architectures begin with.
        return named_config(name, vocab_size=2**16, pad_token_id=pad_token_id)
    return _read_config(name, "config_name")


def _class_of(config: PreTrainedConfig, *, with_pairs: bool) -> type[PreTrainedModel]:
    """Return the class to train, which is of transformers or a subclass of the same name."""
    if config.model_type == "bert":
        return BertForPreTraining
    if with_pairs:
        config.num_labels = 2  # of ALBERT's head for pairs, whatever it was fine-tuned for
    stock = None
    # Those of images beside text, or of bytes, say in other words what they are.
    says_its_size = all(
        hasattr(config, n) for n in ("vocab_size", "hidden_size", "num_hidden_layers")
    )
    if says_its_size and not config.is_encoder_decoder:
        stock = stock_class(config, with_pairs=with_pairs)
        if with_pairs and stock is None and stock_class(config, with_pairs=False) is not None:
            raise InputError(
                f"{config.model_type} has no next-sentence head that this program knows, and "
                "`objective` mlm_nsp trains one",
                advice="pass `objective` mlm, or a `config_name` with such a head: "
                f"{', '.join(BERT_SIZES)}, or albert- before one of these",
            )
    if stock is None:
        raise InputError(
            f"transformers has no encoder of type {config.model_type!r} that predicts masked words",
            advice="pass another `config_name` or `model_name_or_path`, of a type such as "
            f"{', '.join(ARCHITECTURES)}",
        )
    return with_losses(stock)  # type: ignore[arg-type]  # a class can be hashed


def _outline(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Return a model without weights, on the device `meta`."""
    try:
        with torch.device("meta"):
            return model_class(config)
    # Whatever its parts stumble over: the configuration is not ours.
    except Exception as error:
        raise InputError(
            f"transformers cannot build a {config.model_type} model of this configuration "
            f"({type(error).__name__}: {error})",
            advice="change its config.json, or the tokenizer (`tokenizer_name`), whose size and "
            "special tokens it is given",
        ) from error


def _positions_for(
    max_seq_length: int,
    outline: PreTrainedModel,
    model_name_or_path: str | None,
    grow_positions: PositionGrowth,
) -> dict[str, int]:
    """Return the field of the configuration that must grow for rows to fit, if any must."""
    longest = num_positions(outline)
    if longest is None or max_seq_length <= longest:
        return {}
    if grow_positions == "no":
        advice = f"pass `max_seq_length` of at most {longest}"
        if model_name_or_path is not None:
            advice += ", or `grow_positions` repeat or interpolate"
        raise InputError(
            f"`max_seq_length` is {max_seq_length} but the model has {longest} positions",
            advice=advice,
        )
    before = outline.config.max_position_embeddings
    return {"max_position_embeddings": before + max_seq_length - longest}


def describe_excess(max_seq_length: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Say that rows are longer than a model was trained on; None if its tokenizer allows them.

    Args:
        max_seq_length: tokens of the longest row.
        tokenizer: the model's; our exports and many others say by `model_max_length` how long rows
            were in training.
    """
    if max_seq_length <= tokenizer.model_max_length:
        return None
    return (
        f"`max_seq_length` is {max_seq_length} but the tokenizer's model_max_length is "
        f"{tokenizer.model_max_length}; positions from there on may be untrained; a lower "
        "`max_seq_length` avoids them"
    )


def _read_config(name: str, parameter: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers meet
        is_new = parameter == "config_name"
        refuse_misnamed_model(name, parameter=parameter, sizes=BERT_SIZES if is_new else ())
        is_folder = Path(name).is_dir()
        where = "has no usable config.json" if is_folder else "is neither a folder nor on the Hub"
        if (Path(name) / "config.json").is_file():
            where += f" ({first_line(error)})"
        architectures = ", ".join(f"{each}-" for each in ARCHITECTURES)
        sizes = f", or one of {', '.join(BERT_SIZES)}, perhaps with {architectures} before it"
        advice = f"pass `{parameter}` the folder or Hub id of an encoder"
        raise InputError(f"{name!r} {where}", advice=advice + sizes * is_new) from error
    check_sizes(config, name, parameter=parameter)
    return config
