"""What a fine-tuned model predicts, written for people: a line for each row, with class names and probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from bert_pretrain.downstream.labels import LabelSpace
from bert_pretrain.downstream.metrics import predict
from bert_pretrain.downstream.sources import Splits


def write_predictions(path: Path, logits: NDArray[np.float32], splits: Splits, name: str) -> None:
    """Write a line for each row: text, label where there is one, prediction, and probabilities by class name.

    Args:
        path: of the JSON lines.
        logits: float32 (N, num_labels), in the order of the rows.
        splits: what they belong to.
        name: of the split.
    """
    labels, rows, texts = splits.labels, splits.rows[name], splits.texts.get(name)
    is_classes = labels.problem_type == "single_label_classification"
    probabilities = softmax(logits, axis=1) if is_classes else expit(logits)
    predictions = predict(logits, labels.problem_type)
    lines = []
    for place in range(len(logits)):
        line: dict[str, Any] = {"row": place}
        if texts is not None:
            line |= {"text": texts.first[place]} | (
                {"text_pair": texts.second[place]} if texts.second else {}
            )
        if rows.labels is not None:
            line["label"] = _named(rows.labels[place], labels)
        line["prediction"] = _named(predictions[place], labels)
        if labels.names:
            shares = (round(float(value), 6) for value in probabilities[place])
            line["probabilities"] = dict(zip(labels.names, shares, strict=True))
        lines.append(line)
    write_lines(path, lines)


def _named(value: Any, labels: LabelSpace) -> Any:
    if labels.problem_type == "regression":
        return float(value)
    if labels.problem_type == "single_label_classification":
        return labels.names[int(value)]
    return [name for name, is_on in zip(labels.names, value, strict=True) if is_on]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
