"""Trainers of real objectives on very small models and data in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from stores import store_of
from tiny_task import Silence
from transformers import PreTrainedModel

from bert_pretrain.data.stream import HeldOutRows, TrainingStream, WholeEpochs
from bert_pretrain.images.augmentation import PRESETS
from bert_pretrain.images.corpus import open_images
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.text_encoder_config import named_config
from bert_pretrain.objectives.autoencoder import autoencoder_task, masked_autoencoder_task
from bert_pretrain.objectives.contrastive import contrastive_task
from bert_pretrain.objectives.interface import Objective, Task
from bert_pretrain.objectives.text import TextObjective
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.layout import RowLayouts
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch
from bert_pretrain.training.layout import BatchLayout
from bert_pretrain.training.optimizers import OptimizerName, build_optimizers
from bert_pretrain.training.schedule import Intervals, Schedule
from bert_pretrain.training.sharding import local
from bert_pretrain.training.trainer import Trainer

VOCAB, LENGTH = 200, 32

# How an evaluation lets a monitor measure.
PASSES: Any = {"batch_size": 256, "beat": lambda place: None}


def attend_by_bounds(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
) -> torch.Tensor:
    """Return what an attention kernel without padding does, a row at a time, in any dtype."""
    parts = []
    bounds = zip(query_bounds.tolist(), key_bounds.tolist(), strict=True)
    for (query_begin, key_begin), (query_end, key_end) in pairwise(bounds):
        asking, rows = query[query_begin:query_end], slice(key_begin, key_end)
        assert len(asking) <= longest_query
        assert len(key[rows]) <= longest_key
        scores = torch.einsum("qhd,khd->hqk", asking, key[rows]) / math.sqrt(key.shape[-1])
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[rows]))
    return torch.cat(parts)


def bert_objective(
    *,
    with_pairs: bool = True,
    num_layers: int = 2,
    num_short: int = 0,
    build: Callable[[], PreTrainedModel] | None = None,
    **config: Any,
) -> TextObjective:
    """Return the objective of a very small BERT, or of what `build` makes, on random documents.

    There are 40 documents of 12 sentences, and `num_short` of a single one.
    """
    generator = np.random.default_rng(0)
    documents = [
        [generator.integers(5, VOCAB, generator.integers(3, 15)).tolist() for _ in range(12)]
        for _ in range(40)
    ]
    documents += [[generator.integers(5, VOCAB, 12).tolist()] for _ in range(num_short)]
    store = store_of(documents)
    rule = MaskingRule(mlm_probability=0.15, mask_token_id=4, ordinary_ids=np.arange(5, VOCAB))
    mode: PairMode = "exact" if with_pairs else "none"

    def plan(epoch: int) -> EpochPlan:
        return plan_epoch(
            store,
            np.arange(store.num_documents),
            max_seq_length=LENGTH,
            short_seq_prob=0.1,
            pair_mode=mode,
            seed=0,
            epoch=epoch,
        )

    collators = [
        PretrainingCollator(
            store,
            rule,
            layouts=RowLayouts.of_bert(2, 3),
            pad_token_id=0,
            seed=0,
            evaluation=evaluation,
        )
        for evaluation in (False, True)
    ]
    fields = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def make_model() -> BertForPreTraining:
        torch.manual_seed(0)
        sizes = {"num_hidden_layers": num_layers, "hidden_size": 64, "intermediate_size": 96}
        return BertForPreTraining(
            named_config("tiny", vocab_size=VOCAB, pad_token_id=0, **(fields | sizes | config))
        )

    return TextObjective(
        TrainingStream(WholeEpochs(plan), collators[0], identity={}),
        HeldOutRows(plan(0), np.arange(12), collators[1]),
        build or make_model,
        token_counts=None,
    )


def trainer_of(
    accelerator: Accelerator,
    objective: Objective,
    folder: Path,
    *,
    optimizer: OptimizerName = "muon",
    max_steps: int = 4,
    num_micro_batches: int = 2,
    save_steps: int = 0,
    **options: Any,
) -> Trainer:
    """Return a trainer of 8 rows an update, in 2 micro-batches unless another number is given."""
    model = objective.build_model()
    return Trainer(
        accelerator,
        Task(objective, Silence(), Silence()),
        model,
        build_optimizers(
            model,
            name=optimizer,
            weight_decay=0.01,
            adam_betas=(0.9, 0.98),
            adam_epsilon=1e-6,
        ),
        Schedule(
            max_steps=max_steps,
            max_seconds=0,
            peak=1e-3,
            warmup_steps=0,
            name="stable_decay",
            decay_share=0.5,
        ),
        Intervals(logging=1, evaluation=0, checkpoint=save_steps, save_total_limit=0),
        BatchLayout(global_batch_size=8, num_micro_batches=num_micro_batches, eval_batch_size=4),
        run_dir=folder,
        seed=0,
        max_grad_norm=1.0,
        fingerprint={},
        **options,
    )


def bert_trainer(
    accelerator: Accelerator,
    folder: Path,
    *,
    with_pairs: bool = True,
    optimizer: OptimizerName = "muon",
    **options: Any,
) -> Trainer:
    """Return a trainer of a very small BERT."""
    objective = bert_objective(with_pairs=with_pairs)
    return trainer_of(accelerator, objective, folder, optimizer=optimizer, **options)


def image_trainer(
    accelerator: Accelerator,
    folder: Path,
    kind: str,
    *,
    negatives: str = "random",
    num_local_views: int = 0,
    **options: Any,
) -> Trainer:
    """Return a trainer of a small image encoder on scikit-learn's digits; see `trainer_of`."""
    corpus = open_images(
        dataset_name="digits",
        validation_share=0.1,
        seed=0,
        cache_dir=folder / "cache",
        show_progress=False,
    )
    common: dict[str, Any] = {
        "config_name": "vit-tiny",
        "model_name_or_path": None,
        "dropout": 0.0,
        "seed": 0,
        "max_eval_rows": 8,
    }
    if kind == "autoencoder":
        task = autoencoder_task(corpus, embedding_dim=4, kind="mse", noise_std=0.3, **common)
    elif kind == "masked":
        task = masked_autoencoder_task(corpus, mask_ratio=0.5, normalize_target=True, **common)
    else:
        triplet = {"margin": 1.0, "distance": "l2", "normalize": True, "negatives": negatives}
        task = contrastive_task(
            corpus,
            PRESETS["basic"],
            loss=kind,
            triplet=triplet | {"reduction": "mean_positive"},
            temperature=0.2,
            num_images=8,
            projection_dim=8,
            num_local_views=num_local_views,
            **common,
        )
    return trainer_of(accelerator, task.objective, folder, **options)


def first_update(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Make the first update; returns its loss and metrics, and the gradient before it is clipped.

    The gradient is that of all parameters one after the other.
    """
    found = {}
    clip = trainer.distributed.clip_grad_norm

    def keep(max_norm: float) -> torch.Tensor:
        parameters = trainer.distributed.trained.parameters()
        gradients = [local(p.grad).flatten() for p in parameters if p.grad is not None]
        found["gradient"] = torch.cat(gradients).clone()
        return clip(max_norm)

    trainer.distributed.clip_grad_norm = keep  # type: ignore[method-assign]
    trainer._update(next(trainer._windows()), learning_rate=1e-3)
    means = trainer.sums.total().means()
    return found | {name: torch.tensor(mean) for name, mean in means.items()}
