"""Whether and how an image encoder embeds smaller images beside those that it was built for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bert_pretrain.errors import InputError, first_line
from bert_pretrain.models.image_encoder import embed
from bert_pretrain.models.image_encoder_config import InputSize, refuse_small_images, sides

_STRETCHES = "interpolate_pos_encoding"


def other_size_inputs(encoder: PreTrainedModel) -> dict[str, Any]:
    """Return what a forward pass of images of another size needs beside them.

    The learnt positions of a ViT are stretched, those of patches as a grid by bicubic
    interpolation, with gradient.

    Source: Dosovitskiy et al. 2021, section 3.2.
    """
    takes_it = _STRETCHES in inspect.signature(encoder.forward).parameters
    return {_STRETCHES: True} if takes_it else {}


def check_local_size(
    encoder: PreTrainedModel, size: tuple[int, int], *, image_size: InputSize, source: str
) -> None:
    """Check that an encoder embeds images of two sizes.

    Args:
        encoder: it is left as it is.
        size: height and width of local views.
        image_size: of the images that it was built for.
        source: what messages call it.

    Raises:
        InputError: it does not, or in a way that changes what it computes.
    """
    shown = "x".join(map(str, size))
    patch_size = getattr(encoder.config, "patch_size", None)
    if isinstance(patch_size, int) and any(side % patch_size for side in size):
        largest = max(patch_size, min(size) // patch_size * patch_size)
        raise InputError.out_of_range(
            "local_view_size",
            shown,
            f"a multiple of the patches of {source}, {patch_size} pixels",
            f"pass `local_view_size` {largest}, or another multiple",
        )
    refuse_small_images(encoder.config, source, size, parameter="local_view_size")
    height, width = sides(image_size)
    has_positions = any(
        name.endswith("position_embeddings") for name, _ in encoder.named_parameters()
    )
    if has_positions and (height, size[0]) != (width, size[1]):
        raise InputError(
            f"`local_view_size` {shown} beside images of {height}x{width}: transformers stretches "
            f"the positions of {source} from squares to squares alone",
            advice="pass `image_size` and `local_view_size` one number each, or a convolutional "
            "`config_name`, such as convnextv2-micro",
        )
    _embed_both(encoder, size, (height, width), source=source)


@torch.no_grad()
def _embed_both(
    encoder: PreTrainedModel,
    size: tuple[int, int],
    image_size: tuple[int, int],
    *,
    source: str,
) -> None:
    """Raise `InputError` unless both sizes are embedded alike, the larger one as before."""
    shown = "x".join(map(str, size))
    advice = "pass another `local_view_size`, or `num_local_views` 0"
    was_training = encoder.training
    encoder.eval()
    image, small = (_noise(encoder, each) for each in (image_size, size))
    try:
        before = embed(encoder, image)
        local = embed(encoder, small, **other_size_inputs(encoder))
        after = embed(encoder, image)
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{source} does not take local views of {shown} pixels ({first_line(error)})",
            advice=advice,
        ) from error
    finally:
        encoder.train(was_training)
    # Some classes of windows keep the size of the last image.
    if local.shape != before.shape or not torch.equal(before, after):
        raise InputError(
            f"{source} computes another embedding of an image after it has seen one of {shown} "
            "pixels",
            advice=advice,
        )


def _noise(encoder: PreTrainedModel, size: tuple[int, int]) -> Tensor:
    """Return an image (1, C, H, W) that has no two places alike."""
    shape = (1, encoder.config.num_channels, *size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(encoder.device)
