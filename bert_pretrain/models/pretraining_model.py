"""What the pretraining models for images share: an encoder of transformers with a part on top.

Enters: what `build_image_encoder` takes, or a folder in which a run left its model. Leaves: a model
to train, whose encoder `plain_encoder` hands to evaluation and export.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from bert_pretrain.errors import InputError
from bert_pretrain.models.image_encoder import (
    build_image_encoder,
    embedding_width,
    encoder_from_config,
    fitted,
    load_weights,
    prepare_encoder,
)

PRETRAINING_FOLDER = "pretraining"  # the whole pretraining model beside an exported encoder


class EncoderWithHeadConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """Configuration of an `EncoderWithHead`: the encoder's, and the width of its embedding."""

    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012  # transformers reads it as a plain class attribute

    def __init__(
        self,
        encoder: PreTrainedConfig | dict[str, Any] | None = None,
        hidden_size: int = 768,
        **kwargs: Any,
    ) -> None:
        """Describe the encoder by its configuration or the dict of one, default a `ViTConfig`."""
        if isinstance(encoder, PreTrainedConfig):
            # A copy: building the outer model clears the attention implementation of the inner one.
            self.encoder = copy.deepcopy(encoder)
        else:
            fields = dict(encoder or {})
            self.encoder = AutoConfig.for_model(fields.pop("model_type", "vit"), **fields)
        self.hidden_size = hidden_size
        super().__init__(**kwargs)


class LoadsFromExport(PreTrainedModel):  # type: ignore[misc]
    """A model that lies at the root of a checkpoint, and in `pretraining` of an export."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """Load from a checkpoint or an export; see `PreTrainedModel.from_pretrained`.

        Raises:
            InputError: neither holds such a model.
        """
        if "subfolder" not in kwargs:
            model_type = cls.config_class.model_type
            subfolder = pretraining_subfolder(pretrained_model_name_or_path, model_type, **kwargs)
            if subfolder is None:
                raise InputError(
                    f"{str(pretrained_model_name_or_path)!r} holds no model of type "
                    f"{model_type!r}, neither at its root nor in {PRETRAINING_FOLDER}/",
                    advice="pass the final/ or a checkpoint of a run with that objective",
                )
            kwargs["subfolder"] = subfolder
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


class EncoderWithHead(LoadsFromExport):
    """An image encoder, `encoder`, under whatever a subclass puts on top."""

    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(
        self, config: EncoderWithHeadConfig, encoder: PreTrainedModel | None = None
    ) -> None:
        """Keep the encoder, or build one, initialised by the global seed."""
        super().__init__(config)
        self.encoder = encoder_from_config(config.encoder) if encoder is None else encoder
        # Most convolutional classes have no layer that can be computed twice.
        self.supports_gradient_checkpointing = any(
            hasattr(module, "gradient_checkpointing") for module in self.encoder.modules()
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a layer of the head to keep the variance of its input.

        With transformers' own standard deviation of 0.02 the signal would vanish in narrow layers.

        Source: LeCun et al. 1998, section 4.6.
        """
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def plain_encoder(self) -> PreTrainedModel:
        """Return the encoder, which is evaluated and exported; `embed` reads it."""
        return self.encoder


def build_with_head(
    model_class: Any,
    *,
    head: dict[str, Any],
    config_name: str,
    model_name_or_path: str | None,
    dropout: float,
    **images: Any,
) -> Any:
    """Return a model to pretrain, in training mode.

    Args:
        model_class: of the model, an `EncoderWithHead`.
        head: fields of its configuration that describe the head.
        config_name: see `build_image_encoder`, as for `dropout`.
        model_name_or_path: weights to continue from: an image encoder, to which a fresh head is
            added, or a model of this class with its head (a run's `final`, or a checkpoint).
        dropout: of the encoder.
        images: `image_size` and `num_channels`.

    Raises:
        InputError: as `build_image_encoder`, or the head to continue is another.
    """
    source, subfolder = model_name_or_path, None
    if source is not None:
        subfolder = pretraining_subfolder(source, model_class.config_class.model_type)
    if source is None or subfolder is None:
        encoder = build_image_encoder(
            config_name=config_name, model_name_or_path=source, dropout=dropout, **images
        )
        width = embedding_width(encoder, **images)
        config = model_class.config_class(encoder=encoder.config, hidden_size=width, **head)
        return model_class(config, encoder=encoder)
    model = load_weights(model_class, source, subfolder=subfolder)
    for name, wanted in head.items():
        found = getattr(model.config, name)
        found = tuple(found) if isinstance(found, list) else found  # as JSON has an image's size
        if found != wanted:
            raise InputError(
                f"{name} is {wanted} but {source} has {found}", advice=f"pass `{name}` {found}"
            )
    encoder = fitted(model.encoder, images["image_size"])
    if encoder is not model.encoder:
        model.encoder, model.config.encoder = encoder, copy.deepcopy(encoder.config)
    prepare_encoder(model.encoder, source=source, dropout=dropout, **images)
    return model.train()


def pretraining_subfolder(name_or_path: str | Path, model_type: str, **hub: Any) -> str | None:
    """Return where in a folder or Hub repository a pretraining model of one `model_type` is.

    "" = at the root (a checkpoint), "pretraining" = beside an exported encoder, None = nowhere.
    Of `hub`, keywords of `from_pretrained`, those are used that say where and how to download.

    Raises:
        InputError: a configuration in the folder is damaged.
    """
    names = ("cache_dir", "local_files_only", "revision", "token")
    download = {name: hub[name] for name in names if name in hub}
    for subfolder in ("", PRETRAINING_FOLDER):
        file = Path(name_or_path) / subfolder / "config.json"
        try:
            config, _ = PreTrainedConfig.get_config_dict(
                str(name_or_path), subfolder=subfolder, **download
            )
        except (OSError, ValueError) as error:
            if file.is_file():
                raise InputError(
                    f"{file} is damaged ({error})", advice="pass another folder"
                ) from error
            continue
        if config.get("model_type") == model_type:
            return subfolder
    return None
