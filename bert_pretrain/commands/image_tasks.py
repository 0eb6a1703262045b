"""The tasks of images: from flags to rows, model, monitor and exporter."""

from __future__ import annotations

import dataclasses
from typing import Any

from accelerate import Accelerator

from bert_pretrain.commands.machine import batch_layout
from bert_pretrain.config.pretraining import PretrainingConfig
from bert_pretrain.errors import InputError
from bert_pretrain.images.augmentation import PRESETS, AugmentationRule
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.images.local_views import local_crop_area, local_view_size
from bert_pretrain.objectives import autoencoder as autoencoders
from bert_pretrain.objectives import contrastive as contrasts
from bert_pretrain.objectives.interface import Task


def autoencoder_task(config: PretrainingConfig, accelerator: Accelerator) -> Task:
    """Open the images and return what learning them by reconstruction is about."""
    autoencoder = config.autoencoder
    corpus, common = _open_images(config, accelerator), _common_values(config)
    if autoencoder.mask_ratio > 0:
        task = autoencoders.masked_autoencoder_task(
            corpus,
            mask_ratio=autoencoder.mask_ratio,
            normalize_target=autoencoder.norm_pix_loss,
            **common,
        )
    else:
        task = autoencoders.autoencoder_task(
            corpus,
            embedding_dim=autoencoder.embedding_dim,
            kind=autoencoder.reconstruction_loss,
            noise_std=autoencoder.noise_std,
            **common,
        )
    return task._replace(sources={"data": corpus.provenance})


def contrastive_task(config: PretrainingConfig, accelerator: Accelerator) -> Task:
    """Open the images and return what learning them by contrast is about."""
    contrastive, layout = config.contrastive, batch_layout(config, accelerator)
    # Before much work: they may be refused.
    rule, local_views = augmentation_rule(config), local_view_values(config)
    corpus = _open_images(config, accelerator, with_whole=True)
    task = contrasts.contrastive_task(
        corpus,
        rule,
        projection_dim=contrastive.projection_dim,
        loss=contrastive.loss,
        triplet={
            "margin": contrastive.margin,
            "distance": contrastive.distance,
            "normalize": contrastive.normalize,
            "negatives": contrastive.negatives,
            "reduction": contrastive.reduction,
        },
        temperature=contrastive.temperature,
        num_images=layout.global_batch_size,
        **local_views,
        **_common_values(config),
    )
    return task._replace(sources={"data": corpus.provenance})


# What has no effect where another flag is 0.
_NEEDED = {
    "rotation_degrees": "rotation_prob",
    **dict.fromkeys(("brightness", "contrast", "saturation", "hue"), "jitter_prob"),
    "blur_sigma": "blur_prob",
}


def augmentation_rule(config: PretrainingConfig) -> AugmentationRule:
    """Return the preset of `augmentation`, changed as the flags of views say.

    Raises:
        InputError: a value is out of range or has no effect, or two flags contradict each other.
    """
    contrastive = config.contrastive
    given = {name: value for name, value in vars(config.views).items() if value is not None}
    for name, value in given.items():
        if isinstance(value, list):
            if len(value) != 2:
                raise InputError.out_of_range(name, value, "two numbers, such as 0.2 1")
            given[name] = tuple(value)
    if not contrastive.horizontal_flip:
        if given.get("flip_prob"):
            raise InputError(
                f"`flip_prob` is {given['flip_prob']:g} but `no_horizontal_flip` allows no mirror "
                "images",
                advice="leave out one of them",
            )
        given["flip_prob"] = 0.0
    rule = dataclasses.replace(PRESETS[contrastive.augmentation], **given)
    for name, needed in _NEEDED.items():
        if given.get(name) and not getattr(rule, needed):
            raise InputError(
                f"`{name}` means nothing while `{needed}` is 0, as `augmentation` "
                f"{contrastive.augmentation} has it",
                advice=f"pass `{needed}` too",
            )
    return rule


def local_view_values(config: PretrainingConfig) -> dict[str, Any]:
    """Return what the flags of local views say, as the task takes it.

    Raises:
        InputError: a value is out of range, as far as that is known before images are read.
    """
    local, image_size = config.local_views, config.images.image_size.sides
    if image_size:
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        local_view_size(local.local_view_size.sides, sides)
    return {
        "num_local_views": local.num_local_views,
        "wanted_local_size": local.local_view_size.sides,
        "local_crop_area": local_crop_area(local.local_crop_area),
    }


def _open_images(
    config: PretrainingConfig, accelerator: Accelerator, *, with_whole: bool = False
) -> ImageCorpus:
    data, images = config.data, config.images
    return open_images(
        dataset_name=data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        dataset_split=data.dataset_split,
        data_files=data.data_files,
        image_column=images.image_column,
        label_column=images.label_column,
        image_size=images.image_size.sides,
        num_channels=images.num_channels,
        on_bad_image=images.on_bad_image,
        pixel_range=images.pixel_range.ends,
        reading=images.image_reading,
        with_whole=with_whole,
        validation_share=data.validation_share,
        seed=config.run.seed,
        show_progress=accelerator.is_local_main_process,
    )


def _common_values(config: PretrainingConfig) -> dict[str, Any]:
    return {
        "config_name": config.model.config_name,
        "model_name_or_path": config.model.model_name_or_path,
        "dropout": config.model.dropout,
        "seed": config.run.seed,
        "max_eval_rows": config.data.max_eval_rows,
    }
