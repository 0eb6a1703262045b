"""Classifiers on a pretrained encoder, or on an untrained one of the same architecture.

The folder or Hub id of a model enters and is read once; a stock classifier for each seed leaves.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.downstream.labels import LabelSpace
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.models.any_encoder import num_token_types
from bert_pretrain.models.beginning import begin_with_neighbours
from bert_pretrain.models.fast_layers import use_fast_layers
from bert_pretrain.models.fast_paths import choose_attention
from bert_pretrain.models.image_encoder import initialize_vit
from bert_pretrain.models.loaded_models import check_finite_weights, check_sizes, unread
from bert_pretrain.models.positions import num_positions

# Devlin et al. 2019 fine-tune a width of 768 best around 5e-5; the compact models of Turc et al.
# 2019 take up to ten times that. Between them the rate falls with the square of the width.
_REFERENCE_RATE, _REFERENCE_WIDTH, _LARGEST_RATE = 5e-5, 768, 5e-4


def read_model_config(model: str) -> PreTrainedConfig:
    """Return the configuration of a folder or Hub id of a text or image encoder.

    Raises:
        InputError: there is none, or transformers cannot classify with it.
    """
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers and the network raise
        refuse_misnamed_model(model)
        where = "is neither a folder nor found on the Hub"
        if Path(model).is_dir():
            where = "has no usable config.json"
        raise InputError(
            f"{model!r} {where} ({type(error).__name__})",
            advice="pass `model` the folder or Hub id of a transformers model",
        ) from error
    check_sizes(config, model, parameter="model")
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise InputError(
            f"the config.json of {model!r} has no decoder_start_token_id, which its decoder needs",
            advice="add it, or change `model`",
        )
    is_text = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not (is_text or is_image_config(config)):
        raise InputError(
            f"{model!r} is a model of type {config.model_type!r}, which transformers classifies "
            "neither texts nor images with",
            advice="change `model`",
        )
    try:
        _without_weights(config)
    except Exception as error:  # the models of transformers raise whatever their numbers lead to
        raise InputError(
            f"no model can be made of the config.json of {model!r} ({first_line(error)})",
            advice="change `model`",
        ) from error
    return config


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the classifier of a configuration on the device `meta`, which holds no numbers."""
    with torch.device("meta"):
        model: PreTrainedModel = _auto_class(config).from_config(
            copy.deepcopy(config), trust_remote_code=False
        )
    return model


def is_image_config(config: PreTrainedConfig) -> bool:
    """Return whether it is an image encoder's."""
    is_classifier = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return is_classifier and hasattr(config, "num_channels")


def _auto_class(config: PreTrainedConfig) -> Any:
    is_image = is_image_config(config)
    return AutoModelForImageClassification if is_image else AutoModelForSequenceClassification


def default_learning_rate(config: PreTrainedConfig) -> float:
    """Return the peak learning rate of AdamW that the recipe takes for an encoder of this width."""
    widths = getattr(config, "hidden_sizes", [_REFERENCE_WIDTH])
    width = getattr(config, "hidden_size", None) or widths[-1]
    return min(_LARGEST_RATE, float(_REFERENCE_RATE * (_REFERENCE_WIDTH / width) ** 2))


def load_text_tokenizer(model: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or Hub id.

    Raises:
        InputError: there is none, it cannot pad, or it has more tokens than the model embeds.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers meet
        raise InputError(
            f"{model!r} holds no usable tokenizer ({type(error).__name__})",
            advice="pass `model` a folder that has one",
        ) from error
    # Where there is no tokenizer, transformers 5 makes one of its special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(
            f"{model!r} holds no tokenizer with words",
            advice="pass `model` a folder with tokenizer.json",
        )
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"the tokenizer of {model!r} has no padding token, which batches need",
            advice="set one and save it",
        )
    largest = max(tokenizer.get_vocab().values())
    num_embedded = getattr(config.get_text_config(), "vocab_size", None)  # CANINE hashes letters
    if num_embedded is not None and largest >= num_embedded:
        raise InputError(
            f"the tokenizer of {model!r} has the id {largest:,} but the model embeds "
            f"{num_embedded:,}",
            advice="they do not belong together; change `model`",
        )
    if hasattr(config, "type_vocab_size"):  # XLNet, without a table of types, reads them all
        _drop_unknown_token_types(tokenizer, num_token_types(_without_weights(config)))
    return tokenizer


def _drop_unknown_token_types(tokenizer: PreTrainedTokenizerBase, num_types: int) -> None:
    """Let a tokenizer return token types only where the model embeds them all."""
    types = tokenizer("a", "b").get("token_type_ids", [])
    if types and max(types) >= num_types:
        names = [each for each in tokenizer.model_input_names if each != "token_type_ids"]
        tokenizer.model_input_names = names


def longest_row(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens that a row may have: as many as the model takes, else the tokenizer."""
    return int(num_positions(_without_weights(config)) or tokenizer.model_max_length)


class ClassifierSource:
    """Builds classifiers of one encoder, with a new head for each seed."""

    def __init__(
        self,
        model: str,
        labels: LabelSpace,
        *,
        from_scratch: bool = False,
        freeze_encoder: bool = False,
        max_seq_length: int = 0,
        pad_token_id: int | None = None,
    ) -> None:
        """Read the weights.

        Args:
            model: folder or Hub id.
            labels: decide the width of the head and are written to the configuration.
            from_scratch: leave the weights unread: every model starts from random ones.
            freeze_encoder: train the head alone, and what else the model's weights lack, such as a
                pooler; running means and variances of the encoder stay too.
            max_seq_length: longest row in tokens, by which attention is chosen; 0 for images.
            pad_token_id: by which a decoder whose configuration has none finds the end of a row.

        Raises:
            InputError: the weights are not those of the configuration.
        """
        config = read_model_config(model)
        self.auto_class = _auto_class(config)
        was_classifier = any("Classification" in name for name in config.architectures or ())
        had_classes = config.problem_type != "regression"
        earlier_names = tuple(config.id2label.values()) if had_classes else ()
        # A head for other classes may fit by its size, but knows nothing of these.
        self.has_foreign_head = was_classifier and earlier_names != labels.names
        config.num_labels = labels.num_outputs
        config.problem_type = labels.problem_type
        if labels.names:
            config.id2label = dict(enumerate(labels.names))
            config.label2id = {name: number for number, name in enumerate(labels.names)}
        if pad_token_id is not None and config.pad_token_id is None:
            config.pad_token_id = pad_token_id
        self.config, self.freeze_encoder = config, freeze_encoder
        self.max_seq_length = max_seq_length
        self.state: dict[str, Tensor] = {} if from_scratch else self._read(model)

    def _read(self, model: str) -> dict[str, Tensor]:
        try:
            loaded, loading = self.auto_class.from_pretrained(
                model,
                config=copy.deepcopy(self.config),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # the head of another classification
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except Exception as error:  # transformers raises whatever its parsers meet
            raise unread(model, error, parameter="model") from error
        check_finite_weights(loaded, model, parameter="model")
        values: dict[str, Tensor] = loaded.state_dict()
        encoder_keys = {key for key in values if key.startswith(f"{loaded.base_model_prefix}.")}
        misfits = {str(key): shapes for key, *shapes in loading["mismatched_keys"]}
        for key in sorted(encoder_keys & misfits.keys()):
            found, wanted = map(list, misfits[key])
            raise InputError(
                f"the weights of {model!r} do not fit its config.json: {key} has the shape "
                f"{found}, not {wanted}",
                advice="change `model`",
            )
        new = {*loading["missing_keys"], *misfits}
        lacking = encoder_keys & new
        if len(lacking) > len(encoder_keys) / 2:
            raise InputError(
                f"{model!r} lacks {len(lacking)} of {len(encoder_keys)} weights of its encoder, "
                f"such as {min(lacking)}",
                advice="pass `model` a pretrained one, or `from_scratch`",
            )
        kept = encoder_keys if self.has_foreign_head else values.keys()
        return {key: value for key, value in values.items() if key in kept and key not in new}

    def build(self, seed: int) -> PreTrainedModel:
        """Return a model; the seed draws the weights that the pretrained one does not have."""
        torch.manual_seed(seed)
        model: PreTrainedModel = self.auto_class.from_config(
            copy.deepcopy(self.config), dtype=torch.float32, trust_remote_code=False
        )
        model.load_state_dict(self.state, strict=False)
        if not self.state:  # from scratch is from where pretraining begins
            if self.config.model_type == "vit":
                initialize_vit(model.base_model)
            else:
                begin_with_neighbours(model)
        if self.freeze_encoder:
            encoder, prefix = model.base_model, model.base_model_prefix
            for name, parameter in encoder.named_parameters(prefix=prefix):
                parameter.requires_grad_(name not in self.state)
            for name, module in encoder.named_modules(prefix=prefix):
                if f"{name}.running_mean" in self.state:
                    # `Trainer` sets the training mode at each step, in which these layers would
                    # normalise by the batch and go on averaging. Dropout acts as in training.
                    module.register_forward_pre_hook(_put_into_evaluation_mode)
        if self.max_seq_length:
            choose_attention(model, self.max_seq_length)
        use_fast_layers(model)
        return model


def _put_into_evaluation_mode(module: torch.nn.Module, _: Any) -> None:
    module.eval()
