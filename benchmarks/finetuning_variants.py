"""Which way of fine-tuning serves few labels best: variants of the recipe, one change at a time.

Nothing is chosen on test rows: of each task's training rows 1,000 are held out and judged on, and
the others are the pool that labels are drawn from. Besides the means, the table has the standard
deviation over seeds, which few labels make large, and the last one says which variant is the best
of all tasks but one, and what it is worth on that one. Trainings that are in --json are kept:

    python benchmarks/finetuning_variants.py --models runs/1/final runs/2/final
    --task trec trec_train.jsonl --task subj subj.jsonl --variants base averaged --json found.json

Training is a loop of its own, since `Trainer` has no place for some of the variants;
`tests/benchmarks/test_finetuning_variants.py` holds its `base` to what the package trains.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from results import read_runs, write_results
from torch import Tensor
from transformers import PreTrainedModel

from bert_pretrain.config.finetuning import RecipeArguments, TaskDataArguments
from bert_pretrain.config.flags import pick
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.data import LengthSampler, TextDataset
from bert_pretrain.downstream.labelled_rows import LabelledSource
from bert_pretrain.downstream.models import ClassifierSource, default_learning_rate
from bert_pretrain.downstream.sources import Splits, open_splits
from bert_pretrain.downstream.tasks import find_task
from bert_pretrain.downstream.training import FinetuningRecipe
from bert_pretrain.evaluation.label_efficiency import nested_subset
from bert_pretrain.evaluation.label_efficiency_arms import CurveTask, make_arm
from bert_pretrain.evaluation.probes import fit_probe
from bert_pretrain.evaluation.statistics import format_interval, t_interval

_HELD_OUT = 1000  # rows of a task that are judged on
_ROWS_AT_ONCE = 64  # of a pass without gradient
ARMS = ("from_scratch", "frozen_probe", "floor")  # of the package, to compare with


@dataclass(frozen=True)
class Variant:
    """A way to fine-tune BERT; the defaults are the package's.

    Attributes:
        rate: times the default peak of the learning rate.
        min_steps: updates at least; four epochs if these are more.
        dropout: in place of the encoder's own; None = that.
        reading: of the last layer: `cls` = what the pooler makes of [CLS], `mean` over a row's
            tokens, normalised, or `both` = tanh of their sum, normalised.
        head: `random`, or `probe` = the logistic regression on what the head reads.
        new_layers: last layers, and the pooler, that begin at random (Zhang et al. 2021).
        layer_decay: of the rate from each layer to the one below.
        averaged: share of the last updates whose weights are averaged.
        r_drop: weight of the divergence of two passes (Liang et al. 2021).
        pull: weight of the squared distance to the pretrained weights (Li et al. 2018).
    """

    rate: float = 1.0
    min_steps: int = 200
    dropout: float | None = None
    reading: str = "cls"
    head: str = "random"
    new_layers: int = 0
    layer_decay: float = 1.0
    averaged: float = 0.0
    r_drop: float = 0.0
    pull: float = 0.0


_AVERAGED = Variant(averaged=0.5)
_MEAN = replace(_AVERAGED, reading="mean")
_BOTH = replace(_AVERAGED, reading="both")
_PROBE = replace(_MEAN, head="probe")
VARIANTS = {
    "base": Variant(),
    "rate x .1": Variant(rate=0.1),
    "rate x .3": Variant(rate=0.3),
    "rate x 3": Variant(rate=3.0),
    "60 updates": Variant(min_steps=60),
    "600 updates": Variant(min_steps=600),
    "no dropout": Variant(dropout=0.0),
    "averaged": _AVERAGED,
    "layer decay .7": replace(_AVERAGED, layer_decay=0.7),
    "new top layer": replace(_AVERAGED, new_layers=1),
    "R-Drop": replace(_AVERAGED, r_drop=1.0),
    "pulled back": replace(_AVERAGED, pull=0.01),
    "probe first": replace(_AVERAGED, head="probe"),
    "probe first, rate x .3": replace(_AVERAGED, head="probe", rate=0.3),
    "mean": _MEAN,
    "mean, rate x .3": replace(_MEAN, rate=0.3),
    "mean, probe first": _PROBE,
    "mean, probe first, rate x .3": replace(_PROBE, rate=0.3),
    "mean, probe first, rate x .1": replace(_PROBE, rate=0.1),
    "mean, probe first, layer decay .7": replace(_PROBE, layer_decay=0.7),
    "mean, probe first, R-Drop": replace(_PROBE, r_drop=1.0),
    "mean, probe first, no dropout": replace(_PROBE, dropout=0.0),
    "[CLS] and mean": _BOTH,
    "[CLS] and mean, probe first": replace(_BOTH, head="probe"),
    "[CLS] and mean, R-Drop": replace(_BOTH, r_drop=1.0),
    "[CLS] and mean, 400 updates": replace(_BOTH, min_steps=400),
}


@dataclass(frozen=True)
class Pool:
    """The rows of a task, encoded for a model: `train` to learn from, `test` to be judged on."""

    name: str
    model: str
    splits: Splits


def open_pool(name: str, model: str, file: str) -> Pool:
    """Divide the training rows of a task in two, the same for every model."""
    data = TaskDataArguments(train_file=file)
    source = pick(LabelledSource, data, pixel_range=None)
    splits = open_splits(model, source, find_task("classification"), seed=0, measured_on=())
    rows, texts = splits.rows["train"], splits.texts["train"]
    order = permutation(len(rows), 0, Purpose.SPLIT)
    parts = {"test": np.sort(order[:_HELD_OUT]), "train": np.sort(order[_HELD_OUT:])}
    return Pool(
        name,
        model,
        replace(
            splits,
            rows={part: rows.subset(places) for part, places in parts.items()},
            texts={part: texts.subset(places) for part, places in parts.items()},
        ),
    )


def read(model: PreTrainedModel, batch: dict[str, Tensor], variant: Variant) -> Tensor:
    """Return what the classifier of a BERT is fed, (B, D)."""
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    output = model.bert(**inputs)
    if variant.reading == "cls":
        pooled: Tensor = output.pooler_output
        return pooled
    states: Tensor = output.last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
    if variant.reading == "mean":
        return F.layer_norm(mean, mean.shape[-1:])
    return F.layer_norm(states[:, 0] + mean, mean.shape[-1:]).tanh()


@torch.no_grad()
def features(model: PreTrainedModel, rows: TextDataset, variant: Variant) -> NDArray[np.float32]:
    """Return what the classifier is fed of all rows, (N, D), without dropout."""
    model.eval()
    order = np.argsort(rows.lengths, kind="stable")
    parts = [
        read(model, rows.__getitems__(order[first : first + _ROWS_AT_ONCE].tolist()), variant)
        for first in range(0, len(order), _ROWS_AT_ONCE)
    ]
    return np.asarray(torch.cat(parts).float().numpy()[np.argsort(order)])


@torch.no_grad()
def begin(model: PreTrainedModel, rows: TextDataset, variant: Variant, *, seed: int) -> None:
    """Give a new model what a variant changes before training."""
    for module in model.modules():
        if variant.dropout is not None and isinstance(module, torch.nn.Dropout):
            module.p = variant.dropout
    if variant.new_layers:
        for layer in (*model.bert.encoder.layer[-variant.new_layers :], model.bert.pooler):
            layer.apply(model._init_weights)
    if variant.head == "probe":
        assert rows.labels is not None
        fitted, *_ = fit_probe(features(model, rows, variant), rows.labels, seed=seed)
        scaler, regression = fitted[0], fitted[-1]
        weight = regression.coef_ / scaler.scale_
        bias = regression.intercept_ - weight @ scaler.mean_
        if len(weight) == 1:  # of two classes it is the difference of their scores
            weight, bias = (np.concatenate([-part / 2, part / 2]) for part in (weight, bias))
        model.classifier.weight.copy_(torch.from_numpy(weight))
        model.classifier.bias.copy_(torch.from_numpy(bias))


def rates(model: PreTrainedModel, variant: Variant) -> list[dict[str, Any]]:
    """Return each parameter with its peak rate; matrices decay."""
    peak = default_learning_rate(model.config) * variant.rate
    num_layers = model.config.num_hidden_layers
    groups = []
    for name, parameter in model.named_parameters():
        depth = 0
        if name.startswith("bert.embeddings."):
            depth = num_layers + 1
        elif name.startswith("bert.encoder.layer."):
            depth = num_layers - int(name.split(".")[3])
        decay = RecipeArguments.weight_decay if parameter.ndim > 1 else 0.0
        rate = peak * variant.layer_decay**depth
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return groups


def batches(rows: TextDataset, *, seed: int, steps: int) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of training, as the package orders them."""
    size = RecipeArguments.per_device_train_batch_size
    sampler = LengthSampler(rows.lengths, batch_size=size, seed=seed)
    epochs = (list(sampler) for _ in itertools.count())
    places = (
        order[first : first + size] for order in epochs for first in range(0, len(order), size)
    )
    yield from map(rows.__getitems__, itertools.islice(places, steps))


def loss_of(model: PreTrainedModel, batch: dict[str, Tensor], variant: Variant) -> Tensor:
    """Return the loss of a batch, with what a variant adds."""

    def scores() -> Tensor:
        found: Tensor = model.classifier(model.dropout(read(model, batch, variant)))
        return found

    logits, labels = scores().float(), batch["labels"]
    loss = F.cross_entropy(logits, labels)
    if variant.r_drop:
        again = scores().float()
        p, q = (F.log_softmax(each, dim=-1) for each in (logits, again))
        pairs = ((p, q), (q, p))
        apart = [F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in pairs]
        loss = (loss + F.cross_entropy(again, labels)) / 2 + variant.r_drop * sum(apart) / 2
    return loss


def finetune(
    source: ClassifierSource, rows: TextDataset, variant: Variant, *, seed: int
) -> PreTrainedModel:
    """Return a classifier trained on some rows."""
    model = source.build(seed)
    begin(model, rows, variant, seed=seed)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    recipe = RecipeArguments()
    epochs = math.ceil(recipe.num_train_epochs * len(rows) / recipe.per_device_train_batch_size)
    steps = max(variant.min_steps, epochs)
    warmup = math.ceil(recipe.warmup_ratio * steps)
    optimizer = torch.optim.AdamW(rates(model, variant), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / max(1, warmup), (steps - step) / max(1, steps - warmup))
    )
    mean: list[Tensor] = []
    num_averaged = 0
    torch.manual_seed(seed)
    model.train()
    for step, batch in enumerate(batches(rows, seed=seed, steps=steps), start=1):
        loss = loss_of(model, batch, variant)
        if variant.pull:
            pairs = zip(model.parameters(), before, strict=True)
            loss = loss + variant.pull * sum((now - then).square().sum() for now, then in pairs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        if step > (1 - variant.averaged) * steps:
            num_averaged += 1
            now = [parameter.detach() for parameter in model.parameters()]
            mean = mean or [parameter.clone() for parameter in now]
            torch._foreach_lerp_(mean, now, 1 / num_averaged)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), mean, strict=False):
            parameter.copy_(value)
    return model


@torch.no_grad()
def accuracy(model: PreTrainedModel, rows: TextDataset, variant: Variant) -> float:
    """Return the share of rows that a classifier gets right."""
    fed = torch.from_numpy(features(model, rows, variant))
    return float((model.classifier(fed).argmax(dim=-1).numpy() == rows.labels).mean())


def learner(pool: Pool, name: str, *, is_bf16: bool) -> Callable[[NDArray[np.int64], int], float]:
    """Return what learns from places of the pool with a seed, and gives its accuracy."""
    rows: Any = pool.splits.rows
    if name in ARMS:
        recipe = pick(FinetuningRecipe, RecipeArguments())
        task = CurveTask(
            pool.model, pool.splits, rows["train"].labels, recipe, "none", Path("runs/scratch")
        )
        arm = make_arm(name, task)
        return lambda places, seed: float((arm(places, seed) == rows["test"].labels).mean())
    source = ClassifierSource(
        pool.model,
        pool.splits.labels,
        max_seq_length=pool.splits.max_seq_length,
        pad_token_id=pool.splits.processor.pad_token_id,
    )
    variant = VARIANTS[name]

    def learn(places: NDArray[np.int64], seed: int) -> float:
        # With its cache it would go on with the weights before the first update.
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16, cache_enabled=False):
            model = finetune(source, rows["train"].subset(places), variant, seed=seed)
            return accuracy(model, rows["test"], variant)

    return learn


Key = tuple[str, int, str]  # a task, labels a class, and a variant or an arm
Trials = dict[tuple[str, int], float]  # accuracies by model and seed


def accuracies_of(runs: list[dict[str, Any]]) -> dict[Key, Trials]:
    """Return the accuracies of each key."""
    found: dict[Key, Trials] = {}
    for run in runs:
        key = (run["task"], run["labels"], run["variant"])
        found.setdefault(key, {})[run["model"], run["seed"]] = run["accuracy"]
    return found


def gains(own: Trials, other: Trials | None) -> list[float]:
    """Return the differences of what both were tried on."""
    return [own[trial] - other[trial] for trial in own if trial in other] if other else []


def best(found: dict[Key, Trials], tasks: list[str]) -> str:
    """Return the variant with the highest mean over some tasks and all numbers of labels."""
    means: dict[str, list[float]] = {}
    for (task, _, name), trials in found.items():
        if task in tasks and name in VARIANTS:
            means.setdefault(name, []).append(float(np.mean(list(trials.values()))))
    most = max(map(len, means.values()))  # one that was not tried everywhere is not compared
    return max(
        (name for name in means if len(means[name]) == most), key=lambda n: np.mean(means[n])
    )


def variants_table(found: dict[Key, Trials]) -> str:
    """Return, as Markdown, gains over `base` with their number, and spreads over seeds."""
    counts = sorted({count for _, count, _ in found})
    lines = [["way", "tasks", *(f"{text} at {n}" for n in counts for text in ("gain", "n", "sd"))]]
    lines.append(["---"] * len(lines[0]))
    for name in dict.fromkeys([*VARIANTS, *ARMS]):
        tasks = dict.fromkeys(task for task, _, way in found if way == name)
        cells = []
        for count in counts:
            own = {task: found[task, count, name] for task in tasks if (task, count, name) in found}
            differences = [
                difference
                for task, trials in own.items()
                for difference in gains(trials, found.get((task, count, "base")))
            ]
            spreads = [np.std(list(t.values()), ddof=1) for t in own.values() if len(t) > 1]
            gain = format_interval(*t_interval(differences), sign="+") if differences else ""
            spread = f"{np.mean(spreads):.3f}" if spreads else ""
            cells += [gain, str(len(differences)), spread]
        if tasks:
            lines.append([name, " ".join(tasks), *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def left_out_table(found: dict[Key, Trials]) -> str:
    """Return, for each task, what the other tasks choose, and its gain over the arms."""
    tasks = list(dict.fromkeys(task for task, *_ in found))
    lines = [
        ["task", "labels", "chosen by the others", *(f"over {arm}" for arm in ("base", *ARMS))]
    ]
    lines.append(["---"] * len(lines[0]))
    for task in tasks if len(tasks) > 1 else []:
        chosen = best(found, [other for other in tasks if other != task])
        for count in sorted({n for name, n, _ in found if name == task}):
            own, cells = found.get((task, count, chosen), {}), []
            for arm in ("base", *ARMS):
                differences = gains(own, found.get((task, count, arm)))
                cells.append(
                    format_interval(*t_interval(differences), sign="+") if differences else ""
                )
            lines.append([task, str(count), chosen, *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Train what is not in the results yet, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[], help="BERTs, one a pretraining seed")
    parser.add_argument("--task", nargs=2, action="append", default=[], metavar=("NAME", "FILE"))
    parser.add_argument("--variants", nargs="+", default=[*ARMS, *VARIANTS])
    parser.add_argument("--num_labels", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--bf16", action="store_true", help="products of the variants in bfloat16; arms decide"
    )
    parser.add_argument("--json", type=Path, help="results, to which others are added")
    arguments = parser.parse_args()
    runs = read_runs(arguments.json)
    kept = {(r["model"], r["task"], r["variant"], r["labels"], r["seed"]) for r in runs}
    for model, (name, file) in itertools.product(arguments.models, arguments.task):
        pool = open_pool(name, model, file)
        labels: Any = pool.splits.rows["train"].labels
        for variant in arguments.variants:
            learn: Callable[[NDArray[np.int64], int], float] | None = None
            for count, seed in itertools.product(arguments.num_labels, arguments.seeds):
                key = (model, name, variant, count, seed)
                if key not in kept:
                    learn = learn or learner(pool, variant, is_bf16=arguments.bf16)
                    found = learn(nested_subset(labels, count, seed=seed), seed)
                    names = ("model", "task", "variant", "labels", "seed")
                    runs.append(dict(zip(names, key, strict=True)) | {"accuracy": found})
            write_results(arguments.json, {}, runs=runs)
    accuracies = accuracies_of(runs)
    print(variants_table(accuracies), left_out_table(accuracies), sep="\n", end="")


if __name__ == "__main__":
    main()
