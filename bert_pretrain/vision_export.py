"""Write a pretrained image model so that stock transformers loads its encoder.

A model of `bert_pretrain.models` and the image processor of its corpus enter. A folder leaves, at whose root are the
plain encoder (config.json, model.safetensors), the image processor and a model card, and in whose folder `pretraining`
is the whole model with decoder or projection head, so that pretraining can continue.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL.Image import Resampling
from transformers import PreTrainedConfig, PreTrainedModel, ViTImageProcessorPil

from bert_pretrain.models.image_encoder import PRETRAINING_FOLDER

CARD = """\
---
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- self-supervised
---

# {architecture} pretrained with bert-pretrain

An image encoder of {parameters:.1f} M parameters for {size} x {size} pixels and {channels}, pretrained without labels
as {objective}. It is a plain transformers model:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

path = "."  # this folder or its Hub id
processor = AutoImageProcessor.from_pretrained(path)
classifier = AutoModelForImageClassification.from_pretrained(path, num_labels=10)  # only the classifier is new
image = Image.open("image.png").convert("{mode}")
inputs = processor(image, return_tensors="pt")

# The embedding that was trained and evaluated is what a classifier is fed:
features = AutoModelForImageClassification.from_pretrained(path, num_labels=0)
with torch.no_grad():
    embedding = features.eval()(**inputs).logits
```
{notes}
The folder `{folder}` holds the whole pretraining model; `{model}.from_pretrained(path)` of bert-pretrain loads it, and
`--model_name_or_path` continues from it.
"""
POOLER_NOTE = """
The embedding of this architecture is the layer-normed [CLS] state, `AutoModel.from_pretrained(path)(**inputs)
.last_hidden_state[:, 0]`. Do not read `pooler_output`: transformers adds a pooler that nothing has trained.
"""
GREY_NOTE = """
`pipeline("image-feature-extraction")` converts every image to RGB before the image processor sees it. For this encoder
of one channel, pass the pipeline a processor that converts back:

```python
from transformers import ViTImageProcessorPil, pipeline


class GreyImageProcessor(ViTImageProcessorPil):
    def process_image(self, image, **kwargs):
        return super().process_image(image.convert("L"), **kwargs)


extractor = pipeline("image-feature-extraction", model=path, image_processor=GreyImageProcessor.from_pretrained(path))
```
"""
ALPHA_NOTE = """
`pipeline("image-feature-extraction")` converts every image to RGB and so drops the fourth channel that this encoder
needs; call the processor and the model as above.
"""
CHANNELS = {1: ("one channel (grey)", "L", GREY_NOTE), 3: ("RGB", "RGB", ""), 4: ("RGBA", "RGBA", ALPHA_NOTE)}
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


def image_processor(*, image_size: int, mean: Sequence[float], std: Sequence[float]) -> ViTImageProcessorPil:
    """Return the image processor that repeats, on a PIL image, what an `ImageCorpus` and its loader do.

    The shorter side is resized to `image_size` (bicubic), the centre cropped, values divided by 255 and normalised. An
    encoder of three channels is given any image as RGB, on white where it is transparent. For one or four channels
    transformers has no such conversion: pass images of mode L or RGBA.

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


def export_image_model(model: PretrainingModel, processor: ViTImageProcessorPil, directory: Path) -> None:
    """Write the export folder; it appears whole or not at all.

    Args:
        model: an `ImageAutoencoder`, a `MaskedAutoencoder` or a `ContrastiveModel`.
        processor: as `image_processor` makes it for the corpus.
        directory: target; replaced if it exists.
    """
    aside = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    # Without its classification class: a base model's file names no head, so that a head is all that is missing.
    base = model.plain_encoder().base_model
    base.save_pretrained(aside)
    _exported_config(base).save_pretrained(aside)
    processor.save_pretrained(aside)
    model.save_pretrained(aside / PRETRAINING_FOLDER)
    (aside / "README.md").write_text(_card(model, base, processor))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(aside, directory)


def write_config(model: PretrainingModel, processor: ViTImageProcessorPil, directory: Path) -> None:
    """Write what `from_pretrained` of the model's own class needs beside the weights into an existing folder."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    processor.save_pretrained(directory)


def _exported_config(base: PreTrainedModel) -> PreTrainedConfig:
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    # The 0 of pretraining would give whoever loads a classifier without naming its labels none at all.
    config.num_labels = PreTrainedConfig().num_labels
    return config


def _card(model: PretrainingModel, base: PreTrainedModel, processor: ViTImageProcessorPil) -> str:
    channels, mode, channel_note = CHANNELS[len(processor.image_mean)]
    has_untrained_pooler = getattr(base, "pooler", 0) is None
    return CARD.format(
        architecture=type(base).__name__,
        parameters=base.num_parameters() / 1e6,
        size=processor.crop_size["height"],
        channels=channels,
        objective=OBJECTIVES[model.config.model_type],
        mode=mode,
        notes=(POOLER_NOTE if has_untrained_pooler else "") + channel_note,
        folder=PRETRAINING_FOLDER,
        model=type(model).__name__,
    )
