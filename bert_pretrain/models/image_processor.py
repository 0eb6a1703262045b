"""What the saved image processor of a model does to pixels: size, mean and deviation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import AutoImageProcessor

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError


class Preprocessing(NamedTuple):
    """How an image processor prepares pixels in [0, 1].

    Attributes:
        image_size: height and width in pixels.
        mean: of one channel for all, or of each channel.
        std: likewise.
    """

    image_size: int
    mean: list[float]
    std: list[float]


def read_processor(model: str) -> Preprocessing:
    """Return what the saved image processor of a model, a folder or Hub id, does.

    Raises:
        InputError: the model has no image processor, or one whose images are not square.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(model)
    except Exception as error:  # transformers raises whatever its parsers meet
        refuse_misnamed_model(model)
        where = "holds no usable image processor"
        if not Path(model).is_dir():
            where = "is neither a folder nor on the Hub"
        raise InputError(
            f"{model!r} {where} ({type(error).__name__})",
            advice="pass `model` the folder or Hub id of an image encoder with "
            "preprocessor_config.json",
        ) from error
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    sides = {size[name] for name in ("height", "width", "shortest_edge") if size.get(name)}
    if len(sides) != 1:
        raise InputError(
            f"the image processor of {model!r} makes images of {dict(size)}, not squares",
            advice="change `model`",
        )
    # The processor's mean and deviation are for rescaled bytes; ours are for pixels in [0, 1].
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    raw = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = ((np.atleast_1d(values) / factor).tolist() for values in raw)
    return Preprocessing(sides.pop(), mean, std)
