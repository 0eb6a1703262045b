"""The tasks of images: from flags to rows, model, monitor and exporter."""

from __future__ import annotations

import dataclasses
from typing import Any

from accelerate import Accelerator

from bert_pretrain.commands.machine import batch_layout
from bert_pretrain.config.pretraining import PretrainingConfig
from bert_pretrain.errors import InputError
from bert_pretrain.images.augmentation import PRESETS
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.objectives import autoencoder as autoencoders
from bert_pretrain.objectives import contrastive as contrasts
from bert_pretrain.objectives.interface import Task
from bert_pretrain.training.sharding import is_sharded


def autoencoder_task(config: PretrainingConfig, accelerator: Accelerator) -> Task:
    """Open the images and return what learning them by reconstruction is about."""
    autoencoder = config.autoencoder
    corpus, common = _open_images(config, accelerator), _common_values(config)
    if autoencoder.mask_ratio > 0:
        return autoencoders.masked_autoencoder_task(
            corpus,
            mask_ratio=autoencoder.mask_ratio,
            normalize_target=autoencoder.norm_pix_loss,
            **common,
        )
    return autoencoders.autoencoder_task(
        corpus,
        embedding_dim=autoencoder.embedding_dim,
        kind=autoencoder.reconstruction_loss,
        noise_std=autoencoder.noise_std,
        **common,
    )


def contrastive_task(config: PretrainingConfig, accelerator: Accelerator) -> Task:
    """Open the images and return what learning them by contrast is about."""
    contrastive, layout = config.contrastive, batch_layout(config, accelerator)
    if contrastive.queue_size and is_sharded(accelerator):
        raise InputError(
            "`queue_size` is not 0, but the slow copy of a model that FSDP shards was not tried",
            advice="pass `queue_size` 0, or launch without FSDP",
        )
    rule = PRESETS[contrastive.augmentation]
    if not contrastive.horizontal_flip:
        rule = dataclasses.replace(rule, flip_prob=0.0)
    return contrasts.contrastive_task(
        _open_images(config, accelerator),
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
        queue_size=contrastive.queue_size,
        key_momentum=contrastive.key_momentum,
        **_common_values(config),
    )


def _open_images(config: PretrainingConfig, accelerator: Accelerator) -> ImageCorpus:
    data, images = config.data, config.images
    return open_images(
        dataset_name=data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        dataset_split=data.dataset_split,
        data_files=data.data_files,
        image_column=images.image_column,
        label_column=images.label_column,
        image_size=images.image_size,
        num_channels=images.num_channels,
        on_bad_image=images.on_bad_image,
        pixel_range=images.pixel_range.ends,
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
