"""The flags of pretraining on images: what is read, and what is learnt from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bert_pretrain.config.flags import (
    NON_NEGATIVE,
    PIXELS,
    POSITIVE,
    SHARE,
    SHARE_BELOW_ONE,
    WIDTH,
    LevelRange,
    Range,
    flag,
    flags,
)
from bert_pretrain.config.sizes import ImageSize, LocalViewSize


@dataclass
class ImageArguments:
    """How images are read."""

    _argument_group_name: ClassVar[str] = "images"
    image_column: str = flag("image", "Column that holds the images.")
    label_column: str = flag("label", "Column of labels, for evaluation and pictures; optional.")
    image_size: ImageSize = flag(
        ImageSize(0),
        "Side in pixels of the squares that images become: the shorter side is resized, the centre "
        "cropped; or HEIGHTxWIDTH, to which images are resized whole; 0 = the images' own.",
        PIXELS,
    )
    image_reading: Literal["cache", "stream"] = flag(
        "cache",
        "Decode once and keep the pixels at --image_size, or stream: decode at every visit and "
        "crop views from the full resolution, without a copy; of a folder, .tar files or a data "
        "set (docs/images.md).",
    )
    num_channels: Literal[0, 1, 3, 4] = flag(0, "Grey, RGB or RGBA; 0 = as most images have it.")
    on_bad_image: Literal["error", "skip"] = flag("error", "What becomes of an undecodable image.")
    pixel_range: LevelRange = flag(
        LevelRange("auto"),
        "Of images of more than 8 bits: LOW:HIGH, the grey levels that become black and white, "
        "such as 0:4095 (a negative LOW with =, --pixel_range=-160:240); auto = 0 to what 8, 10, "
        "12, 14 or 16 bits hold (of floating-point images also 1), whichever is the least that all "
        "of them fit into.",
    )


@dataclass
class AutoencoderArguments:
    """Learning images by reconstruction."""

    _argument_group_name: ClassVar[str] = "autoencoder"
    embedding_dim: int = flag(
        32,
        "Numbers between encoder and decoder (metrics.jsonl has the encoder's own as encoder_dim).",
        Range(1, WIDTH),
    )
    reconstruction_loss: Literal["mse", "l1"] = flag("mse", "Distance of the reconstruction.")
    noise_std: float = flag(
        0.0,
        "Gaussian noise added to the input, in units of the pixels' deviation (denoising).",
        NON_NEGATIVE,
    )
    mask_ratio: float = flag(
        0.0,
        "Share of patches hidden from the encoder; more than 0 = masked autoencoder.",
        SHARE_BELOW_ONE,
    )
    norm_pix_loss: bool = flag(True, "Normalise each target patch of the masked autoencoder.")


@dataclass
class ContrastiveArguments:
    """Learning images by contrast."""

    _argument_group_name: ClassVar[str] = "contrastive"
    augmentation: Literal["basic", "simclr", "simclr_small"] = flag(
        "simclr_small", "How the other view is made."
    )
    horizontal_flip: bool = flag(True, "Whether views may be mirrored; wrong for digits or text.")
    loss: Literal["triplet", "nt_xent"] = flag(
        "triplet", "max(d(e1, e1') - d(e1, e2) + margin, 0), or NT-Xent."
    )
    margin: float = flag(1.0, "Alpha of the triplet loss.", POSITIVE)
    distance: Literal["l2", "l2_squared", "cosine"] = flag("l2", "Distance of the triplet loss.")
    normalize: bool = flag(True, "Scale embeddings to unit length before the triplet loss.")
    negatives: Literal["random", "semi_hard", "hard", "all"] = flag("random", "Which image is e2.")
    reduction: Literal["mean", "mean_positive"] = flag(
        "mean", "Over all triplets, or those above 0."
    )
    temperature: float = flag(0.5, "Temperature of NT-Xent.", Range(1e-3, 1e3))
    projection_dim: int = flag(128, "Width that the loss sees; 0 = the encoder's.", Range(0, WIDTH))


@dataclass
class ViewArguments:
    """How views differ from their image; what is left out is as --augmentation has it."""

    _argument_group_name: ClassVar[str] = "views of contrastive learning"
    crop_area: list[float] | None = flags(
        "Two numbers: smallest and largest share of an image that a crop has."
    )
    crop_aspect: list[float] | None = flags(
        "Two numbers: smallest and largest width / height of a crop, 1 = that of a view."
    )
    flip_prob: float | None = flag(None, "Share of views that are mirrored.", SHARE)
    rotation_prob: float | None = flag(None, "Share of views that are rotated.", SHARE)
    rotation_degrees: float | None = flag(
        None, "Largest rotation to either side, degrees.", Range(0, 180)
    )
    jitter_prob: float | None = flag(None, "Share of views whose colours change.", SHARE)
    brightness: float | None = flag(
        None, "X of that change: a factor from max(0, 1 - X) to 1 + X.", NON_NEGATIVE
    )
    contrast: float | None = flag(None, "The same for the contrast.", NON_NEGATIVE)
    saturation: float | None = flag(None, "The same for the saturation.", NON_NEGATIVE)
    hue: float | None = flag(None, "Most that hues turn, in turns.", Range(0, 0.5))
    grayscale_prob: float | None = flag(None, "Share of views that are grey.", SHARE)
    blur_prob: float | None = flag(
        None, "Share of views that are blurred, of images of 20 pixels and more.", SHARE
    )
    blur_sigma: list[float] | None = flags(
        "Two numbers: smallest and largest deviation of the blur, pixels."
    )
    inversion_prob: float | None = flag(None, "Share of views with inverted colours.", SHARE)


@dataclass
class LocalViewArguments:
    """Small views of an image that are compared with its others (multi-crop)."""

    _argument_group_name: ClassVar[str] = "local views of contrastive learning"
    num_local_views: int = flag(
        0, "Small crops of each image beside what is compared anyway; 0 = none.", Range(0, 64)
    )
    local_view_size: LocalViewSize = flag(
        LocalViewSize(0),
        "Their side in pixels, or HEIGHTxWIDTH; 0 = half of --image_size, all of it below 16 "
        "pixels. A multiple of the encoder's patches.",
        PIXELS,
    )
    local_crop_area: list[float] | None = flags(
        "Two numbers: smallest and largest share of an image that they show, in place of "
        "--crop_area; 0.05 0.4 if left out. All else is as for other views."
    )
