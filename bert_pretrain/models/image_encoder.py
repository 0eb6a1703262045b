"""Image encoders of transformers, and the one definition of an image's embedding.

Leaves: transformers' own image classification class with no label (`num_labels=0`). Its classifier
is then the identity, so that its logits are what a classifier fine-tuned later is fed: the
layer-normed [CLS] state of a ViT, the layer-normed mean of a ConvNextV2, [CLS] beside the mean
patch of a DINOv2. Pretraining losses, k-NN, probes and the exported model all read this tensor.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from bert_pretrain.errors import InputError
from bert_pretrain.models.batch_norm import share_batch_statistics
from bert_pretrain.models.fast_layers import use_fast_layers
from bert_pretrain.models.fast_paths import choose_attention
from bert_pretrain.models.image_encoder_config import (
    InputSize,
    read_config,
    read_encoder_config,
    sides,
)
from bert_pretrain.models.image_positions import stretched
from bert_pretrain.models.loaded_models import check_finite_weights, unread


def build_image_encoder(
    *,
    config_name: str,
    model_name_or_path: str | None,
    image_size: InputSize,
    num_channels: int,
    dropout: float,
) -> PreTrainedModel:
    """Return the encoder to pretrain, in training mode; `embed` reads it.

    Args:
        config_name: a named size, or a folder or Hub id of a configuration whose image size and
            channels are then replaced by those given.
        model_name_or_path: weights to continue from, in place of `config_name`.
        image_size: in pixels. Where weights to continue from have learnt positions for another
            size, these are stretched, see `fitted`.
        num_channels: channels of an image.
        dropout: probability of all dropout modules while pretraining; the configuration, which
            fine-tuning will use, keeps its own.

    Raises:
        InputError: not an image classifier's configuration; the channels or the size do not suit
            the weights; the weights are incomplete; or the architecture has no dropout module to
            set.
    """
    if model_name_or_path is not None:
        encoder = fitted(load_image_encoder(model_name_or_path), image_size)
    else:
        config = read_encoder_config(config_name, image_size=image_size, num_channels=num_channels)
        encoder = new_encoder(config)
    return prepare_encoder(
        encoder,
        source=model_name_or_path or config_name,
        image_size=image_size,
        num_channels=num_channels,
        dropout=dropout,
    )


def load_image_encoder(name: str, *, parameter: str = "model_name_or_path") -> PreTrainedModel:
    """Return the encoder in a folder or on the Hub, float32; `embed` reads it.

    Raises:
        InputError: not an image classifier's configuration, or the weights are incomplete or hold
            NaN; `parameter` gave the name.
    """
    config = read_config(name, parameter=parameter)
    encoder: PreTrainedModel = load_weights(_classifier_class(config), name, num_labels=0)
    return encoder


def fitted(encoder: PreTrainedModel, image_size: InputSize) -> PreTrainedModel:
    """Return an encoder that takes images of a size: itself, or one with stretched positions.

    The latter comes with a warning. It is itself too where nothing can be stretched;
    `prepare_encoder` then refuses the size.
    """
    try:
        embedding_width(encoder, image_size=image_size, num_channels=encoder.config.num_channels)
    except (ValueError, RuntimeError):
        config, state = stretched(encoder, image_size)
        if config is not None:
            before, after = (
                "x".join(map(str, sides(each.image_size))) for each in (encoder.config, config)
            )
            warnings.warn(
                f"the learnt positions of the model, for images of {before} pixels, are stretched "
                f"to {after}; `image_size` {before} reads images as it knows them",
                stacklevel=2,
            )
            other = encoder_from_config(config)
            other.load_state_dict(state)
            return other
    return encoder


def prepare_encoder(
    encoder: PreTrainedModel,
    *,
    source: str,
    image_size: InputSize,
    num_channels: int,
    dropout: float,
) -> PreTrainedModel:
    """Check that an encoder suits the images and the export, set dropout, freeze what is unread.

    Parameters that the embedding does not depend on (such as DINOv2's mask token) are frozen,
    because distributed training refuses parameters without a gradient. The encoder is changed in
    place and returned in training mode. Messages call it `source`; the other arguments and errors
    are those of `build_image_encoder`.
    """
    if encoder.config.num_channels != num_channels:
        raise InputError(
            f"the images have {num_channels} channels but {source} takes "
            f"{encoder.config.num_channels}",
            advice=f"pass `num_channels` {encoder.config.num_channels}",
        )
    _refuse_parameters_outside_base(encoder)
    try:
        embedding_width(encoder, image_size=image_size, num_channels=num_channels)
    except (ValueError, RuntimeError) as error:
        shown = " x ".join(map(str, sides(image_size)))
        advice = "pass the `image_size` that it was made for"
        if patch_size := getattr(encoder.config, "patch_size", None):
            advice += f", or a multiple of its patches of {patch_size}"
        raise InputError(
            f"{source} does not take images of {shown} pixels ({error})", advice=advice
        ) from error
    set_dropout(encoder, dropout)
    use_fast_layers(encoder)
    share_batch_statistics(encoder)
    if encoder.config.model_type == "vit":
        grid = [side // encoder.config.patch_size for side in sides(image_size)]
        choose_attention(encoder, math.prod(grid) + 1)
    parameters = list(encoder.parameters())
    image = torch.zeros(1, num_channels, *sides(image_size), device=encoder.device)
    total = embed(encoder.eval(), image).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
    return encoder.train()


def encoder_from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """Return transformers' image classifier of `config` with `num_labels=0`, initialised."""
    config.num_labels = 0
    config.architectures = [_classifier_class(config).__name__]
    return AutoModelForImageClassification.from_config(
        config, dtype=torch.float32, trust_remote_code=False
    )


def new_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Return an untrained encoder as pretraining begins with it."""
    encoder = encoder_from_config(config)
    if config.model_type == "vit":
        initialize_vit(encoder.base_model)
    return encoder


@torch.no_grad()
def initialize_vit(vit: PreTrainedModel) -> None:
    """Initialise a `ViTModel` so that its [CLS] state tells images and places apart from the start.

    transformers draws everything from a normal distribution of 0.02, whatever the width. Positions,
    which are trained, are then far below the patches: a ViT must first learn where its patches are.
    With vit-tiny, an autoencoder of 32 x 32 x 3 pixels into 64 numbers had a squared error of 0.38
    instead of 0.49 after 130 updates of 64 images (one seed) when they began as sines and cosines.
    Beside these, in turn, patches of few pixels vanish, and what the blocks add to [CLS] is small:
    of the digits (8 x 8, vit-tiny) all embeddings were equal to 1 part in 1000, a saddle that
    NT-Xent never left.

    So patches keep the variance of their pixels (LeCun et al. 1998, section 4.6), and the blocks
    keep that of their input (Xavier's uniform distribution, as He et al. 2022, appendix A.1).
    """
    config, embeddings = vit.config, vit.embeddings
    grid = tuple(side // config.patch_size for side in sides(config.image_size))
    embeddings.position_embeddings.copy_(sincos_positions(grid, config.hidden_size))
    nn.init.kaiming_normal_(embeddings.patch_embeddings.projection.weight, nonlinearity="linear")
    for module in vit.modules():
        if isinstance(module, nn.Linear):  # all of them lie in the blocks
            nn.init.xavier_uniform_(module.weight)


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return position embeddings of rows x columns of patches, float32 (1, 1 + patches, width).

    The first, for [CLS], is zero; the others follow row by row. Half of a vector encodes the
    column, half the row; each half holds the sines, then the cosines, of the coordinate times
    width / 4 frequencies from 1 down towards 1/10000 (the order of the published weights).

    Source: He et al. 2022, appendix A.1.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(max(grid), dtype=torch.float64)[:, None] * frequencies
    along_side = torch.cat([angles.sin(), angles.cos()], dim=1)  # (longer side, width / 2)
    num_rows, num_columns = grid
    columns = along_side[:num_columns].repeat(num_rows, 1)
    rows = along_side[:num_rows].repeat_interleave(num_columns, dim=0)
    patches = torch.cat([columns, rows], dim=1)  # (rows * columns, width)
    return torch.cat([torch.zeros(1, width), patches.float()])[None]


def embed(encoder: PreTrainedModel, pixel_values: Tensor, **others: Any) -> Tensor:
    """Return the embedding of images: the tensor that the architecture's own classifier is fed.

    Normalised `pixel_values` (B, C, H, W) become float (B, D), with the gradient and in the mode
    (training or evaluation) of the encoder; `others` are passed to it.
    """
    embedding: Tensor = encoder(pixel_values=pixel_values, **others).logits
    return embedding


def embedding_width(encoder: PreTrainedModel, *, image_size: InputSize, num_channels: int) -> int:
    """Return D of `embed`, found by embedding a black image.

    Raises:
        ValueError: the embedding is no vector, or the encoder refuses the size or channels.
        RuntimeError: the image is too small for the encoder's convolutions.
    """
    was_training = encoder.training
    image = torch.zeros(1, num_channels, *sides(image_size), device=encoder.device)
    with torch.no_grad():
        embedding = embed(encoder.eval(), image)
    encoder.train(was_training)
    if embedding.dim() != 2 or embedding.shape[1] == 0:
        raise ValueError(f"its embedding of one image has the shape {tuple(embedding.shape)}")
    return embedding.shape[1]


def set_dropout(model: nn.Module, dropout: float) -> None:
    """Set the probability of all `nn.Dropout` modules of a model, and drop no path.

    Stochastic depth (Huang et al. 2016), which some configurations ask for by default, would draw
    other paths on other numbers of processes. Like dropout, the configuration keeps its own.

    Raises:
        InputError: `dropout` is not 0 and there are none, as in most convolutional architectures.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if dropout and not modules:
        raise InputError(
            f"dropout is {dropout} but this architecture has no dropout", advice="pass `dropout` 0"
        )
    for module in modules:
        module.p = dropout
    for part in model.modules():
        if isinstance(getattr(part, "drop_prob", None), float):  # a DropPath of transformers
            setattr(part, "drop_prob", 0.0)  # noqa: B010  # mypy knows no such attribute


def load_weights(model_class: Any, name: str, *, subfolder: str = "", **fields: Any) -> Any:
    """Return a model of a class with all of its weights, in float32, from a folder or the Hub.

    `fields` are set in its configuration.

    Raises:
        InputError: the weights are damaged, or some are missing.
    """
    place = f"{name.rstrip('/')}/{subfolder}".rstrip("/")
    try:
        model, loading = model_class.from_pretrained(
            name,
            subfolder=subfolder,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **fields,
        )
    except Exception as error:  # the readers of files raise whatever they stumble over
        raise unread(place, error, parameter="model_name_or_path") from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise InputError(
            f"{place} lacks {len(missing)} weights, such as {missing[0]}",
            advice="pass `model_name_or_path` a complete checkpoint",
        )
    check_finite_weights(model, place, parameter="model_name_or_path")
    return model


def _classifier_class(config: PreTrainedConfig) -> Any:
    """Return the class that AutoModelForImageClassification takes for an encoder without a head."""
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    # Where there are two, as for DeiT, the second is distilled and averages two classifiers.
    return classes[0] if isinstance(classes, tuple) else classes


def _refuse_parameters_outside_base(encoder: PreTrainedModel) -> None:
    """Raise `InputError` unless the headless model, which is exported, holds all weights."""
    base = encoder.base_model
    held = {id(parameter) for parameter in base.parameters()}
    outside = [name for name, parameter in encoder.named_parameters() if id(parameter) not in held]
    if base is encoder or outside:
        raise InputError(
            f"the embedding of a {encoder.config.model_type!r} model passes through weights that "
            "AutoModel does not hold "
            f"({', '.join(outside) or 'its classifier has no encoder of its own'})",
            advice="choose another architecture with `config_name` or `model_name_or_path`",
        )
