"""What becomes of an image before a model sees it: by its image processor, and before that."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoImageProcessor

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError, first_line
from bert_pretrain.models.image_encoder_config import image_size_of

# The name, in the files of an image processor, of the grey levels that become black and white.
PIXEL_RANGE = "pixel_range"


class Preprocessing(NamedTuple):
    """How an image processor prepares pixels in [0, 1].

    Attributes:
        image_size: in pixels, the side of a square or height and width.
        mean: of one channel for all, or of each channel.
        std: likewise.
        pixel_range: grey levels of images of more than 8 bits that are to become black and white;
            None = not known.
    """

    image_size: int | tuple[int, int]
    mean: list[float]
    std: list[float]
    pixel_range: tuple[float, float] | None = None


_PREPARED = """\
def prepared(image):
    \"\"\"Return an opened image as the images were that this encoder was trained on.\"\"\"
{draft}    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # grey levels of more than 8 bits
{levels}{transparency}    return image.convert("{mode}")
"""
_DRAFT = """\
    image.draft(None, ({side}, {side}))  # a large JPEG is decoded in small
"""
_LEVELS = """\
        levels = (np.asarray(image, dtype=np.float32) - {low}) * ({scale})
        image = Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))
"""
# Any range would be a guess, and a wrong one makes most such images black.
_NO_LEVELS = """\
        raise ValueError("trained on 8 bits: scale the levels, black to 0 and white to 255 (uint8)")
"""
_ON_WHITE = """\
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
"""


def preparation_code(mode: str, processor: Any) -> str:
    """Return Python that defines `prepared`, for cards: what image processors leave to the caller.

    It needs `Image` and `ImageOps` of PIL, and numpy as np, and does what `images.decoding` does.

    Args:
        mode: that the encoder takes: L, RGB or RGBA.
        processor: the image processor that comes after it.
    """
    known = read_pixel_range(processor)
    levels = _NO_LEVELS
    if known is not None:
        low, high = known
        levels = _LEVELS.format(low=_written(low), scale=f"255 / {_written(high - low)}")
    side = resized_side(processor)
    return _PREPARED.format(
        mode=mode,
        draft=_DRAFT.format(side=2 * side) if side else "",
        levels=levels,
        transparency="" if mode == "RGBA" else _ON_WHITE,
    )


def _written(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


def read_pixel_range(processor: Any) -> tuple[float, float] | None:
    """Return the levels of images of more than 8 bits that an image processor was saved with."""
    found = getattr(processor, PIXEL_RANGE, None)
    return None if found is None else (float(found[0]), float(found[1]))


def resized_side(processor: Any) -> int:
    """Return the pixels of the longest side that an image processor resizes to; 0 = it does not.

    Of one that keeps the shape of an image it is the shorter side.
    """
    if not getattr(processor, "do_resize", False):
        return 0
    size = processor.size
    return int(max(size.get(name) or 0 for name in ("height", "width", "shortest_edge")))


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
        InputError: the model has no image processor, or one whose images are neither squares nor
            whole images resized to fixed sides, or whose numbers cannot be used.
    """
    processor = load_processor(model)
    try:
        return _read_steps(processor, model)
    except (TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise InputError(
            f"the image processor of {model!r} cannot be used ({first_line(error)})",
            advice="repair its preprocessor_config.json, or change `model`",
        ) from error


def _read_steps(processor: Any, model: str) -> Preprocessing:
    """Return what an image processor does, or stumble over what its file says."""
    is_cropped = getattr(processor, "do_center_crop", False)
    size = processor.crop_size if is_cropped else processor.size
    sides = [size[name] for name in ("height", "width", "shortest_edge") if size.get(name)]
    if not sides or (len(set(sides)) > 1 and (is_cropped or len(sides) > 2)):
        raise InputError(
            f"the image processor of {model!r} makes images of {dict(size)}, neither squares nor "
            "whole images resized to fixed sides",
            advice="change `model`",
        )
    # The processor's mean and deviation are for rescaled bytes; ours are for pixels in [0, 1].
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    raw = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = ((np.atleast_1d(values) / factor).tolist() for values in raw)
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise InputError(
            f"the image processor of {model!r} takes off {mean} and divides by {std}, but all must "
            "be finite and the latter greater than 0",
            advice="repair its preprocessor_config.json, or change `model`",
        )
    return Preprocessing(image_size_of(sides[0], sides[-1]), mean, std, read_pixel_range(processor))
