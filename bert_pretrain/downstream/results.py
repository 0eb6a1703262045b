"""What fine-tuning with several seeds found: the summary of results.json, its table, and the card of the model."""

from __future__ import annotations

import statistics
from typing import Any

from huggingface_hub import ModelCardData

from bert_pretrain.downstream.metrics import is_better
from bert_pretrain.downstream.sources import Splits

_NAME_WIDTH = 60  # characters of a class name in one line about all of them
CARD = """\
---
{metadata}
---

# {title}

A classifier made with `bert-pretrain finetune` and transformers' `Trainer`. {trained}It is a plain transformers model:

```python
from transformers import pipeline

classifier = pipeline("{pipeline_tag}", model="{path}"){path_comment}
```

Labels: {labels}.

| split | metric | this model | mean of {num_seeds} seed{s} | standard deviation |
|---|---|---|---|---|
{rows}
{overlap}"""


def summarize_seeds(outcomes: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the best seed by validation, the mean and the standard deviation of each metric, and the outcomes.

    Args:
        outcomes: by seed; `metrics` holds by split the numbers by name, of which the first of
            validation decides.
    """
    first = next(iter(outcomes.values()))["metrics"]
    decisive = next(iter(first["validation"]))
    best, *others = outcomes
    for seed in others:
        scores = [outcomes[number]["metrics"]["validation"][decisive] for number in (seed, best)]
        best = seed if is_better(scores[0], scores[1], decisive) else best
    spread: dict[str, dict[str, dict[str, float | None]]] = {}
    for split, names in first.items():
        for name in names:
            values = [outcome["metrics"][split][name] for outcome in outcomes.values()]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            spread.setdefault(split, {})[name] = {
                "mean": statistics.fmean(values),
                "std": deviation,
            }
    return {
        "best_seed": best,
        "chosen_by": f"validation {decisive}",
        "metrics": spread,
        "seeds": {str(seed): outcome for seed, outcome in outcomes.items()},
    }


def format_results(results: dict[str, Any]) -> str:
    """Lay out what `summarize_seeds` returns: a line for each split and metric."""
    lines = [
        f"{'split':<11} {'metric':<21} {'mean':>8} {'std':>8}   over {len(results['seeds'])} "
        "seed(s)"
    ]
    for split, metrics in results["metrics"].items():
        for name, values in metrics.items():
            deviation = "" if values["std"] is None else f"{values['std']:.4f}"
            lines.append(f"{split:<11} {name:<21} {values['mean']:>8.4f} {deviation:>8}")
    return "\n".join(lines)


def format_metrics(metrics: dict[str, dict[str, float]]) -> str:
    """Lay the numbers of one seed out in one line."""
    return "; ".join(
        f"{split} " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        for split, values in metrics.items()
    )


def describe_splits(splits: Splits) -> str:
    """Return the sizes of the splits, how many texts are cut, and the names of the classes, in one line."""
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.rows.items())
    names = [_shown(name) for name in splits.labels.names]
    names = [name if len(name) <= _NAME_WIDTH else name[:_NAME_WIDTH] + "..." for name in names]
    classes = (
        f"{len(names)} classes: {', '.join(names[:12])}{', ...' * (len(names) > 12)}"
        if names
        else "regression"
    )
    num_long = sum(
        int((rows.lengths >= splits.max_seq_length).sum()) for rows in splits.rows.values()
    )
    cut = f"; {num_long:,} of them have {splits.max_seq_length} tokens or more and end there (--max_seq_length)"
    return f"rows: {sizes}{cut if splits.texts and num_long else ''}; {classes}"


def _shown(name: str) -> str:
    """Return a class name for a line of text or a table: what would break it is written as Python writes it."""
    return name if name.isprintable() else repr(name)[1:-1]


def model_card(
    splits: Splits,
    results: dict[str, Any],
    *,
    repo_id: str,
    model_id: str | None,
    from_scratch: bool,
    freeze_encoder: bool,
    overlap: str | None,
) -> str:
    """Return the README.md of the best seed's model.

    Args:
        splits: what was trained and measured on.
        results: of `summarize_seeds`.
        repo_id: owner/name or name on the Hub, or the folder's name.
        model_id: Hub id of the model that it was made of; None = nothing that is on the Hub.
        from_scratch: whether it began with random weights.
        freeze_encoder: whether the encoder kept its weights.
        overlap: says which rows are trained and evaluated on alike; None = none are.
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
    trained = ""
    if from_scratch:
        prepared_by = "tokenizer" if splits.texts else "image processor"
        trained = f"It was trained from random weights: only architecture and {prepared_by} are those of {origin}. "
    elif freeze_encoder:
        trained = f"Its encoder is that of {origin}, frozen: only the head, and what that model lacks, was trained. "
    names = splits.labels.names
    best = results["seeds"][str(results["best_seed"])]["metrics"]
    rows = [
        f"| {split} | {name} | {best[split][name]:.4f} | {values['mean']:.4f} | "
        + ("" if values["std"] is None else f"{values['std']:.4f}")
        + " |"
        for split, metrics in results["metrics"].items()
        for name, values in metrics.items()
    ]
    return CARD.format(
        metadata=metadata.to_yaml(),
        pipeline_tag=pipeline_tag,
        title=repo_id.rpartition("/")[2],
        trained=trained,
        path=repo_id if "/" in repo_id else ".",
        path_comment="" if "/" in repo_id else "  # this folder, or its name on the Hub",
        labels=", ".join(f"`{_shown(name)}`" for name in names[:50])
        if names
        else "a number (regression)",
        num_seeds=len(results["seeds"]),
        s="" if len(results["seeds"]) == 1 else "s",
        rows="\n".join(rows),
        overlap=f"\n{overlap}\n" if overlap else "",
    )
