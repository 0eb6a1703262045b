"""What fine-tuning leaves for people: predictions, the summary of several seeds, the model card."""

from __future__ import annotations

import html
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCardData
from numpy.typing import NDArray

from bert_pretrain.downstream.labels import LabelSpace
from bert_pretrain.downstream.metrics import is_better, predict
from bert_pretrain.downstream.sources import Splits
from bert_pretrain.images.decoding import MODES
from bert_pretrain.models.image_processor import preparation_code

_NAME_WIDTH = 60  # characters of a class name in one line about all of them
CARD = """\
---
{metadata}
---

# {title}

{made}:

```python
{code}
```

Labels: {labels}.

| split | metric | this model | mean of {num_seeds} seed{s} | standard deviation |
|---|---|---|---|---|
{rows}
{overlap}"""


TEXT_CODE = """\
from transformers import pipeline

classifier = pipeline("text-classification", model="{path}"){path_comment}"""
# `pipeline` converts every image to RGB, whatever the model takes and the image is.
IMAGE_CODE = """\
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification


{preparation_code}

path = "{path}"{path_comment}
processor = AutoImageProcessor.from_pretrained(path)
classifier = AutoModelForImageClassification.from_pretrained(path).eval()
image = Image.new("{mode}", (64, 64))  # or Image.open("image.png")
with torch.no_grad():
    scores = classifier(**processor(prepared(image), return_tensors="pt")).logits[0]
print(classifier.config.id2label[scores.argmax().item()], scores)"""


def write_predictions(path: Path, logits: NDArray[np.float32], splits: Splits, name: str) -> None:
    """Write what logits (N, num_labels) of the split `name` predict, as JSON lines.

    Of each row: the text, the label if known, the prediction and the probabilities.
    """
    from scipy.special import expit, softmax

    labels, rows, texts = splits.labels, splits.rows[name], splits.texts.get(name)
    is_classes = labels.problem_type == "single_label_classification"
    probabilities = softmax(logits, axis=1) if is_classes else expit(logits)
    predictions = predict(logits, labels.problem_type)
    lines = []
    for place in range(len(logits)):
        line: dict[str, Any] = {"row": place}
        if texts is not None:
            line["text"] = texts.first[place]
            if texts.second:
                line["text_pair"] = texts.second[place]
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


def summarize_seeds(outcomes: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what results.json says of all seeds: the best one, mean and deviation of each metric.

    Args:
        outcomes: by seed, with `metrics` by split and name; the first one of validation chooses.
    """
    first = next(iter(outcomes.values()))["metrics"]
    decisive = next(iter(first["validation"]))
    best, *others = outcomes
    for seed in others:
        new, old = (outcomes[number]["metrics"]["validation"] for number in (seed, best))
        best = seed if is_better(new[decisive], old[decisive], decisive) else best
    spread: dict[str, dict[str, dict[str, float | None]]] = {}
    for split, names in first.items():
        for name in names:
            values = [outcome["metrics"][split][name] for outcome in outcomes.values()]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            mean = statistics.fmean(values)
            spread.setdefault(split, {})[name] = {"mean": mean, "std": deviation}
    return {
        "best_seed": best,
        "chosen_by": f"validation {decisive}",
        "metrics": spread,
        "seeds": {str(seed): outcome for seed, outcome in outcomes.items()},
    }


def majority_accuracies(splits: Splits) -> dict[str, float]:
    """Return the accuracy, by split, of always answering the largest class of the training rows.

    Empty unless every row has one class.
    """
    answers = splits.rows["train"].labels
    if splits.labels.problem_type != "single_label_classification" or answers is None:
        return {}
    largest = np.bincount(answers).argmax()
    return {
        name: float((rows.labels == largest).mean())
        for name, rows in splits.rows.items()
        if name != "train" and rows.labels is not None
    }


def format_results(results: dict[str, Any]) -> str:
    """Return a table of what results.json says: a line for each split and metric."""
    num_seeds = len(results["seeds"])
    lines = [f"{'split':<11} {'metric':<21} {'mean':>8} {'std':>8}   over {num_seeds} seed(s)"]
    for split, metrics in results["metrics"].items():
        for name, values in metrics.items():
            deviation = "" if values["std"] is None else f"{values['std']:.4f}"
            lines.append(f"{split:<11} {name:<21} {values['mean']:>8.4f} {deviation:>8}")
    for split, accuracy in results["majority_accuracy"].items():
        lines.append(f"{split:<11} {'largest class always':<21} {accuracy:>8.4f}")
    return "\n".join(lines)


def format_metrics(metrics: dict[str, dict[str, float]]) -> str:
    """Return the numbers of one seed in one line."""
    return "; ".join(
        f"{split} " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        for split, values in metrics.items()
    )


def describe_splits(splits: Splits) -> str:
    """Return the sizes of the splits and the names of the classes in one line."""
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.rows.items())
    names = [_shown(name) for name in splits.labels.names]
    names = [name if len(name) <= _NAME_WIDTH else name[:_NAME_WIDTH] + "..." for name in names]
    listed = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
    return f"rows: {sizes}; " + (f"{len(names)} classes: {listed}" if names else "regression")


def _shown(name: str) -> str:
    """Return a class name with control characters escaped, so that it fits a line or a table."""
    return name if name.isprintable() else repr(name)[1:-1]


def _as_code(text: str) -> str:
    """Return text as code in Markdown, in which nothing of it is markup."""
    return f"<code>{html.escape(text)}</code>" if "`" in text else f"`{text}`"


def model_card(
    splits: Splits,
    results: dict[str, Any],
    *,
    repo_id: str,
    model_id: str | None,
    from_scratch: bool,
    freeze_encoder: bool,
    adaptation: dict[str, Any] | None,
    overlap: str | None,
) -> str:
    """Return the README.md of the best seed's model.

    Args:
        splits: that it was trained and measured on.
        results: from `summarize_seeds`.
        repo_id: owner/name or name on the Hub, or the folder's name.
        model_id: Hub id of the model that it was made from; None = it is not on the Hub.
        from_scratch: whether it began with random weights.
        freeze_encoder: whether the encoder kept its weights.
        adaptation: from `adapt`; None = the encoder saw labelled rows alone.
        overlap: from `describe_overlap`.
    """
    pipeline_tag = "text-classification" if splits.texts else "image-classification"
    metadata = ModelCardData(
        license="unknown",
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=[splits.config.model_type, "bert-pretrain"],
        base_model=None if from_scratch else model_id,
    )
    origin = f"`{model_id}`" if model_id else "another model"
    made = "A classifier made with `bert-pretrain finetune` and transformers' `Trainer`. "
    if from_scratch:
        prepared_by = "tokenizer" if splits.texts else "image processor"
        made += (
            f"It was trained from random weights: only architecture and {prepared_by} are those of "
            f"{origin}. "
        )
    elif freeze_encoder:
        made += (
            f"Its encoder is that of {origin}, frozen: only the head, and what that model lacks, "
            "was trained. "
        )
    if adaptation:
        made += (
            f"Before the first label the encoder learnt masked words for {adaptation['minutes']:g} "
            f"minutes from texts without labels (masked-LM loss {adaptation['mlm_loss_before']:.2f}"
            f" to {adaptation['mlm_loss_after']:.2f}). "
        )
    labels = [_as_code(_shown(name)) for name in splits.labels.names[:50]]
    best = results["seeds"][str(results["best_seed"])]["metrics"]
    rows = []
    for split, metrics in results["metrics"].items():
        for name, values in metrics.items():
            deviation = "" if values["std"] is None else f"{values['std']:.4f}"
            numbers = f"{best[split][name]:.4f} | {values['mean']:.4f} | {deviation}"
            rows.append(f"| {split} | {name} | {numbers} |")
    for split, accuracy in majority_accuracies(splits).items():
        rows.append(f"| {split} | accuracy of always the largest class | {accuracy:.4f} | | |")
    return CARD.format(
        metadata=metadata.to_yaml(),
        code=_code(splits, repo_id),
        title=html.escape(repo_id.rpartition("/")[2]),
        made=made + "It is a plain transformers model",
        labels=", ".join(labels) or "a number (regression)",
        num_seeds=len(results["seeds"]),
        s="" if len(results["seeds"]) == 1 else "s",
        rows="\n".join(rows),
        overlap=f"\n{overlap}\n" if overlap else "",
    )


def _code(splits: Splits, repo_id: str) -> str:
    """Return Python that runs the model."""
    place = {
        "path": repo_id if "/" in repo_id else ".",
        "path_comment": "" if "/" in repo_id else "  # this folder, or its name on the Hub",
    }
    if splits.texts:
        return TEXT_CODE.format(**place)
    mode = MODES[splits.config.num_channels]
    code = preparation_code(mode, splits.processor).rstrip()
    return IMAGE_CODE.format(mode=mode, preparation_code=code, **place)
