"""From flags to what is learnt: each objective is built here, by name, from its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from bert_pretrain.commands.prepare import data_card, open_corpus, pair_mode_for
from bert_pretrain.config.pretraining import PretrainingConfig
from bert_pretrain.images.augmentation import PRESETS
from bert_pretrain.images.corpus import ImageCorpus, open_images
from bert_pretrain.models.loading import build_bert
from bert_pretrain.objectives.autoencoder import autoencoder_task, masked_autoencoder_task
from bert_pretrain.objectives.bert import BertObjective
from bert_pretrain.objectives.contrastive import contrastive_task
from bert_pretrain.objectives.interface import Objective, Task
from bert_pretrain.publishing.text_export import trained_length
from bert_pretrain.text.masking import MaskingRule, ordinary_token_ids
from bert_pretrain.text.tokenizers import load_tokenizer


def build_objective(config: PretrainingConfig, accelerator: Accelerator) -> Objective:
    """Open the data, print its card, and return what is learnt from it.

    Raises:
        InputError: the data, the tokenizer or the model cannot be used.
    """
    objective = OBJECTIVES[config.run.objective](config, accelerator)
    accelerator.print(objective.data_card)
    return objective


def _build_bert_objective(config: PretrainingConfig, accelerator: Accelerator) -> Objective:
    data, text, model = config.data, config.text, config.model
    is_from_scratch = model.model_name_or_path is None
    tokenizer = load_tokenizer(text.tokenizer_name or model.model_name_or_path)
    tokenizer.model_max_length = trained_length(
        tokenizer, text.max_seq_length, is_from_scratch=is_from_scratch
    )
    corpus = open_corpus(
        data, text, tokenizer, seed=config.run.seed, show_progress=accelerator.is_local_main_process
    )
    rule = MaskingRule(
        mlm_probability=text.mlm_probability,
        mask_replace_prob=text.mask_replace_prob,
        random_replace_prob=text.random_replace_prob,
        unit=text.masking,
        mask_token_id=tokenizer.mask_token_id,
        ordinary_ids=ordinary_token_ids(tokenizer),
    )

    def make_model() -> PreTrainedModel:
        return build_bert(
            config_name=model.config_name,
            model_name_or_path=model.model_name_or_path,
            tokenizer=tokenizer,
            max_seq_length=text.max_seq_length,
            dropout=model.dropout,
        )

    objective = BertObjective(
        corpus,
        tokenizer,
        make_model,
        rule,
        pair_mode=pair_mode_for(config.run.objective, text.pair_mode),
        max_seq_length=text.max_seq_length,
        short_seq_prob=text.short_seq_prob,
        seed=config.run.seed,
        max_eval_rows=data.max_eval_rows,
        num_workers=data.dataloader_num_workers,
        is_from_scratch=is_from_scratch,
    )
    plan = objective.stream.plan(0)
    objective.data_card = data_card(corpus, plan, max_seq_length=text.max_seq_length)
    objective.language = text.language or corpus.language
    return objective


def _autoencoder(config: PretrainingConfig, accelerator: Accelerator) -> Task:
    autoencoder = config.autoencoder
    corpus = _open_images(config, accelerator)
    if autoencoder.mask_ratio == 0:
        return autoencoder_task(
            corpus,
            embedding_dim=autoencoder.embedding_dim,
            kind=autoencoder.reconstruction_loss,
            noise_std=autoencoder.noise_std,
            **_common_image_values(config),
        )
    return masked_autoencoder_task(
        corpus,
        mask_ratio=autoencoder.mask_ratio,
        normalize_target=autoencoder.norm_pix_loss,
        **_common_image_values(config),
    )


def _contrastive(config: PretrainingConfig, accelerator: Accelerator) -> Task:
    contrastive = config.contrastive
    rule = PRESETS[contrastive.augmentation]
    if not contrastive.horizontal_flip:
        rule = dataclasses.replace(rule, flip_prob=0.0)
    return contrastive_task(
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
        **_common_image_values(config),
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
        validation_share=data.validation_share,
        seed=config.run.seed,
        show_progress=accelerator.is_local_main_process,
    )


def _common_image_values(config: PretrainingConfig) -> dict[str, Any]:
    return {
        "config_name": config.model.config_name,
        "model_name_or_path": config.model.model_name_or_path,
        "dropout": config.model.dropout,
        "seed": config.run.seed,
        "max_eval_rows": config.data.max_eval_rows,
    }


OBJECTIVES: dict[str, Callable[[PretrainingConfig, Accelerator], Objective]] = {
    "mlm_nsp": _build_bert_objective,
    "mlm": _build_bert_objective,
    "autoencoder": _autoencoder,
    "contrastive": _contrastive,
}
