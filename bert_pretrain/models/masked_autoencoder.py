"""The masked autoencoder: transformers' `ViTMAEForPreTraining` with given masks.

Enters: normalised images and, for every image, numbers whose order decides which patches are
removed. Leaves: the predicted patches and the mask (1 = removed, the opposite of an attention
mask); after training, the encoder as a plain ViT (He et al. 2022, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.modeling_outputs import ModelOutput

from bert_pretrain.errors import InputError
from bert_pretrain.models.fast_paths import choose_attention
from bert_pretrain.models.image_encoder import (
    build_image_encoder,
    encoder_from_config,
    load_weights,
    set_dropout,
    sincos_positions,
)
from bert_pretrain.models.image_encoder_config import (
    InputSize,
    read_config,
    read_encoder_config,
    sides,
)
from bert_pretrain.models.pretraining_model import LoadsFromExport, pretraining_subfolder

# Width of the encoder from which on, decoder's width and layers. The last row is the paper's own
# decoder; table 1 there finds that depth matters little for fine-tuning. Heads are 32 wide.
DECODER_SIZES = ((0, 128, 2), (384, 256, 4), (768, 512, 8))

# Fields that a ViT and its masked autoencoder share.
SHARED_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)


@dataclass
class MaskedAutoencoderOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """What a forward pass returns.

    Attributes:
        logits: float (B, P, patch * patch * C), the predicted patches, ordered as `patchify` orders
            them.
        mask: float (B, P), 1 = removed, hence to be predicted; 0 = seen.
        patches: float, those of the image itself.
    """

    logits: Tensor = None  # type: ignore[assignment]
    mask: Tensor = None  # type: ignore[assignment]
    patches: Tensor = None  # type: ignore[assignment]


class MaskedAutoencoder(LoadsFromExport, ViTMAEForPreTraining):  # type: ignore[misc]
    """transformers' class, whose configuration and weights it keeps; its own loss is not used.

    The initial position embeddings are set here. Version 5.23 of transformers leaves those of a new
    model at zero, in encoder and decoder, and freezes them: such a model cannot know where a patch
    is.
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        """Build both parts, initialised by the global seed as in He et al. 2022, appendix A.1."""
        super().__init__(config)
        embeddings, decoder = self.vit.embeddings, self.decoder
        grid = (config.image_size // config.patch_size,) * 2
        projection = embeddings.patch_embeddings.projection.weight
        with torch.no_grad():
            embeddings.position_embeddings.copy_(sincos_positions(grid, config.hidden_size))
            decoder.decoder_pos_embed.copy_(sincos_positions(grid, config.decoder_hidden_size))
            nn.init.normal_(embeddings.cls_token, std=config.initializer_range)
            nn.init.normal_(decoder.mask_token, std=config.initializer_range)
            # As a linear layer of a flattened patch: the convolution's own fan-out would count
            # every pixel.
            nn.init.xavier_uniform_(projection.view(projection.shape[0], -1))

    def forward(self, pixel_values: Tensor, noise: Tensor) -> MaskedAutoencoderOutput:
        """Remove patches and predict them.

        Args:
            pixel_values: float (B, C, H, W), normalised.
            noise: (B, P), any real type, no two equal in a row: the int(P * (1 - mask_ratio))
                patches with the smallest numbers are seen. It has no default, so that masks never
                come from a global generator.
        """
        encoded = self.vit(pixel_values, noise=noise)
        decoded = self.decoder(encoded.last_hidden_state, encoded.ids_restore)
        return MaskedAutoencoderOutput(
            logits=decoded.logits, mask=encoded.mask, patches=self.patchify(pixel_values)
        )

    def plain_encoder(self) -> PreTrainedModel:
        """Return a copy of the encoder as a plain ViT, which removes no patch.

        Its embedding is the [CLS] state. The position embeddings, fixed here, are trained there.
        """
        fields = {name: getattr(self.config, name) for name in SHARED_FIELDS}
        encoder = encoder_from_config(ViTConfig(encoder_stride=self.config.patch_size, **fields))
        encoder.base_model.load_state_dict(self.vit.state_dict())
        return encoder.to(self.device).train(self.training)


def build_masked_autoencoder(
    *,
    config_name: str,
    model_name_or_path: str | None,
    image_size: InputSize,
    num_channels: int,
    dropout: float,
    mask_ratio: float,
) -> MaskedAutoencoder:
    """Return the model to pretrain, a ViT with a decoder, in training mode.

    `mask_ratio` is the share of the patches that is removed. Weights to continue from are a ViT's,
    to which a fresh decoder is added, or a masked autoencoder's with its decoder (a run's `final`,
    a checkpoint, or a published ViTMAE). The other arguments are those of `build_image_encoder`.

    Raises:
        InputError: not a ViT, patches that do not divide the image, a ratio that leaves or removes
            no patch, or what `build_image_encoder` raises.
    """
    source = model_name_or_path or config_name
    images: dict[str, Any] = {"image_size": image_size, "num_channels": num_channels}
    config, subfolder = _read_config(config_name, model_name_or_path, **images)
    check_mask_ratio(mask_ratio, num_patches=_num_patches(config))
    model: MaskedAutoencoder
    if subfolder is not None:
        model = _of_size(load_weights(MaskedAutoencoder, source, subfolder=subfolder), config)
    elif model_name_or_path is not None:
        encoder = build_image_encoder(
            config_name=config_name, model_name_or_path=source, dropout=dropout, **images
        )
        model = MaskedAutoencoder(_with_decoder(encoder.config))
        model.vit.load_state_dict(encoder.base_model.state_dict())
    else:
        model = MaskedAutoencoder(_with_decoder(config))
    model.config.mask_ratio = mask_ratio
    set_dropout(model, dropout)
    choose_attention(model, _num_patches(config) + 1)
    model.train()
    return model


def count_patches(
    *, config_name: str, model_name_or_path: str | None, image_size: InputSize, num_channels: int
) -> int:
    """Return P of the model that `build_masked_autoencoder` would build, before it is built."""
    images: dict[str, Any] = {"image_size": image_size, "num_channels": num_channels}
    config, _ = _read_config(config_name, model_name_or_path, **images)
    return _num_patches(config)


def check_mask_ratio(mask_ratio: float, *, num_patches: int) -> None:
    """Raise `InputError` unless of `num_patches` one stays and one is removed at least."""
    if num_patches < 2:
        raise InputError(
            f"the images are cut into {num_patches} patch, of which none can be hidden",
            advice="pass another `image_size`, such as a multiple of 8, or `mask_ratio` 0",
        )
    num_seen = int(num_patches * (1 - mask_ratio))
    if not 0 < num_seen < num_patches:
        raise InputError(
            f"`mask_ratio` is {mask_ratio}, so that {num_seen} of {num_patches} patches are seen, "
            f"but 1 to {num_patches - 1} must be",
            advice="pass another `mask_ratio`, such as 0.75",
        )


def _read_config(
    config_name: str, model_name_or_path: str | None, *, image_size: InputSize, num_channels: int
) -> tuple[PreTrainedConfig, str | None]:
    """Return the configuration of a ViT or of a masked autoencoder, checked against the images.

    Beside it the subfolder that holds the masked autoencoder to continue; None = a new one. A model
    to continue at another size gets it here.
    """
    source, subfolder = model_name_or_path or config_name, None
    height, width = sides(image_size)
    if height != width:  # transformers' ViTMAE cuts squares alone into patches
        raise InputError(
            f"the images have {height} x {width} pixels, but a masked autoencoder reads squares",
            advice="pass `image_size` one number, or `mask_ratio` 0 for an autoencoder of any size",
        )
    image_size = height
    if model_name_or_path is None:
        config = read_encoder_config(config_name, image_size=image_size, num_channels=num_channels)
    else:
        subfolder = pretraining_subfolder(model_name_or_path, ViTMAEConfig.model_type)
        if subfolder is None:
            config = read_config(model_name_or_path, parameter="model_name_or_path")
        else:
            config = ViTMAEConfig.from_pretrained(model_name_or_path, subfolder=subfolder)
    if subfolder is None and config.model_type != "vit":
        raise InputError(
            f"{source!r} is of type {config.model_type!r} but a masked autoencoder needs 'vit'",
            advice="pass `config_name` vit-tiny, or `mask_ratio` 0 for an autoencoder with any "
            "encoder",
        )
    if config.num_channels != num_channels:
        raise InputError(
            f"the images have {num_channels} channels but {source} takes {config.num_channels}",
            advice=f"pass `num_channels` {config.num_channels}",
        )
    config.image_size = image_size
    if image_size % config.patch_size:
        multiple = max(image_size // config.patch_size, 1) * config.patch_size
        raise InputError(
            f"`image_size` is {image_size}, which the patches of {source} ({config.patch_size} "
            "pixels) do not divide",
            advice=f"pass `image_size` {multiple}",
        )
    return config, subfolder


def _of_size(model: MaskedAutoencoder, config: ViTMAEConfig) -> MaskedAutoencoder:
    """Return a masked autoencoder for images of the size in `config`; positions are a formula's."""
    if model.config.image_size == config.image_size:
        return model
    other = MaskedAutoencoder(config)
    of_other, own = other.state_dict(), model.state_dict()
    kept = {name: own[name] for name in own if own[name].shape == of_other[name].shape}
    other.load_state_dict(kept, strict=False)
    return other


def _num_patches(config: PreTrainedConfig) -> int:
    return int(config.image_size // config.patch_size) ** 2


def _with_decoder(config: PreTrainedConfig) -> ViTMAEConfig:
    """Return the configuration of a masked autoencoder on a ViT's."""
    _, width, num_layers = max(size for size in DECODER_SIZES if size[0] <= config.hidden_size)
    return ViTMAEConfig(
        decoder_hidden_size=width,
        decoder_num_hidden_layers=num_layers,
        decoder_num_attention_heads=width // 32,
        decoder_intermediate_size=4 * width,
        **{name: getattr(config, name) for name in SHARED_FIELDS},
    )
