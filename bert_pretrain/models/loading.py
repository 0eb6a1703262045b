"""Build the BERT to pretrain, new or continued; and how long the rows of a text model may be."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoConfig, BertConfig, PreTrainedModel, PreTrainedTokenizerBase

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError
from bert_pretrain.models.bert import BERT_SIZES, BertForPreTraining, bert_config
from bert_pretrain.models.image_encoder import set_dropout


def build_bert(
    *,
    config_name: str,
    model_name_or_path: str | None,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    dropout: float,
) -> BertForPreTraining:
    """Return the model to pretrain.

    Args:
        config_name: a size name, a folder or a Hub id; the vocabulary follows the tokenizer.
        model_name_or_path: a BERT checkpoint to continue from, in place of `config_name`; heads
            that it lacks, such as the next-sentence head of a masked-LM checkpoint, are
            initialised.
        tokenizer: decides the vocabulary and the padding id.
        max_seq_length: rows must fit the position table.
        dropout: probability of all dropout modules while pretraining; the configuration, which
            fine-tuning will use, keeps its own.

    Raises:
        InputError: not a BERT, a vocabulary larger than the model's, or rows longer than its
            position table.
    """
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    if model_name_or_path is not None:
        config = _read_config(model_name_or_path, "model_name_or_path")
        if vocab_size > config.vocab_size:
            raise InputError(
                f"the tokenizer has {vocab_size:,} tokens but {model_name_or_path} embeds "
                f"{config.vocab_size:,}",
                advice="pass the model's own tokenizer as `tokenizer_name`",
            )
    elif config_name in BERT_SIZES:
        config = bert_config(
            config_name, vocab_size=vocab_size, pad_token_id=tokenizer.pad_token_id
        )
    else:
        config = _read_config(config_name, "config_name")
        config.vocab_size = vocab_size
        config.pad_token_id = tokenizer.pad_token_id
    check_length(max_seq_length, config)
    if model_name_or_path is None:
        model = BertForPreTraining(config)
    else:
        try:
            model = BertForPreTraining.from_pretrained(model_name_or_path, dtype="float32")
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"the weights of {model_name_or_path} cannot be read ({error})",
                advice="pass `model_name_or_path` a complete checkpoint",
            ) from error
    set_dropout(model, dropout)
    return model


def check_bert(config_name: str, model_name_or_path: str | None, max_seq_length: int) -> None:
    """Check what can be told of a model before its tokenizer and text are there.

    Raises:
        InputError: as `build_bert`.
    """
    if model_name_or_path is not None:
        check_length(max_seq_length, _read_config(model_name_or_path, "model_name_or_path"))
    elif config_name in BERT_SIZES:
        check_length(max_seq_length, bert_config(config_name, vocab_size=1, pad_token_id=0))
    else:
        check_length(max_seq_length, _read_config(config_name, "config_name"))


def check_length(max_seq_length: int, config: BertConfig) -> None:
    """Raise `InputError` unless rows fit the model's position table."""
    longest = config.max_position_embeddings
    if max_seq_length > longest:
        raise InputError(
            f"`max_seq_length` is {max_seq_length} but the model has {longest} positions",
            advice=f"pass `max_seq_length` of at most {longest}",
        )


def num_positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens of a row, special ones included; None where nothing limits them.

    Args:
        model: of transformers; its weights are not looked at and may be on the device `meta`.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    # RoBERTa and its kin count positions from the padding id on, and leave those up to it unused.
    embeddings = getattr(model.base_model, "embeddings", None)
    padding_idx = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return positions if padding_idx is None else positions - padding_idx - 1


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


def _read_config(name: str, parameter: str) -> BertConfig:
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        refuse_misnamed_model(
            name, parameter=parameter, sizes=BERT_SIZES if parameter == "config_name" else ()
        )
        is_folder = Path(name).is_dir()
        where = "has no usable config.json" if is_folder else "is neither a folder nor on the Hub"
        sizes = f", or one of {', '.join(BERT_SIZES)}" if parameter == "config_name" else ""
        raise InputError(
            f"{name!r} {where}", advice=f"pass `{parameter}` a BERT folder or Hub id{sizes}"
        ) from error
    if config.model_type != "bert":
        raise InputError(
            f"{name!r} is a model of type {config.model_type!r} but must be 'bert'",
            advice=f"change `{parameter}`",
        )
    return config
