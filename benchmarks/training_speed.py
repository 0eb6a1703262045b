"""Training throughput against the stock way, side by side in one run.

Stock is transformers' `BertForPreTraining` in its defaults (dropout 0.1, float32),
`DataCollatorForLanguageModeling` and `torch.optim.AdamW`; stock like ours is the same with the
precision and the dropout of ours and torch's fused AdamW; ours is this package's model, collator
and AdamW as the default recipe has them (dropout 0, the precision that `--mixed_precision auto`
would choose). All train on the same rows, which stock pads to the longest of a batch; tokens are
real tokens. `--document_sentences 4` makes short rows, as short documents do; `--torch_compile`
measures ours compiled as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from results import write_results
from tokenizers import Tokenizer, models
from torch import nn
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from bert_pretrain.hardware import cpu_threads, native_precision
from bert_pretrain.models.attention_kernels import ROWS_WRITTEN_OUT
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.fast_paths import prefers_written_out_attention
from bert_pretrain.models.text_encoder_config import BERT_SIZES, named_config
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.layout import RowLayouts
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.pairs import EpochPlan, plan_epoch
from bert_pretrain.text.prepared import Shard, TokenStore
from bert_pretrain.text.windows import NO_PAIR
from bert_pretrain.training.optimizers import build_optimizers

STOCK, LIKE_OURS, OURS, COMPILED = "stock", "stock_like_ours", "ours", "compiled"


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of numbered words: the stock collator asks it for special tokens alone."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    special |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}
    vocabulary = {token: i for i, token in enumerate(special.values())}
    vocabulary |= {f"w{i}": i for i in range(len(vocabulary), vocab_size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def make_store(
    vocab_size: int, document_sentences: int, generator: np.random.Generator
) -> TokenStore:
    """Return 8,000 sentences of about 20 words, `document_sentences` a document on average."""
    num_documents = 8000 // document_sentences
    sizes = generator.integers(2, 2 * document_sentences - 1, num_documents).tolist()
    documents = [
        [generator.integers(5, vocab_size, generator.integers(5, 36)) for _ in range(n)]
        for n in sizes
    ]
    lengths = np.array([len(words) for document in documents for words in document], np.uint32)
    tokens = np.concatenate([words for document in documents for words in document])
    starts = np.ones(len(tokens), dtype=np.uint8)
    return TokenStore([Shard(0, 0, tokens.astype(np.uint16), starts, lengths, np.array(sizes))])


def stock_step(
    plan: EpochPlan,
    store: TokenStore,
    tokenizer: PreTrainedTokenizerFast,
    arguments: argparse.Namespace,
    size: str,
    *,
    bf16: bool,
    is_like_ours: bool,
) -> Callable[[np.ndarray], int]:
    """Return a function that makes one stock update of rows and returns its number of tokens."""
    dropout = 0.0 if is_like_ours else 0.1
    config = named_config(
        size,
        vocab_size=arguments.vocab_size,
        pad_token_id=0,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model = transformers.BertForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=is_like_ours or None)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

    def step(rows: np.ndarray) -> int:
        features = [stock_feature(plan, store, int(row)) for row in rows]
        batch = collate(features)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and is_like_ours):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return int(batch["attention_mask"].sum())

    return step


def stock_feature(plan: EpochPlan, store: TokenStore, row: int) -> dict[str, object]:
    """Return a row as the stock examples would hold it; the collator pads it."""
    a = store.read(int(plan.a_start[row]), int(plan.a_length[row])).tolist()
    b = store.read(int(plan.b_start[row]), int(plan.b_length[row])).tolist()
    return {
        "input_ids": [2, *a, 3, *b, 3],
        "token_type_ids": [0] * (len(a) + 2) + [1] * (len(b) + 1),
        "next_sentence_label": int(plan.next_sentence_label[row]),
    }


def our_step(
    plan: EpochPlan,
    store: TokenStore,
    arguments: argparse.Namespace,
    size: str,
    *,
    bf16: bool,
    is_compiled: bool = False,
) -> Callable[[np.ndarray], int]:
    """Return a function that makes one update of ours."""
    rule = MaskingRule(
        mlm_probability=0.15, mask_token_id=4, ordinary_ids=np.arange(5, arguments.vocab_size)
    )
    collator = PretrainingCollator(
        store,
        rule,
        layouts=RowLayouts.of_bert(2, 3),
        pad_token_id=0,
        seed=0,
        few_shapes=is_compiled,
    )
    model = BertForPreTraining(
        named_config(size, vocab_size=arguments.vocab_size, pad_token_id=0)
    ).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if prefers_written_out_attention(arguments.max_seq_length):
        model.attention = ROWS_WRITTEN_OUT
    call = torch.compile(model, fullgraph=True, dynamic=False) if is_compiled else model
    (optimizer,) = build_optimizers(
        model, name="adamw", weight_decay=0.01, adam_betas=(0.9, 0.98), adam_epsilon=1e-6
    )

    def step(rows: np.ndarray) -> int:
        batch = collator.collate([(0, rows, plan.take(rows))])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = call(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return int(batch["attention_mask"].sum())

    return step


def measure(size: str, arguments: argparse.Namespace, *, bf16: bool) -> dict[str, list[float]]:
    """Return tokens/s of every round by way; a round times one way after the other."""
    store = make_store(arguments.vocab_size, arguments.document_sentences, np.random.default_rng(0))
    plan = plan_epoch(
        store,
        np.arange(store.num_documents),
        max_seq_length=arguments.max_seq_length,
        short_seq_prob=0.0,
        pair_mode="exact",
        seed=0,
        epoch=0,
    )
    plan = plan.take(np.flatnonzero(plan.next_sentence_label != NO_PAIR))
    tokenizer = make_tokenizer(arguments.vocab_size)
    stock = partial(stock_step, plan, store, tokenizer, arguments, size, bf16=bf16)
    ours = partial(our_step, plan, store, arguments, size, bf16=bf16)
    steps = {STOCK: stock(is_like_ours=False), LIKE_OURS: stock(is_like_ours=True), OURS: ours()}
    if arguments.torch_compile:
        steps[COMPILED] = ours(is_compiled=True)
        for number in range(8):  # as many batches as have all shapes
            rows = np.arange(arguments.batch_size) + number * arguments.batch_size
            steps[COMPILED](rows)
    rates: dict[str, list[float]] = {way: [] for way in steps}
    for number in range(arguments.rounds + 1):
        rows = np.arange(arguments.batch_size) + number * arguments.batch_size
        for way, step in steps.items():
            repeats = 1 if way == STOCK else 3
            start = time.perf_counter()
            tokens = sum(step(rows) for _ in range(repeats))
            rates[way].append(tokens / (time.perf_counter() - start))
    return {way: collected[1:] for way, collected in rates.items()}  # the first round warms up


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mini"], choices=list(BERT_SIZES))
    parser.add_argument("--vocab_size", type=int, default=30522)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--document_sentences", type=int, default=400, help="mean, at least 2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch_compile", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(cpu_threads(0))
    torch.manual_seed(0)
    bf16 = native_precision() == "bf16"
    figures: dict[str, float] = {}
    runs: list[dict[str, Any]] = []
    print(
        f"vocabulary {arguments.vocab_size:,}, batch {arguments.batch_size} x "
        f"{arguments.max_seq_length}, {'bf16' if bf16 else 'fp32'} but stock's own fp32; median "
        f"tokens/s of {arguments.rounds} rounds; ratios by round"
    )
    for size in arguments.sizes:
        rates = measure(size, arguments, bf16=bf16)
        runs.append({"size": size, "document_sentences": arguments.document_sentences} | rates)
        for way, collected in rates.items():
            figures[f"{size}_{way}_tokens_per_second"] = statistics.median(collected)
            print(f"{size:6} {way:16} {statistics.median(collected):8,.0f}")
        pairs = [(OURS, STOCK), (OURS, LIKE_OURS)] + [(COMPILED, OURS)] * (COMPILED in rates)
        for way, other in pairs:
            ratios = sorted(b / a for a, b in zip(rates[other], rates[way], strict=True))
            figures[f"{size}_{way}_over_{other}_ratio"] = statistics.median(ratios)
            spread = f"({ratios[0]:.1f} to {ratios[-1]:.1f})"
            print(f"{size:6} {way} over {other} {statistics.median(ratios):.1f} {spread}")
    write_results(arguments.json, figures, runs=runs)


if __name__ == "__main__":
    main()
