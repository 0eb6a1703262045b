"""What becomes of an image before a model sees it: by its image processor, and before that."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

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


_PREPARED = """\
def prepared(image):
    \"\"\"Return an opened image as the images were that this encoder was trained on.\"\"\"
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey levels of 16 bits
        image = Image.fromarray(((np.asarray(image).astype(int) + 128) // 257).astype(np.uint8))
{transparency}    return image.convert("{mode}")
"""
_ON_WHITE = """\
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
"""


def preparation_code(mode: str) -> str:
    """Return Python that defines `prepared`, for cards: what image processors leave to the caller.

    It needs `Image` and `ImageOps` of PIL, and numpy as np, and does what
    `images.decoding.converted_image` does.

    Args:
        mode: that the encoder takes: L, RGB or RGBA.
    """
    return _PREPARED.format(mode=mode, transparency="" if mode == "RGBA" else _ON_WHITE)


def load_processor(model: str) -> Any:
    """Return the saved image processor of a model, a folder or Hub id.

    Raises:
        InputError: the model has none.
    """
    try:
        return AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
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


def read_processor(model: str) -> Preprocessing:
    """Return what the saved image processor of a model, a folder or Hub id, does.

    Raises:
        InputError: the model has no image processor, or one whose images are not square.
    """
    processor = load_processor(model)
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
