"""The arms of the label-efficiency curve: ways to learn from labelled rows of a task.

A pretrained model and the rows of a task enter; functions that learn from some of the rows and
predict the test rows leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.downstream.data import ImageDataset, LabelledDataset, augmentation_of
from bert_pretrain.downstream.models import ClassifierSource
from bert_pretrain.downstream.sources import Splits
from bert_pretrain.downstream.training import FinetuningRecipe, predict_logits, train
from bert_pretrain.evaluation.features import Features, Labels
from bert_pretrain.evaluation.label_efficiency import Arm
from bert_pretrain.evaluation.probes import fit_best_penalty, fit_probe
from bert_pretrain.hardware import default_device
from bert_pretrain.models.embedding import pool
from bert_pretrain.models.fast_paths import choose_attention
from bert_pretrain.models.image_encoder import build_image_encoder, embed
from bert_pretrain.models.image_encoder_config import image_size_of
from bert_pretrain.models.loaded_models import load_encoder

ARMS = {
    "fine_tuned": "pretrained, fine-tuned",
    "adapted": "pretrained, adapted to texts without labels, fine-tuned",
    "frozen_probe": "pretrained, frozen + logistic regression",
    "from_scratch": "from scratch",
    "floor": "TF-IDF or pixels + logistic regression",
}
_TFIDF_GRID = tuple(10.0**exponent for exponent in range(-1, 4))  # of C


@dataclass(frozen=True)
class CurveTask:
    """What the arms of one curve share.

    Attributes:
        model: folder or Hub id of the pretrained encoder.
        splits: `train`, the rows that may be learnt from, and `test`, those that are predicted.
        labels: of the rows that may be learnt from, int (N,).
        recipe: of the arms that train.
        augmentation: of training images: none, crop or crop_flip.
        scratch_folder: for files that a training needs while it runs.
    """

    model: str
    splits: Splits
    labels: Labels
    recipe: FinetuningRecipe
    augmentation: str
    scratch_folder: Path


def probe_arm(features: Features, labels: Labels, test_features: Features) -> Arm:
    """Return the arm that fits logistic regression on features (N, D), (M, D); see `fit_probe`."""

    def learn(places: NDArray[np.int64], seed: int) -> Labels:
        fitted, *_ = fit_probe(features[places], labels[places], seed=seed)
        return np.asarray(fitted.predict(test_features))

    return learn


def _trained(task: CurveTask, *, from_scratch: bool) -> Arm:
    splits = task.splits
    source = ClassifierSource(
        task.model,
        splits.labels,
        from_scratch=from_scratch,
        max_seq_length=splits.max_seq_length,
        pad_token_id=getattr(splits.processor, "pad_token_id", None),
    )

    def learn(places: NDArray[np.int64], seed: int) -> Labels:
        rows: LabelledDataset = splits.rows["train"].subset(places)
        if isinstance(rows, ImageDataset):
            rows.augmentation = augmentation_of(task.augmentation, rows.pixels.shape[1:], seed=seed)
        model = source.build(seed)
        trainer = train(model, rows, task.recipe, seed=seed, scratch_folder=task.scratch_folder)
        return np.asarray(predict_logits(trainer, splits.rows["test"]).argmax(axis=1))

    return learn


def _frozen(task: CurveTask) -> Arm:
    """Return a probe of the mean of the last layer, or of what an image classifier would be fed."""
    embed_batch = (_text_embedder if task.splits.texts else _image_embedder)(task)
    device, batch_size = default_device(), task.recipe.per_device_eval_batch_size

    def embedded(rows: LabelledDataset) -> NDArray[np.float32]:
        order = np.argsort(rows.lengths, kind="stable")  # rows of like length go together
        plain = rows.subset(np.arange(len(rows)))  # images without augmentation
        plain.labels = None
        features = []
        with torch.no_grad():
            for first in range(0, len(order), batch_size):
                batch = plain.__getitems__(order[first : first + batch_size].tolist())
                on_device = {name: values.to(device) for name, values in batch.items()}
                features.append(embed_batch(on_device).cpu().numpy())
        return np.asarray(np.concatenate(features)[np.argsort(order)])

    features, test_features = (embedded(task.splits.rows[name]) for name in ("train", "test"))
    return probe_arm(features, task.labels, test_features)


def _text_embedder(task: CurveTask) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what maps a batch to the mean of the last layer over a row's tokens, (B, D)."""
    encoder, _ = load_encoder(task.model, task.splits.config)
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    encoder.to(default_device()).eval()
    choose_attention(encoder, task.splits.max_seq_length)

    def embed_batch(batch: dict[str, Tensor]) -> Tensor:
        states = encoder(**batch).last_hidden_state
        return pool(states, batch["attention_mask"], "mean")

    return embed_batch


def _image_embedder(task: CurveTask) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what maps a batch to the input of the architecture's own classifier, (B, D)."""
    pool = task.splits.rows["train"]
    assert isinstance(pool, ImageDataset)
    _, num_channels, height, width = pool.pixels.shape
    encoder = build_image_encoder(
        config_name="",
        model_name_or_path=task.model,
        image_size=image_size_of(height, width),
        num_channels=num_channels,
        dropout=0.0,
    )
    encoder.to(default_device()).eval()
    return lambda batch: embed(encoder, batch["pixel_values"])


def _floor(task: CurveTask) -> Arm:
    if not task.splits.texts:
        rows, test_rows = (_pixel_rows(task.splits.rows[name]) for name in ("train", "test"))
        return probe_arm(rows, task.labels, test_rows)
    texts, test_texts = (
        np.array(task.splits.texts[name].joined(), dtype=object) for name in ("train", "test")
    )

    def learn(places: NDArray[np.int64], seed: int) -> Labels:
        from sklearn.feature_extraction.text import TfidfVectorizer

        # Words and pairs of words; their weights too come from the labelled rows alone.
        words = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]"
        )
        rows, labels = texts[places], task.labels[places]
        fitted, *_ = fit_best_penalty([words], _TFIDF_GRID, rows, labels, seed=seed)
        return np.asarray(fitted.predict(test_texts))

    return learn


def _pixel_rows(rows: LabelledDataset) -> NDArray[np.float32]:
    """Return pixels in [0, 1], float32 (N, C * H * W)."""
    assert isinstance(rows, ImageDataset)
    return rows.pixels.reshape(len(rows), -1).astype(np.float32) / np.float32(255)


def make_arm(name: str, task: CurveTask) -> Arm:
    """Return an arm of `ARMS`, with its model read, or raise `InputError` if it cannot be used."""
    makers: dict[str, Callable[[CurveTask], Arm]] = {
        "fine_tuned": partial(_trained, from_scratch=False),
        "adapted": partial(_trained, from_scratch=False),  # of a task whose model is adapted
        "frozen_probe": _frozen,
        "from_scratch": partial(_trained, from_scratch=True),
        "floor": _floor,
    }
    return makers[name](task)
