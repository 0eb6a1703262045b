"""A classifier's head that begins as logistic regression on what it reads, not at random.

It begins where a frozen encoder ends. That is a good place where its features tell the classes
apart already, and a bad one where they do not: few rows are fitted at once, and little is left to
learn from (docs/few_labels.md has the numbers).

Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", section 3.4 (linear probing, then fine-tuning).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.data import LabelledDataset
from bert_pretrain.downstream.logistic import fit_probe
from bert_pretrain.hardware import default_device

_MOST_ROWS = 2000  # that a head begins from; more would cost more than they say


@torch.no_grad()
def begin_as_probe(
    model: PreTrainedModel, rows: LabelledDataset, *, seed: int, batch_size: int
) -> bool:
    """Give the last layer of a classifier the weights of logistic regression on what it is fed.

    Args:
        model: a classifier of transformers; it is left in evaluation mode, on the default device.
        rows: to learn from, with a class each; of more than 2,000 as many are drawn.
        seed: of that draw, and of the folds that choose the penalty.
        batch_size: rows of a forward pass.

    Returns:
        Whether it was done: not without two classes, and not where the model has no such layer.
    """
    assert rows.labels is not None
    if rows.labels.ndim != 1 or rows.labels.dtype.kind == "f" or len(np.unique(rows.labels)) < 2:
        return False
    layer = last_layer(model)
    if layer is None or layer.out_features != model.config.num_labels:
        return False
    order = permutation(len(rows), seed, Purpose.SPLIT)[:_MOST_ROWS]
    chosen = rows.subset(np.sort(order))
    features = read_by(layer, model, chosen, batch_size=batch_size)
    if features is None:
        return False
    assert chosen.labels is not None
    weight, bias = _fit(features, chosen.labels, layer.out_features, seed=seed)
    layer.weight.copy_(torch.from_numpy(weight))
    if layer.bias is not None:
        layer.bias.copy_(torch.from_numpy(bias))
    return True


def last_layer(model: PreTrainedModel) -> nn.Linear | None:
    """Return the linear layer that computes a classifier's scores; None if it has none."""
    encoder = set(model.base_model.modules())
    outside = [module for module in model.modules() if module not in encoder]
    linear = [module for module in outside if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def read_by(
    layer: nn.Linear, model: PreTrainedModel, rows: LabelledDataset, *, batch_size: int
) -> NDArray[np.float32] | None:
    """Return what a layer of a model is fed of all rows, (N, D); None if it is not one vector each.

    Images are not augmented, and nothing is dropped out.
    """
    device = default_device()
    model.to(device).eval()
    fed: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].detach()))
    order = np.argsort(rows.lengths, kind="stable")  # rows of like length go together
    plain = rows.subset(np.arange(len(rows)))
    plain.labels = None
    try:
        for first in range(0, len(order), batch_size):
            batch = plain.__getitems__(order[first : first + batch_size].tolist())
            model(**{name: values.to(device) for name, values in batch.items()})
            if fed[-1].ndim != 2:  # a decoder scores every token
                return None
    finally:
        hook.remove()
    return np.asarray(torch.cat(fed).float().cpu().numpy()[np.argsort(order)])


def _fit(
    features: NDArray[np.float32], labels: NDArray[np.int64], num_labels: int, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weights (num_labels, D) and biases (num_labels,) of raw features."""
    fitted, *_ = fit_probe(features, labels, seed=seed)
    scaler, regression = fitted[0], fitted[-1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:  # of two classes it is the difference of their scores
        weight, bias = (np.concatenate([-part / 2, part / 2]) for part in (weight, bias))
    # A class without a row begins with the scores of one that is as rare as the rarest.
    all_weights = np.zeros((num_labels, features.shape[1]), np.float32)
    all_biases = np.full(num_labels, bias.min(), np.float32)
    all_weights[regression.classes_], all_biases[regression.classes_] = weight, bias
    return all_weights, all_biases
