"""No update waits for the device, whatever is learnt.

A CPU cannot wait for itself, but the operations by which a host reads from a device are the same
ones there, and can be counted. On a GPU torch itself refuses them.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from trainers import bert_trainer, image_trainer
from transformers import AutoModelForMaskedLM

from bert_pretrain.models.fast_paths import choose_attention
from bert_pretrain.models.text_encoder_config import named_config

READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "item"}


class HostReads(TorchDispatchMode):
    """Collects the operations by which a host reads values, or a shape that hangs on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in READS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_counter_finds_what_a_host_reads() -> None:
    numbers = torch.arange(4.0)
    with HostReads() as reads:
        float(numbers.sum())
        numbers[numbers > 1]
        if numbers.any():
            pass
    assert reads.found == ["_local_scalar_dense", "index", "_local_scalar_dense"]


TASKS = {
    "mlm_nsp": lambda accelerator, folder: bert_trainer(accelerator, folder),
    "mlm": lambda accelerator, folder: bert_trainer(accelerator, folder, with_pairs=False),
    "adamw": lambda accelerator, folder: bert_trainer(accelerator, folder, optimizer="adamw"),
    "lamb": lambda accelerator, folder: bert_trainer(accelerator, folder, optimizer="lamb"),
    "averaged": lambda accelerator, folder: bert_trainer(accelerator, folder, ema_decay=0.9),
    "autoencoder": lambda accelerator, folder: image_trainer(accelerator, folder, "autoencoder"),
    "masked": lambda accelerator, folder: image_trainer(accelerator, folder, "masked"),
    "triplet": lambda accelerator, folder: image_trainer(accelerator, folder, "triplet"),
    "nt_xent": lambda accelerator, folder: image_trainer(accelerator, folder, "nt_xent"),
}


@pytest.mark.parametrize("task", TASKS)
def test_no_update_reads_from_the_device(task: str, tmp_path: Path) -> None:
    trainer = TASKS[task](Accelerator(cpu=True), tmp_path)
    # What a host counts of a batch, it counts before the batch leaves it.
    first, second = islice(trainer._windows(), 2)
    trainer._update(first, 1e-3)  # makes what is made once
    with HostReads() as reads:
        trainer._log(1e-3, trainer._update(second, 1e-3))
    assert reads.found == []


@pytest.mark.parametrize("name", [f"{kind}-tiny" for kind in ("roberta", "modernbert", "electra")])
def test_other_encoders_do_not_ask_whether_there_is_padding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # as on a GPU
    config = named_config(name, vocab_size=100, pad_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[0, 17:] = 0
    batch = {"input_ids": torch.randint(5, 100, (2, 24)), "attention_mask": mask}
    with torch.no_grad():
        with HostReads() as reads:
            expected = model(**batch).logits
        assert reads.found
        choose_attention(model, 24)
        with HostReads() as reads:
            found = model(**batch).logits
    assert reads.found == []
    torch.testing.assert_close(found[0, :17], expected[0, :17])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", TASKS)
def test_no_update_waits_for_a_gpu(task: str, tmp_path: Path) -> None:
    trainer = TASKS[task](Accelerator(mixed_precision="bf16"), tmp_path)
    windows = trainer._windows()
    trainer._update(next(windows), 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._log(1e-3, trainer._update(next(windows), 1e-3))
    finally:
        torch.cuda.set_sync_debug_mode("default")
