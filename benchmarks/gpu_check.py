"""Check and measure the core on one accelerator, with torch, transformers and accelerate alone.

`python benchmarks/gpu_check.py --json gpu.json` takes at most `--minutes` (6). It reports what the
device can do, whether our losses and gradients are stock BERT's and every kernel's those of rows,
whether an update of the loop waits for the device, 200 updates of that loop, and tokens/s, share of
the peak (MFU) and memory of ours and of stock transformers. A part that fails says why in the JSON
and does not end the others; what the clock leaves no time for is named as left out. `--device cpu
--quick` tries all but the compiled parts at a small size. The exit status is 1 if a part failed.

The variants: `ours` attends in rows of equal length, `ours_packed` by the kernel that is measured
fastest, `ours_compiled` likewise and compiled; `stock` is transformers in its defaults (float32,
dropout, AdamW), `stock_bf16` has autocast, fused AdamW and no dropout, `stock_bf16_compiled`
is compiled as well. All get the same batches, ready on the device; stock's own collator would cost
it more.

The text is made up: ids of a Zipf distribution in documents of sentences. MFU counts useful FLOPs
(`bert_pretrain.models.flops`) over the data sheet's dense bfloat16 peak of the card, or
over what a large matrix product reaches where the card is not in the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from results import write_results

from bert_pretrain.data.course import Course
from bert_pretrain.data.loader import training_windows
from bert_pretrain.data.stream import HeldOutRows, Place, TrainingStream, WholeEpochs
from bert_pretrain.hardware import known_peak_flops
from bert_pretrain.models.attention_choice import fastest_attention, usable_attentions
from bert_pretrain.models.attention_kernels import ROWS
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.flops import TextFlops
from bert_pretrain.models.text_encoder_config import named_config
from bert_pretrain.objectives.interface import Task
from bert_pretrain.objectives.text import TextObjective
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.layout import RowLayouts
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.pairs import plan_epoch
from bert_pretrain.text.prepared import Shard, TokenStore
from bert_pretrain.training.layout import BatchLayout
from bert_pretrain.training.optimizers import build_optimizers
from bert_pretrain.training.schedule import Intervals, Schedule
from bert_pretrain.training.trainer import Trainer

STOCK_KEYS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "labels",
    "next_sentence_label",
)
LEFT_OUT = "left out"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
Batch = dict[str, torch.Tensor]


def make_store(vocab_size: int, num_documents: int, generator: np.random.Generator) -> TokenStore:
    """Return documents of about 20 sentences of about 20 tokens."""
    per_document = generator.integers(2, 40, num_documents)
    lengths = generator.integers(5, 36, int(per_document.sum())).astype(np.uint32)
    tokens = np.minimum(generator.zipf(1.2, int(lengths.sum())) + 4, vocab_size - 1)
    tokens = tokens.astype(np.uint16)
    starts = np.ones(len(tokens), dtype=np.uint8)
    return TokenStore([Shard(0, 0, tokens, starts, lengths, per_document.astype(np.int64))])


class Rows:
    """Batches of the made-up text at one length."""

    def __init__(
        self, vocab_size: int, length: int, *, num_documents: int, few_shapes: bool = False
    ) -> None:
        """Plan them."""
        store = make_store(vocab_size, num_documents, np.random.default_rng(0))
        rule = MaskingRule(
            mlm_probability=0.15, mask_token_id=4, ordinary_ids=np.arange(5, vocab_size)
        )

        def collator(*, evaluation: bool) -> PretrainingCollator:
            return PretrainingCollator(
                store,
                rule,
                layouts=RowLayouts.of_bert(2, 3),
                pad_token_id=0,
                seed=0,
                evaluation=evaluation,
                few_shapes=few_shapes,
            )

        def plan(epoch: int) -> Any:
            return plan_epoch(
                store,
                np.arange(store.num_documents),
                max_seq_length=length,
                short_seq_prob=0.0,
                pair_mode="exact",
                seed=0,
                epoch=epoch,
            )

        self.training = TrainingStream(WholeEpochs(plan), collator(evaluation=False), identity={})
        self.held_out = HeldOutRows(plan(0), np.arange(64), collator(evaluation=True))

    def batches(self, num_rows: int, device: torch.device, *, count: int) -> list[Batch]:
        """Return some batches on the device."""
        windows = training_windows(
            self.training,
            Place(),
            course=Course(num_rows),
            num_processes=1,
            process_index=0,
            num_micro_batches=1,
            num_workers=0,
        )
        found = [next(windows).micro_batches[0] for _ in range(count)]
        return [{k: v.to(device) for k, v in batch.items()} for batch in found]


class Check:
    """One run of the script: its settings, its clock, and what it has found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Keep the settings and start the clock."""
        self.device = torch.device(arguments.device)
        self.json: Path | None = arguments.json
        self.is_quick: bool = arguments.quick
        self.deadline = time.perf_counter() + 60 * arguments.minutes
        self.vocab_size = 1000 if self.is_quick else 30522
        self.tokens_at_once = 512 if self.is_quick else 32768
        self.figures: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self.peak = 0.0
        self.broken_by = ""  # the part after which the device answers no more
        if self.device.type == "cuda":
            self.figures["cudnn_version"] = torch.backends.cudnn.version() or 0
            torch.backends.cuda.enable_cudnn_sdp(False)  # as the program does

    def synchronize(self) -> None:
        """Wait for all that was asked of the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, name: str, part: Callable[[], None], *, seconds: float) -> None:
        """Run a part if `seconds` are left, and keep its error if it has one."""
        if self.broken_by or (time.perf_counter() + seconds > self.deadline and not self.is_quick):
            because = f"the device is unusable after {self.broken_by}" if self.broken_by else "time"
            self.notes[name] = f"{LEFT_OUT}: {because}"
            return
        try:
            part()
            self.synchronize()  # else an error would be the next part's
        except Exception as error:  # the other parts go on
            where = traceback.format_exc().strip().splitlines()[-3:]
            self.notes[name] = f"{type(error).__name__}: {error} | {' | '.join(where)}"[:1500]
            try:
                self.synchronize()
            except Exception:  # an illegal access stays with the process
                self.broken_by = name
        finally:
            if self.device.type == "cuda" and not self.broken_by:
                torch.cuda.empty_cache()
            # Whoever ends the script early still has what it found.
            write_results(self.json, self.figures, runs=self.notes)

    def ceilings(self) -> None:
        """Measure a large matrix product in bfloat16."""
        size = 256 if self.is_quick else 8192
        left, right = (
            torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2)
        )
        seconds = self.time(lambda: left @ right, warmup=3, repeats=10)
        self.figures["matmul_bf16_tflops"] = 2 * size**3 / seconds / 1e12
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        self.peak = known_peak_flops(name) or 2 * size**3 / seconds

    def time(self, step: Callable[[], Any], *, warmup: int, repeats: int) -> float:
        """Return the median seconds of a call."""
        times = []
        for number in range(warmup + repeats):
            if self.device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                step()
                end.record()
                torch.cuda.synchronize()
                seconds = begin.elapsed_time(end) / 1000
            else:
                start = time.perf_counter()
                step()
                seconds = time.perf_counter() - start
            if number >= warmup:
                times.append(seconds)
        return statistics.median(times)

    def model(self, size: str, length: int, variant: str = "ours") -> Any:
        """Return a model in training mode, without dropout unless it is all stock."""
        dropout = {} if variant == "stock" else NO_DROPOUT
        config = named_config(size, vocab_size=self.vocab_size, pad_token_id=0, **dropout)
        torch.manual_seed(0)
        if not variant.startswith("ours"):
            return transformers.BertForPreTraining(config).to(self.device).train()
        model = BertForPreTraining(config)
        if variant != "ours":
            model.attention, milliseconds = self.fastest(config, length)
            for name, value in milliseconds.items():
                self.figures[f"attention_{size}_{length}_{name}_ms"] = value
        return model.to(self.device).train()

    def fastest(self, config: Any, length: int) -> tuple[str, dict[str, float]]:
        """Return the way of attending that the program would choose."""
        return fastest_attention(
            self.device,
            torch.bfloat16,
            num_rows=max(2, self.tokens_at_once // length),
            row_length=length,
            num_heads=config.num_attention_heads,
            head_width=config.hidden_size // config.num_attention_heads,
        )

    def equality(self) -> None:
        """Compare loss and gradients with the stock class in float32."""
        torch.backends.cuda.matmul.allow_tf32 = False
        (batch,) = Rows(self.vocab_size, 128, num_documents=200).batches(8, self.device, count=1)
        ours, stock = (self.model("tiny", 128, name) for name in ("ours", "stock_bf16"))
        stock.load_state_dict(ours.state_dict())
        loss = ours(**batch).loss
        expected = stock(**{key: batch[key] for key in STOCK_KEYS}).loss
        loss.backward()
        expected.backward()
        theirs = dict(stock.named_parameters())
        errors = [
            ((p.grad - theirs[name].grad).norm() / theirs[name].grad.norm().clamp(min=1e-6)).item()
            for name, p in ours.named_parameters()
        ]
        self.figures["loss_relative_error"] = abs(loss.item() / expected.item() - 1)
        self.figures["largest_gradient_relative_error"] = max(errors)
        assert self.figures["loss_relative_error"] < 1e-5, "the loss is not that of stock BERT"
        assert max(errors) < 1e-3, "a gradient is not that of stock BERT"

    def kernels(self) -> None:
        """Compare loss and gradients of every kernel without padding with those of rows.

        Of rows with padding and of full ones, whose lengths are and are not multiples of what a
        kernel takes at once.
        """
        for length in (64, 128, 192):
            (batch,) = Rows(self.vocab_size, length, num_documents=200).batches(
                16, self.device, count=1
            )
            is_full = batch["attention_mask"].all(dim=1)
            self.compare_kernels(batch, f"{length}")
            if is_full.sum() >= 2:
                plain = {key: batch[key][is_full] for key in STOCK_KEYS}
                self.compare_kernels(plain, f"{length}_full")

    def compare_kernels(self, batch: Batch, name_of_rows: str) -> None:
        """Compare them on one batch."""
        model = self.model("tiny", 128, "ours")
        found: dict[str, tuple[float, torch.Tensor]] = {}
        for name in usable_attentions(self.device, torch.bfloat16, dropout=0.0):
            model.attention = name
            model.zero_grad()
            # What a kernel does not write would be seen.
            rubbish = torch.full((2**20,), torch.nan, device=self.device)
            del rubbish
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            assert all(torch.isfinite(part).all() for part in gradients), f"{name}: not finite"
            found[name] = loss.item(), torch.cat(gradients)
        expected, reference = found[ROWS]
        for name, (loss, gradient) in found.items():
            error = ((gradient - reference).norm() / reference.norm()).item()
            what = f"kernel_{name}_{name_of_rows}"
            self.figures[f"{what}_loss_relative_difference"] = abs(loss / expected - 1)
            self.figures[f"{what}_gradient_relative_difference"] = error
            # bfloat16 keeps 8 bits; two layers of it.
            assert abs(loss / expected - 1) < 0.01, f"{name} has another loss"
            assert error < 0.05, f"{name} has another gradient"

    def waiting(self) -> None:
        """Make updates of the program's loop in which waiting for the device is an error."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer("tiny", Path(folder), num_steps=8, num_rows=16)
            windows = trainer._windows()
            trainer._update(next(windows), 1e-3)  # the first one makes handles
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(3):
                    trainer._log(1e-3, trainer._update(next(windows), 1e-3))
            finally:
                if self.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        self.figures["steps_without_waiting"] = 3

    def speed(self, size: str, length: int, variant: str) -> None:
        """Measure updates of one variant: ours or stock, precision, compiled or not."""
        num_rows = max(2, self.tokens_at_once // length)
        is_ours, is_compiled = variant.startswith("ours"), variant.endswith("compiled")
        num_documents = 200 if self.is_quick else 4000
        rows = Rows(
            self.vocab_size, length, num_documents=num_documents, few_shapes=is_compiled and is_ours
        )
        batches = rows.batches(num_rows, self.device, count=8)
        # Of one shape, so that a compiler is measured and not waited for.
        shapes = [batch.get("token_index", batch["labels"]).numel() for batch in batches]
        common = statistics.mode(shapes)
        batches = [batch for batch, shape in zip(batches, shapes, strict=True) if shape == common]
        model = self.model(size, length, variant)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=variant != "stock")
        call = torch.compile(model, fullgraph=is_ours, dynamic=False) if is_compiled else model
        endless: Iterator[int] = iter(range(10**9))

        def step() -> None:
            batch = batches[next(endless) % len(batches)]
            inputs = batch if is_ours else {key: batch[key] for key in STOCK_KEYS}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=variant != "stock"):
                loss = call(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        few = self.is_quick
        seconds = self.time(step, warmup=1 if few else 5, repeats=2 if few else 10)
        lengths = [batch["attention_mask"].sum(dim=1) for batch in batches]
        num_tokens = sum(int(length.sum()) for length in lengths) / len(batches)
        num_predicted = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        flops = TextFlops.of(model).count(torch.cat(lengths), num_predicted) / len(batches)
        name = f"{size}_{length}_{variant}"
        self.figures[f"{name}_tokens_per_second"] = num_tokens / seconds
        self.figures[f"{name}_mfu"] = flops / seconds / self.peak
        if self.device.type == "cuda":
            self.figures[f"{name}_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30

    def trainer(self, size: str, folder: Path, *, num_steps: int, num_rows: int) -> Trainer:
        """Return the program's own loop on made-up text, with its default optimisers."""
        rows = Rows(self.vocab_size, 128, num_documents=300 if self.is_quick else 20_000)
        objective = TextObjective(
            rows.training,
            rows.held_out,
            lambda: self.model(size, 128, "ours_packed").cpu(),
            token_counts=None,
        )
        precision = "bf16" if self.device.type == "cuda" else "no"
        model = objective.build_model()
        return Trainer(
            Accelerator(cpu=self.device.type == "cpu", mixed_precision=precision),
            Task(objective, Silent(), Silent()),
            model,
            muon(model, torch.bfloat16 if precision == "bf16" else torch.float32),
            Schedule(num_steps, 0.0, 1e-3, 10, "stable_decay", 0.5),
            Intervals(max(1, num_steps // 4), 0, 0, 1),
            BatchLayout(num_rows, 1, 64, num_workers=0 if self.is_quick else 4),
            run_dir=folder,
            seed=0,
            max_grad_norm=1.0,
            fingerprint={},
            peak_flops=self.peak,
        )

    def update(self, size: str) -> None:
        """Measure whole updates of the program: Muon, clipping, sums and guard among them."""
        num_rows = max(2, self.tokens_at_once // 128)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(size, Path(folder), num_steps=100, num_rows=num_rows)
            windows = trainer._windows()
            few = self.is_quick
            times = dict.fromkeys(("warmup", "repeats"), 1 if few else 8)
            seconds = self.time(lambda: trainer._update(next(windows), 1e-3), **times)
        num_tokens = trainer.journal.num_units / (2 * times["repeats"])
        self.figures[f"update_{size}_tokens_per_second"] = num_tokens / seconds

    def loop(self) -> None:
        """Make 200 updates of the program's own loop."""
        num_steps, num_rows = (4, 8) if self.is_quick else (200, 256)
        size = "tiny" if self.is_quick else "mini"
        with tempfile.TemporaryDirectory() as folder:
            self.trainer(size, Path(folder), num_steps=num_steps, num_rows=num_rows).train()
            lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        held_out = [row["loss"] for row in metrics if row["split"] == "validation"]
        train = [row for row in metrics if row["split"] == "train"]
        self.figures["loop_tokens_per_second"] = train[-1]["tokens_per_second"]
        self.figures["loop_mfu"] = train[-1]["mfu"]
        self.figures["loop_first_held_out_loss"] = held_out[0]
        self.figures["loop_last_held_out_loss"] = held_out[-1]


class Silent:
    """A monitor and exporter that do nothing."""

    shown_file = "shown.jsonl"
    data_card = ""

    def measures(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure nothing."""
        return {}

    def warnings(self, *_: Any) -> list[str]:
        """Warn of nothing."""
        return []

    def show(self, *_: Any, **__: Any) -> tuple[str, list[dict[str, Any]]]:
        """Show nothing."""
        return "", []

    def write_config(self, model: Any, directory: Path) -> None:
        """Write nothing."""

    def export(self, model: Any, directory: Path) -> None:
        """Write nothing."""

    def card_fields(self, model: Any) -> dict[str, Any]:
        """Say nothing."""
        return {}


def muon(model: torch.nn.Module, iteration_dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Return the optimisers that the program takes by default."""
    return build_optimizers(
        model,
        name="muon",
        weight_decay=0.01,
        adam_betas=(0.9, 0.98),
        adam_epsilon=1e-6,
        iteration_dtype=iteration_dtype,
    )


def main() -> None:
    """Run the parts in the order of their worth, print and write what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    check = Check(arguments)
    check.run("ceilings", check.ceilings, seconds=10)
    check.run("equality", check.equality, seconds=10)
    check.run("kernels", check.kernels, seconds=10)
    check.run("waiting", check.waiting, seconds=20)
    check.run("loop", check.loop, seconds=60)
    sizes = ["tiny"] if check.is_quick else ["base", "mini", "small"]
    for size in sizes[:2]:
        check.run(f"update_{size}", partial(check.update, size), seconds=20)
    first = ["ours_packed", "stock_bf16"] + ["ours_compiled"] * (not check.is_quick)
    others = ["ours", "stock"] + ["stock_bf16_compiled"] * (not check.is_quick)
    # What is claimed comes first; the clock may leave out the end.
    for variants, lengths in ((first, (128,)), (first, (512,)), (others, (128, 512))):
        for size, length, variant in itertools.product(sizes, lengths, variants):
            seconds = 60 if variant.endswith("compiled") else 15
            run = partial(check.speed, size, length, variant)
            check.run(f"{size}_{length}_{variant}", run, seconds=seconds)
    for name, value in check.figures.items():
        print(f"{name:48} {value:,.4g}")
    for name, note in check.notes.items():
        print(f"{name}: {note}")
    raise SystemExit(any(not note.startswith(LEFT_OUT) for note in check.notes.values()))


if __name__ == "__main__":
    main()
