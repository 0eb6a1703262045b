"""Write a pretrained image model so that stock transformers loads its encoder.

A model of `bert_pretrain.models` and the image processor of its corpus enter. A folder leaves, at
whose root are the plain encoder (config.json, model.safetensors) and the image processor, and in
whose folder `pretraining` is the whole model with decoder or projection head, so that pretraining
can continue; and what the model card says of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Resampling
from transformers import PreTrainedConfig, PreTrainedModel, ViTImageProcessorPil

from bert_pretrain.data.whole_files import folder_written_aside
from bert_pretrain.models.pretraining_model import PRETRAINING_FOLDER

CHANNELS = {1: ("one channel (grey)", "L"), 3: ("RGB", "RGB"), 4: ("RGBA", "RGBA")}
OBJECTIVES = {
    "image_autoencoder": "the encoder of an autoencoder",
    "vit_mae": "the encoder of a masked autoencoder",
    "image_contrastive": "an encoder that tells images apart by two views of each",
}


class PretrainingModel(Protocol):
    """What the models of `bert_pretrain.models` for images have in common, beside being a `PreTrainedModel`."""

    config: PreTrainedConfig

    def plain_encoder(self) -> PreTrainedModel:
        """Return transformers' image classification class with `num_labels=0`."""
        ...

    def save_pretrained(self, directory: Path) -> None:
        """Write configuration and weights."""
        ...


def image_processor(
    *, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> ViTImageProcessorPil:
    """Return the image processor that repeats, on a PIL image, what an `ImageCorpus` and its loader do.

    The shorter side is resized to `image_size` (bicubic), the centre cropped, values divided by 255
    and normalised. An encoder of three channels is given any image as RGB, on white where it is
    transparent. For one or four channels transformers has no such conversion: pass images of mode L
    or RGBA.

    Args:
        image_size: height and width of the encoder's input, pixels.
        mean: for each of 1, 3 or 4 channels, of pixels in [0, 1].
        std: as `mean`.
    """
    return ViTImageProcessorPil(
        do_convert_rgb=len(mean) == 3,
        do_resize=True,
        size={"shortest_edge": image_size},
        resample=Resampling.BICUBIC,
        do_center_crop=True,
        crop_size={"height": image_size, "width": image_size},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[float(value) for value in mean],
        image_std=[float(value) for value in std],
    )


def export_image_model(
    model: PretrainingModel, processor: ViTImageProcessorPil, directory: Path
) -> None:
    """Write the export folder; it appears whole or not at all.

    Args:
        model: an `ImageAutoencoder`, a `MaskedAutoencoder` or a `ContrastiveModel`.
        processor: as `image_processor` makes it for the corpus.
        directory: target; replaced if it exists.
    """
    # Without its classification class: a base model's file names no head, so that a head is all
    # that is missing.
    base = model.plain_encoder().base_model
    with folder_written_aside(directory) as aside:
        base.save_pretrained(aside)
        _exported_config(base).save_pretrained(aside)
        processor.save_pretrained(aside)
        model.save_pretrained(aside / PRETRAINING_FOLDER)


def write_config(model: PretrainingModel, processor: ViTImageProcessorPil, directory: Path) -> None:
    """Write what `from_pretrained` of the model's own class needs beside the weights into an existing folder."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    processor.save_pretrained(directory)


def _exported_config(base: PreTrainedModel) -> PreTrainedConfig:
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    # The 0 of pretraining would give whoever loads a classifier without naming its labels none at
    # all.
    config.num_labels = PreTrainedConfig().num_labels
    return config


def card_fields(model: PretrainingModel, processor: ViTImageProcessorPil) -> dict[str, Any]:
    """Return what the model card says of an image encoder; see `bert_pretrain.publishing.model_card`.

    Args:
        model: as exported.
        processor: as exported.
    """
    base = model.plain_encoder().base_model
    channels, mode = CHANNELS[len(processor.image_mean)]
    size = processor.crop_size["height"]
    return {
        "is_text": False,
        "pipeline_tag": "image-feature-extraction",
        "tags": [base.config.model_type, "self-supervised"],
        "summary": f"An image encoder ({type(base).__name__}, {base.num_parameters() / 1e6:.1f} M "
        "parameters) for "
        f"{size} x {size} pixels and {channels}, pretrained without labels as "
        f"{OBJECTIVES[model.config.model_type]}.",
        "mode": mode,
        "image_size": size,
        "has_untrained_pooler": getattr(base, "pooler", 0) is None,
        "pretraining_folder": PRETRAINING_FOLDER,
        "pretraining_class": type(model).__name__,
        "limits": [
            "It knows images like those it was trained on, with whatever they show too much or too "
            "little of; people "
            "and groups of people in particular it may represent badly.",
            f"It was trained at {size} x {size} pixels; larger images are scaled down to that, and "
            "details are lost.",
            "The numbers above are of held-out images of the same source. What it is worth for a "
            "task, only that "
            "task's own data can tell.",
        ],
    }
