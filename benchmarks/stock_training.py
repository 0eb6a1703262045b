"""Stock transformers, trained as well as its defaults and the usual settings allow.

`transformers.BertForPreTraining` with all its scores, sdpa attention and dropout .1, on batches
padded to their longest row, as a plain loop. Rows, pairs and masks are those that this package
gives, made by its collator, which is faster than transformers': nothing on the input side holds
stock back. Without accumulation its loss is right (under `Trainer` it is multiplied by accumulation
steps). AdamW is torch's fused one, clipping 1.0 and decay of matrices only, as `TrainingArguments`
(transformers 5.24) has them; the rate falls linearly to 0 at the end of this run's own budget.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from judging import Judge, open_task, plain_batch

from bert_pretrain.data.course import Course
from bert_pretrain.data.loader import training_windows
from bert_pretrain.data.stream import Place


@dataclass(frozen=True)
class Stock:
    """Settings of a stock run.

    Attributes:
        learning_rate: the highest.
        warmup_share: of the budget, over which the rate rises.
        weight_decay: of matrices.
        is_bf16: whether it runs under bfloat16 autocast.
        num_rows: rows of an update; 0 = as many as ours.
    """

    learning_rate: float
    warmup_share: float
    weight_decay: float
    is_bf16: bool
    num_rows: int = 0

    def rate(self, progress: float) -> float:
        """Return the learning rate after a share of the budget, in [0, 1]."""
        if progress < self.warmup_share:
            return self.learning_rate * progress / self.warmup_share
        return self.learning_rate * max(0.0, (1 - progress) / (1 - self.warmup_share))


STOCK = {
    # What TrainingArguments has where nothing is passed, but with as many rows an update as ours;
    # and with its own 8 rows, which makes more and noisier updates in the same time.
    "stock_fp32": Stock(5e-5, 0.0, 0.0, is_bf16=False),
    "stock_fp32_rows8": Stock(5e-5, 0.0, 0.0, is_bf16=False, num_rows=8),
    # In float32 with a rate that a small model stands, for processors without bfloat16.
    "stock_fp32_lr1e-3": Stock(1e-3, 0.05, 0.01, is_bf16=False),
    # BERT's usual settings (Devlin et al. 2019), and a rate that a small model stands.
    "stock_bf16": Stock(1e-4, 0.05, 0.01, is_bf16=True),
    "stock_bf16_lr1e-3": Stock(1e-3, 0.05, 0.01, is_bf16=True),
}


def train_stock(
    stock: Stock,
    flags: list[str],
    judge: Judge,
    *,
    seconds: float,
    seed: int,
    num_rows: int,
    num_evaluations: int,
) -> dict[str, Any]:
    """Train for a time, evaluations left out, and return the curve and the speed.

    Args:
        stock: settings.
        flags: of the corpus and the model's size.
        judge: of all runs.
        seconds: of training.
        seed: of initialisation, rows and dropout.
        num_rows: rows an update, unless the settings have their own.
        num_evaluations: evenly over the budget.
    """
    if torch.accelerator.is_available():
        raise SystemExit("stock is trained on the CPU here, but ours would take the accelerator")
    task = open_task([*flags, "--seed", str(seed)])
    config = task.objective.build_model().config
    torch.manual_seed(seed)
    model = transformers.BertForPreTraining(transformers.BertConfig(**config.to_dict())).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": stock.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    windows = training_windows(
        task.objective.training,
        Place(),
        course=Course(stock.num_rows or num_rows),
        num_processes=1,
        process_index=0,
        num_micro_batches=1,
        num_workers=0,
    )
    elapsed, step, num_tokens = 0.0, 0, 0
    curve = [{"minutes": 0.0, "step": 0} | judge.judge(model)]
    while elapsed < seconds:
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = stock.rate(elapsed / seconds)
        batch = plain_batch(next(windows).micro_batches[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=stock.is_bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += int(batch["attention_mask"].sum())
        step += 1
        elapsed += time.perf_counter() - start
        if elapsed >= min(1.0, len(curve) / num_evaluations) * seconds:
            curve.append({"minutes": elapsed / 60, "step": step} | judge.judge(model))
    return {
        "updates": step,
        "tokens": num_tokens,
        "tokens_per_second": num_tokens / elapsed,
        "curve": curve,
    }
